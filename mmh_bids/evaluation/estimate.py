"""A number over people with its interval: people are drawn again, never images, which are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmh_bids.evaluation.bootstrap import LEVEL, mean_interval, ratio_interval

_RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval over people.

    Attributes
    ----------
    value, low, high
        In the units of the measure; `low` and `high` are NaN where one person or none leaves no interval.
    people
        How many people it is of.
    """

    value: float
    low: float
    high: float
    people: int


def mean_over_people(values: ArrayLike, people: Sequence[Any], seed: int = 0) -> Estimate:
    """Mean of people's means; values that are not finite are left out.

    Parameters
    ----------
    values
        (N,) numbers.
    people
        (N,) whose each is.

    Raises
    ------
    ValueError
        Nobody has a finite value.

    Examples
    --------
    Three scans of one person weigh as much as one of another:

    >>> mean_over_people([1.0, 1.0, 1.0, 3.0], ["01", "01", "01", "02"])
    Estimate(value=2.0, low=1.0, high=3.0, people=2)
    """
    _, means = person_means(values, people)
    low, high = mean_interval(means, seed=seed) if means.size > 1 else (np.nan, np.nan)
    return Estimate(float(means.mean()), float(low), float(high), means.size)


def ratio_over_people(top: ArrayLike, bottom: ArrayLike, people: Sequence[Any], seed: int = 0) -> Estimate:
    """Ratio of two means over the same people.

    Parameters
    ----------
    top, bottom
        (N,) numbers of the same pairs of images; `bottom` above 0.

    Raises
    ------
    ValueError
        Nobody has both, or `bottom` is not above 0.

    Examples
    --------
    >>> ratio_over_people([1.0, 2.0], [2.0, 4.0], ["01", "02"])
    Estimate(value=0.5, low=0.5, high=0.5, people=2)
    """
    above, below = np.asarray(top, float), np.asarray(bottom, float)
    both = np.isfinite(above) & np.isfinite(below)
    chosen = [who for who, use in zip(people, both, strict=True) if use]
    _, first = person_means(above[both], chosen)
    _, second = person_means(below[both], chosen)
    low, high = ratio_interval(first, second, seed=seed)
    if first.size < 2:
        low = high = np.nan
    return Estimate(float(first.mean() / second.mean()), low, high, first.size)


def person_means(values: ArrayLike, people: Sequence[Any]) -> tuple[list[str], NDArray[np.float64]]:
    """Each person's mean of the finite values: labels in order, and (P,) means; ValueError for nobody.

    >>> person_means([1.0, np.nan, 4.0], ["02", "01", "01"])
    (['01', '02'], array([4., 1.]))
    """
    numbers = np.asarray(values, float)
    finite = np.isfinite(numbers)
    if numbers.size != len(people) or not finite.any():
        raise ValueError(
            f"needs one person a value and a finite value, got {numbers.size} values, {len(people)} people"
        )
    names, index = np.unique(np.asarray([str(who) for who in people])[finite], return_inverse=True)
    return names.tolist(), np.bincount(index, weights=numbers[finite]) / np.bincount(index)


def bootstrap(
    measure: Callable[[NDArray[np.intp]], float], size: int, seed: int = 0, resamples: int = _RESAMPLES
) -> tuple[float, float]:
    """95 % percentile interval of a measure of `size` people, who are drawn again with replacement.

    Parameters
    ----------
    measure
        From indices (size,) of the people drawn to a number; draws that give no finite one are left out.

    Returns
    -------
    Ends of the interval; NaN where fewer than half of the draws give a number.

    Examples
    --------
    >>> values = np.arange(10.0)
    >>> low, high = bootstrap(lambda drawn: values[drawn].mean(), 10)
    >>> 2 < low < 4.5 < high < 7
    True
    """
    rng = np.random.default_rng(seed)
    found = np.array([measure(rng.integers(0, size, size)) for _ in range(resamples)])
    found = found[np.isfinite(found)]
    if size < 2 or found.size < resamples / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
