"""Which part of a step's batch a process works on, and the random numbers of the step.

What an image or a person of the batch is drawn from depends on the training's seed, the step and its place in the whole
batch alone: neither the number of processes nor gradient accumulation changes what is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mmh_bids.errors import UsageError


@dataclass(frozen=True)
class Item:
    """One image or person of a step's batch.

    Attributes
    ----------
    number
        Place among all that are drawn from the first step on.
    rng, noise
        Its own random numbers, and those of torch on the CPU.
    """

    number: int
    rng: np.random.Generator
    noise: torch.Generator


class Share(np.random.Generator):
    """What one process works on at once, of one step's batch.

    Drawn from directly it gives the step's random numbers, the same for all shares: a recipe that knows nothing of
    shares does the same on every process.

    Parameters
    ----------
    seed, step
        Of the training.
    rank, world
        Number of this process, and of how many.
    part, parts
        Number of this pass, and of how many whose gradients are added up before the optimizer steps.
    gather
        Joins the rows (N, ...) of all processes, equally many each, to (world x N, ...) in the order of the ranks.

    Examples
    --------
    >>> [item.number for item in Share(0, step=3).items(4)]
    [12, 13, 14, 15]
    >>> [item.number for item in Share(0, step=3, rank=1, world=2).items(4)]
    [14, 15]
    >>> whole, half = Share(0, step=3).items(4)[2], Share(0, step=3, rank=1, world=2).items(4)[0]
    >>> whole.rng.random() == half.rng.random()
    True
    """

    def __init__(
        self,
        seed: int,
        step: int,
        rank: int = 0,
        world: int = 1,
        part: int = 0,
        parts: int = 1,
        gather: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(np.random.PCG64([seed, step]))
        self.seed, self.step, self.rank, self.world = seed, step, rank, world
        self.part, self.parts, self._gather = part, parts, gather

    @property
    def count(self) -> int:
        """How many shares a step has."""
        return self.world * self.parts

    @property
    def place(self) -> int:
        """Number of this share; passes after each other, in each the ranks."""
        return self.part * self.world + self.rank

    @property
    def is_first(self) -> bool:
        """Whether this is the first pass of the step."""
        return self.part == 0

    @property
    def is_last(self) -> bool:
        """Whether the optimizer steps after this pass."""
        return self.part == self.parts - 1

    def numbers(self, total: int) -> range:
        """Places in a batch of `total` items that are this share's; uneven where `total` does not divide."""
        return range(self.place * total // self.count, (self.place + 1) * total // self.count)

    def item(self, place: int, total: int, stream: int = 0) -> Item:
        """Any item of the batch; another `stream` has other random numbers."""
        seeds = np.random.SeedSequence([self.seed, self.step], spawn_key=(stream, place))
        return Item(
            self.step * total + place,
            np.random.Generator(np.random.PCG64(seeds)),
            torch.Generator().manual_seed(int(seeds.generate_state(1)[0])),
        )

    def items(self, total: int) -> list[Item]:
        """Return this share's items of a batch of `total`.

        Raises
        ------
        UsageError
            They cannot be shared out evenly.
        """
        require_even(total, self.count)
        return [self.item(place, total) for place in self.numbers(total)]

    def following(self) -> Iterator[Share]:
        """Yield what this process works on next, and after that, without end."""
        share = self
        while True:
            step, part = (share.step, share.part + 1) if not share.is_last else (share.step + 1, 0)
            share = Share(self.seed, step, self.rank, self.world, part, self.parts, self._gather)
            yield share

    def gather(self, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Join the rows (N, ...) of all processes in the batch's order; where this process's own begin."""
        if self._gather is None:
            return rows, 0
        return self._gather(rows), self.rank * len(rows)


def require_even(batch: int, shares: int, unit: int = 1, what: str = "") -> None:
    """Raise UsageError unless a batch divides into so many shares.

    Parameters
    ----------
    batch
        Images of a step on all processes.
    shares
        Processes times passes.
    unit, what
        Images that must stay together, and what these are.

    Examples
    --------
    >>> require_even(8, 4, unit=2)
    >>> require_even(6, 4)
    Traceback (most recent call last):
    mmh_bids.errors.UsageError: --batch 6: is shared out among processes and accumulated passes, so it must be a
    multiple of 4
    """
    if shares > 1 and batch % (shares * unit):
        each = f" ({unit} {what})" if unit > 1 else ""
        raise UsageError(
            f"--batch {batch}: is shared out among processes and accumulated passes, so it must be a multiple of "
            f"{shares * unit}{each}"
        )
