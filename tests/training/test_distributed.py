"""Tests of training on several processes: they end where one does, and where they would have uninterrupted."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from safetensors.numpy import load_file
from workout import diffusion, gradient_norms, light, make_images, train

from mmh_bids.errors import UsageError
from mmh_bids.models.bundle import open_bundle
from mmh_bids.training.distributed import make_fabric
from mmh_bids.training.loop import CHECKPOINT


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workout")
    make_images(folder)
    return folder


def work_out(what, images):
    """Run the script on several processes; what it printed."""
    command = [sys.executable, Path(__file__).with_name("workout.py"), what, images]
    environment = {**os.environ, **CLEAN}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def pair(images):
    """What two processes made, and printed."""
    return images, work_out("compare", images)


CLEAN = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
SLURM = {
    "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train",
}  # fmt: skip


def alone(recipe, folder, accumulate=1, steps=20):
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    train(recipe, folder, fabric, lambda line: None, accumulate, steps)
    return folder


def curve(folder):
    """Logged numbers by step and name."""
    with open(folder / "log.csv", newline="") as stream:
        return {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(stream)}


def assert_same(folder, expected, tolerance):
    """The loss curves, and the weights: Adam makes steps of rounding errors, but small ones."""
    found, wanted = curve(folder), curve(expected)
    assert found.keys() == wanted.keys() and len(wanted) > 8
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key
    tensors, others = load_file(folder / CHECKPOINT), load_file(expected / CHECKPOINT)
    for name, value in others.items():
        if "statistics" in name:
            np.testing.assert_allclose(tensors[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
    moved = [name for name in others if name.startswith("module/average") and others[name].size > 100]
    apart = [np.abs(tensors[name] - others[name]).mean() for name in moved]
    assert max(apart) < tolerance, dict(zip(moved, apart, strict=True))


@pytest.mark.slow
def test_accumulated_gradients_make_the_steps_of_the_large_batch(images, tmp_path):
    whole = alone(diffusion(images), tmp_path / "whole", steps=10)
    assert_same(alone(diffusion(images), tmp_path / "parts", accumulate=4, steps=10), whole, 1e-4)


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(pair, tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1)
    norms, whole = gradient_norms(fabric), tmp_path / "whole"
    train(diffusion(pair[0]), whole, fabric, lambda line: None)
    for rank in range(2):
        np.testing.assert_allclose(np.loadtxt(pair[0] / f"norms-{rank}.txt"), norms, rtol=1e-3)
    assert_same(pair[0] / "diffusion", whole, 1e-4)
    assert_same(pair[0] / "accumulated", whole, 1e-4)


@pytest.mark.slow
def test_two_processes_share_persons_out_and_learn_what_one_does(pair, tmp_path):
    assert_same(pair[0] / "light", alone(light(pair[0]), tmp_path / "whole", steps=10), 1e-4)
    assert_same(alone(light(pair[0]), tmp_path / "parts", 4, steps=10), tmp_path / "whole", 1e-4)


@pytest.mark.slow
def test_a_signal_to_one_of_three_stops_all_and_they_go_on_to_the_same_bits(images):
    said = work_out("interrupt", images)
    for rank in range(3):
        assert (images / f"stopped-{rank}").read_text().startswith("stopped at step 7 of 20; the same command")
        assert (images / f"stopped-{rank}").read_text().endswith(" True")
    assert said.count("resumed at step 7") == 1
    found, wanted = load_file(images / "cut" / CHECKPOINT), load_file(images / "whole" / CHECKPOINT)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.array_equal(found[name], value), name


@pytest.mark.slow
def test_only_the_first_process_writes_and_speaks(pair):
    folder, said = pair
    lines = [line for line in said.splitlines() if line.startswith("step 20/20")]
    assert len(lines) == 2
    with open(folder / "diffusion" / "log.csv", newline="") as stream:
        keys = [(row["step"], row["name"]) for row in csv.DictReader(stream)]
    assert len(keys) == len(set(keys))
    assert len(list((folder / "diffusion" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_the_command_on_two_processes_is_terminated_and_goes_on(images, tmp_path):
    command = [
        sys.executable, "-m", "mmh_bids.cli.train", "global", images, "--method", "mmh-diffusion",
        "--held-out", "sub-2", "--factor", "1", "--batch", "2", "--steps", "20", "--validate-every", "20",
        "--sampler", "2", "--device", "cpu", "--devices", "2",
        "--output", tmp_path / "toy", "--work", tmp_path / "work",
    ]  # fmt: skip
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": {**os.environ, **CLEAN}}
    with subprocess.Popen(command, **options) as process:
        until = time.monotonic() + 300
        while not (tmp_path / "work" / "log.csv").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        process.terminate()
        out, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    assert err.count("mmh-train: stopped at step") == 1
    assert out.count("5/5 images prepared") == 1
    assert not (tmp_path / "toy").exists()
    again = subprocess.run(command, timeout=300, check=False, **options)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("resumed at step") == 1 and "images prepared" not in again.stdout
    assert again.stdout.count("bundle toy, held-out") == 1
    assert open_bundle(tmp_path / "toy").card["training"]["recipe"]["batch"] == 2


def test_under_srun_one_task_trains(monkeypatch, images, tmp_path):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    fabric = make_fabric("cpu")
    assert isinstance(fabric._connector.cluster_environment, SLURMEnvironment)
    fabric.launch()
    train(diffusion(images), tmp_path, fabric, lambda line: None, steps=2)
    assert (tmp_path / CHECKPOINT).is_file()


def test_in_a_batch_script_without_srun_nobody_is_waited_for(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_ID")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert isinstance(make_fabric("cpu", 2)._connector.cluster_environment, LightningEnvironment)


@pytest.mark.parametrize(
    ("asked", "slurm", "words"),
    [
        ((1, 1), {"SLURM_NTASKS": "2"}, "Slurm started 2 tasks on 1 nodes; .*or give --devices 2 --nodes 1"),
        ((2, 1), {"SLURM_NTASKS": "4", "SLURM_NNODES": "2"}, "--nodes=1, or give --devices 2 --nodes 2"),
        ((2, 2), {}, "Slurm started 1 tasks on 1 nodes"),
    ],
)  # fmt: skip
def test_another_number_of_tasks_than_asked_for_is_refused(monkeypatch, asked, slurm, words):
    for name, value in {**SLURM, **slurm}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=words):
        make_fabric("cpu", *asked)


def test_tasks_of_a_job_need_no_number_per_node(monkeypatch):
    for name, value in {**SLURM, "SLURM_NTASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    fabric = make_fabric("cpu", 2)
    assert fabric._connector.cluster_environment.world_size() == 2


def test_one_gpu_by_name_is_not_many(monkeypatch):
    monkeypatch.setattr("mmh_bids.training.distributed.resolve_device", lambda asked: asked)
    with pytest.raises(UsageError, match="--device cuda:1: names one GPU"):
        make_fabric("cuda:1", 2)
    with pytest.raises(UsageError, match="--devices 99: this machine shows"):
        make_fabric("cuda", 99)
