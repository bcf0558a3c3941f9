"""Stopping a training in good order, and having Slurm start it again.

Slurm announces the end of a job's time by a signal (``#SBATCH --signal=USR1@90``), a preemption by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

from mmh_bids.errors import UsageError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):  # noqa: N818 (a wish, not an error)
    """The training was asked to stop; its state is in the checkpoint.

    Attributes
    ----------
    time_is_up
        It was SIGUSR1, by which Slurm says that a job's time ends.
    """

    def __init__(self, message: str, time_is_up: bool = False) -> None:
        super().__init__(message)
        self.time_is_up = time_is_up


class StopRequests:
    """Turns SIGINT, SIGTERM and SIGUSR1 into a wish to stop, while it is entered.

    Attributes
    ----------
    asked, time_is_up
        Whether there was any of them; whether there was SIGUSR1.
    """

    def __init__(self) -> None:
        self.asked = self.time_is_up = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        self.asked = True
        self.time_is_up = self.time_is_up or number == signal.SIGUSR1

    def check(self, doing: str) -> None:
        """Raise Interrupted if there was a wish; `doing` says what is left for the next time."""
        if self.asked:
            raise Interrupted(f"stopped while {doing}; the same command goes on from there", self.time_is_up)


def ignore_stop_requests() -> None:
    """Leave signals to the process that started this one: Slurm sends them to all."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def requeue_job() -> str:
    """Have Slurm put this job back into the queue; return its number.

    Raises
    ------
    UsageError
        This is no Slurm job, or Slurm refuses.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if not job:
        raise UsageError("--requeue: this is no Slurm job; start the same command again by hand")
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise UsageError(f"--requeue: Slurm did not requeue job {job} ({said.strip()}); submit it again") from None
    return job
