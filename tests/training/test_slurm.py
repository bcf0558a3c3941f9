"""A training on a real Slurm: `make cluster-test` where `sbatch` is. One node with two cores is enough."""

import re
import shutil
import subprocess
import sys
import time

import pytest
from workout import make_images

from mmh_bids.models.bundle import open_bundle

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="there is no Slurm"),
]

SCRIPT = """#!/bin/bash
#SBATCH --job-name=train --nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --mem-per-cpu=2500
#SBATCH --requeue --open-mode=append --output={folder}/log.txt
srun --kill-on-bad-exit=1 {python} -m mmh_bids.cli.train global {images} --method mmh-diffusion --held-out sub-2 \\
  --factor 1 --batch 4 --steps 40 --validate-every 40 --sampler 2 --device cpu --devices 2 \\
  --output {folder}/bundle --work {folder}/checkpoints --requeue
echo "ended with $?"
"""


def slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def wait_for(path, words, seconds=300):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        said = path.read_text() if path.exists() else ""
        if words in said:
            return said
        time.sleep(0.5)
    raise AssertionError(f"no {words!r} in {path}:\n{said}")


def submit(folder, images):
    folder.mkdir()
    script = folder / "job.sh"
    script.write_text(SCRIPT.format(folder=folder, images=images, python=sys.executable))
    return re.search(r"\d+", slurm("sbatch", str(script)))[0]


def test_a_requeued_job_ends_at_the_same_weights(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    make_images(images)
    submit(tmp_path / "whole", images)
    assert "resumed" not in wait_for(tmp_path / "whole" / "log.txt", "ended with 0")

    job = submit(tmp_path / "cut", images)
    log = tmp_path / "cut" / "log.txt"
    try:
        wait_for(log, "step 10/40")
        slurm("scancel", "--signal=USR1", job)
        wait_for(log, f"job {job} is in Slurm's queue again")
        wait_for_pending(job)
        said = wait_for(log, "ended with 0")
    finally:
        subprocess.run(["scancel", job], check=False, capture_output=True)
    stopped = re.search(r"stopped at step (\d+) of 40", said)[1]
    assert 10 <= int(stopped) < 40
    assert f"resumed at step {stopped}" in said
    assert said.count("images prepared") == 1
    whole, cut = (open_bundle(tmp_path / name / "bundle") for name in ("whole", "cut"))
    assert cut.card["files"] == whole.card["files"]


def wait_for_pending(job):
    """Slurm lets a requeued job rest for some minutes unless told otherwise."""
    for _ in range(60):
        if "PENDING" in slurm("scontrol", "show", "job", job):
            slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
            return
        time.sleep(1)
    raise AssertionError(f"job {job} does not come back")
