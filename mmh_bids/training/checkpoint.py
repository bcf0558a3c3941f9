"""The whole state of a training in one safetensors file: no pickle is written or read.

Random numbers need no place in it: every step draws from a generator seeded by the training's seed and the step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mmh_bids.errors import UsageError
from mmh_bids.files import atomic_path

_FORMAT = "mmh-train-1"


def save_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer], facts: dict[str, Any]
) -> None:
    """Write modules, optimizers and facts all at once.

    Parameters
    ----------
    path
        File; an old one stays whole until the new one is.
    modules, optimizers
        By name. Optimizers may keep tensors and numbers per parameter (Adam and its kin do).
    facts
        JSON-ready: step, settings the resumed training must share.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
    groups = {}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        groups[name] = state["param_groups"]
        for index, entry in state["state"].items():
            tensors |= {f"optimizer/{name}/{index}/{key}": torch.as_tensor(value) for key, value in entry.items()}
    # clones: a file cannot hold two names for one memory, and a module may share weights with another
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    header = {"format": _FORMAT, "facts": json.dumps(facts), "groups": json.dumps(groups)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, header)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint.

    Raises
    ------
    UsageError
        If the file is no whole checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
        if header.get("format") != _FORMAT:
            raise ValueError("not written by mmh-train")
        return dict(json.loads(header["facts"]))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: no checkpoint to resume from ({error}); delete it to start anew") from None


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]
) -> dict[str, Any]:
    """Fill modules and optimizers from a checkpoint; return its facts.

    Raises
    ------
    UsageError
        If the file is no whole checkpoint, or one of another network.
    """
    facts = read_facts(path)
    with safe_open(path, framework="pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (no mapping)
        groups = json.loads(stored.metadata()["groups"])
    try:
        for name, module in modules.items():
            prefix = f"module/{name}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"{path}: belongs to another network ({first}); choose another folder") from None
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        prefix = f"optimizer/{name}/"
        for key, value in tensors.items():
            if key.startswith(prefix):
                index, entry = key.removeprefix(prefix).split("/")
                state.setdefault(int(index), {})[entry] = value
        optimizer.load_state_dict({"state": state, "param_groups": groups[name]})
    return facts
