"""The bias field that N4 leaves, found together with the tissues."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmh_bids.image.grid import resample
from mmh_bids.image.levels import gaussians
from mmh_bids.image.priors import STRIDE, THIN, brain_sample

#: Standard deviation (mm) of the kernel that smooths the field. With 16 mm the field of a brain stem is lost in that of
#: the cerebellum around it, with 9 mm the field begins to follow tissue.
_SMOOTH_MM = 12.0
#: Least standard deviation of a tissue's logarithm: a narrow tissue would not let go of what the field has moved.
_WIDTH = 0.05
_ITERATIONS = 40
#: Percentiles between which intensities count, and the darkest as a share of the brightest: a logarithm needs an end.
_RANGE, _DARKEST = (0.5, 99.5), 0.02
#: Shares of fluid in the classes that stand for voxels of fluid and grey matter.
_PARTS = (0.125, 0.375, 0.625, 0.875)
#: Keeps shares finite where no class is likely, and the field where no tissue is near.
_NOTHING = 1e-9


def tissue_field(
    volume: NDArray[np.float32], mask: NDArray[np.bool_], affine: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Smooth field by which grey and white matter differ from themselves elsewhere in the brain.

    Tissue classes of the intensities' logarithms and a field are estimated in turn, the field being the smoothed
    residual of grey and white matter (Wells et al., IEEE Trans Med Imaging 1996;15:429), with the template's tissues as
    priors (Ashburner and Friston, NeuroImage 2005;26:839) and, where fluid is bright, classes for voxels that fluid and
    grey matter share. N4, which knows no anatomy, takes a brain stem that lies in a strong field for grey matter.

    Parameters
    ----------
    volume, mask
        (X, Y, Z), brain; voxels that are not positive are left out.
    affine
        (4, 4) voxel to the template's world, millimetres.

    Returns
    -------
    (X, Y, Z) float32 to divide by; geometric mean 1 over the voxels that were looked at.

    Raises
    ------
    ImageError
        Fewer than 600 voxels would be looked at, or they have one and the same intensity.
    """
    inside = mask & (volume > 0)
    values, priors = brain_sample(volume, inside, affine)
    low, high = np.percentile(values, _RANGE)
    values = np.log(np.clip(values, max(low, _DARKEST * high), high))
    coarse = affine @ np.diag([STRIDE, STRIDE, STRIDE, 1.0])
    field = _fit(values, priors, inside[THIN], _SMOOTH_MM / np.linalg.norm(coarse[:3, :3], axis=0))
    return np.exp(resample(field, coarse, volume.shape, affine, beyond="nearest"))


def _fit(
    values: NDArray[np.float64], priors: NDArray[np.float32], inside: NDArray[np.bool_], sigma: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Logarithm of the field on the coarse grid: values (N,), priors (3, N), `sigma` in its voxels."""
    from scipy.ndimage import gaussian_filter

    def smooth(some: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = np.zeros(inside.shape)
        whole[inside] = some
        return gaussian_filter(whole, sigma)

    share = np.array(_PARTS)
    # fluid and grey matter that are equally likely a priori are as likely to share the voxel
    mixed = np.repeat(np.sqrt(priors[:1] * priors[1:2]) / 2, share.size, axis=0)
    shares, field = priors, np.zeros(inside.shape)
    for _ in range(_ITERATIONS):
        flat = values - field[inside]
        weight = shares.sum(axis=1) + _NOTHING
        means = (shares * flat).sum(axis=1) / weight
        spread = (shares * (flat - means[:, None]) ** 2).sum(axis=1) / weight
        variances = np.maximum(spread, _WIDTH**2)
        fluid, grey = np.exp(means[:2])
        middle = np.concatenate([means, np.log(share * fluid + (1 - share) * grey)])
        width = np.concatenate([variances, share * variances[0] + (1 - share) * variances[1]])
        # what grey matter shares with dark fluid is dark itself, and such classes would take grey matter in a field
        classes = np.concatenate([priors, mixed * (fluid > grey)])
        shares = classes * gaussians(flat, middle, width) + _NOTHING
        shares = (shares / shares.sum(axis=0))[:3]
        # fluid's intensity says little of the field: flow, noise and partial volume change it more
        pull = shares[1:] / variances[1:, None]
        rest = (pull * (values - means[1:, None])).sum(axis=0)
        field = smooth(rest) / np.maximum(smooth(pull.sum(axis=0)), _NOTHING)
        field -= field[inside].mean()
    return field.astype(np.float32)
