"""Bootstrap percentile intervals over subjects."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
_RESAMPLES = 10_000


def mean_interval(values: ArrayLike, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean over subjects.

    Parameters
    ----------
    values
        (S,) one number a subject; of one subject the interval is the number itself.
    level
        Share of the resampled means inside, 0 to 1.
    seed
        Of the resampling.

    Raises
    ------
    ValueError
        For no subject or numbers that are not finite.

    Notes
    -----
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. With few subjects it is too narrow.

    Examples
    --------
    >>> low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    >>> 1 <= low < 2.5 < high <= 4
    True
    """
    numbers = _checked(values)
    return _percentiles(numbers[_draws(numbers.size, seed)].mean(axis=1), level)


def ratio_interval(top: ArrayLike, bottom: ArrayLike, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the ratio of two means over the same subjects.

    Parameters
    ----------
    top, bottom
        (S,) one number a subject, in the same order; `bottom` above 0.
    level, seed
        See `mean_interval`.

    Raises
    ------
    ValueError
        As `mean_interval`, and if lengths differ or `bottom` is not above 0.

    Examples
    --------
    >>> ratio_interval([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    (0.5, 0.5)
    """
    above, below = _checked(top), _checked(bottom)
    if above.size != below.size or not (below > 0).all():
        raise ValueError(f"needs as many numbers above as below, those below above 0; got {above} and {below}")
    chosen = _draws(above.size, seed)
    return _percentiles(above[chosen].mean(axis=1) / below[chosen].mean(axis=1), level)


def _draws(size: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, size, (_RESAMPLES, size))


def _percentiles(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, float).ravel()
    if numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"needs one finite number a subject and a subject at least, got {numbers.tolist()}")
    return numbers
