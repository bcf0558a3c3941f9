"""What ``mmh-train`` does when a training was interrupted."""

from __future__ import annotations

import pytest

import mmh_bids.training  # noqa: F401 (mends torchvision, which Lightning imports)

pytest.importorskip("lightning.fabric")

from mmh_bids.cli.stopped import stopped_by  # noqa: E402
from mmh_bids.cli.train import build_parser  # noqa: E402
from mmh_bids.training import distributed, requeue  # noqa: E402
from mmh_bids.training.requeue import Interrupted  # noqa: E402


@pytest.mark.parametrize(("up", "asked", "queued"), [(True, True, True), (True, False, False), (False, True, False)])
def test_a_job_is_requeued_when_its_time_is_up_and_that_was_asked_for(monkeypatch, capsys, up, asked, queued):
    monkeypatch.setattr(requeue, "requeue_job", lambda: "17")
    assert stopped_by(Interrupted("stopped at step 3 of 9", time_is_up=up), asked) == 75
    err = capsys.readouterr().err
    assert "mmh-train: stopped at step 3 of 9" in err
    assert ("job 17 is in Slurm's queue again" in err) == queued


def test_one_of_several_processes_says_so(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    assert stopped_by(Interrupted("stopped", time_is_up=True), True) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["global", "target", "encoder"])
def test_all_trainings_can_be_requeued(command, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    assert "--requeue" in capsys.readouterr().out
