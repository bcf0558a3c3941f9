"""Smoothing that knows the brain's edge."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Full width at half maximum of a Gaussian over its standard deviation.
FWHM_PER_SIGMA = float(np.sqrt(8 * np.log(2)))


def smooth_inside(
    image: NDArray[Any], mask: NDArray[np.bool_], fwhm: float, zooms: ArrayLike = (1.0, 1.0, 1.0)
) -> NDArray[np.float32]:
    """Smooth with a Gaussian inside a mask; what lies outside has no weight (normalised convolution).

    Parameters
    ----------
    image
        (X, Y, Z), finite inside the mask, any units.
    mask
        (X, Y, Z) bool.
    fwhm
        Full width at half maximum, millimetres, above 0.
    zooms
        (3,) voxel size, millimetres.

    Returns
    -------
    (X, Y, Z) float32, zero outside the mask.

    Raises
    ------
    ValueError
        If `fwhm` is not above 0, or shapes differ.

    Notes
    -----
    Knutsson and Westin, Proc CVPR 1993:515.

    Examples
    --------
    >>> mask = np.zeros((9, 9, 9), bool)
    >>> mask[2:7, 2:7, 2:7] = True
    >>> flat = np.where(mask, 5.0, -100.0)
    >>> bool(np.allclose(smooth_inside(flat, mask, 4.0)[mask], 5.0, atol=1e-5))
    True
    """
    from scipy.ndimage import gaussian_filter

    if not fwhm > 0:
        raise ValueError(f"the width of the Gaussian must be above 0 mm, got {fwhm}")
    if image.shape != mask.shape:
        raise ValueError(f"image {image.shape} and mask {mask.shape} must have one shape")
    sigma = fwhm / FWHM_PER_SIGMA / np.asarray(zooms, float)
    weight = gaussian_filter(mask.astype(np.float32), sigma, mode="constant")
    total = gaussian_filter(np.where(mask, image, 0).astype(np.float32), sigma, mode="constant")
    out = np.zeros(image.shape, np.float32)
    out[mask] = total[mask] / weight[mask]
    return out
