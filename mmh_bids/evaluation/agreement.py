"""How alike two images of one person are, voxel by voxel and as histograms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmh_bids.image.grid import bounding_box

Item = TypeVar("Item")
#: Edge of the window of the structural similarity, voxels.
SSIM_WINDOW = 7


def mean_over_pairs(items: Sequence[Item], measure: Callable[[Item, Item], float]) -> float:
    """Mean of a measure over all pairs of items; ValueError for fewer than two.

    Examples
    --------
    >>> mean_over_pairs([0.0, 1.0, 3.0], lambda a, b: abs(a - b))
    2.0
    """
    pairs = list(itertools.combinations(items, 2))
    if not pairs:
        raise ValueError(f"a comparison needs two images at least, got {len(items)}")
    return float(np.mean([measure(first, second) for first, second in pairs]))


def voxel_mae(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Mean absolute difference of (N,) intensities in the same voxels, in their units.

    Examples
    --------
    >>> voxel_mae(np.array([1.0, 2.0]), np.array([1.5, 1.5]))
    0.5
    """
    return float(np.abs(first.astype(np.float64) - second).mean())


def wasserstein1(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Wasserstein-1 distance of two histograms, exact, in the units of the intensities.

    Parameters
    ----------
    first, second
        (N,) intensities; equally many, so that the distance is the mean difference of the sorted ones.

    Raises
    ------
    ValueError
        If there are not equally many, or none.

    Examples
    --------
    Where a value lies makes no difference:

    >>> wasserstein1(np.array([3.0, 1.0, 2.0]), np.array([1.5, 2.5, 3.5]))
    0.5
    """
    if first.size != second.size or first.size == 0:
        raise ValueError(f"needs equally many values and at least one, got {first.size} and {second.size}")
    return voxel_mae(np.sort(first, axis=None), np.sort(second, axis=None))


def ssim(first: NDArray[np.float32], second: NDArray[np.float32], mask: NDArray[np.bool_], data_range: float) -> float:
    """Mean structural similarity inside a mask, uniform window of 7 voxels an axis.

    Parameters
    ----------
    first, second
        (X, Y, Z) in the same units; what lies outside the mask counts as zero in both.
    mask
        (X, Y, Z) bool.
    data_range
        Span of the intensities, above 0, in the units of the images.

    Returns
    -------
    -1 to 1, 1 for equal images.

    Raises
    ------
    ValueError
        If `data_range` is not above 0 or the mask is empty.

    Notes
    -----
    Wang et al., IEEE Trans Image Process 2004;13:600, with their constants; as MONAI, several times faster.

    Examples
    --------
    >>> image = np.random.default_rng(0).random((12, 12, 12), dtype=np.float32)
    >>> mask = np.ones(image.shape, bool)
    >>> round(ssim(image, image, mask, 1.0), 4), ssim(image, 1 - image, mask, 1.0) < 0
    (1.0, True)
    """
    from scipy.ndimage import uniform_filter

    if not data_range > 0:
        raise ValueError(f"the span of the intensities must be above 0, got {data_range}")
    box = bounding_box(mask)
    inside = mask[box]
    x, y = (np.where(inside, image[box], 0).astype(np.float64) for image in (first, second))

    def mean(image: NDArray[np.float64]) -> NDArray[np.float64]:
        return uniform_filter(image, SSIM_WINDOW, mode="constant")

    mean_x, mean_y = mean(x), mean(y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    spread = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    structure = (2 * (mean(x * y) - mean_x * mean_y) + c2) / (spread + c2)
    return float((luminance * structure)[inside].mean())
