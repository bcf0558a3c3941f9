"""What ``mmh-train`` says and returns when a training was interrupted."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mmh_bids.errors import EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from mmh_bids.training.requeue import Interrupted

REQUEUE_HELP = "when Slurm says by SIGUSR1 that the time is up: requeue the job"


def stopped_by(interrupted: Interrupted, requeue: bool) -> int:
    """Say so, and put the Slurm job back into the queue if that was asked for; the exit code.

    Only the first of several processes says and returns so: Fabric kills them all when one of the others ends badly.
    """
    from mmh_bids.training.distributed import is_first
    from mmh_bids.training.requeue import requeue_job

    if not is_first():
        return EXIT_OK
    print(f"mmh-train: {interrupted}", file=sys.stderr)
    if requeue and interrupted.time_is_up:
        print(f"mmh-train: job {requeue_job()} is in Slurm's queue again", file=sys.stderr)
    return EXIT_INTERRUPTED
