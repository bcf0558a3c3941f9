"""Where an image has edges, and how alike two rows of numbers are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def gradient_magnitude(image: NDArray[Any], dtype: type[np.floating] = np.float32) -> NDArray[Any]:
    """Length of the gradient by central differences; axes of a single slice do not count.

    Parameters
    ----------
    image
        (X, Y, Z), taken as float32.
    dtype
        In which the squares are added up.

    Returns
    -------
    (X, Y, Z) of `dtype`, in the image's units a voxel.

    Examples
    --------
    >>> gradient_magnitude(np.array([[0, 3, 6], [4, 7, 10]]))[0].tolist()
    [5.0, 5.0, 5.0]
    >>> gradient_magnitude(np.array([[0, 3, 6]])).tolist()
    [[3.0, 3.0, 3.0]]
    """
    image = np.asarray(image, np.float32)
    total = np.zeros(image.shape, dtype)
    for axis in range(image.ndim):
        if image.shape[axis] > 1:
            # one axis at a time: all three would cost three more volumes
            total += np.square(np.gradient(image, axis=axis))
    return np.sqrt(total, out=total)


def pearson(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Pearson correlation of (N,) numbers; NaN where one of the two does not vary.

    >>> pearson(np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 9.0])), pearson(np.ones(3), np.arange(3.0))
    (1.0, nan)
    """
    one, other = first.astype(np.float64), second.astype(np.float64)
    one -= one.mean()
    other -= other.mean()
    size = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / size if size > 0 else float("nan")
