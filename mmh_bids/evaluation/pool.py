"""Work on many things in a few processes; one that is killed costs what it worked on, not the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: What to tell of an item whose process was killed.
KILLED = "the process that measured it was killed, most likely for lack of memory; run again with a smaller --nprocs"


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[tuple[int, Result | None]]:
    """Results as they are ready, each with the place of its item; None for an item whose process was killed.

    Which of the items at hand was too much is not known when a process is killed. So each of them gets a second try,
    alone, and is given up if it is killed again.

    Parameters
    ----------
    work
        A function of a module, as it is called in new interpreters; errors it raises end the iteration.
    items
        What to work on; they and the results are pickled.
    processes
        At a time; with one, or for one item, work is done in this process.

    Examples
    --------
    >>> sorted(in_processes(abs, [3, -4], 1))
    [(0, 3), (1, 4)]
    """
    if processes < 2 or len(items) < 2:
        for place, item in enumerate(items):
            yield place, work(item)
        return
    waiting = list(range(len(items)))[::-1]
    while waiting:
        suspects: list[int] = []
        yield from _until_killed(work, items, waiting, min(processes, len(waiting)), suspects)
        for place in suspects:
            lost: list[int] = []
            yield from _until_killed(work, items, [place], 1, lost)
            if lost:
                yield place, None


def _until_killed(
    work: Callable[[Item], Result], items: Sequence[Item], waiting: list[int], processes: int, suspects: list[int]
) -> Iterator[tuple[int, Result]]:
    """Take places off the end of `waiting` and work on them; stop when a process is killed, and name the `suspects`."""
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    at_hand: dict[Future[Result], int] = {}
    # new interpreters: a fork would copy locks of threads that libraries may have started
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            while waiting or at_hand:
                while waiting and len(at_hand) < processes:
                    future = pool.submit(work, items[waiting[-1]])
                    at_hand[future] = waiting.pop()
                for future in wait(at_hand, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield at_hand.pop(future), result
        except BrokenProcessPool:
            suspects.extend(sorted(at_hand.values()))
