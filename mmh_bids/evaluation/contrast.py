"""Contrast of white and grey matter by the true tissue, and how much a number varies between scanners."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmh_bids.simulate.tissues import GREY, WHITE

#: Sign of white minus grey matter.
_SIGN = {"T1w": 1.0, "T2w": -1.0}


def white_grey_contrast(values: NDArray[Any], tissue: NDArray[np.integer], sequence: str) -> float:
    """Difference of the medians of white matter and cortex, positive where it has the sign of the sequence.

    Parameters
    ----------
    values
        (N,) intensities, any units.
    tissue
        (N,) true tissue, indices into `simulate.tissues.NAMES`.
    sequence
        ``"T1w"`` (white matter is brighter) or ``"T2w"`` (darker).

    Returns
    -------
    In the units of the values; below 0 where the contrast is inverted.

    Raises
    ------
    ValueError
        If one of the two tissues is not there.

    Examples
    --------
    >>> values, tissue = np.array([0.75, 0.5, 0.25]), np.array([WHITE, GREY, 0])
    >>> white_grey_contrast(values, tissue, "T1w"), white_grey_contrast(values, tissue, "T2w")
    (0.25, -0.25)
    """
    white, grey = values[tissue == WHITE], values[tissue == GREY]
    if white.size == 0 or grey.size == 0:
        raise ValueError("no white or no grey matter among the voxels: there is no contrast to measure")
    return _SIGN[sequence] * (float(np.median(white)) - float(np.median(grey)))


def spread(values: ArrayLike) -> float:
    """Standard deviation (of the sample, n - 1) over the mean.

    Raises
    ------
    ValueError
        For fewer than two values, or a mean that is not above 0.

    Examples
    --------
    >>> round(spread([1.0, 2.0, 3.0]), 9), spread([5.0, 5.0])
    (0.5, 0.0)
    """
    numbers = np.asarray(values, float)
    if numbers.size < 2 or not numbers.mean() > 0:
        raise ValueError(f"a spread needs two values at least and a mean above 0, got {numbers.tolist()}")
    return float(numbers.std(ddof=1) / numbers.mean())
