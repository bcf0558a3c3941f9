"""Statistics matching: give a brain another mean and standard deviation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def brain_moments(volume: NDArray[Any], mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean and standard deviation of a volume (X, Y, Z) inside a mask (X, Y, Z)."""
    values = volume[mask].astype(np.float64)
    return float(values.mean()), float(values.std())


def match_moments(volume: NDArray[np.float32], mask: NDArray[np.bool_], mean: float, std: float) -> NDArray[np.float32]:
    """Shift and stretch the brain to a mean and standard deviation.

    Parameters
    ----------
    volume, mask
        (X, Y, Z), and bool; at least one voxel.
    mean, std
        What the brain gets, but for what is cut off at 0 and 1.

    Returns
    -------
    (X, Y, Z) float32 in [0, 1], zero outside the mask; a brain without contrast gets the mean.

    Examples
    --------
    >>> volume = np.linspace(0.2, 0.4, 8, dtype=np.float32).reshape(2, 2, 2)
    >>> out = match_moments(volume, volume > 0, 0.5, 0.1)
    >>> round(float(out.mean()), 6), round(float(out.std()), 6)
    (0.5, 0.1)
    """
    own_mean, own_std = brain_moments(volume, mask)
    moved = (volume - own_mean) * (std / max(own_std, 1e-6)) + mean
    return np.where(mask, moved.clip(0, 1), 0).astype(np.float32)
