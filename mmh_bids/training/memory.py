"""Refuse a training that the memory of the machine will not hold, before it starts."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from mmh_bids.errors import UsageError

_CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def free_gb(device: torch.device) -> float:
    """Memory that is left on a device, GB; on the CPU the machine's or the control group's, whichever is less."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    free = [psutil.virtual_memory().available]
    for limit, used in _CGROUPS:
        try:
            numbers = [(Path("/sys/fs/cgroup") / name).read_text().strip() for name in (limit, used)]
        except OSError:
            continue
        if all(number.isdigit() for number in numbers):
            free.append(int(numbers[0]) - int(numbers[1]))
    return min(free) / 1e9


def require_memory(needed_gb: float, device: torch.device, change: str) -> None:
    """Raise UsageError, naming what to `change`, if a training needs more memory than `device` has left."""
    free = free_gb(device)
    if needed_gb > free:
        what = "the GPU" if device.type == "cuda" else "this machine"
        raise UsageError(
            f"the training needs about {needed_gb:.1f} GB, {what} has {free:.1f} GB free: {change}, or use a "
            "machine with more memory"
        )
