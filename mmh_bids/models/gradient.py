"""The style-agnostic condition of MMH: where an image gets brighter or darker, not how bright it is.

Formulas: Wu et al., arXiv 2601.08193 (2026), and the authors' published scripts.
"""

from __future__ import annotations

import torch
from torch.nn import functional

#: Share of the voxels whose gradient is at most 1, and the largest gradient that is kept.
_QUANTILE, _LIMIT = 0.99, 5.0


def gradient_map(volume: torch.Tensor) -> torch.Tensor:
    """Mean of the signed forward differences along x, y and z.

    At voxel (i, j, k), all above zero, it is what the voxels (i, j - 1, k - 1), (i - 1, j, k - 1) and
    (i - 1, j - 1, k) have on average more than (i - 1, j - 1, k - 1). The first plane of each axis is zero.

    It depends on the orientation: edges whose three differences cancel do not show, and mirroring an axis is not
    the same as mirroring the map. Volumes must come in canonical orientation (RAS+).

    Parameters
    ----------
    volume
        (B, C, X, Y, Z), any range.

    Returns
    -------
    (B, C, X, Y, Z), in units of `volume` per voxel.

    Examples
    --------
    >>> ramp = torch.arange(3.0).reshape(1, 1, 3, 1, 1).expand(1, 1, 3, 2, 2)
    >>> gradient_map(3 * ramp)[0, 0, :, 1, 1]
    tensor([0., 1., 1.])
    """
    start = volume[..., :-1, :-1, :-1]
    # differences first: the sum of three equal values less three times the value need not be zero
    steps = volume[..., 1:, :-1, :-1] - start + (volume[..., :-1, 1:, :-1] - start)
    steps = (steps + (volume[..., :-1, :-1, 1:] - start)) / 3
    return functional.pad(steps, (1, 0, 1, 0, 1, 0))


def gradient_scale(volume: torch.Tensor) -> torch.Tensor:
    """Return the 99th percentile of the absolute gradient map of every volume of (B, 1, X, Y, Z), (B,)."""
    return _percentile(gradient_map(volume.float()).abs().flatten(1), _QUANTILE)


def gradient_condition(volume: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Second input channel of the network: the gradient map, free of the image's contrast scale.

    g / (99th percentile of |g| over the whole volume), cut to [-5, 5], then 0.5 tanh of it. An image times a positive
    number, or plus a number, has the same condition.

    Parameters
    ----------
    volume
        (B, 1, X, Y, Z); every volume of the batch is scaled by itself.
    scale
        Its `gradient_scale`, where that is known: finding it is most of the work.

    Returns
    -------
    (B, 1, X, Y, Z) in (-0.5, 0.5); zero where the volume is constant.

    Examples
    --------
    >>> volume = torch.rand(1, 1, 6, 6, 6)
    >>> torch.allclose(gradient_condition(volume), gradient_condition(3 * volume - 1), atol=1e-4)
    True
    """
    gradient = gradient_map(volume.float())
    if scale is None:
        scale = _percentile(gradient.abs().flatten(1), _QUANTILE)
    gradient = gradient / (scale + 1e-8).reshape(-1, *[1] * (volume.ndim - 1))
    return 0.5 * torch.tanh(gradient.clamp(-_LIMIT, _LIMIT))


def _percentile(values: torch.Tensor, share: float) -> torch.Tensor:
    """Quantile of every row of (B, N), linear between neighbours; `torch.quantile` refuses more than 2^24 values."""
    place = share * (values.shape[1] - 1)
    low = int(place)
    # only the top is sorted
    top = values.topk(values.shape[1] - low, dim=1).values
    return torch.lerp(top[:, -1], top[:, -min(2, top.shape[1])], place - low)
