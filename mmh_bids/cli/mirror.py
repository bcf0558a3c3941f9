"""``--bids-mirror``: write it for the participants of a call, and say what is not harmonized in it."""

from __future__ import annotations

import logging
from collections import Counter

from mmh_bids.bids.mirror import mirror_participant
from mmh_bids.bids.mirror_dataset import TABLE, record_mirrored
from mmh_bids.bids.names import natural_key
from mmh_bids.bids.tsv import read_tsv
from mmh_bids.errors import EXIT_OK, EXIT_SOME_FAILED, ImageError
from mmh_bids.settings import Settings

logger = logging.getLogger("mmh")


def write_mirror(settings: Settings) -> int:
    """Mirror the participants that were asked for, or all of the dataset; the exit code says whether all could be.

    After the images were recorded in ``logs/images.tsv``, as the reasons come from there.
    """
    if settings.bids_mirror is None:
        return EXIT_OK
    table = settings.output_dir / "logs" / "images.tsv"
    rows = {row["image"]: row for row in (read_tsv(table, "image")[1] if table.is_file() else [])}
    labels = settings.participant_label or sorted(
        (path.name[4:] for path in settings.bids_dir.glob("sub-*") if path.is_dir()), key=natural_key
    )
    code, counts, images = EXIT_OK, Counter[str](), dict[str, str]()
    for label in dict.fromkeys(labels):
        try:
            done = mirror_participant(settings, label, rows)
        except (OSError, ImageError) as error:
            logger.error("%s: sub-%s is not whole: %s; run the same command again", settings.bids_mirror, label, error)
            code = EXIT_SOME_FAILED
            continue
        images |= done.images
        counts += done.counts
        for name in done.missing:
            logger.warning("%s: not in the mirror, as its content is not in the dataset; fetch it (datalad get)", name)
    for name, reason in images.items():
        if reason:
            logger.warning("%s: the mirror holds the ORIGINAL image: %s", name, reason)
    record_mirrored(settings, settings.bids_mirror, images)
    original = sum(map(bool, images.values()))
    logger.info(
        "mirror %s: %d harmonized, %d original T1w and T2w image(s) (%s); files: %d linked, %d copied, %d there before",
        settings.bids_mirror, len(images) - original, original, TABLE, counts["linked"], counts["copied"],
        counts["there"],
    )  # fmt: skip
    return code
