"""Volumes at larger voxels: means over the brain's part of cubes. Torch only."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional


def shrink(volume: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Average cubes of `factor` voxels; the brain is where it was above zero in at least half of a cube.

    Parameters
    ----------
    volume
        (1, 1, X, Y, Z) in [0, 1], zero outside the brain. Planes at an axis's end that fill no cube are dropped.

    Returns
    -------
    volume, mask
        (1, 1, X / factor, ...) float32, zero outside the mask, and bool.

    Examples
    --------
    >>> small, mask = shrink(torch.ones(1, 1, 4, 4, 5), 2)
    >>> small.shape, bool(mask.all())
    (torch.Size([1, 1, 2, 2, 2]), True)
    """
    mask = volume > 0
    if factor == 1:
        return volume, mask
    share = functional.avg_pool3d(mask.float(), factor)
    mask = share >= 0.5
    # the mean over the brain's part of each cube: its edge would be darker otherwise
    return functional.avg_pool3d(volume, factor) / share.clamp_min(1e-6) * mask, mask


def shrink_brain(
    volume: NDArray[np.float32], brain: NDArray[np.bool_], factor: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`shrink` of a volume (X, Y, Z) within a mask, whatever the values in it: zeros in the brain count as well."""
    return shrink(torch.from_numpy(np.where(brain, np.maximum(volume, 1e-6), 0))[None, None].float(), factor)
