"""Harmonize the images of a call, some participants at a time, each session by one call at a time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence

from mmh_bids.bids.calls import sessions_locked
from mmh_bids.bids.derivatives import OutputPaths, harmonization_on_disk
from mmh_bids.cli.plan import mark_done
from mmh_bids.reports.figures import TITLES
from mmh_bids.workflows.base import Job, without_partners
from mmh_bids.workflows.execute import Executor
from mmh_bids.workflows.study import Study

logger = logging.getLogger("mmh")

#: Participants in one Nipype graph: enough to keep all processes busy, few enough for a graph that stays quick.
BATCH = 32


def harmonize(jobs: Sequence[Job], study: Study, run_id: str) -> tuple[dict[str, str], set[str]]:
    """Run the jobs in batches of participants; return what went wrong, by image, and which images others did meanwhile.

    An image that only failed because its T1w did (or because a worker next to it was killed) gets a second try alone.
    """
    settings = study.settings
    failures: dict[str, str] = {}
    elsewhere: set[str] = set()
    executor = Executor(study, run_id, total=len(jobs))
    locks = (settings.work_dir / "locks", settings.output_dir / "logs" / "locks")
    for batch in batches(jobs, BATCH):
        with sessions_locked(locks, (job.run for job in batch)):
            left = still_to_do(batch, study)
            elsewhere |= {job.run.key for job in batch} - {job.run.key for job in left}
            forget_outdated(left, study)
            failed = run_batch(executor, left)
        failures |= failed
        if settings.clean_workdir:
            for job in left:
                if job.run.key not in failed:
                    shutil.rmtree(settings.work_dir / "mmh_wf" / f"{job.run.node_name}_wf", ignore_errors=True)
        if failed and settings.stop_on_first_crash:
            break
    why = "the call stopped at the first error (--stop-on-first-crash)" if settings.stop_on_first_crash else ""
    for job in jobs:
        if not failures.get(job.run.key) and job.run.key not in elsewhere and not executor.is_complete(job):
            reason = f"was not processed{', as ' if why else ''}{why}"
            failures[job.run.key] = f"{job.run.path}: {reason}; run the same command again"
    return failures, elsewhere


def run_batch(executor: Executor, batch: Sequence[Job]) -> dict[str, str]:
    """Run a batch, and what failed through no fault of its own a second time; return what went wrong, by image."""
    failed = executor.run(batch) if batch else {}
    again = [job for job in batch if job.run.key in failed and is_collateral(job, failed)]
    if again and not executor.study.settings.stop_on_first_crash:
        logger.info("%d image(s) are tried again alone", len(again))
        for job in again:
            failed.pop(job.run.key)
        failed |= executor.run(without_partners(again, set(failed)))
    return failed


def still_to_do(batch: Sequence[Job], study: Study) -> list[Job]:
    """The jobs without those that another call did since the plan was made."""
    jobs = {job.run.key: job for job in batch}
    return [jobs[run.key] for run in mark_done([job.run for job in batch], jobs, study) if run.action == "harmonize"]


def forget_outdated(batch: Iterable[Job], study: Study) -> None:
    """Remove figures and features of other settings: a call that dies before it draws them anew must not keep them."""
    for job in batch:
        paths = OutputPaths(study.settings.output_dir, job.run)
        if harmonization_on_disk(paths).get("Fingerprint") != job.fingerprint:
            for path in (paths.features, *(paths.figure(name) for name in TITLES)):
                path.unlink(missing_ok=True)


def is_collateral(job: Job, failed: dict[str, str]) -> bool:
    """Whether the image may do well without its failed neighbour."""
    return (job.partner in failed and not failed[job.run.key]) or "worker process was killed" in failed[job.run.key]


def batches(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Jobs of `size` participants at a time, in order."""
    participants = list(dict.fromkeys(job.run.participant for job in jobs))
    for start in range(0, len(participants), size):
        chosen = set(participants[start : start + size])
        yield [job for job in jobs if job.run.participant in chosen]
