"""In which order images are trained on, and reading them while the network works."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Thing = TypeVar("Thing")
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ShuffledOrder(Generic[Thing]):
    """Groups that are drawn from as often as one another, each shuffled anew whenever all of it was seen.

    The n-th thing is a function of the seed and n alone, so that any process can begin anywhere.

    Parameters
    ----------
    groups
        None of them empty.

    Examples
    --------
    >>> order = ShuffledOrder([["a", "b", "c"], ["x"]])
    >>> drawn = [order.thing(7, number) for number in range(6)]
    >>> sorted(drawn)
    ['a', 'b', 'c', 'x', 'x', 'x']
    """

    def __init__(self, groups: Sequence[Sequence[Thing]]) -> None:
        self._groups = [list(group) for group in groups]

    def thing(self, seed: int, number: int) -> Thing:
        """Return the thing that is drawn as the `number`-th, from 0, of a training of this seed."""
        turn, place = divmod(number, len(self._groups))
        which = int(_permutation(len(self._groups), seed, 0, turn)[place])
        group = self._groups[which]
        epoch, position = divmod(turn, len(group))
        return group[int(_permutation(len(group), seed, 1 + which, epoch)[position])]


@lru_cache(maxsize=64)
def _permutation(size: int, seed: int, *where: int) -> NDArray[np.int64]:
    """Shuffled numbers below `size`; another place, another order."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=where)).permutation(size)


class Ahead(Generic[Key, Value]):
    """Reads what is asked for next while the present is worked on.

    Threads, not processes: reading and numpy release the interpreter's lock, nothing is copied between processes, and
    no helper dies of a signal that Slurm sends to all.

    Parameters
    ----------
    read
        What is done with each key; in a thread.
    threads
        How many; 0 reads when asked.
    """

    def __init__(self, read: Callable[[Key], Value], threads: int = 1) -> None:
        self._read, self._threads = read, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mmh-read") if threads else None
        self._pending: dict[Key, Future[Value]] = {}

    def get(self, keys: Sequence[Key], following: Iterable[Key]) -> list[Value]:
        """Read `keys`, and begin with as many of the `following` ones, or one a thread if that is more.

        What was begun and is no longer among the following ones is dropped, so that no more is ever held.
        """
        if self._pool is None:
            return [self._read(key) for key in keys]
        here = [self._pending.get(key) or self._pool.submit(self._read, key) for key in keys]
        next_keys = list(islice(following, max(len(keys), self._threads)))
        self._pending = {key: self._pending.get(key) or self._pool.submit(self._read, key) for key in next_keys}
        return [future.result() for future in here]

    @property
    def held(self) -> int:
        """How many values are there, or on their way, that were not asked for yet."""
        return len(self._pending)

    def close(self) -> None:
        """Forget what was begun and end the threads."""
        self._pending = {}
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
