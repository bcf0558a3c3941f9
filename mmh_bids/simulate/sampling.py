"""Volumes on other grids: averages over voxels for signals, the nearest voxel for labels."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def voxel_average(
    volume: NDArray[np.float32], source: NDArray[np.float64], shape: tuple[int, ...], target: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Average of a volume over each voxel of another grid: the mean of small sub-voxels.

    Parameters
    ----------
    volume
        (X, Y, Z).
    source
        (4, 4) voxel to world of `volume`, millimetres.
    shape, target
        Size and (4, 4) voxel to world of the other grid.

    Returns
    -------
    numpy.ndarray
        float32 of that shape; `volume` ends, with zero, at the centres of its outermost voxels.

    Examples
    --------
    >>> fine = np.arange(4, dtype=np.float32).reshape(4, 1, 1) * np.ones((1, 4, 4), np.float32)
    >>> thick = np.diag([2.0, 1.0, 1.0, 1.0])
    >>> thick[0, 3] = 0.5
    >>> voxel_average(fine, np.eye(4), (2, 4, 4), thick)[:, 1, 1].tolist()
    [0.5, 2.5]
    """
    spacing = float(np.linalg.norm(source[:3, :3], axis=0).mean())
    sizes = np.linalg.norm(target[:3, :3], axis=0)
    parts = np.maximum(1, np.ceil(sizes / spacing - 0.15).astype(int))
    # For voxels of the source's own size linear interpolation itself is the averaging.
    fine = np.array(target)
    fine[:3, :3] = target[:3, :3] / parts
    fine[:3, 3] = target[:3, 3] - target[:3, :3] @ ((1 - 1 / parts) / 2)
    matrix = np.linalg.inv(source) @ fine
    out = np.zeros(shape, np.float32)
    # One slab of sub-voxels at a time keeps memory at the size of the output.
    for offset in itertools.product(*(range(part) for part in parts)):
        step = matrix[:3, :3] * parts
        start = matrix[:3, 3] + matrix[:3, :3] @ np.array(offset)
        out += ndimage.affine_transform(volume, step, start, shape, np.float32, order=1, mode="constant")
    out /= np.prod(parts)
    return out


def nearest(
    labels: NDArray, source: NDArray[np.float64], shape: tuple[int, ...], target: NDArray[np.float64]
) -> NDArray:
    """Labels on another grid, each voxel that of the nearest one.

    Parameters
    ----------
    labels
        (X, Y, Z), any integer type, which is kept.
    source
        (4, 4) voxel to world of `labels`, millimetres.
    shape, target
        Size and (4, 4) voxel to world of the other grid.

    Returns
    -------
    numpy.ndarray
        That shape and the type of `labels`, zero outside the centres of their outermost voxels.
    """
    matrix = np.linalg.inv(source) @ target
    return ndimage.affine_transform(
        labels, matrix[:3, :3], matrix[:3, 3], shape, labels.dtype, order=0, mode="constant"
    )
