"""``mmh BIDS_DIR OUT_DIR participant``: from settings to harmonized images, reports and an exit code."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from nipype.pipeline.plugins import LinearPlugin

from mmh_bids import __version__
from mmh_bids.bids.dataset import ImageStatus, record_images, write_dataset_files
from mmh_bids.bids.derivatives import OutputPaths, harmonization_on_disk
from mmh_bids.bids.discovery import discover
from mmh_bids.bids.mirror_dataset import start_mirror
from mmh_bids.bids.reuse import check_derivatives, reuse_summary
from mmh_bids.bids.run import Run
from mmh_bids.bids.table import dry_run_table
from mmh_bids.bids.tsv import read_tsv
from mmh_bids.cli import records
from mmh_bids.cli.mirror import write_mirror
from mmh_bids.cli.parser import available_gb
from mmh_bids.cli.qc_fail import set_aside_unusable
from mmh_bids.cli.start import keep_records, no_room
from mmh_bids.errors import EXIT_NOTHING_TO_DO, EXIT_OK, EXIT_SOME_FAILED, ImageError, UsageError
from mmh_bids.files import sha256_file
from mmh_bids.interfaces.child import run_child
from mmh_bids.settings import Settings
from mmh_bids.workflows.base import Job, without_partners
from mmh_bids.workflows.execute import Executor, choose_plugin
from mmh_bids.workflows.plugin import PatientMultiProc
from mmh_bids.workflows.study import Study

logger = logging.getLogger("mmh")

#: Participants in one Nipype graph: enough to keep all processes busy, few enough for a graph that stays quick.
BATCH = 32


def run_participants(settings: Settings) -> int:
    """Do what was asked and return the exit code."""
    started = datetime.now(timezone.utc)
    run_id = started.strftime("%Y%m%d-%H%M%S-%f")[:-2]
    check_derivatives(settings.derivatives)
    plugin, _ = choose_plugin(settings)
    study = Study.prepare(settings)
    runs = of_reference_sequence(discover(settings), settings.target)
    jobs = {job.run.key: job for job in plan(runs, study)}
    runs = mark_done(runs, jobs, study)
    if settings.dry_run:
        print(dry_run_table(runs), end="")
        return EXIT_OK
    if plugin in (PatientMultiProc, LinearPlugin):
        check_device(settings)
    if settings.reports_only and not (settings.output_dir / "logs" / "images.tsv").is_file():
        raise UsageError(f"--reports-only: {settings.output_dir} holds no derivatives of mmh; leave the flag out")
    prepare_output(settings, run_id)
    if settings.boilerplate_only:
        records.write_boilerplate(settings, study, runs)
        return EXIT_OK
    if settings.reports_only:
        return records.write_reports(settings, study, runs, earlier_failures(settings))
    echo(settings, study, runs)
    failures = harmonize([jobs[run.key] for run in runs if run.action == "harmonize"], study, run_id)
    fresh = [run for run in runs if run.action == "harmonize" and run.key not in failures]
    say_not_reused(settings, fresh)
    excluded = set_aside_unusable(
        settings, [run for run in runs if run.action in ("harmonize", "done") and run.key not in failures]
    )
    if settings.qc_fail == "error":
        failures, excluded = failures | excluded, {}
    statuses = [status_of(run, failures, excluded) for run in runs]
    code = EXIT_OK
    for write in (
        lambda: record_images(settings, statuses),
        lambda: records.write_reports(settings, study, runs, failures),
        lambda: records.write_provenance_of(settings, study, fresh, run_id, started) if fresh else None,
        lambda: write_mirror(settings),
    ):
        code = max(code, attempt(write, settings.output_dir))
    return conclude(statuses, code)


def of_reference_sequence(runs: Sequence[Run], target: str) -> list[Run]:
    """With a T1w as reference (``image:`` target) only T1w images are harmonized, with a T2w only T2w images."""
    sequence = re.search(r"_(T[12]w)\.nii(\.gz)?$", target) if target.startswith("image:") else None
    reason = f"the reference of --target image: is a {sequence[1]} image" if sequence else ""
    return [
        dataclasses.replace(run, action="skip", reason=reason)
        if sequence and run.sequence != sequence[1] and run.action == "harmonize"
        else run
        for run in runs
    ]


def check_device(settings: Settings) -> None:
    """Raise UsageError if a CUDA device is asked for by name that this machine does not have.

    Plugins that send the steps to other machines are not asked: theirs may have it.
    """
    if settings.device.startswith("cuda"):
        try:
            run_child("device", {"device": settings.device}, settings.work_dir)
        except ImageError as error:
            raise UsageError(str(error)) from None


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


def echo(settings: Settings, study: Study, runs: Sequence[Run]) -> None:
    """Say what will be done, with what."""
    counts = {action: sum(run.action == action for run in runs) for action in ("harmonize", "done", "skip", "fail")}
    memory = settings.mem_gb or round(0.9 * available_gb(), 1)
    logger.info(
        "mmh %s: %d image(s) to harmonize, %d done before, %d skipped, %d unusable",
        __version__, counts["harmonize"], counts["done"], counts["skip"], counts["fail"],
    )  # fmt: skip
    logger.info(
        "method %s, model %s, target %s; %d process(es), %g GB, device %s%s",
        settings.method, study.bundle.name, settings.target, settings.nprocs, memory, settings.device,
        "; SLOPPY, for tests only" if settings.sloppy else "",
    )  # fmt: skip
    if settings.derivatives:
        usable = [run for run in runs if run.action in ("harmonize", "done")]
        logger.info("--derivatives: %s", reuse_summary(usable, settings.derivatives))
    for run in runs:
        if run.action in ("skip", "fail"):
            logger.warning("%s: %s: %s", run.key, {"skip": "skipped", "fail": "FAILED"}[run.action], run.reason)


def prepare_output(settings: Settings, run_id: str) -> None:
    """Make the output folder and its dataset-level files, and keep a copy of the settings."""
    try:
        settings.output_dir.mkdir(parents=True, exist_ok=True)
        write_dataset_files(settings)
        keep_records(settings, run_id)
    except OSError as error:
        raise no_room(settings, error) from None
    if settings.bids_mirror and not (settings.boilerplate_only or settings.reports_only):
        try:
            start_mirror(settings, settings.bids_mirror)
        except OSError as error:
            raise UsageError(
                f"--bids-mirror {settings.bids_mirror}: cannot be written ({error.strerror or error}); choose another "
                "folder, or make room and give yourself permission there"
            ) from None


def harmonize(jobs: Sequence[Job], study: Study, run_id: str) -> dict[str, str]:
    """Run the jobs in batches of participants; return what went wrong, by image.

    An image that only failed because its T1w did (or because a worker next to it was killed) gets a second try alone.
    """
    failures: dict[str, str] = {}
    executor = Executor(study, run_id, total=len(jobs))
    for batch in batches(jobs, BATCH):
        failed = executor.run(batch)
        again = [job for job in batch if job.run.key in failed and is_collateral(job, failed)]
        if again and not study.settings.stop_on_first_crash:
            logger.info("%d image(s) are tried again alone", len(again))
            for job in again:
                failed.pop(job.run.key)
            failed |= executor.run(without_partners(again, set(failed)))
        failures |= failed
        if study.settings.clean_workdir:
            for job in batch:
                if job.run.key not in failed:
                    shutil.rmtree(study.settings.work_dir / "mmh_wf" / f"{job.run.node_name}_wf", ignore_errors=True)
        if failed and study.settings.stop_on_first_crash:
            break
    why = "the call stopped at the first error (--stop-on-first-crash)" if study.settings.stop_on_first_crash else ""
    for job in jobs:
        if not failures.get(job.run.key) and not executor.is_complete(job):
            reason = f"was not processed{', as ' if why else ''}{why}"
            failures[job.run.key] = f"{job.run.path}: {reason}; run the same command again"
    return failures


def say_not_reused(settings: Settings, runs: Sequence[Run]) -> None:
    """Say of which images another pipeline's transform was found but could not be used."""
    for run in runs:
        facts = harmonization_on_disk(OutputPaths(settings.output_dir, run))
        why = facts.get("Registration", {}).get("NotReused")
        if why:
            logger.warning("%s: registered anew: %s", run.key, why)


def is_collateral(job: Job, failed: dict[str, str]) -> bool:
    """Whether the image may do well without its failed neighbour."""
    return (job.partner in failed and not failed[job.run.key]) or "worker process was killed" in failed[job.run.key]


def batches(jobs: Sequence[Job], size: int) -> Iterable[list[Job]]:
    """Jobs of `size` participants at a time, in order."""
    participants = list(dict.fromkeys(job.run.participant for job in jobs))
    for start in range(0, len(participants), size):
        chosen = set(participants[start : start + size])
        yield [job for job in jobs if job.run.participant in chosen]


def status_of(run: Run, failures: dict[str, str], excluded: dict[str, str]) -> ImageStatus:
    """What became of one image."""
    if run.action == "skip":
        return ImageStatus(run, "skipped", run.reason)
    if run.action == "fail":
        return ImageStatus(run, "failed", run.reason)
    if run.key in failures:
        return ImageStatus(run, "failed", failures[run.key])
    if run.key in excluded:
        return ImageStatus(run, "excluded", excluded[run.key])
    return ImageStatus(dataclasses.replace(run, reason=""), "done")


def earlier_failures(settings: Settings) -> dict[str, str]:
    """Why images failed in earlier calls, by image key, from ``logs/images.tsv``."""
    path = settings.output_dir / "logs" / "images.tsv"
    rows = read_tsv(path, "image")[1] if path.exists() else []
    return {Path(row["image"]).name.split(".")[0]: row["message"] for row in rows if row["status"] == "failed"}


def attempt(write: Callable[[], object], output_dir: Path) -> int:
    """Write one of the records; a full disk costs that record, not the others, and exit code 1."""
    try:
        result = write()
    except OSError as error:
        logger.error(
            "%s: %s; the records of this call are not whole: free space there and run the same command again",
            output_dir, error.strerror or error,
        )  # fmt: skip
        return EXIT_SOME_FAILED
    return result if isinstance(result, int) else EXIT_OK


def conclude(statuses: Sequence[ImageStatus], code: int) -> int:
    """Log one line an image that failed, and the sum; return the exit code."""
    failed = [status for status in statuses if status.status == "failed"]
    for status in failed:
        logger.error("%s: FAILED: %s", status.run.key, status.message)
    counts = Counter(status.status for status in statuses)
    excluded = f"{counts['excluded']} excluded, " if counts["excluded"] else ""
    logger.info(
        "%d image(s) harmonized, %s%d failed, %d skipped", counts["done"], excluded, counts["failed"], counts["skipped"]
    )
    if failed or code != EXIT_OK:
        return EXIT_SOME_FAILED
    return EXIT_OK if counts["done"] or counts["excluded"] else EXIT_NOTHING_TO_DO
