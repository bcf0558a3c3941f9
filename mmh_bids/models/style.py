"""The tri-planar style encoder of MMH's stage 2: one vector for the look of a volume, differentiable in the volume.

After Wu et al., arXiv 2601.08193 (2026). A frozen image tower sees slices of three planes. A small aggregator, which
stage 2 trains, makes one vector of their embeddings:

* to a slice's embedding its place among the slices (sinusoids, Vaswani et al. 2017) and a learned vector of its plane
  are added, and the sum is scaled to length 1;
* a learned query for each plane attends over the slices of that plane, and what it gathers is layer-normalised.
  Attention and normalisation are the same for the three planes: query and learned vector tell them apart;
* the three results are fused: their mean, plus `alpha` times what a layer makes of all three. That layer's last
  normalisation has gain zero at first, so that the fusion starts as the plain mean and learns from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

PLANES, _CHANNELS = 3, 3
#: The margin takes at most this share of an axis at either end, so that its middle quarter is always seen.
_LARGEST_MARGIN = 3 / 8


def slice_places(size: int, slices: int, margin: float) -> list[int]:
    """Voxels along an axis through which slices are laid, evenly spaced.

    Parameters
    ----------
    size
        Voxels along the axis.
    slices
        Their number. Where there are fewer voxels between the margins, neighbours repeat.
    margin
        Voxels left out at either end, at most three eighths of the axis.

    Examples
    --------
    >>> slice_places(144, 6, 50)
    [50, 59, 67, 76, 84, 93]
    >>> slice_places(16, 6, 50)
    [6, 7, 7, 8, 8, 9]
    """
    margin = min(margin, _LARGEST_MARGIN * size, (size - 1) / 2)
    step = (size - 1 - 2 * margin) / max(1, slices - 1)
    start = margin if slices > 1 else (size - 1) / 2
    return [min(size - 1, math.floor(start + step * number + 0.5)) for number in range(slices)]


def sinusoids(count: int, dim: int) -> torch.Tensor:
    """Sinusoidal positions (count, dim): sines in the even, cosines in the odd columns, `dim` even.

    >>> sinusoids(2, 4).round(decimals=2)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8400, 0.5400, 0.0100, 1.0000]])
    """
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angles = torch.arange(count)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(count, dim)


class Aggregator(nn.Module):
    """From the slices' embeddings (B, 3, S, D) to one vector (B, D).

    Parameters
    ----------
    dim
        D, divisible by `heads` and by 2.
    heads
        Of the attention.
    alpha
        Weight of the fusion's learned part beside the mean.
    """

    def __init__(self, dim: int, heads: int = 8, alpha: float = 0.2) -> None:
        super().__init__()
        if dim % heads or dim % 2:
            raise ValueError(f"dim is {dim}: must be even and divisible by {heads} heads")
        self.alpha = alpha
        self.view = nn.Parameter(torch.randn(PLANES, dim) * 0.02)
        self.query = nn.Parameter(torch.randn(PLANES, dim) * 0.02)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.fuse = nn.Sequential(nn.Linear(PLANES * dim, dim), nn.GELU(), nn.LayerNorm(dim))
        # a zero layer before the normalisation would give the mean as well, and gradients of a division by zero
        nn.init.zeros_(self.fuse[-1].weight)  # type: ignore[arg-type]

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return (B, D)."""
        batch, planes, count, dim = embeddings.shape
        place = sinusoids(count, dim).to(embeddings)
        keys = functional.normalize(embeddings + place + self.view[:, None], dim=-1).flatten(0, 1)
        query = self.query.expand(batch, planes, dim).reshape(batch * planes, 1, dim)
        seen, _ = self.attention(query, keys, keys, need_weights=False)
        vectors = self.norm(seen).reshape(batch, planes, dim)
        return vectors.mean(dim=1) + self.alpha * self.fuse(vectors.flatten(1))


class TriPlanarEncoder(nn.Module):
    """Style vector of a volume.

    Parameters
    ----------
    tower
        Frozen network from images (N, 3, H, W) to (N, `dim`), with open_clip's attributes ``image_size`` (H, W),
        ``image_mean`` and ``image_std`` (3 each).
    dim
        Length of its embeddings.
    slices
        In each plane, see `slice_places`.
    margin_mm
        What is left out at both ends of each axis.
    heads, alpha
        Of the `Aggregator`.
    voxel_mm
        Resolution it works at. A finer volume is averaged over cubes of as many voxels as do not make it coarser than
        that; a coarser one is taken as it is.
    card
        JSON-ready facts: which encoder this is.
    chunk
        Slices that go through the tower at a time. In a pass with gradients each chunk's activations are worked out
        again on the way back instead of kept.

    Attributes
    ----------
    card
        As given.
    aggregator
        What is trained; the tower stays in evaluation mode and without gradients of its own.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        tower: nn.Module,
        *,
        dim: int,
        slices: int = 24,
        margin_mm: float = 50.0,
        heads: int = 8,
        alpha: float = 0.2,
        voxel_mm: float = 1.0,
        card: Mapping[str, Any],
        chunk: int = 8,
    ) -> None:
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.aggregator = Aggregator(dim, heads, alpha)
        self.slices, self.margin_mm, self.voxel_mm, self.chunk = slices, margin_mm, voxel_mm, chunk
        self.card = dict(card)
        height, width = tower.image_size  # type: ignore[misc]
        self.image_size = int(height), int(width)
        mean, std = (torch.tensor(getattr(tower, name)).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, volume: torch.Tensor, voxel_mm: float = 1.0) -> torch.Tensor:
        """Encode volumes.

        Parameters
        ----------
        volume
            (B, 1, X, Y, Z), intensities 0 to 1, zero outside the brain, RAS axes, the whole model grid.
        voxel_mm
            Its voxel size.

        Returns
        -------
        (B, dim).
        """
        return self.aggregator(self.embed(volume, voxel_mm))

    def embed(self, volume: torch.Tensor, voxel_mm: float = 1.0) -> torch.Tensor:
        """Return the tower's embeddings (B, 3, slices, dim) of the slices of volumes, see `forward`."""
        if volume.dim() != 5 or volume.shape[1] != 1:
            raise ValueError(f"volume has shape {tuple(volume.shape)}, must have (B, 1, X, Y, Z)")
        factor = max(1, math.floor(self.voxel_mm / voxel_mm + 1e-6))
        if factor > 1:
            # an incomplete cube at the end of an axis is averaged over what there is of it
            volume = functional.avg_pool3d(volume, factor, ceil_mode=True)
        margin = self.margin_mm / (voxel_mm * factor)
        planes = [self._embedded(self._images(volume, axis, margin)) for axis in range(PLANES)]
        return torch.stack([plane.unflatten(0, (-1, self.slices)) for plane in planes], dim=1)

    def train(self, mode: bool = True) -> TriPlanarEncoder:
        """Set the aggregator's mode; the tower's stays evaluation."""
        super().train(mode)
        self.tower.eval()
        return self

    def aggregator_parameters(self) -> Iterator[nn.Parameter]:
        """Everything that is trained: learned vectors, queries, attention, normalisation and fusion."""
        return self.aggregator.parameters()

    def aggregator_state(self) -> dict[str, torch.Tensor]:
        """Copies of the aggregator's weights by name, on the CPU: what a training keeps, the tower being known."""
        return {name: value.detach().cpu().clone() for name, value in self.aggregator.state_dict().items()}

    def load_aggregator_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take weights of `aggregator_state`, strictly; RuntimeError if they are another aggregator's."""
        self.aggregator.load_state_dict(dict(state))

    def _images(self, volume: torch.Tensor, axis: int, margin: float) -> torch.Tensor:
        """Slices (B * S, 1, H, W) across an axis, upright, in the middle of the tower's image.

        What is smaller than the image is surrounded by zeros; of what is larger the middle is taken, for a brain shrunk
        to fit would have another texture.
        """
        places = torch.tensor(slice_places(volume.shape[2 + axis], self.slices, margin), device=volume.device)
        chosen = volume[:, 0].index_select(1 + axis, places).movedim(1 + axis, 1).flatten(0, 1)
        upright = chosen.transpose(-1, -2).flip(-2)[:, None]
        (high, wide), pad = upright.shape[-2:], []
        for have, want in ((wide, self.image_size[1]), (high, self.image_size[0])):
            before = (want - have) // 2
            pad += [before, want - have - before]
        return functional.pad(upright, pad)

    def _embedded(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, dim) of images (N, 1, H, W)."""
        keep = torch.is_grad_enabled() and images.requires_grad
        out = []
        for part in images.split(self.chunk):
            out.append(checkpoint(self._tower, part, use_reentrant=False) if keep else self._tower(part))
        return torch.cat(out)

    def _tower(self, images: torch.Tensor) -> torch.Tensor:
        return self.tower((images.expand(-1, _CHANNELS, -1, -1) - self.mean) / self.std)
