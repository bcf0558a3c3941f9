"""Quality numbers of one harmonized image against its input, on the input's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.image.edges import gradient_magnitude, pearson
from mmh_bids.image.grid import bounding_box
from mmh_bids.image.intensity import MonotoneMap, wasserstein
from mmh_bids.image.tissue import segment


def image_qc(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    mask: NDArray[np.bool_],
    voxel_volume_ml: float,
    sequence: str,
    intensity_map: MonotoneMap,
    before_scale: tuple[float, float] = (0.0, 1.0),
    after_scale: tuple[float, float] = (0.0, 1.0),
    reference_quantiles: Sequence[float] | NDArray[np.float64] | None = None,
) -> dict[str, float | bool]:
    """Measure what harmonization did to an image.

    Parameters
    ----------
    before, after
        (X, Y, Z) input (bias-corrected) and output, each in its own units.
    mask
        (X, Y, Z) bool, the brain; at least one voxel.
    voxel_volume_ml
        Volume of a voxel in mL.
    sequence
        ``"T1w"`` or ``"T2w"``.
    intensity_map
        The curve by which the change was carried to this grid.
    before_scale, after_scale
        The intensities that are 0 and 1 on the model's scale, for the distances to the reference.
    reference_quantiles
        Quantiles of the target's intensities on the model's scale; without them there is no distance.

    Returns
    -------
    Plain floats (6 significant digits) and bools by the names in the sidecar:

    - GradientCorrelation: Pearson correlation of the gradient magnitudes in the eroded mask, 1 = same edges. A
      change of contrast alone lowers it: it gives edges other weights, and noise.
    - MappedGradientCorrelation: the same of the output and the input seen through the intensity map, which moves no
      edge: falls with blur, halos and invented edges only.
    - RangeMin, RangeMax: of the output in the mask, in the units written.
    - Finite, NonNegative: of the whole output.
    - IntensityMapMonotone.
    - BrainMaskVolume, ParenchymaVolumeBefore, ParenchymaVolumeAfter: mL; parenchyma is what the three-class
      segmentation does not call CSF, 0 where it finds no three classes. Voxels of the mask where the input has
      no signal count for neither this nor the next two.
    - WhiteGreyContrastBefore, WhiteGreyContrastAfter: difference of the class means over their average.
    - ReferenceDistanceBefore, ReferenceDistanceAfter: Wasserstein-1 distance of the histogram in the mask to the
      reference, in units of the model's scale (1 = the brightest of the brain).
    """
    box = bounding_box(mask, margin=1)
    inside = mask[box]
    finite = bool(np.isfinite(after).all())
    old, new = before[box], after[box]
    if not finite:
        new = np.nan_to_num(new, nan=0.0, posinf=0.0, neginf=0.0)
    # Voxels without signal (a mask wider than a stripped brain) are no tissue, and no part of the reference either.
    signal = inside & (old > before_scale[0])
    signal = signal if signal.any() else inside
    values_after = new[inside]
    mapped = intensity_map((old - np.float32(before_scale[0])) / np.float32(before_scale[1] - before_scale[0]))
    qc: dict[str, Any] = {
        "GradientCorrelation": gradient_correlation(old, new, inside),
        "MappedGradientCorrelation": gradient_correlation(mapped, new, inside),
        "RangeMin": values_after.min(),
        "RangeMax": values_after.max(),
        "Finite": finite,
        "NonNegative": not bool((after < 0).any()),
        "IntensityMapMonotone": intensity_map.is_monotone,
        "BrainMaskVolume": float(inside.sum()) * voxel_volume_ml,
    }
    for when, image, scale in (("Before", old, before_scale), ("After", new, after_scale)):
        unit = (image[signal] - np.float32(scale[0])) / np.float32(scale[1] - scale[0])
        share, contrast = _tissue(unit, sequence)
        qc[f"ParenchymaVolume{when}"] = share * float(signal.sum()) * voxel_volume_ml
        qc[f"WhiteGreyContrast{when}"] = contrast
        if reference_quantiles is not None:
            qc[f"ReferenceDistance{when}"] = wasserstein(unit, np.asarray(reference_quantiles))
    return {name: value if isinstance(value, bool) else float(f"{value:.6g}") for name, value in qc.items()}


def _tissue(values: NDArray[Any], sequence: str) -> tuple[float, float]:
    """Share of parenchyma and white-grey contrast; zeros where there are no three classes: the report flags it."""
    try:
        tissue = segment(values, sequence)
    except ImageError:
        return 0.0, 0.0
    return tissue.share("GM", "WM"), tissue.white_grey_contrast


def gradient_correlation(before: NDArray[Any], after: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    """Pearson correlation of two images' gradient magnitudes in the mask eroded by one voxel.

    It does not change when an image is scaled or shifted, and falls with blur, halos and invented edges. The
    erosion keeps the brain's outline, which a mask may have cut, out of the gradients; a mask too thin to be
    eroded is used whole. Two images without any edge are alike (1.0); one with and one without are not
    (0.0).

    Parameters
    ----------
    before, after
        (X, Y, Z) finite.
    mask
        (X, Y, Z) bool.

    Examples
    --------
    >>> image = np.random.default_rng(0).random((9, 9, 9))
    >>> round(gradient_correlation(image, 5 * image + 3, np.ones((9, 9, 9), bool)), 6)
    1.0
    """
    from scipy.ndimage import binary_erosion

    inner = binary_erosion(mask)
    inner = inner if inner.any() else mask
    first, second = (gradient_magnitude(image)[inner] for image in (before, after))
    found = pearson(first, second)
    if np.isnan(found):
        return 1.0 if np.ptp(first) == np.ptp(second) == 0 else 0.0
    return found
