"""Intensities in a mask: scale, histogram, distance to a reference, monotone curves between two scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmh_bids.errors import ImageError

#: Percentile in the mask that becomes 1 in an image's own [0, 1] scale.
UPPER_PERCENTILE = 99.9
LOWER_PERCENTILE = 0.1
#: Negative values count as signal, not as interpolation ringing, when they reach this share of the upper end.
NEGATIVE_SHARE = 0.01
#: Number of values a reference quantile function has.
N_QUANTILES = 256

_CHUNK = 1 << 20
# Bins narrower than this share of the range are joined: slopes between closer points are rounding noise.
_CLOSEST = 1e-6
# Share of the knots whose straight-line fit gives the slope beyond either end.
_END_SHARE = 0.05


def robust_scale(values: ArrayLike) -> tuple[float, float]:
    """Lower and upper end of an image's own intensity scale.

    Parameters
    ----------
    values
        (N,) intensities in the brain mask.

    Returns
    -------
    lo, hi
        ``hi`` is the 99.9th percentile. ``lo`` is 0 (no signal), or the 0.1th percentile where that lies
        below -1 % of ``hi``, as in images whose zero was shifted.

    Raises
    ------
    ImageError
        No value, a value that is not finite, or a constant image.

    Examples
    --------
    >>> np.round(robust_scale(np.arange(10_001)), 6).tolist()
    [0.0, 9990.0]
    >>> np.round(robust_scale(np.arange(-100, 901)), 6).tolist()
    [-99.0, 899.0]
    """
    values = np.asarray(values).ravel()
    if values.size == 0:
        raise ImageError("the brain mask is empty: check the brain extraction, or give a mask with --derivatives")
    if not np.isfinite(values).all():
        raise ImageError("the image has NaN or infinite values inside the brain: export it again from the scanner")
    low, high = (float(value) for value in np.percentile(values, (LOWER_PERCENTILE, UPPER_PERCENTILE)))
    if low >= -NEGATIVE_SHARE * abs(high) and high > 0:
        low = 0.0
    # "not above" also means that the difference is lost in rounding, where dividing by it would be noise.
    if values.min() == values.max() or high - low <= 1e-7 * max(abs(high), abs(low)):
        raise ImageError("the image has one and the same value all over the brain: there is no contrast to work with")
    return low, high


def histogram(values: ArrayLike, bins: int = 100, upper: float = 1.0) -> NDArray[np.float64]:
    """Share of the values in each of `bins` equal bins over [0, `upper`]; values beyond fall in the end bins.

    Examples
    --------
    >>> histogram([0.1, 0.2, 0.9, 1.3], bins=2)
    array([0.5, 0.5])
    """
    values = np.clip(np.asarray(values, dtype=np.float32).ravel(), 0, upper)
    counts, _ = np.histogram(values, bins=bins, range=(0, upper))
    return counts / max(values.size, 1)


def quantile_function(values: ArrayLike, n: int = N_QUANTILES) -> NDArray[np.float64]:
    """Quantiles of the values at the `n` probabilities (i + 0.5) / n, ascending, (n,) float64.

    The midpoints leave out the two extreme values, which are noise, and make a plain mean the integral over
    the probability.

    Examples
    --------
    >>> quantile_function([0, 1, 2, 3, 4], n=2)
    array([1., 3.])
    """
    values = np.asarray(values).ravel()
    if values.size == 0:
        raise ImageError("no voxel to take quantiles of: the mask is empty")
    # np.quantile gives the same, but its partitioning takes a hundred times longer for thousands of quantiles
    ascending = np.sort(values)
    place = (np.arange(n) + 0.5) / n * (values.size - 1)
    below = place.astype(np.int64)
    low = ascending[below].astype(np.float64)
    high = ascending[np.minimum(below + 1, values.size - 1)].astype(np.float64)
    return low + (place - below) * (high - low)


def wasserstein(values: ArrayLike, quantiles: ArrayLike) -> float:
    """Wasserstein-1 distance of a sample to a reference quantile function, in the units of the values.

    In one dimension it is the area between the two quantile functions, here over the midpoints that
    `quantile_function` uses.

    Examples
    --------
    >>> reference = quantile_function(np.linspace(0, 1, 1000))
    >>> round(wasserstein(np.linspace(0, 1, 1000) + 0.25, reference), 9)
    0.25
    """
    reference = np.asarray(quantiles, dtype=np.float64)
    return float(np.abs(quantile_function(values, reference.size) - reference).mean())


@dataclass(frozen=True, eq=False)
class MonotoneMap:
    """A continuous, non-decreasing, piecewise linear curve from one intensity scale to another.

    Attributes
    ----------
    x, y
        (K,) float64 knots, x strictly ascending, y not descending, K >= 1.
    slope_below, slope_above
        Slopes, >= 0, of the straight lines that go on below x[0] and above x[-1].
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    slope_below: float
    slope_above: float

    @classmethod
    def identity(cls) -> MonotoneMap:
        """The curve that changes nothing.

        >>> MonotoneMap.identity()([-1.0, 0.25, 7.0])
        array([-1.  ,  0.25,  7.  ])
        """
        return cls(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 1.0, 1.0)

    def __call__(self, values: ArrayLike) -> NDArray[Any]:
        """Map an array of any shape; float32 stays float32, all else becomes float64.

        Works a million values at a time, so that a large volume needs no second copy in float64.
        """
        values = np.asarray(values)
        dtype = np.float32 if values.dtype == np.float32 else np.float64
        flat = values.reshape(-1)
        mapped = np.empty(flat.shape, dtype)
        for start in range(0, flat.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            mapped[part] = self._map(flat[part].astype(np.float64))
        return mapped.reshape(values.shape)

    def _map(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        mapped = np.interp(values, self.x, self.y)
        below, above = values < self.x[0], values > self.x[-1]
        mapped[below] = self.y[0] + self.slope_below * (values[below] - self.x[0])
        mapped[above] = self.y[-1] + self.slope_above * (values[above] - self.x[-1])
        return mapped

    @property
    def is_monotone(self) -> bool:
        """True if the curve nowhere falls."""
        ascending = bool(np.all(np.diff(self.x) > 0) and np.all(np.diff(self.y) >= 0))
        return ascending and self.slope_below >= 0 and self.slope_above >= 0

    def simplified(self, max_knots: int = 33, tolerance: float = 1e-4) -> MonotoneMap:
        """The curve through a few of its own knots, the farthest one added until all lie within `tolerance`.

        `tolerance` is a share of the range of y. Every kept knot is one of the curve's: it stays monotone.
        """
        if self.x.size <= 2:
            return self
        keep = np.array([0, self.x.size - 1])
        allowed = tolerance * float(self.y[-1] - self.y[0])
        while keep.size < max_knots:
            miss = np.abs(np.interp(self.x, self.x[keep], self.y[keep]) - self.y)
            if miss.max() <= allowed:
                break
            keep = np.union1d(keep, [int(miss.argmax())])
        return MonotoneMap(self.x[keep], self.y[keep], self.slope_below, self.slope_above)

    def to_json(self, max_knots: int = 33) -> dict[str, Any]:
        """The simplified curve as plain numbers of 8 significant digits, for a sidecar.

        >>> MonotoneMap.identity().to_json()
        {'Input': [0.0, 1.0], 'Output': [0.0, 1.0], 'SlopeBelow': 1.0, 'SlopeAbove': 1.0}
        """
        curve = self.simplified(max_knots)
        return {
            "Input": [_short(value) for value in curve.x],
            "Output": [_short(value) for value in curve.y],
            "SlopeBelow": _short(curve.slope_below),
            "SlopeAbove": _short(curve.slope_above),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> MonotoneMap:
        """Read what `to_json` wrote."""
        x, y = (np.asarray(values[name], dtype=np.float64) for name in ("Input", "Output"))
        return cls(x, y, float(values["SlopeBelow"]), float(values["SlopeAbove"]))


def _short(value: float) -> float:
    return float(f"{float(value):.8g}")


def fit_monotone_map(x: ArrayLike, y: ArrayLike, n_knots: int = 256) -> MonotoneMap:
    """Fit the non-decreasing curve that brings `x` nearest to `y` in the least squares sense.

    The pairs are averaged in at most `n_knots` bins of x, half of them of equal count (detail where the
    voxels are), half of equal width (detail in the bright tail); isotonic regression (pool adjacent
    violators, Barlow et al. 1972) makes the means ascend, and straight lines join them. A straight relation
    is met exactly, as means of a bin lie on the line; an inverted one gives a constant, the best that does
    not fall.

    Parameters
    ----------
    x, y
        (N,) paired finite samples, N >= 1, of any shape that flattens to the same length.
    n_knots
        Most knots the curve may have, >= 2.

    Raises
    ------
    ValueError
        No samples, lengths that differ, or values that are not finite.

    Examples
    --------
    >>> x = np.linspace(0, 1, 5000)
    >>> curve = fit_monotone_map(x, 0.1 + 0.8 * x)
    >>> np.round(curve([-1, 0, 0.3, 2]), 9)
    array([-0.7 ,  0.1 ,  0.34,  1.7 ])
    >>> bool(np.allclose(fit_monotone_map(x, x)(x), x, rtol=0, atol=1e-15))
    True
    >>> np.ptp(fit_monotone_map(x, -x)(x)) < 1e-9
    np.True_
    """
    x, y = (np.asarray(values, dtype=np.float64).ravel() for values in (x, y))
    if x.size == 0 or x.size != y.size:
        raise ValueError(f"need as many x as y samples and at least one, got {x.size} and {y.size}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("samples must be finite")
    mean_x, mean_y, weight = _bin_means(x, y, n_knots)
    if mean_x.size == 1:
        # One x tells no slope. One is the slope that leaves an unchanged image unchanged.
        return MonotoneMap(mean_x, mean_y, 1.0, 1.0)
    if np.any(np.diff(mean_y) < 0):
        from scipy.optimize import isotonic_regression

        # Rounding in the pooled means must not undo the order, hence the running maximum.
        mean_y = np.maximum.accumulate(isotonic_regression(mean_y, weights=weight).x)
    n_end = max(2, round(_END_SHARE * mean_x.size))
    below = _slope(mean_x[:n_end], mean_y[:n_end], weight[:n_end])
    above = _slope(mean_x[-n_end:], mean_y[-n_end:], weight[-n_end:])
    return MonotoneMap(mean_x, mean_y, below, above)


def _bin_means(x: NDArray[np.float64], y: NDArray[np.float64], n_bins: int) -> tuple[NDArray[np.float64], ...]:
    """Means of x and y and the count in each bin of x that holds a sample; x strictly ascending."""
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    low, high = x[0], x[-1]
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        return np.array([x.mean()]), np.array([y.mean()]), np.array([float(x.size)])
    half = max(n_bins // 2, 1)
    by_count = x[(np.arange(1, half) * x.size) // half]
    edges = np.unique(np.concatenate([by_count, np.linspace(low, high, half + 1)[1:]]))
    edges = edges[_spaced(edges, low, _CLOSEST * (high - low))]
    starts = np.unique(np.concatenate([[0], np.searchsorted(x, edges)]))
    starts = starts[starts < x.size]
    count = np.diff(np.append(starts, x.size)).astype(np.float64)
    # Offsets from the first sample of a bin keep its mean between its smallest and its largest sample.
    first = np.repeat(x[starts], count.astype(np.int64))
    mean_x = x[starts] + np.add.reduceat(x - first, starts) / count
    first = np.repeat(y[starts], count.astype(np.int64))
    mean_y = y[starts] + np.add.reduceat(y - first, starts) / count
    return _join_equal(mean_x, mean_y, count)


def _spaced(edges: NDArray[np.float64], low: float, gap: float) -> NDArray[np.bool_]:
    """Which ascending edges lie at least `gap` after the last one kept (or after `low`)."""
    keep = np.zeros(edges.size, dtype=bool)
    last = low
    for index, edge in enumerate(edges):
        if edge - last >= gap:
            keep[index] = True
            last = edge
    return keep


def _join_equal(x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[NDArray, ...]:
    """Drop knots whose x does not exceed the one before, as rounding can make of two neighbouring bins."""
    keep = np.concatenate([[True], np.diff(x) > 0])
    return x[keep], y[keep], weight[keep]


def _slope(x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Slope, at least 0, of the weighted straight-line fit."""
    dx = x - np.average(x, weights=weight)
    dy = y - np.average(y, weights=weight)
    return max(float((weight * dx * dy).sum() / (weight * dx * dx).sum()), 0.0)
