"""Do tissues come out the same in scans of one person? Dice by place, and the intraclass correlation of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmh_bids.evaluation.estimate import Estimate, bootstrap
from mmh_bids.evaluation.matrix import CannotSayError
from mmh_bids.evaluation.segmentation import NO_CLASS, class_dice
from mmh_bids.image.tissue import segment

#: Fewest people and sites that a correlation within them is taken of.
LEAST_PEOPLE, LEAST_SITES = 3, 2


def tissue_labels(values: NDArray[np.float32], inside: NDArray[np.bool_], sequence: str) -> NDArray[np.uint8]:
    """Class of each voxel by `image.tissue.segment`, (X, Y, Z) uint8; 255 outside the brain.

    Raises
    ------
    ImageError
        The brain's intensities hold no three classes.
    """
    labels = np.full(inside.shape, NO_CLASS, np.uint8)
    labels[inside] = segment(values[inside], sequence).labels
    return labels


def pair_dice(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Dice of the three classes, mean, over the voxels that are brain in both.

    >>> pair_dice(np.array([0, 1, 2, 255], np.uint8), np.array([0, 1, 2, 2], np.uint8))
    1.0
    """
    both = (first != NO_CLASS) & (second != NO_CLASS)
    return class_dice(first[both], second[both])


def icc21(table: ArrayLike) -> float:
    """Intraclass correlation ICC(2,1): two-way random effects, absolute agreement, a single measurement.

    Parameters
    ----------
    table
        (P, K): P people at K sites, P and K above 1, finite.

    Returns
    -------
    At most 1; NaN where nothing varies.

    Raises
    ------
    ValueError
        Too few people or sites, or gaps.

    Notes
    -----
    (BMS - EMS) / (BMS + (K - 1) EMS + K (JMS - EMS) / P), the mean squares between people, of the rest, and between
    sites: Shrout and Fleiss, Psychol Bull 1979;86:420.

    Examples
    --------
    Their table 2, whose ICC(2,1) is .29:

    >>> ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    >>> round(icc21(ratings), 2)
    0.29
    """
    x = np.asarray(table, np.float64)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise ValueError(f"needs a table of two people and two sites at least, without gaps; got {x.shape}")
    people, sites = x.shape
    rows, columns = x.mean(axis=1, keepdims=True), x.mean(axis=0, keepdims=True)
    between = sites * np.square(rows - x.mean()).sum() / (people - 1)
    judges = people * np.square(columns - x.mean()).sum() / (sites - 1)
    error = np.square(x - rows - columns + x.mean()).sum() / ((people - 1) * (sites - 1))
    total = between + (sites - 1) * error + sites * (judges - error) / people
    return float((between - error) / total) if total > 0 else float("nan")


def crossed_table(
    values: ArrayLike, people: Sequence[Any], sites: Sequence[Any]
) -> tuple[NDArray[np.float64], list[str]]:
    """The largest table of people who were all scanned at the same sites; repeats are averaged.

    Parameters
    ----------
    values
        (N,) one number an image; NaN are gaps.
    people, sites
        (N,) labels; a site may be None.

    Returns
    -------
    table, names
        (P, K), and the K sites.

    Raises
    ------
    CannotSayError
        Fewer than three people, or two sites.

    Examples
    --------
    >>> crossed_table([1, 2, 3, 4, 5, 6, 7], "aabbccd", "ABABABC")
    (array([[1., 2.], [3., 4.], [5., 6.]]), ['A', 'B'])
    """
    cells: dict[tuple[str, str], list[float]] = {}
    for value, person, site in zip(np.asarray(values, float), people, sites, strict=True):
        if site is not None and np.isfinite(value):
            cells.setdefault((str(person), str(site)), []).append(float(value))
    who = sorted({person for person, _ in cells})
    count = {site: sum((person, site) in cells for person in who) for site in sorted({site for _, site in cells})}
    places = sorted(count, key=lambda site: (-count[site], site))
    best: tuple[int, list[str], list[str]] = (0, [], [])
    for number in range(LEAST_SITES, len(places) + 1):
        full = [person for person in who if all((person, site) in cells for site in places[:number])]
        if len(full) >= LEAST_PEOPLE and len(full) * number > best[0]:
            best = len(full) * number, full, places[:number]
    if not best[0]:
        raise CannotSayError(f"needs {LEAST_PEOPLE} people who were scanned at the same {LEAST_SITES} sites at least")
    _, full, used = best
    return np.array([[np.mean(cells[person, site]) for site in used] for person in full]), used


def volume_icc(values: ArrayLike, people: Sequence[Any], sites: Sequence[Any], seed: int = 0) -> Estimate:
    """ICC(2,1) of a number over `crossed_table`, with a bootstrap over people (too narrow for few).

    Raises
    ------
    CannotSayError
        Too few people or sites, or the numbers do not vary.
    """
    table, _ = crossed_table(values, people, sites)
    value = icc21(table)
    if not np.isfinite(value):
        raise CannotSayError("the volumes do not vary at all: neither between people nor between sites")
    low, high = bootstrap(lambda drawn: icc21(table[drawn]), len(table), seed)
    return Estimate(value, low, high, len(table))
