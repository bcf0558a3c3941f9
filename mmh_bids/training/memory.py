"""Refuse a training that the memory of the machine will not hold, before it starts."""

from __future__ import annotations

import torch

from mmh_bids.errors import UsageError
from mmh_bids.models.memory import free_gb


def require_memory(needed_gb: float, device: torch.device, change: str) -> None:
    """Raise UsageError, naming what to `change`, if a training needs more memory than `device` has left."""
    free = free_gb(str(device))
    if needed_gb > free:
        what = "the GPU" if device.type == "cuda" else "this machine"
        raise UsageError(
            f"the training needs about {needed_gb:.1f} GB, {what} has {free:.1f} GB free: {change}, or use a "
            "machine with more memory"
        )
