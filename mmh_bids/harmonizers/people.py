"""What a person's own tissues add to a scanner's contrast: kept where the scanner's average person is known.

One scan cannot tell a scanner's contrast from its person's: a longer echo time and a shorter T2 darken white matter
alike, so that a look gives everybody the average person's levels. Several people's scans of one site can tell: how far
a scan's tissues lie from the mean of its site's is the person's own, and goes along to the target. As in ComBat
(Johnson et al., Biostatistics 2007;8:118) the site's mean goes and the rest stays, here of two numbers a scan.

Only where fluid is bright (T2w). Its own level says more about how much of it a slice holds than about the person.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.image.intensity import fit_monotone_map

#: Voxels along each edge of the cubes that noise is averaged over, here and where a look is trained.
CUBE = 2
#: People of a site below which its mean is not taken for the site's.
FEWEST = 3
#: Share of a deviation that goes along: what thirty people's deviations on one scanner tell of those on another, by
#: least squares (0.77 to 1.15, ``benchmarks/person_levels.py``), at its careful end.
SHARE = 0.8
#: Natural logarithms beyond which a deviation is none of a person's: theirs have a standard deviation of 0.04 to 0.06.
MOST = 0.25


def tissue_logs(
    image: NDArray[np.float32], unified: NDArray[np.float32], mask: NDArray[np.bool_], levels: Sequence[float]
) -> NDArray[np.float64]:
    """How bright grey and white matter are in an image, by the one curve to it from the unified look.

    Parameters
    ----------
    image, unified
        (X, Y, Z), the image without its field, and the same in the unified look; averaged over cubes of `CUBE` voxels.
    mask
        (X, Y, Z) bool, brain.
    levels
        (3,) fluid, grey and white matter of the unified look.

    Returns
    -------
    (2,) natural logarithms of grey and white matter in the image's units.

    Raises
    ------
    ImageError
        The curve is not above zero there: tissues cannot be told.

    Examples
    --------
    >>> unified = np.linspace(0.1, 0.7, 27000, dtype=np.float32).reshape(30, 30, 30)
    >>> logs = tissue_logs(unified / 2, unified, unified > 0, [0.65, 0.33, 0.22])
    >>> np.exp(logs).round(3).tolist()
    [0.165, 0.11]
    """
    values = fit_monotone_map(unified[mask], image[mask])(np.asarray(levels, float)[1:])
    if not (np.isfinite(values).all() and values.min() > 0):
        raise ImageError("grey and white matter cannot be told apart")
    return np.log(np.asarray(values, float))


def site_mean(people: Iterable[Sequence[NDArray[np.float64]]]) -> tuple[list[float], int] | None:
    """The mean of a site's people, each of whom counts once, and their number; None if they are too few.

    Parameters
    ----------
    people
        `tissue_logs` of the scans of each person at the site.

    Examples
    --------
    >>> a, b = np.array([-0.5, -0.9]), np.array([-0.6, -0.9])
    >>> site_mean([[a], [b, b], [a, b]]), site_mean([[a], [b]])
    (([-0.55, -0.9], 3), None)
    """
    means = [np.mean(scans, axis=0) for scans in people]
    if len(means) < FEWEST:
        return None
    return [float(f"{value:.6g}") for value in np.mean(means, axis=0)], len(means)


def deviation(logs: NDArray[np.float64], mean: Sequence[float]) -> NDArray[np.float64] | None:
    """What of a scan's `tissue_logs` is to go along to a target; None if that is too much to be a person's own.

    >>> deviation(np.array([-0.5, -0.9]), [-0.55, -0.9]).round(3).tolist(), deviation(np.array([0.0, 0.0]), [-0.5, 0])
    ([0.04, 0.0], None)
    """
    found = np.asarray(logs, float) - np.asarray(mean, float)
    return SHARE * found if np.abs(found).max() <= MOST else None


def with_person(
    look: NDArray[np.float32], unified: NDArray[np.float32], levels: Sequence[float], own: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Give a person's deviation back to an image in a target's look.

    Parameters
    ----------
    look, unified
        (X, Y, Z), the target's look, and the unified one that it was made from: by that a voxel's share of the tissues
        is told.
    levels
        (3,) fluid, grey and white matter of the unified look, fluid the brightest.
    own
        (2,) `deviation` of grey and white matter. Fluid keeps its level; what is darker than white matter goes with it.

    Examples
    --------
    >>> unified = np.array([0.1, 0.22, 0.33, 0.65, 0.9], np.float32)
    >>> with_person(unified, unified, [0.65, 0.33, 0.22], np.log([1.1, 0.9])).astype(float).round(3).tolist()
    [0.09, 0.198, 0.363, 0.65, 0.9]
    """
    fluid, grey, white = levels
    return (look * np.exp(np.interp(unified, [white, grey, fluid], [own[1], own[0], 0.0]))).astype(np.float32)
