"""Where the template's tissues lie, on any grid of its space."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmh_bids.image.grid import load_template, resample

#: Standard deviation (mm) of the priors' blur: what an affine registration leaves of two brains' differences.
_BLUR_MM = 3.0
#: Least prior of fluid, grey and white matter anywhere in the brain: lesions and misfits may be what they look like,
#: and in a shrunken brain fluid lies where the template has grey matter.
_LEAST = (0.2, 0.02, 0.02)
#: Probability from which the template is sure of a tissue.
SURE = 0.9


def template_tissues(
    shape: tuple[int, ...], affine: NDArray[np.float64], blur_mm: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probabilities of grey and white matter in the template, interpolated to a grid.

    Parameters
    ----------
    shape, affine
        (X, Y, Z), and (4, 4) voxel to the template's world, millimetres.
    blur_mm
        Standard deviation of a blur before.

    Returns
    -------
    Grey and white matter, (X, Y, Z), 0 to 1.
    """
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
    from scipy.ndimage import gaussian_filter

    maps = []
    for load in (load_mni152_gm_template, load_mni152_wm_template):
        image = load(resolution=1)
        data = gaussian_filter(image.get_fdata(dtype=np.float32), blur_mm)
        maps.append(np.clip(resample(data, image.affine, shape, affine), 0, 1))
    return maps[0], maps[1]


def tissue_priors(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float32]:
    """Fluid, grey and white matter of the template, blurred, nowhere below the least prior of each; not normalized.

    Returns
    -------
    (3, X, Y, Z) float32, kept for the next call.
    """
    return _priors(tuple(shape), tuple(map(tuple, affine.tolist())))


@lru_cache(maxsize=1)
def _priors(shape: tuple[int, ...], affine: tuple[tuple[float, ...], ...]) -> NDArray[np.float32]:
    grey, white = template_tissues(shape, np.array(affine), _BLUR_MM)
    least = np.reshape(_LEAST, (3, 1, 1, 1))
    return np.maximum(np.stack([1 - grey - white, grey, white]), least).astype(np.float32)


def sure_tissues(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where the template is sure of fluid, grey and white matter inside its brain.

    Returns
    -------
    (3, X, Y, Z) bool, kept for the next call.
    """
    return _sure(tuple(shape), tuple(map(tuple, affine.tolist())))


@lru_cache(maxsize=1)
def _sure(shape: tuple[int, ...], affine: tuple[tuple[float, ...], ...]) -> NDArray[np.bool_]:
    world = np.array(affine)
    grey, white = template_tissues(shape, world)
    brain = load_template()
    inside = resample((np.asanyarray(brain.dataobj) > 0).astype(np.float32), brain.affine, shape, world) > SURE
    return np.stack([np.where(inside, 1 - grey - white, 0), grey, white]) > SURE
