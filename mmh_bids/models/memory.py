"""How much memory the diffusion network of MMH takes, from its sizes alone, and how much a device has left.

Counted are the features that must be held at once; calibrated on measured peaks, see ``tests/models/test_memory.py``.
Expect 30 % more or less. torch is not imported here, but to ask a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmh_bids.machine import CGROUPS as _CGROUPS
from mmh_bids.machine import group_folders
from mmh_bids.machine import own_groups as _own_groups

#: Planes that inference works on at once where memory counts, see `mmh_bids.models.slabs`. Thinner ones save little
#: more, and thicker ones leave the caches of a CPU.
SLAB_PLANES = 8
#: The process with torch and MONAI loaded.
_BASE_GB = 0.6
INFERENCE_BASE_GB = 0.5
#: What a layer makes of the slab it works on, as multiples of the slab: joined, normalised, convolved.
_COPIES_OF_SLAB = 3.0
#: What attention holds beside its input: normalised, query, key, value, result, and its projection.
_COPIES_IN_ATTENTION = 6.0
#: Share of the features' memory that mixed precision needs: normalisations stay in float32. Reckoned, not measured.
_KEPT_WHEN_MIXED = 0.75


def inference_gb(
    network: Mapping[str, Any],
    shape: Sequence[int],
    planes: int | None = SLAB_PLANES,
    number_bytes: int = 4,
    networks: int = 1,
) -> float:
    """Memory in GB of a process that runs `mmh_bids.models.slabs.SlabUNet`, without gradients.

    The most is held where a level's way up begins: the skips of this and all finer levels, what came from below, and
    what is made of them; beside that the slab that is worked on, or attention. `INFERENCE_BASE_GB` is there before.

    Parameters
    ----------
    network
        Arguments of `mmh_bids.models.unet.StyleUNet`.
    shape
        Voxels of the volume.
    planes
        Thickness of the slabs, None for the whole volume at once.
    number_bytes
        Bytes of a number: 4 for float32, 2 for half precision.
    networks
        How many sets of weights are there; one of them works.

    Examples
    --------
    >>> small = {"channels": [16, 32, 64, 64]}
    >>> inference_gb(small, (144, 184, 184)), inference_gb(small, (144, 184, 184), planes=None)
    (2.6, 5.2)
    """
    channels, blocks = list(network["channels"]), int(network.get("num_res_blocks", 2))
    attention = list(network.get("attention_levels", [False] * len(channels)))
    skips = most = 0.0
    for level, width in enumerate(channels):
        voxels = math.prod(size / 2**level for size in shape)
        below = channels[min(level + 1, len(channels) - 1)]
        skips += (blocks + 1) * width * voxels
        share = 1.0 if planes is None else min(1.0, (planes + 2) * 2**level / shape[0])
        beside = max(
            _COPIES_OF_SLAB * share * (below + width), _COPIES_IN_ATTENTION * width if attention[level] else 0.0
        )
        most = max(most, skips + (below + width + beside) * voxels)
    return round(INFERENCE_BASE_GB + 1e-9 * number_bytes * (most + networks * _weights(network)), 1)


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


def free_gb(device: str = "cpu") -> float:
    """Memory that is left on a device (``cpu``, ``cuda[:N]``), GB.

    On the CPU that of the machine or of the process's control group (a container's, a Slurm job's), whichever is less.
    """
    if device.partition(":")[0] == "cuda":
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for later
        return (torch.cuda.mem_get_info(device)[0] + kept) / 1e9
    import psutil

    return min([psutil.virtual_memory().available, *_left_in_groups(_CGROUPS, _own_groups())]) / 1e9


def _left_in_groups(root: Path, groups: Sequence[str]) -> Iterator[int]:
    """Bytes left in each group that has a limit, and in those it lies in; files that can be dropped count as left."""
    names = ("memory.max", "memory.current", "inactive_file"), (
        "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
    )  # fmt: skip
    for folder in group_folders(root, groups):
        for limit, used, droppable in names:
            try:
                numbers = [(folder / name).read_text().strip() for name in (limit, used)]
                facts = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            if all(number.isdigit() for number in numbers):
                yield int(numbers[0]) - int(numbers[1]) + int(facts.get(droppable, 0))
