"""The features of one image of an output folder: read from their file, or measured on the image's derivatives."""

from __future__ import annotations

from mmh_bids.bids.derivatives import OutputPaths, read_sidecar, sidecar_path
from mmh_bids.errors import ImageError
from mmh_bids.evaluation.features import (
    ImageFeatures,
    features_of_file,
    load_features,
    output_scale,
    save_features,
)

#: What a file of features holds: the preprocessed and the harmonized image.
BEFORE, AFTER = "before", "after"


def measure_features(paths: OutputPaths) -> dict[str, ImageFeatures]:
    """Measure an image on its derivatives, before and after.

    The preprocessed image is scaled by its own 99.9th percentile in the brain, the harmonized one by its sidecar's
    ``OutputScale``.

    Raises
    ------
    ImageError
        A derivative is missing, damaged or without a brain; the message names it.
    """
    harmonized, sequence = paths.harmonized(), paths.run.sequence
    needed = (paths.preproc, harmonized, paths.brain_mask, paths.transform(), sidecar_path(harmonized))
    for path in needed:
        if not path.is_file():
            raise ImageError(f"{path}: no such file; run the participant level again")
    upper = output_scale(read_sidecar(sidecar_path(harmonized)))
    return {
        name: features_of_file(image, paths.brain_mask, paths.transform(), sequence, scale)
        for name, image, scale in ((BEFORE, paths.preproc, None), (AFTER, harmonized, upper))
    }


def kept_features(paths: OutputPaths) -> dict[str, ImageFeatures] | None:
    """Features as an earlier step left them; None where it left none, unusable ones, or those of another image.

    A file that is older than the harmonized image's sidecar belongs to another image.
    """
    try:
        if paths.features.stat().st_mtime < sidecar_path(paths.harmonized()).stat().st_mtime:
            return None
        found = load_features(paths.features)
    except (OSError, ImageError):
        return None
    return found if {BEFORE, AFTER} <= set(found) else None


def image_features(paths: OutputPaths) -> dict[str, ImageFeatures]:
    """Features as an earlier step left them; measured and kept where there are none.

    Raises
    ------
    ImageError
        As `measure_features`.
    OSError
        They cannot be written.
    """
    found = kept_features(paths)
    if found is None:
        found = measure_features(paths)
        save_features(paths.features, found)
    return found
