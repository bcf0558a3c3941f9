"""The training loop that all recipes share, on Lightning Fabric: devices, precision, resuming, logs.

A recipe says what a step's loss is; the loop does the rest. Every step seeds all random numbers from the training's
seed and its own number, so a training that was interrupted at any moment and resumed ends at the same weights. What
the batch's images are drawn from depends on their place in it, not on the process: see `share`.

With several processes, gradients and losses are means over them, every one makes the same step, and the first writes.
"""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import nn

from mmh_bids.errors import UsageError
from mmh_bids.training.checkpoint import load_checkpoint, read_facts, save_checkpoint
from mmh_bids.training.requeue import Interrupted, StopRequests
from mmh_bids.training.schedule import Plateau
from mmh_bids.training.share import Share

CHECKPOINT = "checkpoint.safetensors"
_OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
#: What plateau multiplies by: torch's default.
_REDUCTION = 0.1
#: Fields that came later; older checkpoints are of their defaults.
_LATER = {"optimizer": "adamw", "schedule": "cosine", "patience": 2, "monitor": ""}


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes
    ----------
    steps
        Optimizer steps in all.
    learning_rate
        At its top: linear warm-up over `warmup` steps, then as `schedule` has it.
    warmup, weight_decay, clip
        Steps; decay of the optimizer; largest gradient norm, None for any.
    average
        Decay of the running average of the weights, which is what is validated and kept; 0 for the weights themselves.
    seed
        Of weights and data.
    validate_every, checkpoint_seconds
        Steps between validations; seconds between checkpoints.
    accumulate
        Passes, each over its share of the batch, whose gradients are added up before the optimizer steps.
    optimizer
        ``adamw`` or ``adam``.
    schedule
        ``cosine``: half of one, to zero at the last step. ``plateau``: the same until the error called `monitor` did
        not improve in `patience` validations, then a tenth, and so on.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 20
    weight_decay: float = 1e-4
    clip: float | None = 1.0
    average: float = 0.99
    seed: int = 0
    validate_every: int = 100
    checkpoint_seconds: float = 120.0
    accumulate: int = 1
    optimizer: str = "adamw"
    schedule: str = "cosine"
    patience: int = 2
    monitor: str = ""

    def __post_init__(self) -> None:
        if self.optimizer not in _OPTIMIZERS or self.schedule not in ("cosine", "plateau"):
            raise ValueError(f"optimizer {self.optimizer} and schedule {self.schedule}: one of them is unknown")
        if self.schedule == "plateau" and not self.monitor:
            raise ValueError("schedule plateau needs the name of the error to monitor")

    def rate(self, step: int) -> float:
        """Learning rate of a step, a function of its number alone; what `Plateau` makes of it is not in it.

        >>> plan = Plan(steps=100, learning_rate=1.0, warmup=10)
        >>> plan.rate(0), plan.rate(9), round(plan.rate(99), 3)
        (0.1, 1.0, 0.0)
        """
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.schedule == "plateau":
            return self.learning_rate
        done = (step + 1 - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Recipe(Protocol):
    """What is trained, and on what.

    May have ``forward_methods``: names of the network's methods beside `forward` that `losses` calls.
    """

    def build(self) -> nn.Module:
        """Return a new network; torch's generator is seeded before."""
        ...

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Return the parameters as groups for the optimizer: ``params``, and ``factor`` on the learning rate."""
        ...

    def losses(self, network: nn.Module, rng: Share, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the losses of a share of one step's batch; the one named ``loss`` is minimised.

        Those of a step are the means over its shares, so a share of the batch should give means over its items. Drawn
        from directly, `rng` gives the same numbers for all shares.
        """
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
        Gets ``checkpoint.safetensors``, ``log.csv``, ``tensorboard/``. A checkpoint in it is resumed from. All
        processes must see the same folder.
    fabric
        Device, precision and number of processes, launched; see `distributed.make_fabric`.
    facts
        JSON-ready description of recipe and data; a checkpoint of other facts is refused.
    say
        Gets one line now and then, on the first process only.

    Returns
    -------
    The network with averaged weights, on the CPU, in evaluation mode; on every process.

    Raises
    ------
    UsageError
        The checkpoint is damaged or belongs to another training.
    Interrupted
        After SIGINT, SIGTERM or SIGUSR1 on any process: all stop after the same step, with the state saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    say = say if fabric.is_global_zero else _silent
    torch.manual_seed(plan.seed)
    # on its device before the optimizer is filled from a checkpoint: Adam's moments go where the weights are
    network = recipe.build().to(fabric.device)
    average = copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = _OPTIMIZERS[plan.optimizer](recipe.groups(network), plan.learning_rate, weight_decay=plan.weight_decay)
    plateau = Plateau(plan.patience, _REDUCTION) if plan.schedule == "plateau" else None
    all_facts = {"plan": _lasting(plan), **facts}
    step = _resume(folder / CHECKPOINT, network, average, optimizer, plateau, all_facts, fabric, say)
    wrapped, wrapped_optimizer = fabric.setup(network, optimizer)
    for method in getattr(recipe, "forward_methods", ()):
        wrapped.mark_forward_method(method)
    trainer = _Trainer(recipe, plan, folder, fabric, all_facts, say, plateau)
    trainer.run(step, network, wrapped, average, wrapped_optimizer)
    return average.cpu()


def _silent(line: str) -> None:
    del line


def _lasting(plan: Plan) -> dict[str, Any]:
    """What a resumed training must share; the passes are free, so that it can go on with more devices or fewer."""
    kept = {name: value for name, value in asdict(plan).items() if name != "accumulate"}
    return {name: value for name, value in kept.items() if name not in _LATER or value != _LATER[name]}


def _resume(
    path: Path,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    plateau: Plateau | None,
    facts: Mapping[str, Any],
    fabric: Fabric,
    say: Callable[[str], None],
) -> int:
    """Fill everything from the checkpoint if there is one; the number of the next step."""
    stored: dict[str, Any] = read_facts(path) if path.exists() else {"step": 0}
    step, scaler, reached = int(stored.pop("step")), stored.pop("scaler", {}), stored.pop("plateau", None)
    if not _same_everywhere(fabric, step):
        raise UsageError(f"{path}: not all processes see the same one; --work must lie where every node sees it")
    if not stored:
        return 0
    different = sorted(key for key in {*stored, *facts} if stored.get(key) != facts.get(key))
    if different:
        raise UsageError(f"{path}: of a training with other {', '.join(different)}; choose another folder")
    load_checkpoint(path, {"network": network, "average": average}, {"adam": optimizer})
    fabric.strategy.precision.load_state_dict(scaler)
    if plateau:
        plateau.load_state_dict(reached)
    say(f"resumed at step {step}")
    return step


def _same_everywhere(fabric: Fabric, number: int) -> bool:
    found = fabric.all_gather(torch.tensor([number], device=fabric.device))
    assert isinstance(found, torch.Tensor)
    return bool((found == number).all())


@dataclass
class _Trainer:
    recipe: Recipe
    plan: Plan
    folder: Path
    fabric: Fabric
    facts: Mapping[str, Any]
    say: Callable[[str], None]
    plateau: Plateau | None

    def run(self, step: int, network: nn.Module, wrapped: Any, average: nn.Module, optimizer: Any) -> None:
        log = _Log(self.folder) if self.fabric.is_global_zero else None
        last_saved, began, first = time.monotonic(), time.monotonic(), step
        sums: dict[str, float] = {}
        summed = 0
        with StopRequests() as stop:
            while step < self.plan.steps:
                losses, asked, time_is_up = self._step(step, wrapped, optimizer, stop)
                _average(average, network, min(self.plan.average, (1 + step) / (10 + step)))
                step, summed = step + 1, summed + 1
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value
                if log and step % 10 == 0:
                    means = {name: value / summed for name, value in sums.items()}
                    log.write(step, {f"train/{name}": value for name, value in means.items()})
                    pace = (time.monotonic() - began) / (step - first)
                    self.say(f"step {step}/{self.plan.steps}: loss {means['loss']:.4f}, {pace:.2f} s a step")
                    sums, summed = {}, 0
                if step % self.plan.validate_every == 0 or step == self.plan.steps:
                    self._heed(self._validate(average, step, log))
                due = time.monotonic() - last_saved > self.plan.checkpoint_seconds
                if due or asked or step == self.plan.steps:
                    self._save(step, network, average, optimizer)
                    last_saved = time.monotonic()
                if asked and step < self.plan.steps:
                    self.fabric.barrier()
                    raise Interrupted(
                        f"stopped at step {step} of {self.plan.steps}; the same command goes on from there", time_is_up
                    )

    def _step(self, step: int, network: Any, optimizer: Any, stop: StopRequests) -> tuple[dict[str, float], bool, bool]:
        """One step of the optimizer; its losses, and whether any process was asked to stop, and by SIGUSR1."""
        rate = self.plan.rate(step) * (self.plateau.share if self.plateau else 1)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        network.train()
        losses: dict[str, torch.Tensor] = {}
        parts = self.plan.accumulate
        for part in range(parts):
            share = Share(
                self.plan.seed, step, self.fabric.global_rank, self.fabric.world_size, part, parts, self._gather
            )
            torch.manual_seed(self.plan.seed * 1_000_003 + step * 101 + share.place)
            with self.fabric.no_backward_sync(network, enabled=not share.is_last):
                found = self.recipe.losses(network, share, self.fabric.device)
                self.fabric.backward(found["loss"] / parts)
            for name, value in found.items():
                losses[name] = losses.get(name, 0.0) + value.detach() / parts
        values, asked, time_is_up = self._agree(losses, stop)
        if not math.isfinite(values["loss"]):
            raise UsageError(f"the loss is {values['loss']} at step {step}; lower the learning rate")
        if self.plan.clip is not None:
            self.fabric.clip_gradients(network, optimizer, max_norm=self.plan.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return values, asked, time_is_up

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        joined = self.fabric.all_gather(rows)
        assert isinstance(joined, torch.Tensor)
        return joined.reshape(-1, *rows.shape[1:])

    def _agree(self, losses: Mapping[str, torch.Tensor], stop: StopRequests) -> tuple[dict[str, float], bool, bool]:
        """Means of the losses over the processes, and whether any was asked to stop, and by SIGUSR1."""
        flags = torch.tensor([stop.asked, stop.time_is_up], dtype=torch.float32, device=self.fabric.device)
        mine = torch.cat([torch.stack([value.float() for value in losses.values()]), flags])
        joined = self.fabric.all_reduce(mine, reduce_op="mean")
        assert isinstance(joined, torch.Tensor)
        *values, asked, time_is_up = joined.tolist()
        return dict(zip(losses, values, strict=True)), asked > 0, time_is_up > 0

    def _validate(self, average: nn.Module, step: int, log: _Log | None) -> Mapping[str, float]:
        """On the first process; what the others are to know of it must be broadcast."""
        if log is None:
            return {}
        with torch.no_grad():
            values = self.recipe.validate(average, self.fabric.device, self.folder, step)
        log.write(step, {f"validation/{name}": value for name, value in values.items()})
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
        return values

    def _heed(self, values: Mapping[str, float]) -> None:
        """Lower the learning rate of all processes if validation asks for it; an empty one says nothing."""
        if self.plateau:
            values = self.fabric.broadcast(dict(values))
            if values:
                self.plateau.step(values[self.plan.monitor])

    def _save(self, step: int, network: nn.Module, average: nn.Module, optimizer: Any) -> None:
        if self.fabric.is_global_zero:
            modules = {"network": network, "average": average}
            plain = getattr(optimizer, "optimizer", optimizer)
            facts = {**self.facts, "step": step, "scaler": self.fabric.strategy.precision.state_dict()}
            if self.plateau:
                facts["plateau"] = self.plateau.state_dict()
            save_checkpoint(self.folder / CHECKPOINT, modules, {"adam": plain}, facts)


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the running average towards the network; buffers (running statistics, counters) are copied."""
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value.detach().to(mean.dtype), 1 - decay)
    for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(buffer)
