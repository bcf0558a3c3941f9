"""Regional difference: means over small anatomical regions, where noise has averaged out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Edge of the blocks that labels are cut into, millimetres, and the fewest voxels that make a region.
BLOCK_MM = 12.0
MIN_VOXELS = 30


def region_index(
    labels: NDArray[np.integer],
    mask: NDArray[np.bool_],
    zooms: ArrayLike = (1.0, 1.0, 1.0),
    block_mm: float = BLOCK_MM,
    min_voxels: int = MIN_VOXELS,
) -> NDArray[np.int32]:
    """Number the regions: the parts of each label that lie in one block of a regular grid.

    Parameters
    ----------
    labels
        (X, Y, Z) codes.
    mask
        (X, Y, Z) bool, N voxels true.
    zooms
        (3,) voxel size, millimetres.
    block_mm
        Edge of a block, millimetres.
    min_voxels
        Regions of fewer voxels are left out.

    Returns
    -------
    (N,) int32, in the order of ``labels[mask]``: the region of each voxel, 0 to R - 1; -1 in none.

    Raises
    ------
    ValueError
        If no region is large enough, or shapes differ.

    Examples
    --------
    >>> labels = np.ones((4, 4, 4), int)
    >>> labels[2:] = 7
    >>> labels[0, 0, 0] = 9
    >>> index = region_index(labels, np.ones((4, 4, 4), bool), min_voxels=2)
    >>> np.bincount(index[index >= 0]).tolist(), int((index < 0).sum())
    ([31, 32], 1)
    """
    if labels.shape != mask.shape:
        raise ValueError(f"labels {labels.shape} and mask {mask.shape} must have one shape")
    where = np.argwhere(mask)
    block = (where * np.asarray(zooms, float) // block_mm).astype(np.int64)
    # one number a block and label: blocks of a head fit in 10 bits an axis
    key = ((labels[mask].astype(np.int64) << 30) | (block[:, 0] << 20)) | (block[:, 1] << 10) | block[:, 2]
    _, inverse, count = np.unique(key, return_inverse=True, return_counts=True)
    large = count >= min_voxels
    if not large.any():
        raise ValueError(f"no region of at least {min_voxels} voxels in the mask")
    number = np.where(large, np.cumsum(large) - 1, -1).astype(np.int32)
    return number[inverse.reshape(-1)]


def region_means(values: NDArray[Any], index: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean and size of each region.

    Parameters
    ----------
    values
        (N,) intensities, any units.
    index
        (N,) of `region_index`.

    Returns
    -------
    means, sizes
        (R,) each.

    Examples
    --------
    >>> means, sizes = region_means(np.array([1.0, 3.0, 8.0, 99.0]), np.array([0, 0, 1, -1], np.int32))
    >>> means.tolist(), sizes.tolist()
    ([2.0, 8.0], [2, 1])
    """
    inside = index >= 0
    sizes = np.bincount(index[inside])
    return np.bincount(index[inside], weights=values[inside].astype(np.float64)) / sizes, sizes


def regional_difference(first: NDArray[Any], second: NDArray[Any], index: NDArray[np.int32]) -> float:
    """Mean absolute difference of the regional means of two images, weighted by region size.

    Parameters
    ----------
    first, second
        (N,) intensities in the same voxels and the same units, which are the result's.
    index
        (N,) of `region_index`.

    Examples
    --------
    An offset is found whole, noise hardly at all:

    >>> index, flat = np.zeros(10_000, np.int32), np.zeros(10_000)
    >>> regional_difference(flat, flat + 0.25, index)
    0.25
    >>> regional_difference(flat, np.random.default_rng(0).normal(0, 1, 10_000), index) < 0.03
    True
    """
    before, sizes = region_means(first, index)
    after, _ = region_means(second, index)
    return float(np.average(np.abs(before - after), weights=sizes))
