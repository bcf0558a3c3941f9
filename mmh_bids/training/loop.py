"""The training loop that all recipes share, on Lightning Fabric: devices, precision, resuming, logs.

A recipe says what a step's loss is; the loop does the rest. Every step seeds all random numbers from the training's
seed and its own number, so a training that was interrupted at any moment and resumed ends at the same weights.
"""

from __future__ import annotations

import copy
import csv
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn

from mmh_bids.errors import UsageError
from mmh_bids.training.checkpoint import load_checkpoint, read_facts, save_checkpoint

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes
    ----------
    steps
        Optimizer steps in all.
    learning_rate
        Of AdamW at its top: linear warm-up over `warmup` steps, then half a cosine to zero.
    warmup, weight_decay, clip
        Steps; AdamW's decay; largest gradient norm.
    average
        Decay of the running average of the weights, which is what is validated and kept.
    seed
        Of weights and data.
    validate_every, checkpoint_seconds
        Steps between validations; seconds between checkpoints.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 20
    weight_decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.99
    seed: int = 0
    validate_every: int = 100
    checkpoint_seconds: float = 120.0

    def rate(self, step: int) -> float:
        """Learning rate of a step, a function of its number alone.

        >>> plan = Plan(steps=100, learning_rate=1.0, warmup=10)
        >>> plan.rate(0), plan.rate(9), round(plan.rate(99), 3)
        (0.1, 1.0, 0.0)
        """
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step + 1 - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Recipe(Protocol):
    """What is trained, and on what."""

    def build(self) -> nn.Module:
        """Return a new network; torch's generator is seeded before."""
        ...

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Return the parameters as groups for AdamW: ``params``, and ``factor`` on the learning rate."""
        ...

    def losses(self, network: nn.Module, rng: np.random.Generator, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the losses of one step; the one named ``loss`` is minimised."""
        ...

    def validate(self, network: nn.Module, device: torch.device, folder: Path, step: int) -> Mapping[str, float]:
        """Measure the averaged network; may write pictures into `folder`."""
        ...


def all_parameters(network: nn.Module) -> list[dict[str, Any]]:
    """One group of all parameters, for recipes that teach all alike."""
    return [{"params": list(network.parameters()), "factor": 1.0}]


@dataclass
class _Log:
    """Rows of ``log.csv`` (one a validation or 10 steps), and the same to TensorBoard."""

    folder: Path

    def __post_init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(self.folder / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        path = self.folder / "log.csv"
        new = not path.exists()
        with open(path, "a", newline="") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(["step", "name", "value"])
            for name, value in values.items():
                writer.writerow([step, name, f"{value:.6g}"])
                self._board.add_scalar(name, value, step)
        self._board.flush()


class Interrupted(Exception):  # noqa: N818 (a wish, not an error)
    """The training was asked to stop; its state is in the checkpoint."""


def fit(
    recipe: Recipe,
    plan: Plan,
    folder: Path,
    fabric: Fabric,
    facts: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> nn.Module:
    """Train, or go on with a training.

    Parameters
    ----------
    recipe, plan
        What and how.
    folder
        Gets ``checkpoint.safetensors``, ``log.csv``, ``tensorboard/``. A checkpoint in it is resumed from.
    fabric
        Device, precision and number of processes, launched.
    facts
        JSON-ready description of recipe and data; a checkpoint of other facts is refused.
    say
        Gets one line now and then.

    Returns
    -------
    The network with averaged weights, on the CPU, in evaluation mode.

    Raises
    ------
    UsageError
        The checkpoint is damaged or belongs to another training.
    Interrupted
        After SIGINT or SIGTERM, with the state saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    network = recipe.build()
    average = copy.deepcopy(network).eval().requires_grad_(False).to(fabric.device)
    optimizer = torch.optim.AdamW(recipe.groups(network), plan.learning_rate, weight_decay=plan.weight_decay)
    all_facts = {"plan": asdict(plan), **facts}
    step = _resume(folder / CHECKPOINT, network, average, optimizer, all_facts, say)
    wrapped, wrapped_optimizer = fabric.setup(network, optimizer)
    _Trainer(recipe, plan, folder, fabric, all_facts, say).run(step, network, wrapped, average, wrapped_optimizer)
    return average.cpu()


def _resume(
    path: Path,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
    say: Callable[[str], None],
) -> int:
    """Fill everything from the checkpoint if there is one; the number of the next step."""
    if not path.exists():
        return 0
    stored = read_facts(path)
    step = int(stored.pop("step"))
    different = sorted(key for key in {*stored, *facts} if stored.get(key) != facts.get(key))
    if different:
        raise UsageError(f"{path}: of a training with other {', '.join(different)}; choose another folder")
    load_checkpoint(path, {"network": network, "average": average}, {"adam": optimizer})
    say(f"resumed at step {step}")
    return step


@dataclass
class _Trainer:
    recipe: Recipe
    plan: Plan
    folder: Path
    fabric: Fabric
    facts: Mapping[str, Any]
    say: Callable[[str], None]

    def run(self, step: int, network: nn.Module, wrapped: Any, average: nn.Module, optimizer: Any) -> None:
        log = _Log(self.folder) if self.fabric.is_global_zero else None
        last_saved, began, first = time.monotonic(), time.monotonic(), step
        sums: dict[str, float] = {}
        with _StopRequests() as stop:
            while step < self.plan.steps:
                losses = self._step(step, wrapped, optimizer)
                _average(average, network, min(self.plan.average, (1 + step) / (10 + step)))
                step += 1
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value / 10
                if log and step % 10 == 0:
                    log.write(step, {f"train/{name}": value for name, value in sums.items()})
                    pace = (time.monotonic() - began) / (step - first)
                    self.say(f"step {step}/{self.plan.steps}: loss {sums['loss']:.4f}, {pace:.2f} s a step")
                    sums = {}
                if step % self.plan.validate_every == 0 or step == self.plan.steps:
                    self._validate(average, step, log)
                due = time.monotonic() - last_saved > self.plan.checkpoint_seconds
                if due or stop.asked or step == self.plan.steps:
                    self._save(step, network, average, optimizer)
                    last_saved = time.monotonic()
                if stop.asked and step < self.plan.steps:
                    raise Interrupted(
                        f"stopped at step {step} of {self.plan.steps}; the same command goes on from there"
                    )

    def _step(self, step: int, network: Any, optimizer: Any) -> dict[str, float]:
        rank = self.fabric.global_rank
        torch.manual_seed(self.plan.seed * 1_000_003 + step * 101 + rank)
        rng = np.random.default_rng([self.plan.seed, step, rank])
        for group in optimizer.param_groups:
            group["lr"] = self.plan.rate(step) * group["factor"]
        network.train()
        losses = self.recipe.losses(network, rng, self.fabric.device)
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(values["loss"]):
            raise UsageError(f"the loss is {values['loss']} at step {step}; lower the learning rate")
        self.fabric.backward(losses["loss"])
        self.fabric.clip_gradients(network, optimizer, max_norm=self.plan.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return values

    def _validate(self, average: nn.Module, step: int, log: _Log | None) -> None:
        if log is None:
            return
        with torch.no_grad():
            values = self.recipe.validate(average, self.fabric.device, self.folder, step)
        log.write(step, {f"validation/{name}": value for name, value in values.items()})
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def _save(self, step: int, network: nn.Module, average: nn.Module, optimizer: Any) -> None:
        if self.fabric.is_global_zero:
            modules = {"network": network, "average": average}
            plain = getattr(optimizer, "optimizer", optimizer)
            save_checkpoint(self.folder / CHECKPOINT, modules, {"adam": plain}, {**self.facts, "step": step})
        self.fabric.barrier()


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the running average towards the network; buffers (running statistics, counters) are copied."""
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value.detach().to(mean.dtype), 1 - decay)
    for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(buffer)


class _StopRequests:
    """Turns SIGINT and SIGTERM into a wish to stop after the step."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopRequests:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True
