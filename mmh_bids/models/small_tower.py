"""The image tower of the small style encoder: intensities, and how they lie beside each other. Torch and MONAI only.

Nothing in it is normalised, so that brightness and contrast count as they are. A slice's embedding is made of the means
and the standard deviations of its features over the brain: how large the brain is makes no difference.
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


class SmallTower(nn.Module):
    """From slices (N, 3, H, W), 0 to 1 and zero outside the brain, to (N, `dim`).

    Parameters
    ----------
    dim
        Length of an embedding.
    channels
        Of the convolutions, before the first of which, and in each, the image is halved.
    bins
        Intensities, evenly spaced from 0 to 1.2, between which the first layer divides a voxel.
    image_size
        H and W, divisible by 2 as often as it is halved.
    """

    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    centres: torch.Tensor

    def __init__(self, dim: int = 64, channels: Sequence[int] = (24, 48), bins: int = 25, image_size: int = 96) -> None:
        super().__init__()
        self.image_size = (image_size, image_size)
        self.register_buffer("centres", torch.arange(float(bins)).reshape(1, -1, 1, 1), persistent=False)
        sizes = [bins, *channels]
        self.body = nn.Sequential(
            *[
                Convolution(2, before, after, strides=2, act="GELU", norm=None)
                for before, after in zip(sizes[:-1], sizes[1:], strict=True)
            ]
        )
        self.out = nn.Linear(bins + 2 * sum(channels), dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        grey = images[:, :1]
        inside = (grey > 0).to(grey)
        # a voxel takes part in the two nearest bins, so that a slope is left everywhere
        spacing = _BRIGHTEST / (self.centres.shape[1] - 1)
        features = torch.relu(1 - (grey / spacing - self.centres).abs())
        # the root makes much of what is rare: of noise where there is no signal, of the brightest
        found = [(mean_inside(features, inside) + _FEW).sqrt()]
        features, inside = functional.avg_pool2d(features, 2), functional.avg_pool2d(inside, 2)
        for layer in self.body:
            features = layer(features)
            inside = functional.avg_pool2d(inside, 2)
            mean = mean_inside(features, inside)
            variance = mean_inside((features - mean[..., None, None]).square(), inside)
            found += [mean, (variance + 1e-6).sqrt()]
        return self.out(torch.cat(found, dim=1))


def mean_inside(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Means (N, C) of features (N, C, H, W) weighted by (N, 1, H, W); zero where all weights are.

    >>> features = torch.tensor([1.0, 3.0, 9.0, 9.0]).reshape(1, 1, 2, 2)
    >>> float(mean_inside(features, torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2)))
    2.0
    """
    shares = weights.flatten(1)
    shares = shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-3)
    return torch.bmm(features.flatten(2), shares[..., None])[..., 0]
