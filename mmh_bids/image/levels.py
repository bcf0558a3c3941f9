"""How bright fluid, grey and white matter are in a brain that lies in the template's space."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError

TISSUES = ("fluid", "grey matter", "white matter")
#: Standard deviation (mm) of the priors' blur: what an affine registration leaves of two brains' differences.
_BLUR_MM = 3.0
#: Least prior of a class anywhere in the brain: lesions and misfits may be what they look like.
_LEAST = 0.02
_ITERATIONS = 25
#: Every so many voxels along each axis is looked at.
_STRIDE = 2
#: Fewest voxels that levels can be told from.
_FEWEST = 2000


def tissue_levels(
    volume: NDArray[np.float32], mask: NDArray[np.bool_], affine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean intensities of fluid, grey and white matter.

    A Gaussian mixture with the template's tissue maps as priors (Ashburner and Friston, NeuroImage 2005;26:839, without
    deformation and field). No order of brightness is assumed: T1w and T2w are treated alike.

    Parameters
    ----------
    volume, mask
        (X, Y, Z), brain.
    affine
        (4, 4) voxel to the template's world, millimetres.

    Returns
    -------
    (3,) of `TISSUES`, in the units of the volume.

    Raises
    ------
    ImageError
        Fewer than 2,000 voxels would be looked at, no contrast, or a tissue cannot be found.
    """
    thin = (slice(None, None, _STRIDE),) * 3
    inside = mask[thin]
    values = volume[thin][inside].astype(np.float64)
    if values.size < _FEWEST or not np.ptp(values) > 0:
        raise ImageError("too little brain or no contrast in it: no tissue can be told apart")
    priors = _priors(volume.shape, tuple(map(tuple, affine.tolist())))[(slice(None), *thin)][:, inside]
    values = np.clip(values, *np.percentile(values, (0.5, 99.5)))
    shares = priors / priors.sum(axis=0)
    floor = 1e-4 * values.var()
    for _ in range(_ITERATIONS):
        weight = shares.sum(axis=1)
        if weight.min() < 0.005 * values.size:
            raise ImageError("fluid, grey or white matter cannot be found in the brain")
        means = shares @ values / weight
        widths = np.maximum((shares * (values - means[:, None]) ** 2).sum(axis=1) / weight, floor)
        likely = np.exp(-0.5 * (values - means[:, None]) ** 2 / widths[:, None]) / np.sqrt(widths[:, None])
        shares = priors * likely + 1e-12
        shares /= shares.sum(axis=0)
    return means


@lru_cache(maxsize=1)
def _priors(shape: tuple[int, int, int], affine: tuple[tuple[float, ...], ...]) -> NDArray[np.float32]:
    """Fluid, grey and white matter of the template on a grid: (3, X, Y, Z), blurred, nowhere below `_LEAST`."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
    from scipy.ndimage import gaussian_filter

    from mmh_bids.image.grid import resample

    maps = []
    for load in (load_mni152_gm_template, load_mni152_wm_template):
        image = load(resolution=1)
        data = gaussian_filter(image.get_fdata(dtype=np.float32), _BLUR_MM)
        maps.append(resample(data, image.affine, shape, np.array(affine)))
    grey, white = (np.clip(values, 0, 1) for values in maps)
    return np.maximum(np.stack([1 - grey - white, grey, white]), _LEAST).astype(np.float32)
