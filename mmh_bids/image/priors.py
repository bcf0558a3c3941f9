"""Where the template's tissues lie, on any grid of its space."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.image.grid import load_template, resample

#: Standard deviation (mm) of the priors' blur: what an affine registration leaves of two brains' differences.
_BLUR_MM = 3.0
#: Least prior of fluid, grey and white matter anywhere in the brain: lesions and misfits may be what they look like,
#: and in a shrunken brain fluid lies where the template has grey matter.
_LEAST = (0.2, 0.02, 0.02)
#: Every so many voxels along each axis are looked at.
STRIDE = 3
THIN = (slice(None, None, STRIDE),) * 3
#: Fewest such voxels that tissues can be told from.
_FEWEST = 600
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
    Grey and white matter, (X, Y, Z), 0 to 1; kept for the next call, so not to be written to.
    """
    return _tissues(tuple(shape), tuple(map(tuple, affine.tolist())), blur_mm)


@lru_cache(maxsize=2)
def _tissues(
    shape: tuple[int, ...], affine: tuple[tuple[float, ...], ...], blur_mm: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
    from scipy.ndimage import gaussian_filter

    maps = []
    for load in (load_mni152_gm_template, load_mni152_wm_template):
        image = load(resolution=1)
        data = gaussian_filter(image.get_fdata(dtype=np.float32), blur_mm)
        maps.append(np.clip(resample(data, image.affine, shape, np.array(affine)), 0, 1))
    return maps[0], maps[1]


def brain_sample(
    volume: NDArray[np.float32], inside: NDArray[np.bool_], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Intensities of every third voxel along each axis, and the template's tissues there.

    Parameters
    ----------
    volume, inside
        (X, Y, Z), and what of it is brain.
    affine
        (4, 4) voxel to the template's world, millimetres.

    Returns
    -------
    values
        (N,) of ``volume[THIN]`` in ``inside[THIN]``.
    priors
        (3, N) fluid, grey and white matter, blurred, nowhere below the least prior of each; sum 1.

    Raises
    ------
    ImageError
        Fewer than 600 voxels, or they have one and the same intensity.
    """
    some = inside[THIN]
    values = volume[THIN][some].astype(np.float64)
    if values.size < _FEWEST or not np.ptp(values) > 0:
        raise ImageError("too little brain or no contrast in it: no tissue can be told apart")
    grey, white = (tissue[THIN][some] for tissue in template_tissues(volume.shape, affine, _BLUR_MM))
    priors = np.maximum(np.stack([1 - grey - white, grey, white]), np.reshape(_LEAST, (3, 1)).astype(np.float32))
    return values, priors / priors.sum(axis=0)


def sure_tissues(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where the template is sure of fluid (inside its brain), grey and white matter: (3, X, Y, Z) bool."""
    grey, white = template_tissues(shape, affine)
    brain = load_template()
    inside = resample((np.asanyarray(brain.dataobj) > 0).astype(np.float32), brain.affine, shape, affine) > SURE
    return np.stack([np.where(inside, 1 - grey - white, 0), grey, white]) > SURE
