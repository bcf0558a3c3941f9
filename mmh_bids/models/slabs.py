"""Evaluate the noise predictor a slab at a time: what the whole network gives, in about half of its memory.

Patches of the volume, blended, would give something else: the normalisations and the attention of this network look at
the whole volume, and a patch of background has other statistics than a brain. So it is each layer that is cut, not the
volume. A normalisation takes its statistics from all slabs, a convolution gets each slab with the planes beyond it that
its kernel reaches. No seam can arise: the result is the whole network's but for the rounding of sums. What is saved are
copies between one layer and the next, and the features that MONAI's blocks keep while nobody needs them any more. On a
CPU that is also faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import nn
from torch.nn import functional

from mmh_bids.models.unet import AdaptiveInstanceNorm, StyleUNet

_SPACE = (2, 3, 4)
#: Of torch's instance normalisation, which `AdaptiveInstanceNorm` calls.
_INSTANCE_EPS = 1e-5
#: Planes that a CPU takes sums of at once: the same for all slabs, so that no statistic depends on the thickness.
_SUMMED = 4
_ONEDNN = torch.backends.mkldnn.is_available()

_Scale = tuple[torch.Tensor, torch.Tensor]
_Style = Sequence[torch.Tensor] | None


class SlabUNet(nn.Module):
    """A `StyleUNet` evaluated slab by slab, without gradients; it takes and gives what the network does.

    Parameters
    ----------
    network
        Its weights are used, not copied; convolutions and attention are cast to `dtype` and laid out anew.
    thickness
        Planes along X that a layer works on at once, the same number at every level; None for all.
    channels_last
        Whether features have the channels as their fastest axis, as convolutions like it on CPUs and, in half
        precision, on GPUs.
    dtype
        Of features and convolutions. Embeddings and style are computed in the network's own precision, statistics of
        half precision in float32.
    """

    def __init__(
        self,
        network: StyleUNet,
        thickness: int | None = None,
        channels_last: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if thickness is not None and thickness < 1:
            raise ValueError(f"thickness {thickness} must be at least 1")
        self.thickness = thickness
        self.dtype = dtype
        self.layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        for layer in network.modules():
            if isinstance(layer, (nn.Conv3d, SpatialAttentionBlock)):
                layer.to(dtype=dtype, memory_format=self.layout)  # type: ignore[call-overload]
        self.network = network

    def forward(
        self,
        noisy: torch.Tensor,
        condition: torch.Tensor,
        timesteps: torch.Tensor,
        sequence: torch.Tensor,
        style: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise (B, 1, X, Y, Z), in `dtype`; see `StyleUNet.forward`."""
        unet: Any = self.network.network
        hidden = self.network.padded(noisy, condition).to(self.dtype).contiguous(memory_format=self.layout)
        embedding = self._embedding(timesteps, sequence)
        hidden = self._by_slabs(unet.conv_in.conv, [hidden])
        skips = [hidden]
        for block in unet.down_blocks:
            for resnet, attention in _layers(block):
                hidden = self._attended(attention, self._residual(resnet, [hidden], embedding))
                skips.append(hidden)
            if block.downsampler is not None:
                hidden = _convolve(block.downsampler.op.conv, hidden)
                skips.append(hidden)
        middle = unet.middle_block
        hidden = self._attended(middle.attention, self._residual(middle.resnet_1, [hidden], embedding))
        hidden = self._residual(middle.resnet_2, [hidden], embedding)
        for block, mlp in zip(unet.up_blocks, self.network.styles, strict=True):
            modulation = mlp(style).chunk(2, dim=1)
            for resnet, attention in _layers(block):
                parts = [hidden, skips.pop()]
                del hidden  # so that it goes with `parts`
                hidden = self._attended(attention, self._residual(resnet, parts, embedding, modulation))
            if block.upsampler is not None:
                hidden = self._upsampled(block.upsampler.postconv.conv, hidden)
        norm, _, last = unet.out
        noise = self._by_slabs(last.conv, [hidden], self._normalising(norm, [hidden]))
        x, y, z = noisy.shape[2:]
        return noise[:, :, :x, :y, :z]

    def _embedding(self, timesteps: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
        """Time and class, activated as every residual block wants them."""
        unet: Any = self.network.network
        own = unet.class_embedding.weight.dtype
        time = unet.time_embed(get_timestep_embedding(timesteps, unet.block_out_channels[0]).to(own))
        return functional.silu(time + unet.class_embedding(sequence))

    def _residual(
        self, block: Any, parts: list[torch.Tensor], embedding: torch.Tensor, style: _Style = None
    ) -> torch.Tensor:
        """MONAI's residual block on `parts`, which are one tensor along the channels; they are given up."""
        hidden = self._by_slabs(block.conv1.conv, parts, self._normalising(block.norm1, parts))
        scale = self._normalising(block.norm2, [hidden], style, block.time_emb_proj(embedding))
        edge: list[torch.Tensor] = []
        for start, stop in self._slabs(hidden):
            # what comes out takes the place of what went in, but for the plane that the next slab still needs
            inside = hidden[:, :, start : stop + 1]
            slab = _activated(torch.cat([*edge, inside], dim=2) if edge else inside, scale)
            edge = [hidden[:, :, stop - 1 : stop].clone()]
            piece = _convolve(block.conv2.conv, slab, (int(start > 0), inside.shape[2] - (stop - start)))
            straight = _joined([part[:, :, start:stop] for part in parts])
            if not isinstance(block.skip_connection, nn.Identity):
                straight = _convolve(block.skip_connection.conv, straight)
            hidden = self._put(piece.add_(straight), hidden, start, hidden.shape[2])
        parts.clear()
        return hidden

    def _by_slabs(self, layer: nn.Conv3d, parts: Sequence[torch.Tensor], scale: _Scale | None = None) -> torch.Tensor:
        """A convolution of the parts, normalised and activated where there is a scale."""
        size, out = parts[0].shape[2], None
        for start, stop in self._slabs(parts[0]):
            before, after = min(1, start), min(1, size - stop)
            slab = _joined([part[:, :, start - before : stop + after] for part in parts])
            slab = slab if scale is None else _activated(slab, scale)
            out = self._put(_convolve(layer, slab, (before, after)), out, start, size)
        assert out is not None
        return out

    def _upsampled(self, layer: nn.Conv3d, hidden: torch.Tensor) -> torch.Tensor:
        """Every voxel twice along each axis, then a convolution."""
        size, out = hidden.shape[2], None
        for start, stop in self._slabs(hidden):
            before, after = min(1, start), min(1, size - stop)
            slab = functional.interpolate(hidden[:, :, start - before : stop + after], scale_factor=2.0, mode="nearest")
            slab = slab[:, :, before : slab.shape[2] - after].contiguous(memory_format=self.layout)
            out = self._put(_convolve(layer, slab, (before, after)), out, 2 * start, 2 * size)
        assert out is not None
        return out

    def _attended(self, attention: nn.Module | None, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if attention is None else attention(hidden).contiguous(memory_format=self.layout)

    def _slabs(self, features: torch.Tensor) -> Iterator[tuple[int, int]]:
        """Start and stop of each slab."""
        size = features.shape[2]
        thickness = self.thickness or size
        for start in range(0, size, thickness):
            yield start, min(start + thickness, size)

    def _put(self, piece: torch.Tensor, whole: torch.Tensor | None, start: int, size: int) -> torch.Tensor:
        """The whole, made if there is none, with a piece put in from `start` on; a piece that is all of it as it is."""
        if piece.shape[2] == size:
            return piece
        if whole is None:
            shape = (*piece.shape[:2], size, *piece.shape[3:])
            whole = torch.empty(shape, dtype=piece.dtype, device=piece.device, memory_format=self.layout)
        whole[:, :, start : start + piece.shape[2]] = piece
        return whole

    def _normalising(
        self,
        norm: nn.Module,
        parts: Sequence[torch.Tensor],
        style: _Style = None,
        offset: torch.Tensor | None = None,
    ) -> _Scale:
        """Factor and summand (B, C, 1, 1, 1) that normalise the parts plus `offset`, and modulate them by `style`."""
        planes = _SUMMED if parts[0].device.type == "cpu" else self.thickness or parts[0].shape[2]
        measured = [_moments(part, planes) for part in parts]
        mean, variance = (torch.cat(values, dim=1) for values in zip(*measured, strict=True))
        added = torch.zeros_like(mean) if offset is None else offset.double()
        mean = mean + added
        if isinstance(norm, AdaptiveInstanceNorm):
            assert style is not None
            factor, shift, eps = 1 + style[0].double(), style[1].double(), _INSTANCE_EPS
        else:
            assert isinstance(norm, nn.GroupNorm)
            mean, variance = _of_groups(mean, variance, norm.num_groups)
            factor, shift, eps = norm.weight.double(), norm.bias.double(), norm.eps
        factor = factor * (variance + eps).rsqrt()
        shift = shift + (added - mean) * factor
        return factor.to(self.dtype)[:, :, None, None, None], shift.to(self.dtype)[:, :, None, None, None]


def _layers(block: Any) -> Iterator[tuple[Any, Any]]:
    """Residual blocks of a level, each with the attention behind it or None."""
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    yield from zip(block.resnets, attentions, strict=True)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _activated(slab: torch.Tensor, scale: _Scale) -> torch.Tensor:
    return functional.silu(torch.addcmul(scale[1], slab, scale[0]), inplace=True)


def _convolve(layer: nn.Conv3d, slab: torch.Tensor, beyond: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Convolve, and leave out the planes `beyond` the slab's ends, which came along for the kernel's reach."""
    before, after = beyond
    padding = [0 if before and after else int(layer.padding[0]), *map(int, layer.padding[1:])]
    own_choice = slab.device.type != "cpu" or slab.dtype != torch.float32 or torch.compiler.is_compiling()
    if _ONEDNN and not own_choice:
        # left to torch, a lone thread gets a convolution 20 times slower wherever the slab is small
        out = torch.mkldnn_convolution(
            slab, layer.weight, layer.bias, padding, layer.stride, layer.dilation, layer.groups
        )
    else:
        out = functional.conv3d(slab, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)
    return out if before and after else out[:, :, before : out.shape[2] - after]


def _moments(features: torch.Tensor, planes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (B, C) over space in float64, put together from some planes at a time (Chan et al. 1979)."""
    counts, means, squares = [], [], []
    for some in features.split(planes, dim=2):
        count = some[0, 0].numel()
        if features.dtype in (torch.float16, torch.bfloat16):
            mean = some.sum(_SPACE, dtype=torch.float32) / count
            away = some - mean.to(some.dtype)[:, :, None, None, None]
            square = torch.linalg.vector_norm(away, dim=_SPACE, dtype=torch.float32).square()
        else:
            mean = some.sum(_SPACE) / count
            square = (some - mean[:, :, None, None, None]).square_().sum(_SPACE)
        counts.append(count)
        means.append(mean.double())
        squares.append(square.double())
    share = torch.tensor(counts, dtype=torch.float64, device=features.device)[:, None, None] / sum(counts)
    each = torch.stack(means)
    mean = (share * each).sum(dim=0)
    return mean, torch.stack(squares).sum(dim=0) / sum(counts) + (share * (each - mean).square()).sum(dim=0)


def _of_groups(mean: torch.Tensor, variance: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From moments of channels (B, C) to those of the group that each is in."""
    shape = mean.shape[0], groups, -1
    each = mean.reshape(shape)
    together = each.mean(dim=2, keepdim=True)
    spread = (variance.reshape(shape) + (each - together).square()).mean(dim=2, keepdim=True)
    return tuple(value.expand(each.shape).reshape(mean.shape) for value in (together, spread))  # type: ignore[return-value]
