"""Where images are compared: a brain of any voxel size on one grid of 2 mm in the template's space."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.image.grid import MODEL_AFFINE, MODEL_SHAPE, antialias, bounding_box, box_affine, resample

#: Edge of a voxel of the grid, millimetres; a voxel is a box of the model grid's.
VOXEL_MM = 2.0
SHAPE = tuple(size // 2 for size in MODEL_SHAPE)
AFFINE = MODEL_AFFINE @ np.array([[2.0, 0, 0, 0.5], [0, 2.0, 0, 0.5], [0, 0, 2.0, 0.5], [0, 0, 0, 1.0]])
#: A file, or what is in it: data (X, Y, Z) and RAS+ affine (4, 4).
Image = str | os.PathLike[str] | tuple[NDArray[Any], NDArray[Any]]
#: An image on the grid: values and brain, (72, 92, 92) each, of `on_grid`.
Placed = tuple[NDArray[np.float32], NDArray[np.bool_]]


def on_grid(
    image: Image, mask: Image | NDArray[np.bool_], xfm: str | os.PathLike[str] | NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bring an image's brain to the grid of 2 mm.

    What lies outside the brain has no weight: an image with a skull and one without give the same.

    Parameters
    ----------
    image
        File, or data and affine; any units.
    mask
        File, data and affine, or (X, Y, Z) bool on the image's grid. One of another grid is resampled.
    xfm
        ITK transform file ``from-T1w_to-MNI152NLin2009aSym``, or the (4, 4) RAS+ map from the template's world to the
        image's that is in it (`image.registration.read_matrix`).

    Returns
    -------
    values
        (72, 92, 92) float32 in the image's units, zero outside the brain.
    inside
        (72, 92, 92) bool: brain.

    Raises
    ------
    ImageError
        A file cannot be read, or no brain lies on the grid.

    Examples
    --------
    >>> data, affine = np.full((40, 40, 40), 7.0), np.diag([4.0, 4.0, 4.0, 1.0])
    >>> affine[:3, 3] = -80
    >>> values, inside = on_grid((data, affine), data > 0, np.eye(4))
    >>> values.shape, float(values[inside].min()), float(values.max())
    ((72, 92, 92), 7.0, 7.0)
    """
    data, affine = data_of(image)
    inside_own = mask_on(mask, data.shape, affine)
    matrix = matrix_of(xfm)
    name = f"{os.fspath(image)}: " if not isinstance(image, tuple) else ""
    if not inside_own.any():
        raise ImageError(f"{name}its brain mask is empty; give the derivatives that belong to it")
    box = bounding_box(inside_own, margin=2)
    brain, part = inside_own[box], box_affine(affine, box)
    # the map scales, too: how fine a voxel is counts in the template
    fine = np.linalg.inv(matrix) @ part
    soft = resample(antialias(brain.astype(np.float32), fine, AFFINE), part, SHAPE, AFFINE, matrix)
    total = resample(antialias(np.where(brain, data[box], 0), fine, AFFINE), part, SHAPE, AFFINE, matrix)
    inside = soft > 0.5
    if not inside.any():
        raise ImageError(f"{name}no brain in the template's space; check its transform")
    values = np.zeros(SHAPE, np.float32)
    values[inside] = total[inside] / soft[inside]
    return values, inside


def data_of(image: Image) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """An image's data (X, Y, Z) and RAS+ affine (4, 4); ImageError if its file cannot be read."""
    if isinstance(image, tuple):
        data, affine = image
        return np.asarray(data), np.asarray(affine, np.float64)
    from mmh_bids.image.volume import read_image

    read = read_image(Path(image))
    return np.asanyarray(read.dataobj), np.asarray(read.affine, np.float64)


def mask_on(mask: Image | NDArray[np.bool_], shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The mask (X, Y, Z) bool on a grid, resampled where it has another; an array without affine is on it already."""
    if isinstance(mask, np.ndarray):
        if mask.shape != shape:
            raise ValueError(f"mask {mask.shape} and image {shape} must have one shape")
        return mask.astype(bool)
    data, own = data_of(mask)
    if data.shape == shape and np.allclose(own, affine, atol=1e-3):
        return data > 0
    return resample((data > 0).astype(np.float32), own, shape, affine) > 0.5


def matrix_of(xfm: str | os.PathLike[str] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The (4, 4) map of `on_grid`'s `xfm`; ImageError if its file cannot be read."""
    if isinstance(xfm, np.ndarray):
        return xfm
    from mmh_bids.image.registration import read_matrix

    return read_matrix(os.fspath(xfm))
