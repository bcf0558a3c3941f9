"""The noise predictor of MMH: MONAI's diffusion U-Net whose decoder is modulated by a sequence's mean and std.

Architecture: Wu et al., arXiv 2601.08193 (2026). Nothing of MONAI is copied: its up-blocks keep their code, only the
second normalisation of their residual blocks is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import nn
from torch.nn import functional

#: Class of each sequence in the network's embedding.
SEQUENCE_CLASS = {"T1w": 0, "T2w": 1}


def to_signed(volume: torch.Tensor) -> torch.Tensor:
    """From the model grid's [0, 1] to the network's [-1, 1]; brighter than 1 becomes 1.

    Raises
    ------
    ValueError
        A value is below zero, so the volume is not in [0, 1] (or was scaled before).

    Examples
    --------
    >>> to_signed(torch.tensor([0.0, 0.25, 1.0]))
    tensor([-1.0000, -0.5000,  1.0000])
    """
    if volume.numel() and float(volume.min()) < 0:
        raise ValueError("the volume has values below zero; it must be in [0, 1], and be scaled only once")
    return volume.clamp(max=1) * 2 - 1


def from_signed(volume: torch.Tensor) -> torch.Tensor:
    """Inverse of `to_signed`, cut to [0, 1].

    >>> from_signed(torch.tensor([-1.2, -0.5, 1.0]))
    tensor([0.0000, 0.2500, 1.0000])
    """
    return ((volume + 1) / 2).clamp(0, 1)


class AdaptiveInstanceNorm(nn.Module):
    """Instance normalisation, then times (1 + gamma), plus beta.

    gamma and beta are those of the up-block, which the network puts into `style` before it runs: the residual block
    around this layer is MONAI's, and gives it the features only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.style: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise and modulate features (B, C, X, Y, Z)."""
        if self.style is None:
            raise RuntimeError("no style was set; call the whole network, not a part of it")
        gamma, beta = (part[:, :, None, None, None].to(features.dtype) for part in self.style)
        return functional.instance_norm(features) * (1 + gamma) + beta


class StyleMLP(nn.Sequential):
    """Turns (mean, std) into gamma and beta of an up-block with `channels` channels; starts close to no modulation."""

    def __init__(self, channels: int, hidden: int) -> None:
        last = nn.Linear(hidden, 2 * channels)
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(2, hidden), nn.ReLU(), last)


class StyleUNet(nn.Module):
    """Predicts the noise in a noisy image, given the clean image's gradient, its sequence and the sequence's style.

    The defaults are the paper's network.

    Parameters
    ----------
    channels
        Features of each level, every level half the size of the one before.
    num_res_blocks
        Residual blocks a level.
    attention_levels
        Levels with self-attention (there is always one in the middle).
    num_head_channels
        Features of an attention head, one number or one a level; ignored where there is no attention, above zero at
        the last level.
    norm_num_groups
        Groups of the group normalisations; divides all `channels`.
    style_hidden
        Width of the style MLPs.

    Attributes
    ----------
    arguments
        JSON-ready: ``StyleUNet(**arguments)`` makes the same network.
    multiple
        Inside, sizes are padded to a multiple of this.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 256, 256),
        num_res_blocks: int = 2,
        attention_levels: Sequence[bool] = (False, False, True, True),
        num_head_channels: int | Sequence[int] = (0, 0, 32, 32),
        norm_num_groups: int = 16,
        style_hidden: int = 128,
    ) -> None:
        super().__init__()
        heads = num_head_channels if isinstance(num_head_channels, int) else tuple(num_head_channels)
        self.arguments: dict[str, Any] = {
            "channels": list(channels),
            "num_res_blocks": num_res_blocks,
            "attention_levels": list(attention_levels),
            "num_head_channels": heads if isinstance(heads, int) else list(heads),
            "norm_num_groups": norm_num_groups,
            "style_hidden": style_hidden,
        }
        self.multiple = 2 ** (len(channels) - 1)
        self.network = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=2,
            out_channels=1,
            num_res_blocks=num_res_blocks,
            channels=tuple(channels),
            attention_levels=tuple(attention_levels),
            num_head_channels=heads,
            norm_num_groups=norm_num_groups,
            num_class_embeds=len(SEQUENCE_CLASS),
            # attention over 80,000 tokens has no place in memory otherwise
            use_flash_attention=True,
        )
        self.styles = nn.ModuleList(StyleMLP(count, style_hidden) for count in reversed(channels))
        for resnets in self._resnets():
            for resnet in resnets:
                resnet.norm2 = AdaptiveInstanceNorm()

    def _resnets(self) -> list[Any]:
        """Residual blocks of every up-block, the deepest first."""
        return [block.resnets for block in self.network.up_blocks]

    def forward(
        self,
        noisy: torch.Tensor,
        condition: torch.Tensor,
        timesteps: torch.Tensor,
        sequence: torch.Tensor,
        style: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise.

        Parameters
        ----------
        noisy
            (B, 1, X, Y, Z), of the scale [-1, 1] when free of noise.
        condition
            (B, 1, X, Y, Z), see `mmh_bids.models.gradient.gradient_condition`.
        timesteps
            (B,) steps of the noise schedule.
        sequence
            (B,) long, see `SEQUENCE_CLASS`.
        style
            (B, 2) mean and standard deviation of the sequence's brains, in the scale [-1, 1].

        Returns
        -------
        (B, 1, X, Y, Z).
        """
        volume = self.padded(noisy, condition)
        self._set_style(style)
        try:
            noise = self.network(volume, timesteps, class_labels=sequence)
        finally:
            self._set_style(None)  # what stays behind could not be copied, and would keep the graph alive
        x, y, z = noisy.shape[2:]
        return noise[..., :x, :y, :z]

    def padded(self, noisy: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Both inputs (B, 1, X, Y, Z) as channels, their sizes brought to a multiple of `multiple`."""
        volume = torch.cat([noisy, condition], dim=1)
        missing = [-size % self.multiple for size in noisy.shape[2:]]
        if any(missing):
            # the edge goes on: a jump to zero, which is grey on this scale, would be an edge that is not there
            volume = functional.pad(volume, [part for gap in reversed(missing) for part in (0, gap)], "replicate")
        return volume

    def _set_style(self, style: torch.Tensor | None) -> None:
        for resnets, mlp in zip(self._resnets(), self.styles, strict=True):
            parts = None if style is None else mlp(style).chunk(2, dim=1)
            for resnet in resnets:
                resnet.norm2.style = parts
