"""How far an image is from the truth, and from what it was before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LinearSums:
    """Sums over voxels of an image x and the truth y: enough to fit y = gain x + offset, and for its error.

    They add up over images, so that one line can be fitted to all images of a method: what differs between scanners
    stays an error, what is only another choice of units does not.

    Attributes
    ----------
    n, x, y, xx, xy, yy
        Number of voxels, and sums of the values and of their products.

    Examples
    --------
    >>> x = np.array([0.0, 1.0, 2.0])
    >>> sums = LinearSums.of(x, 3 * x + 1) + LinearSums.of(x, 3 * x + 1)
    >>> gain, offset = sums.line()
    >>> round(gain, 9), round(offset, 9), round(sums.mean_square_error(3.0, 2.0), 9)
    (3.0, 1.0, 1.0)
    """

    n: float
    x: float
    y: float
    xx: float
    xy: float
    yy: float

    @classmethod
    def of(cls, image: NDArray[Any], truth: NDArray[Any]) -> LinearSums:
        """Sums of one image, (N,), and the truth in the same voxels."""
        x, y = image.astype(np.float64).ravel(), truth.astype(np.float64).ravel()
        if x.size != y.size or x.size == 0:
            raise ValueError(f"needs as many voxels of image and truth and at least one, got {x.size} and {y.size}")
        return cls(float(x.size), float(x.sum()), float(y.sum()), float(x @ x), float(x @ y), float(y @ y))

    def __add__(self, other: LinearSums) -> LinearSums:
        mine, yours = vars(self), vars(other)
        return LinearSums(**{name: mine[name] + yours[name] for name in mine})

    def line(self) -> tuple[float, float]:
        """Gain and offset of least squares; a constant image has gain 0."""
        variance = self.xx - self.x**2 / self.n
        # what rounding leaves of the variance of a constant is no variance
        gain = (self.xy - self.x * self.y / self.n) / variance if variance > 1e-12 * self.xx else 0.0
        return gain, (self.y - gain * self.x) / self.n

    def mean_square_error(self, gain: float, offset: float) -> float:
        """Mean of (gain x + offset - y) squared, in squared units of the truth."""
        total = gain**2 * self.xx + 2 * gain * offset * self.x + self.n * offset**2
        total += self.yy - 2 * gain * self.xy - 2 * offset * self.y
        return max(total / self.n, 0.0)


def psnr(mean_square_error: float, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio, dB; infinite without error.

    Parameters
    ----------
    mean_square_error
        In squared units of `peak`.
    peak
        Span of the truth's intensities.

    Examples
    --------
    >>> psnr(0.01), psnr(0.0)
    (20.0, inf)
    """
    return float(10 * np.log10(peak**2 / mean_square_error)) if mean_square_error > 0 else float("inf")


def change(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Mean absolute difference of an image before and after, at the one gain of least squares.

    The gain of a scanner says nothing; an image that was only multiplied has not changed.

    Parameters
    ----------
    before, after
        (N,) intensities in the same voxels.

    Returns
    -------
    In the units of `after`, 0 or more.

    Raises
    ------
    ValueError
        If the image was zero all over.

    Examples
    --------
    >>> image = np.array([1.0, 2.0, 4.0])
    >>> change(image, 250 * image)
    0.0
    """
    x, y = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
    power = float(x @ x)
    if power == 0:
        raise ValueError("the image is zero all over: there is nothing to compare with")
    return float(np.abs(float(x @ y) / power * x - y).mean())
