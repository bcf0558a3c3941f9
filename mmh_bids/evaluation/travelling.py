"""How alike scans of one person are: at different sites, and, as the floor, at one site twice.

Units. A method may write its images in any units, so differences are given in *one* unit a method and sequence: the
standard deviation within a brain, pooled over all of the method's images. One unit for all of them leaves in what
differs between sites, gain included; a unit for each image would take out what harmonization is for. SSIM and PSNR need
the span of the intensities: likewise one for all images of the method.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmh_bids.evaluation.agreement import ssim, voxel_mae, wasserstein1
from mmh_bids.evaluation.fidelity import psnr
from mmh_bids.evaluation.matrix import CannotSayError
from mmh_bids.image.edges import pearson

#: By name, what a measure is, whether more is better.
MEASURES = {"MAE": False, "SSIM": True, "PSNR": True, "Pearson": True, "Wasserstein-1": False}
#: PSNR of equal images, dB: infinity has no mean.
BEST_PSNR = 60.0


@dataclass(frozen=True)
class Pair:
    """Two scans of one person.

    Attributes
    ----------
    first, second
        Indices of the images.
    person
        Label.
    kind
        ``"between"`` sites, or ``"rescan"`` at one site.
    """

    first: int
    second: int
    person: str
    kind: Literal["between", "rescan"]


@dataclass(frozen=True)
class Units:
    """Of all images of a method: pooled standard deviation in a brain, and mean span from 0.2 to 99.8 %."""

    deviation: float
    span: float


def find_pairs(people: Sequence[Any], sites: Sequence[Any]) -> list[Pair]:
    """All pairs of scans of one person; scans without a site are in none.

    Parameters
    ----------
    people, sites
        (N,) labels; a site may be None.

    Examples
    --------
    >>> find_pairs(["01", "01", "02", "01"], ["A", "B", "A", "A"])[:2]
    [Pair(first=0, second=1, person='01', kind='between'), Pair(first=0, second=3, person='01', kind='rescan')]
    """
    own: dict[str, list[int]] = {}
    for index, (person, site) in enumerate(zip(people, sites, strict=True)):
        if site is not None:
            own.setdefault(str(person), []).append(index)
    return [
        Pair(first, second, person, "rescan" if sites[first] == sites[second] else "between")
        for person, indices in own.items()
        for first, second in itertools.combinations(indices, 2)
    ]


def pooled_units(quantiles: ArrayLike) -> Units:
    """The units of a method's images.

    Parameters
    ----------
    quantiles
        (N, 256) `ImageFeatures.quantiles`.

    Raises
    ------
    CannotSayError
        All images are flat.

    Examples
    --------
    >>> pooled_units(np.linspace([0, 0], [1, 2], 256).T).span
    1.5
    """
    table = np.asarray(quantiles, np.float64)
    deviation = float(np.sqrt(table.var(axis=1).mean()))
    if not deviation > 0:
        raise CannotSayError("the method's images are flat: there is no unit to measure in")
    return Units(deviation, float((table[:, -1] - table[:, 0]).mean()))


def pair_measures(
    first: NDArray[np.float32], second: NDArray[np.float32], inside: NDArray[np.bool_], units: Units
) -> dict[str, float]:
    """All of `MEASURES` for two images in the template's space.

    Parameters
    ----------
    first, second
        (X, Y, Z) in the method's units.
    inside
        (X, Y, Z) bool, brain in both.
    units
        Of the method.

    Returns
    -------
    MAE and Wasserstein-1 in pooled standard deviations; SSIM; PSNR in dB, at most `BEST_PSNR`; Pearson correlation over
    voxels, NaN for a flat image.

    Examples
    --------
    >>> image = np.random.default_rng(0).random((9, 9, 9), dtype=np.float32)
    >>> found = pair_measures(image, image + np.float32(0.5), np.ones((9, 9, 9), bool), Units(0.25, 1.0))
    >>> {name: round(value, 3) for name, value in found.items() if name != "SSIM"}
    {'MAE': 2.0, 'PSNR': 6.021, 'Pearson': 1.0, 'Wasserstein-1': 2.0}
    """
    one, other = first[inside].astype(np.float64), second[inside].astype(np.float64)
    error = float(np.square(one - other).mean())
    return {
        "MAE": voxel_mae(one, other) / units.deviation,
        "SSIM": ssim(first, second, inside, units.span),
        "PSNR": min(psnr(error, units.span), BEST_PSNR),
        "Pearson": pearson(one, other),
        "Wasserstein-1": wasserstein1(one, other) / units.deviation,
    }


def change_beyond_gain(before: NDArray[Any], after: NDArray[Any], units: Units) -> float:
    """How much a method changed an image: mean absolute difference at the best gain and offset, in its unit.

    Only another choice of units is no change. It says nothing about whether the change was right: alignment is measured
    between images.

    Parameters
    ----------
    before, after
        (N,) intensities in the same voxels.
    units
        Of the method that made `after`.

    Examples
    --------
    >>> image = np.array([1.0, 2.0, 4.0])
    >>> round(change_beyond_gain(image, 100 - 7 * image, Units(1.0, 1.0)), 9)
    0.0
    """
    x, y = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
    x, y = x - x.mean(), y - y.mean()
    power = float(x @ x)
    gain = float(x @ y) / power if power > 0 else 0.0
    return float(np.abs(gain * x - y).mean()) / units.deviation
