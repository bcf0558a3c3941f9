"""Voxels of an aligned grid as matrices: what averaging over them, one axis at a time, makes of a head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mmh_bids.simulate.acquire import POINT_SPREAD


def effective_sigma(voxel: float) -> float:
    """Standard deviation of the blur of averaging over voxels and interpolating linearly between them.

    Variances add: a box has size^2 / 12, linear interpolation on average size^2 / 6; the point spread along thin
    voxels. Units are those of `voxel`.

    >>> round(effective_sigma(1.0), 2), round(effective_sigma(3.0), 2)
    (0.61, 1.59)
    """
    return math.sqrt(voxel**2 / 4 + (POINT_SPREAD * min(voxel, 1.5)) ** 2)


@dataclass(frozen=True)
class AxisGrid:
    """Voxels along one axis of a head.

    Attributes
    ----------
    size
        Samples N of the head along the axis.
    voxel
        Voxel size over the head's, above 0.
    phase
        Where the first voxel's centre lies, in voxels, 0 to 1.
    """

    size: int
    voxel: float
    phase: float

    @property
    def count(self) -> int:
        """Voxels M whose centres lie between the first and last sample; two at least."""
        return max(2, math.floor((self.size - 1) / self.voxel - self.phase) + 1)

    def place(self, where: torch.Tensor) -> torch.Tensor:
        """Sample coordinates as voxel coordinates."""
        return where / self.voxel - self.phase

    def averages(self, spread: bool) -> torch.Tensor:
        """Voxels' averages of a head's samples, (M, N): means of linearly interpolated sub-voxels, as `acquire` does.

        Parameters
        ----------
        spread
            Whether the point spread blurs along this axis, which it does not across thick slices.

        Examples
        --------
        >>> AxisGrid(5, 2.0, 0.25).averages(False)
        tensor([[0.5000, 0.5000, 0.0000, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.5000, 0.5000, 0.0000]])
        """
        parts = max(1, math.ceil(self.voxel - 0.15))
        centres = (torch.arange(self.count) + self.phase) * self.voxel
        fine = centres[:, None] + ((torch.arange(parts) + 0.5) / parts - 0.5) * self.voxel
        near = 1 - (fine[..., None] - torch.arange(self.size)).abs()
        matrix = near.clamp_min(0).mean(dim=1)
        if not spread:
            return matrix
        steps = torch.arange(self.count)[:, None] - torch.arange(self.count)
        kernel = torch.exp(-0.5 * (steps / POINT_SPREAD) ** 2)
        return kernel / kernel[self.count // 2].sum() @ matrix
