"""How near the sites' images lie to each other, whoever was scanned where: no travelling person is needed.

Sites that scanned other people differ by the people, too. So these distances are to be compared between methods, not
with zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmh_bids.evaluation.estimate import Estimate, bootstrap
from mmh_bids.evaluation.matrix import CannotSayError, mean_row


def between_sites(rows: ArrayLike, sites: Sequence[Any], people: Sequence[Any], unit: float, seed: int = 0) -> Estimate:
    """Mean absolute difference of two sites' mean rows, over all pairs of sites.

    With `ImageFeatures.quantiles` as rows it is the Wasserstein-1 distance of the sites' mean histograms; with
    ``regions``, the regional difference.

    Parameters
    ----------
    rows
        (N, F); NaN are gaps.
    sites, people
        (N,) labels; images without a site (None) do not count.
    unit
        What to divide by: `travelling.Units.deviation`.
    seed
        Of the bootstrap over people.

    Raises
    ------
    CannotSayError
        Fewer than two sites.

    Examples
    --------
    >>> found = between_sites([[0.0, 0.0], [0.0, 0.2], [1.0, 1.2]], ["A", "A", "B"], ["1", "2", "3"], unit=0.5)
    >>> round(found.value, 6)
    2.1
    """
    return _over_draws(_site_distance, rows, sites, people, unit, seed)


def site_ratio(
    after: tuple[ArrayLike, float],
    before: tuple[ArrayLike, float],
    sites: Sequence[Any],
    people: Sequence[Any],
    seed: int = 0,
) -> Estimate:
    """`between_sites` of the same images after over before; the interval draws people for both at once.

    Parameters
    ----------
    after, before
        Rows (N, F) and the unit of each.
    sites, people, seed
        As `between_sites`.

    Raises
    ------
    CannotSayError
        Fewer than two sites, or they did not differ before.

    Examples
    --------
    >>> before = np.array([[0.0], [0.2], [1.0], [1.2]])
    >>> round(site_ratio((before / 4, 1.0), (before, 1.0), "AABB", "1234").value, 6)
    0.25
    """
    rows, width = np.hstack([np.asarray(after[0], float), np.asarray(before[0], float)]), np.shape(after[0])[1]

    def ratio(table: NDArray[np.float64], labels: NDArray[Any], who: NDArray[Any]) -> float:
        top, bottom = (_site_distance(part, labels, who) for part in (table[:, :width], table[:, width:]))
        if not bottom > 0:
            raise CannotSayError("the sites did not differ before")
        return top / bottom

    return _over_draws(ratio, rows, sites, people, after[1] / before[1], seed)


def between_people(
    rows: ArrayLike, sites: Sequence[Any], people: Sequence[Any], unit: float, seed: int = 0
) -> Estimate:
    """How much people differ: standard deviation between people of one site, root mean square over columns and sites.

    Harmonization may take out noise, but must not make everybody alike.

    Parameters
    ----------
    rows, sites, people, unit, seed
        As `between_sites`; one site is enough, and images without a site count as one.

    Raises
    ------
    CannotSayError
        No site has two people.

    Examples
    --------
    >>> round(between_people([[0.0], [2.0], [9.0], [11.0]], ["A", "A", "B", "B"], "1234", unit=1.0).value, 6)
    1.414214
    """
    found = _over_draws(_person_spread, rows, ["" if site is None else site for site in sites], people, unit, seed)
    # somebody drawn twice does not differ from himself: draws have (n - 1) / n of the variance
    again = (found.people / max(found.people - 1, 1)) ** 0.5
    return Estimate(found.value, again * found.low, again * found.high, found.people)


def _over_draws(
    measure: Callable[[NDArray[np.float64], NDArray[Any], NDArray[Any]], float],
    rows: ArrayLike,
    sites: Sequence[Any],
    people: Sequence[Any],
    unit: float,
    seed: int,
) -> Estimate:
    table = np.asarray(rows, np.float64)
    known = np.array([site is not None for site in sites], bool)
    labels = np.array([str(site) for site in sites])[known]
    names, who = np.unique(np.array([str(person) for person in people])[known], return_inverse=True)
    table = table[known]
    value = measure(table, labels, who)
    own = [np.flatnonzero(who == index) for index in range(names.size)]

    def drawn(chosen: NDArray[np.intp]) -> float:
        rows_of = np.concatenate([own[index] for index in chosen])
        # somebody drawn twice is two people, who happen to be alike
        again = np.concatenate([np.full(own[index].size, place) for place, index in enumerate(chosen)])
        try:
            return measure(table[rows_of], labels[rows_of], again)
        except CannotSayError:
            return float("nan")

    low, high = bootstrap(drawn, names.size, seed, resamples=300)
    return Estimate(value / unit, low / unit, high / unit, names.size)


def _site_distance(table: NDArray[np.float64], labels: NDArray[Any], people: NDArray[Any]) -> float:
    names = np.unique(labels)
    if names.size < 2:
        raise CannotSayError(f"needs two sites at least; there is {', '.join(names.tolist()) or 'none'}")
    means = [mean_row(table[labels == name]) for name in names]
    return float(np.mean([np.nanmean(np.abs(one - other)) for one, other in itertools.combinations(means, 2)]))


def _person_spread(table: NDArray[np.float64], labels: NDArray[Any], people: NDArray[Any]) -> float:
    total, freedom = np.zeros(table.shape[1]), 0
    for name in np.unique(labels):
        own, index = np.unique(people[labels == name], return_inverse=True)
        if own.size < 2:
            continue
        part = table[labels == name]
        means = np.array([mean_row(part[index == place]) for place in range(own.size)])
        total += np.nan_to_num(np.square(means - mean_row(means))).sum(axis=0)
        freedom += own.size - 1
    if not freedom:
        raise CannotSayError("no site has two people: how much people differ cannot be told")
    return float(np.sqrt((total / freedom).mean()))
