"""The Slurm scripts where there is no Slurm: what they would run, and what they say of wrong settings."""

import os
import re
import subprocess

import pytest
from slurm import SCRIPTS, submit, write_settings

HERE = 'source "$1/mmh-here.sh"; load_settings "$2"; shift 2; become_mmh "$@"'


def become_mmh(settings, *words, **environment):
    """What `become_mmh` runs, or the error."""
    done = subprocess.run(
        ["bash", "-uc", HERE, "bash", SCRIPTS, settings, *words],
        capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip
    return done.stdout if done.returncode == 0 else done.stderr


@pytest.fixture
def container(tmp_path):
    """Settings for a container, whose runtime only says how it is called, and with which of our variables."""
    runtime = tmp_path / "runtime"
    runtime.write_text('#!/bin/bash\nprintf "%s\\n" "$@"; env | grep ^APPTAINERENV_ | sort\n')
    runtime.chmod(0o755)
    (tmp_path / "mmh.sif").touch()
    values = {"VENV": "", "IMAGE": tmp_path / "mmh.sif", "APPTAINER": runtime, "BINDS": "(/data/models)"}
    return lambda **more: write_settings(tmp_path / "a", tmp_path / "raw", **values | more)


def test_the_container_sees_its_folders_and_what_slurm_gave_it(container, tmp_path):
    given = {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "3000", "CUDA_VISIBLE_DEVICES": "2"}
    said = become_mmh(container(), "a b", "participant", **given).splitlines()
    assert said[:4] == ["run", "--cleanenv", "--containall", "--no-home"]
    assert f"{tmp_path}/raw:{tmp_path}/raw:ro" in said and "/data/models:/data/models:ro" in said
    assert {f"{tmp_path}/a/out", f"{tmp_path}/a/work"} <= set(said)
    image = said.index(f"{tmp_path}/mmh.sif")
    assert said[image + 1 : image + 3] == ["a b", "participant"]
    assert {f"APPTAINERENV_{name}={value}" for name, value in given.items()} <= set(said[image:])
    assert "--nv" not in said
    assert (tmp_path / "a/out").is_dir() and (tmp_path / "a/work").is_dir()


def test_a_gpu_is_passed_on(container):
    settings = container(GPU=1)
    assert "--nv" in become_mmh(settings, "participant").splitlines()
    flags = subprocess.run(
        ["bash", "-uc", 'source "$1/mmh-here.sh"; load_settings "$2"; echo "${FLAGS[@]}"', "bash", SCRIPTS, settings],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert flags.stdout == "--device cuda\n"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"OUT_DIR": "out"}, "OUT_DIR='out' is no absolute path"),
        ({"VENV": ""}, "set IMAGE or VENV"),
        ({"VENV": "/nowhere"}, "VENV=/nowhere has no bin/mmh"),
        ({"VENV": "", "IMAGE": "/nowhere.sif"}, "IMAGE=/nowhere.sif does not exist"),
        ({"IMAGE": "/nowhere.sif"}, "not both"),
    ],
)
def test_settings_that_cannot_be(tmp_path, values, says):
    said = become_mmh(write_settings(tmp_path / "a", tmp_path / "raw", **values))
    assert re.fullmatch(rf"error: .*{re.escape(says)}\n", said)
    assert not (tmp_path / "a/out").exists()


def test_settings_that_are_not_there(tmp_path):
    assert "cannot be read; give a copy of singularity/cluster.conf" in become_mmh(tmp_path / "none.conf")


@pytest.mark.slow
def test_what_would_be_submitted(study, tmp_path):
    root, out, words, *_ = study
    flags = f"({' '.join(map(str, words[1:]))})"
    settings = write_settings(tmp_path / "a", root, FLAGS=flags, TIME="", GPU=1, SLACK=1, THROTTLE=7)
    said, jobs = submit(settings, "--print")
    assert jobs == [] and not (tmp_path / "a/out/logs").exists()
    array, group = [line for line in said.splitlines() if line.startswith("sbatch ")]
    assert "--array=1-2%7" in array and "--gres=gpu:1" in array and "--dependency" not in array
    assert "--dependency=afterany:JOB" in group and "--gres" not in group
    # three images of the first participant, half a minute each, on one CPU; what one process needs and 1 GB
    minutes, megabytes = (int(re.search(rf"--{name}=(\d+)", array)[1]) for name in ("time", "mem"))
    assert 10 + 1 <= minutes <= 10 + 4 and 2000 < megabytes < 4000

    two = write_settings(tmp_path / "a", root, FLAGS=flags, CHUNK=2, CPUS=2)
    assert "--array=1-1%50" in submit(two, "--print")[0]
    one = submit(two, "--print", "--participant-label", "02")[0]
    assert "--array=1-1%50" in one and "1 image(s) of 1 participant(s)" in one

    done = write_settings(tmp_path / "a", root, FLAGS=flags, OUT_DIR=out)
    assert "nothing is left to do" in submit(done, "--print")[0]
