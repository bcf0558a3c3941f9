"""``mmh BIDS_DIR OUT_DIR group``: tables and reports over all images of an output folder."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from mmh_bids.bids.calls import calls_dir
from mmh_bids.bids.dataset import check_output_dir, dataset_lock, update_bidsignore
from mmh_bids.bids.inventory import OutputImage, find_images
from mmh_bids.cli.start import at_work, no_room
from mmh_bids.errors import EXIT_OK, EXIT_SOME_FAILED, NothingToDoError
from mmh_bids.evaluation.group_distances import compare
from mmh_bids.evaluation.group_gather import PROCESS_GB, gather
from mmh_bids.evaluation.group_summary import summarize
from mmh_bids.evaluation.group_table import GroupImage, write_table
from mmh_bids.evaluation.pool import KILLED
from mmh_bids.machine import available_gb
from mmh_bids.settings import Settings

logger = logging.getLogger("mmh")


def run_group(settings: Settings) -> int:
    """Write ``group_<sequence>.tsv``, ``.json`` and ``.html`` for each sequence there is; return the exit code.

    Raises
    ------
    NothingToDoError
        The output folder holds no image of these sequences.
    UsageError
        It cannot be written, or holds another program's derivatives.
    """
    if not settings.output_dir.is_dir():
        raise NothingToDoError(f"{settings.output_dir}: does not exist; run the participant level first")
    if settings.dry_run:
        for image in _found(settings):
            print("\t".join((image.key, image.run.sequence, image.run.site or "n/a", image.status)))
        return EXIT_OK
    # calls that were killed left images, too, but nobody has counted them yet
    killed = any(calls_dir(settings.output_dir).glob("*.lock"))
    images = [] if killed else _found(settings)
    with at_work(settings):
        return _compare(settings, images or _found(settings))


def _compare(settings: Settings, images: Sequence[OutputImage]) -> int:
    """Tables and pages about the images; the exit code."""
    try:
        update_bidsignore(settings.output_dir)
    except OSError as error:
        raise no_room(settings, error) from None
    if settings.participant_label or settings.session_label:
        logger.warning("group: everybody in %s counts, whatever labels are asked for", settings.output_dir)
    counts = Counter(image.run.sequence for image in images)
    logger.info("group: %s", ", ".join(f"{count} {name} image(s)" for name, count in sorted(counts.items())))
    read = gather(images, settings.output_dir, processes(settings), logger.info)
    for key, problem in read.problems.items():
        logger.error("%s: left out: %s", key, problem)
    failed = bool(read.problems)
    for sequence in settings.modalities:
        asked = [image.key for image in images if image.run.sequence == sequence]
        if asked:
            problems = {key: read.problems[key] for key in asked if key in read.problems}
            own = [image for image in read.images if image.source.run.sequence == sequence]
            failed |= not write_sequence(settings, sequence, own, problems)
    return EXIT_SOME_FAILED if failed else EXIT_OK


def write_sequence(settings: Settings, sequence: str, images: Sequence[GroupImage], problems: dict[str, str]) -> bool:
    """Table and page of one sequence; jobs that end at the same time write them in turn.

    Returns
    -------
    Whether all could be measured; the page says what could not.
    """
    from mmh_bids.reports.group import headline, write_group_report

    compared = compare(images)
    summary = summarize(compared, settings.random_seed, processes(settings))
    table = settings.output_dir / f"group_{sequence}.tsv"
    with dataset_lock(settings.output_dir):
        write_table(compared, table)
        write_group_report(table.with_suffix(".html"), sequence, compared, summary, problems)
    logger.info("%s: %s", table.with_suffix(".html").name, headline(compared, summary, problems))
    lost = [answer for answer in summary.answers if answer.refusal == KILLED]
    for answer in lost:
        logger.error("%s: %s of %s %s: %s", sequence, answer.kind, answer.feature, answer.when, KILLED)
    return not lost


def processes(settings: Settings) -> int:
    """How many processes may run at a time, by ``--nprocs`` and ``--mem``."""
    memory = settings.mem_gb or 0.9 * available_gb()
    return max(1, min(settings.nprocs, int(memory / PROCESS_GB)))


def _found(settings: Settings) -> list[OutputImage]:
    check_output_dir(settings.output_dir)
    images = find_images(settings.bids_dir, settings.output_dir, settings.modalities)
    if not images:
        names = " or ".join(settings.modalities)
        raise NothingToDoError(
            f"{settings.output_dir}: holds no {names} image that mmh worked on; run the participant level first"
        )
    return images
