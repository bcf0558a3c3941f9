"""Tests of mmh_bids.training.requeue: signals become wishes, and Slurm is asked as its users would."""

import os
import signal

import pytest

from mmh_bids.errors import UsageError
from mmh_bids.training.requeue import Interrupted, StopRequests, requeue_job


@pytest.mark.parametrize(
    ("number", "time_is_up"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGUSR1, True)]
)
def test_signals_are_heard_while_it_is_entered_and_not_after(number, time_is_up):
    before = signal.getsignal(number)
    with StopRequests() as stop:
        stop.check("resting")
        os.kill(os.getpid(), number)
        assert stop.asked and stop.time_is_up is time_is_up
        with pytest.raises(Interrupted, match="stopped while resting; the same command goes on") as told:
            stop.check("resting")
        assert told.value.time_is_up is time_is_up
    assert signal.getsignal(number) is before


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A Slurm command that notes what it was asked, and refuses job 13."""
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nif [ "$2" = 13 ]; then echo "no job 13" >&2; exit 1; fi\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "asked"


def test_a_job_and_a_task_of_an_array_are_requeued(scontrol, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert requeue_job() == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue_job() == "11_3"
    assert scontrol.read_text() == "requeue 12\nrequeue 11_3\n"


def test_no_job_and_a_refusal_are_said(scontrol, monkeypatch):
    with pytest.raises(UsageError, match="--requeue: this is no Slurm job"):
        requeue_job()
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    with pytest.raises(UsageError, match=r"did not requeue job 13 \(no job 13\); submit it again"):
        requeue_job()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="did not requeue job 13"):
        requeue_job()
