"""What a call of the participant level is to do: who is left, who borrows from whom, what it may cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmh_bids.bids.calls import killed_calls
from mmh_bids.bids.derivatives import OutputPaths
from mmh_bids.bids.names import natural_key
from mmh_bids.bids.run import Run
from mmh_bids.bids.tsv import read_tsv
from mmh_bids.cli import records
from mmh_bids.errors import NothingToDoError
from mmh_bids.files import sha256_file
from mmh_bids.settings import Settings
from mmh_bids.workflows.base import Job
from mmh_bids.workflows.resources import image_gb, image_minutes, volume_gb
from mmh_bids.workflows.study import Study


def plan(runs: Sequence[Run], study: Study) -> list[Job]:
    """A job for every image to harmonize: who borrows from whom, and the hash of all that decides its outputs."""
    usable = [run for run in runs if run.action == "harmonize"]
    sources = {run.key: hash_or_nothing(run.path) for run in usable}
    t1ws = [run for run in usable if run.sequence == "T1w"]
    jobs = []
    for run in usable:
        partner = find_partner(run, t1ws) if run.sequence == "T2w" else None
        # a T1w that was replaced changes the mask and the transform that its T2w borrows
        lender = f"{partner.key} {sources[partner.key]}" if partner else ""
        fingerprint = study.fingerprint(run, sources[run.key], lender)
        jobs.append(Job(run, fingerprint, sources[run.key], partner.key if partner else None))
    return jobs


def hash_or_nothing(path: Path) -> str:
    """Hash of a source image; empty if it cannot be read: the check in the workflow says why."""
    try:
        return sha256_file(path)
    except OSError:
        return ""


def find_partner(t2w: Run, t1ws: Iterable[Run]) -> Run | None:
    """The T1w of the same participant and session that shares most entities with the T2w; the first of equals."""
    same = [run for run in t1ws if (run.participant, run.session) == (t2w.participant, t2w.session)]
    return max(same, key=lambda run: len(set(run.entities.items()) & set(t2w.entities.items())), default=None)


def mark_done(runs: Sequence[Run], jobs: dict[str, Job], study: Study) -> list[Run]:
    """Give images whose outputs are there, made from the same file with the same settings, the action ``done``."""
    settings, spaces = study.settings, [space.name for space in study.spaces]
    out = []
    for run in runs:
        job = jobs.get(run.key)
        paths = OutputPaths(settings.output_dir, run)
        if job and records.fingerprint_on_disk(paths, spaces, settings.qc_fail) == job.fingerprint:
            run = dataclasses.replace(run, action="done", reason="the output is there already")
        out.append(run)
    # A T2w that is not done borrows from its T1w as in any other call, or a resumed one would give it another mask.
    wanted = {jobs[run.key].partner for run in out if run.action == "harmonize" and run.key in jobs}
    return [
        dataclasses.replace(run, action="harmonize", reason="its T2w borrows from it")
        if run.action == "done" and run.key in wanted
        else run
        for run in out
    ]


def only_failed(settings: Settings) -> Settings:
    """Limit the call to participants of whom an image failed, or of whom a killed call left one unfinished.

    Raises
    ------
    NothingToDoError
        There are none.
    """
    table = settings.output_dir / "logs" / "images.tsv"
    rows = read_tsv(table, "image")[1] if table.is_file() else []
    labels = {row["participant_id"].removeprefix("sub-") for row in rows if row["status"] == "failed"}
    with killed_calls(settings.output_dir, settings.bids_dir, take=False) as killed:
        labels |= {image.run.participant for call in killed for image in call.images}
    if settings.participant_label:
        labels &= set(settings.participant_label)
    if not labels:
        raise NothingToDoError(f"--failed-only: nothing that was asked for has failed in {settings.output_dir}")
    return dataclasses.replace(settings, participant_label=tuple(sorted(labels, key=natural_key)))


def costs_of(runs: Iterable[Run], study: Study) -> dict[str, tuple[float | None, float]]:
    """About how many minutes one process takes for each image that is to be made, and how many GB it needs."""
    spaces = sum(space.brain is not None for space in study.spaces)
    todo = [run for run in runs if run.action == "harmonize"]
    costs = {}
    for run in todo:
        gb = volume_gb(run.path)
        minutes = image_minutes(gb, study.settings.method, run.sequence, spaces)
        costs[run.key] = (minutes, image_gb(gb, study.method_gb))
    return costs


def estimate(runs: Iterable[Run], costs: Mapping[str, tuple[float | None, float]]) -> str:
    """One line for people about what `costs_of` says of each image."""
    people = {run.participant for run in runs if run.key in costs}
    minutes = [minutes for minutes, _ in costs.values()]
    time = "nobody knows how long" if None in minutes else f"about {sum(filter(None, minutes)):.0f} minute(s)"
    gb = max((gb for _, gb in costs.values()), default=0)
    return (
        f"estimate: {len(costs)} image(s) of {len(people)} participant(s), {time} on one process of an idle machine, "
        f"{gb:.1f} GB a process"
    )


def short_of_memory(costs: Mapping[str, tuple[float | None, float]], allowed_gb: float) -> str:
    """One line if images may need more than `allowed_gb` GB, with the remedy; else nothing.

    >>> short_of_memory({"sub-1_T1w": (0.9, 2.5), "sub-2_T1w": (2.0, 4.1)}, 3.6)  # doctest: +ELLIPSIS
    '1 image(s) may need more than the 3.6 GB that this call may use (sub-2_T1w: 4.1 GB), and be killed for it; ...'
    >>> short_of_memory({"sub-1_T1w": (0.9, 2.5)}, 3.6)
    ''
    """
    large = {key: gb for key, (_, gb) in costs.items() if gb > allowed_gb}
    if not large:
        return ""
    largest = max(large, key=lambda key: large[key])
    return (
        f"{len(large)} image(s) may need more than the {allowed_gb:g} GB that this call may use "
        f"({largest}: {large[largest]:.1f} GB), and be killed for it; give it more: --mem, the limit of the job or of "
        "the container"
    )
