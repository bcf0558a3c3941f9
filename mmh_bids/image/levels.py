"""How bright fluid, grey and white matter are in a brain that lies in the template's space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.image.priors import brain_sample, sure_tissues

TISSUES = ("fluid", "grey matter", "white matter")
#: Iterations: first without partial volume, which finds the tissues from afar, then with it.
_FIRST, _ITERATIONS = 8, 40
#: Fluid and grey matter, grey and white matter share voxels.
_NEIGHBOURS = ((0, 1), (1, 2))
#: Mixtures that stand for the even spread of shares in such voxels.
_PARTS = 4
#: Standard deviation of a tissue to begin the second with, over the range of the tissues' means: narrow tissues and
#: mixed voxels between them are looked for, not a wide grey matter that swallows these.
_WIDTH = 0.1
#: How far towards white matter grey matter then begins: found with mixed voxels among it, it may lie so near fluid that
#: it would stay there.
_STEP = 0.5
#: Least share of the brain that is a tissue alone.
_RAREST = 0.005
#: Keeps shares finite where no class is likely at all.
_NOTHING = 1e-12
#: Percentile of the voxels where the template is sure of fluid that is taken for the level of dark fluid, and of bright
#: fluid: in the rest another brain's ventricles have other tissue.
_PURE_DARK, _PURE_BRIGHT = 25, 75
#: Fewest such voxels; with fewer, the mixture's mean stays.
_ENOUGH_FLUID = 100


def tissue_levels(
    volume: NDArray[np.float32], mask: NDArray[np.bool_], affine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean intensities of fluid, grey and white matter.

    A Gaussian mixture with the template's tissue maps as priors (Ashburner and Friston, NeuroImage 2005;26:839, without
    deformation and field). No order of brightness is assumed. Voxels that two tissues share have classes of their own,
    spread evenly between the two (Shattuck et al., NeuroImage 2001;13:856): without them fluid of the narrow sulci of a
    shrunken brain passes for grey matter. Fluid gets the quartile, away from grey matter, of the voxels where the
    template is sure of it: hardly a voxel of the folds holds fluid alone.

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
        Fewer than 600 voxels would be looked at, no contrast, or a tissue cannot be found.
    """
    values, priors = brain_sample(volume, mask, affine)
    means = _fit(np.clip(values, *np.percentile(values, (0.5, 99.5))), priors)
    fluid = volume[mask & sure_tissues(volume.shape, affine)[0]]
    if fluid.size >= _ENOUGH_FLUID:
        means[0] = np.percentile(fluid, _PURE_DARK if means[0] < means[1] else _PURE_BRIGHT)
    return means


def _fit(values: NDArray[np.float64], priors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Means (3,) of the tissues by expectation and maximization; values (N,), priors (3, N)."""
    floor = 1e-4 * values.var()
    shares = priors
    for _ in range(_FIRST):
        means, widths = _moments(values, shares, floor)
        shares = priors * gaussians(values, means, widths) + _NOTHING
        shares /= shares.sum(axis=0)
    # two neighbours that are equally likely a priori are as likely to share the voxel
    mixed = [2 * np.sqrt(priors[one] * priors[other]) for one, other in _NEIGHBOURS]
    priors = np.concatenate([priors, mixed])
    part = (np.arange(_PARTS)[:, None] + 0.5) / _PARTS
    widths = np.full(len(TISSUES), (_WIDTH * np.ptp(means)) ** 2)
    means[1] += _STEP * (means[2] - means[1])
    for _ in range(_ITERATIONS):
        likely = [gaussians(values, means, widths)]
        for one, other in _NEIGHBOURS:
            between = ((1 - part) * level[one] + part * level[other] for level in (means, widths))
            likely.append(np.mean([gaussians(values, *level) for level in zip(*between, strict=True)], axis=0))
        shares = priors * np.concatenate(likely) + _NOTHING
        means, widths = _moments(values, shares[: len(TISSUES)] / shares.sum(axis=0), floor)
    return means


def gaussians(values: NDArray[np.float64], means: NDArray[np.float64], widths: NDArray[np.float64]) -> NDArray:
    """Density, up to one factor, of Gaussians (C,) at values (N,): (C, N); widths are variances."""
    return np.exp(-0.5 * (values - means[:, None]) ** 2 / widths[:, None]) / np.sqrt(widths[:, None])


def _moments(values: NDArray[np.float64], shares: NDArray, floor: float) -> tuple[NDArray, NDArray]:
    """Weighted means and variances (C,); ImageError where a class holds next to nothing."""
    weight = shares.sum(axis=1)
    if weight.min() < _RAREST * values.size:
        raise ImageError("fluid, grey or white matter cannot be found in the brain")
    means = shares @ values / weight
    return means, np.maximum((shares * (values - means[:, None]) ** 2).sum(axis=1) / weight, floor)
