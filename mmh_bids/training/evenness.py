"""Which voxels hold one tissue: those whose surroundings are of one brightness. Torch only.

Two scans of one person share their anatomy, not their slices: in a voxel that two tissues share, the one of 1 mm and
the one of 3 mm differ by what the slices blur, which a curve of intensity would learn as contrast.
"""

from __future__ import annotations

import torch
from torch.nn import functional

#: Local standard deviation at which a voxel counts for 1/e, as a share of the whole brain's. On people held out
#: (`benchmarks/look_people.py`) half of it was no better; without any, looks of thick slices were off by a sixth more.
_WIDTH = 0.4
#: Share of the voxels whose local standard deviation is at most the width, however noisy the image.
_LEAST = 0.25
#: Every voxel of the cube around a voxel lies in the mask; a little less, as means of ones are rounded.
_WHOLE = 0.99


def evenness(volume: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How much each voxel is to count where only even surroundings teach something.

    Parameters
    ----------
    volume
        (B, 1, X, Y, Z), any scale.
    mask
        (B, 1, X, Y, Z), brain.

    Returns
    -------
    (B, 1, X, Y, Z) in [0, 1]: exp(-(s / w)^2) of the standard deviation s over the cube of 3 x 3 x 3 voxels, w being
    0.4 of the brain's own standard deviation, more in noisy images; zero where the cube leaves the mask. The mask
    itself where no cube lies in it.

    Examples
    --------
    >>> half = torch.cat([torch.full((1, 1, 4, 8, 8), value) for value in (0.3, 0.7)], dim=2)
    >>> [round(weight, 3) for weight in evenness(half, torch.ones_like(half))[0, 0, :, 4, 4].tolist()]
    [0.0, 1.0, 1.0, 0.004, 0.004, 1.0, 1.0, 0.0]
    """
    mask = mask.to(volume.dtype)
    whole = functional.avg_pool3d(mask, 3, 1, 1) > _WHOLE
    if not whole.any():
        return mask
    mean = functional.avg_pool3d(volume, 3, 1, 1)
    local = (functional.avg_pool3d(volume.square(), 3, 1, 1) - mean.square()).clamp_min(0).sqrt()
    spread = volume[mask.bool()].std()
    least = torch.kthvalue(local[whole], max(1, int(_LEAST * int(whole.sum())))).values
    width = torch.maximum(_WIDTH * spread, least).clamp_min(torch.finfo(volume.dtype).tiny)
    return torch.exp(-(local / width).square()) * whole
