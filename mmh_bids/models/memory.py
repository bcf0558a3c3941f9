"""How much memory the diffusion network of MMH takes, from its sizes alone (torch is not imported here).

Counted are the features that must be held at once, in float32; calibrated on measured peaks, see
``tests/models/test_memory.py``. Expect 30 % more or less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

#: The process with torch and MONAI loaded.
_BASE_GB = 0.6
#: Features of the first level that inference holds at once, as multiples of its channels: skips, and a wide block.
_HELD_IN_INFERENCE = 14.0
#: Share of the features' memory that mixed precision needs: normalisations stay in float32. Reckoned, not measured.
_KEPT_WHEN_MIXED = 0.75


def inference_gb(network: Mapping[str, Any], shape: Sequence[int]) -> float:
    """Memory in GB for one pass without gradients.

    Parameters
    ----------
    network
        Arguments of `mmh_bids.models.unet.StyleUNet`.
    shape
        Voxels of the volume.

    Examples
    --------
    >>> inference_gb({"channels": [16, 32, 64, 64]}, (144, 184, 184))
    5.0
    """
    held = _HELD_IN_INFERENCE * network["channels"][0] * math.prod(shape)
    return round(_BASE_GB + 4e-9 * (held + _weights(network)), 1)


def training_gb(network: Mapping[str, Any], shape: Sequence[int], batch: int = 1, mixed: bool = False) -> float:
    """Memory in GB for one optimizer step, in float32 or in `mixed` precision; see `inference_gb` for the others.

    A residual block keeps three tensors of its input's width and four of its output's for the backward pass, an
    attention block eight; the weights are there five times (gradient, two moments of Adam, running average).
    """
    channels, blocks = list(network["channels"]), int(network.get("num_res_blocks", 2))
    attention = list(network.get("attention_levels", [False] * len(channels)))
    kept = 0.0
    for level, width in enumerate(channels):
        above = channels[max(level - 1, 0)]
        below = channels[min(level + 1, len(channels) - 1)]
        down = _block(above, width) + (blocks - 1) * _block(width, width)
        up = _block(below + width, width) + (blocks - 1) * _block(2 * width, width) + _block(width + above, width)
        heads = (2 * blocks + 1) * 8 * width if attention[level] else 0
        upsampled = 2 * channels[level + 1] if level + 1 < len(channels) else 0
        kept += (down + up + heads + upsampled) * math.prod(size / 2**level for size in shape)
    kept *= _KEPT_WHEN_MIXED if mixed else 1
    return round(_BASE_GB + 4e-9 * (1.15 * kept * batch + 5 * _weights(network)), 1)


def _block(inputs: int, outputs: int) -> int:
    return 3 * inputs + 4 * outputs


def _weights(network: Mapping[str, Any]) -> float:
    """Number of weights, most of them in the 3 x 3 x 3 convolutions of residual blocks and resamplers."""
    channels, blocks = list(network["channels"]), int(network.get("num_res_blocks", 2))
    count = 0.0
    for level, width in enumerate(channels):
        above, below = channels[max(level - 1, 0)], channels[min(level + 1, len(channels) - 1)]
        inputs = above + (2 * blocks - 1) * width + (below + width) + (blocks - 1) * 2 * width + width + above
        count += 27 * width * (inputs + 3 * width)
    return count + 4 * 27 * channels[-1] ** 2
