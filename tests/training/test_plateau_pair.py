"""What the first of two processes learns by validating reaches the other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning.fabric")

from lightning.fabric import Fabric  # noqa: E402
from plateau_pair import PLAN, Slope  # noqa: E402

from mmh_bids.training.checkpoint import read_facts  # noqa: E402
from mmh_bids.training.loop import CHECKPOINT, fit  # noqa: E402


@pytest.mark.slow
def test_the_learning_rate_falls_on_both_processes(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = [sys.executable, str(Path(__file__).with_name("plateau_pair.py")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    assert read_facts(tmp_path / CHECKPOINT)["plateau"]["share"] == pytest.approx(0.01)
    first, second = ((tmp_path / f"weight-{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    fabric = Fabric(accelerator="cpu", devices=1)
    alone = fit(Slope(), PLAN, tmp_path / "alone", fabric, {}, lambda line: None)
    assert float(first) == pytest.approx(float(alone.weight), abs=1e-6)
