"""``mmh BIDS_DIR OUT_DIR participant``: from settings to harmonized images, reports and an exit code."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from nipype.pipeline.plugins import LinearPlugin

from mmh_bids import __version__
from mmh_bids.bids.calls import Begun
from mmh_bids.bids.dataset import ImageStatus, record_images, write_dataset_files
from mmh_bids.bids.derivatives import OutputPaths, harmonization_on_disk
from mmh_bids.bids.discovery import discover
from mmh_bids.bids.mirror_dataset import start_mirror
from mmh_bids.bids.reuse import check_derivatives, reuse_summary
from mmh_bids.bids.run import Run
from mmh_bids.bids.table import dry_run_table
from mmh_bids.bids.tsv import read_tsv
from mmh_bids.cli import records
from mmh_bids.cli.batches import harmonize
from mmh_bids.cli.mirror import write_mirror
from mmh_bids.cli.plan import costs_of, estimate, mark_done, only_failed, plan, short_of_memory
from mmh_bids.cli.qc_fail import set_aside_unusable
from mmh_bids.cli.start import at_work, no_room
from mmh_bids.errors import EXIT_NOTHING_TO_DO, EXIT_OK, EXIT_SOME_FAILED, ImageError, UsageError
from mmh_bids.interfaces.child import run_child
from mmh_bids.machine import available_gb
from mmh_bids.settings import Settings
from mmh_bids.workflows.base import Job
from mmh_bids.workflows.execute import choose_plugin
from mmh_bids.workflows.plugin import PatientMultiProc
from mmh_bids.workflows.study import Study

logger = logging.getLogger("mmh")


def run_participants(settings: Settings) -> int:
    """Do what was asked and return the exit code."""
    check_derivatives(settings.derivatives)
    here = works_here(settings)
    if settings.failed_only:
        settings = only_failed(settings)
    study = Study.prepare(settings)
    runs = of_reference_sequence(discover(settings), settings.target)
    jobs = {job.run.key: job for job in plan(runs, study)}
    runs = mark_done(runs, jobs, study)
    if settings.dry_run:
        costs = costs_of(runs, study)
        print(dry_run_table(runs, costs), end="")
        logger.info(estimate(runs, costs))
        return EXIT_OK
    if here:
        check_device(settings)
    if settings.reports_only and not (settings.output_dir / "logs" / "images.tsv").is_file():
        raise UsageError(f"--reports-only: {settings.output_dir} holds no derivatives of mmh; leave the flag out")
    makes = not (settings.reports_only or settings.boilerplate_only)
    todo = [jobs[run.key] for run in runs if run.action == "harmonize"] if makes else []
    begun = [Begun(job.run, job.fingerprint) for job in todo]
    with at_work(settings, begun, {run.participant for run in runs}) as run_id:
        start_output(settings)
        if settings.boilerplate_only:
            records.write_boilerplate(settings, study, runs)
            return EXIT_OK
        if settings.reports_only:
            return records.write_reports(settings, study, runs, earlier_failures(settings))
        return _make(settings, study, runs, todo, run_id)


def _make(settings: Settings, study: Study, runs: Sequence[Run], todo: Sequence[Job], run_id: str) -> int:
    """Harmonize what is to be done, write down what became of everything, and return the exit code."""
    started = datetime.now(timezone.utc)
    echo(settings, study, runs)
    try:
        failures, elsewhere = harmonize(todo, study, run_id)
    except BaseException as error:
        record_images(settings, unfinished(runs, todo, settings, isinstance(error, KeyboardInterrupt)))
        raise
    fresh = [job.run for job in todo if job.run.key not in failures and job.run.key not in elsewhere]
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


def works_here(settings: Settings) -> bool:
    """Whether the steps run on this machine, and not where a plugin sends them. Raises UsageError for no plugin."""
    return choose_plugin(settings)[0] in (PatientMultiProc, LinearPlugin)


def check_device(settings: Settings) -> None:
    """Raise UsageError if a CUDA device is asked for by name that this machine does not have.

    Plugins that send the steps to other machines are not asked: theirs may have it.
    """
    if settings.device.startswith("cuda"):
        try:
            run_child("device", {"device": settings.device}, settings.work_dir)
        except ImageError as error:
            raise UsageError(str(error)) from None


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
    if works_here(settings):
        short = short_of_memory(costs_of(runs, study), memory)
        if short:
            logger.warning(short)
    for run in runs:
        if run.action in ("skip", "fail"):
            logger.warning("%s: %s: %s", run.key, {"skip": "skipped", "fail": "FAILED"}[run.action], run.reason)


def start_output(settings: Settings) -> None:
    """Write the dataset-level files of the output folder, and of the mirror where one is asked for."""
    try:
        write_dataset_files(settings)
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


def say_not_reused(settings: Settings, runs: Sequence[Run]) -> None:
    """Say of which images another pipeline's transform was found but could not be used."""
    for run in runs:
        facts = harmonization_on_disk(OutputPaths(settings.output_dir, run))
        why = facts.get("Registration", {}).get("NotReused")
        if why:
            logger.warning("%s: registered anew: %s", run.key, why)


def unfinished(
    runs: Iterable[Run], todo: Iterable[Job], settings: Settings, interrupted: bool
) -> Iterator[ImageStatus]:
    """What became of the images of a call that did not come to its end."""
    jobs = {job.run.key: job for job in todo}
    how = "interrupted" if interrupted else "ended by an error"
    for run in runs:
        paths = OutputPaths(settings.output_dir, run)
        job = jobs.get(run.key)
        if job and harmonization_on_disk(paths).get("Fingerprint") != job.fingerprint:
            yield ImageStatus(run, "failed", f"{run.path}: the call was {how}; run the same command again")
        elif run.action != "done":  # nobody has looked at the quality of those yet
            yield status_of(run, {}, {})


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
