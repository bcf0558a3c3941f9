"""The image tower of the small style encoder: intensities, and how they lie beside each other. Torch and MONAI only.

Nothing in it is normalised, so that brightness and contrast count as they are. A slice is described by statistics over
its brain, whatever the brain's size: its histogram, its first and second differences along both axes (for noise and
sharpness), and means and standard deviations of the features of some convolutions. Differences and deviations count by
their logarithms, for what tells scanners apart is ratios. Of this description, a linear and a bent part make the
embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import nn
from torch.nn import functional

#: The brightest intensity told apart: stage 1 goes beyond 1.
_BRIGHTEST = 1.2
#: Share of the voxels that counts as none.
_FEW = 1e-4
#: Variance that counts as none.
_FLAT = 1e-6
#: Statistics of `differences`; size of a difference that counts as none.
_DIFFERENCES, _STILL = 8, 1e-3


class SmallTower(nn.Module):
    """From slices (N, 3, H, W), 0 to 1 and zero outside the brain, to (N, `dim`).

    Parameters
    ----------
    dim
        Length of an embedding.
    channels
        Of the convolutions. Each halves the image.
    bins
        Of the intensities' histogram, their centres evenly spaced from 0 to 1.2.
    image_size
        H and W, divisible by 2 as often as it is halved.
    """

    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(
        self, dim: int = 64, channels: Sequence[int] = (16, 24, 48), bins: int = 25, image_size: int = 96
    ) -> None:
        super().__init__()
        self.image_size, self.bins = (image_size, image_size), bins
        self.body = nn.Sequential(
            *[
                Convolution(2, before, after, strides=2, act="GELU", norm=None)
                for before, after in zip([1, *channels[:-1]], channels, strict=True)
            ]
        )
        seen = bins + _DIFFERENCES + 2 * sum(channels)
        self.linear = nn.Linear(seen, dim)
        self.bent = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        nn.init.zeros_(self.bent[-1].weight)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        straight = self.linear(self.describe(images))
        return straight + self.bent(straight)

    def describe(self, images: torch.Tensor) -> torch.Tensor:
        """Statistics (N, F) of slices (N, 3, H, W)."""
        grey = images[:, :1]
        inside = (grey > 0).to(grey)
        # the root makes much of what is rare: of noise where there is no signal, of the brightest
        found = [(soft_histogram(grey, inside, self.bins) + _FEW).sqrt(), differences(grey, inside)]
        # about -2 to 2, where the first layer's nonlinearity bends
        features = 4 * grey - 2
        for layer in self.body:
            features, inside = layer(features), functional.avg_pool2d(inside, 2)
            found += moments(features, inside)
        return torch.cat(found, dim=1)


def soft_histogram(images: torch.Tensor, weights: torch.Tensor, bins: int) -> torch.Tensor:
    """Shares (N, bins) of the pixels of images (N, 1, H, W), each shared between the two nearest bins.

    >>> images = torch.tensor([0.0, 0.3, 0.6, 9.0]).reshape(1, 1, 2, 2)
    >>> soft_histogram(images, torch.ones(1, 1, 2, 2), 3).round(decimals=3)
    tensor([[0.3750, 0.3750, 0.2500]])
    """
    place = (images.flatten(1) * ((bins - 1) / _BRIGHTEST)).clamp(0, bins - 1)
    below = place.detach().long().clamp_max(bins - 2)
    share, weight = place - below, weights.flatten(1)
    out = torch.zeros(len(images), bins, dtype=images.dtype, device=images.device)
    out = out.scatter_add(1, below, (1 - share) * weight).scatter_add(1, below + 1, share * weight)
    return out / weight.sum(dim=1, keepdim=True).clamp_min(1)


def differences(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Logarithms of first and second differences' sizes (N, 8) in images (N, 1, H, W), where all weights are 1.

    Along both axes, each by the mean of its absolute value, which edges make, and by that of the root: noise does that.

    >>> ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    >>> differences(ramp, torch.ones_like(ramp)).exp().round(decimals=2)
    tensor([[0.0000, 0.0300, 0.0000, 0.0300, 1.0000, 1.0000, 0.0000, 0.0300]])
    """
    found = []
    for axis in (2, 3):
        change, inside = images, weights
        for _ in range(2):
            size = change.shape[axis] - 1
            change = change.diff(dim=axis)
            inside = inside.narrow(axis, 1, size) * inside.narrow(axis, 0, size)
            shares = inside / inside.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
            size_of = change.abs() + _STILL
            found += [(size_of * shares).sum(dim=(1, 2, 3)), (size_of.sqrt() * shares).sum(dim=(1, 2, 3))]
    return (torch.stack(found, dim=1) + _STILL).log()


def moments(features: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """Means, and logarithms of the standard deviations, of features (N, C, H, W) weighted by (N, 1, H, W); (N, C) each.

    >>> features = torch.tensor([1.0, 3.0, 9.0, 9.0]).reshape(1, 1, 2, 2)
    >>> mean, spread = moments(features, torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2))
    >>> float(mean), round(float(spread.exp()), 3)
    (2.0, 1.0)
    """
    shares = weights.flatten(1)
    shares = (shares / shares.sum(dim=1, keepdim=True).clamp_min(1))[..., None]
    features = features.flatten(2)
    mean = torch.bmm(features, shares)
    variance = torch.bmm((features - mean).square(), shares)
    return [mean[..., 0], 0.5 * (variance[..., 0] + _FLAT).log()]
