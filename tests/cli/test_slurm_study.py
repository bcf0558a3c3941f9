"""The app on a real Slurm, by the scripts in ``singularity/``: `make cluster-test` where `sbatch` is.

One node with two cores is enough. ``MMH_ROUNDS`` is how often eight tasks write into one folder (default 10);
MMH_SIF an Apptainer image to run one array in, by the command MMH_APPTAINER (default: apptainer).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from slurm import scontrol, states, submit, validator_errors, wait_for, write_settings
from small_study import SOURCES, hashes, rows
from tiny import Call, leftovers, mmh

from mmh_bids.bids.tsv import read_tsv

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="there is no Slurm"),
    pytest.mark.timeout(3600),
]
ROUNDS = int(os.environ.get("MMH_ROUNDS", "10"))
#: MB of a task that are too few for the brain extraction and enough to begin.
TOO_LITTLE = 900


def table(out):
    return {row["participant_id"]: row for row in read_tsv(out / "participants.tsv", "participant_id")[1]}


def test_array_and_group_job_with_one_task_killed_by_its_memory_limit(tmp_path, repo_root):
    """All participants of the sample; then the failed one alone completes the dataset."""
    flags = "(--sloppy --method zscore)"
    settings = write_settings(tmp_path / "a", repo_root / "data/ds-sample", FLAGS=flags, SBATCH_FLAGS="(--hold)")
    out = tmp_path / "a/out"
    _, (array, group) = submit(settings)
    scontrol("update", f"JobId={array}_2", f"MinMemoryNode={TOO_LITTLE}")
    scontrol("release", array, group)
    wait_for(array, group)

    assert states(group) == {0: "COMPLETED"}
    found = states(array)
    assert found.pop(2) in ("FAILED", "OUT_OF_MEMORY")
    assert found == {1: "COMPLETED", 3: "COMPLETED", 4: "COMPLETED"}
    people = table(out)
    assert [people[f"sub-{label}"]["status"] for label in ("01", "02", "03", "04")] == [
        "done",
        "failed",
        "done",
        "done",
    ]
    said = [log.read_text() for log in out.glob("logs/mmh-*.log")]
    (reason,) = {line for text in said for line in text.splitlines() if "sub-02_T1w: FAILED:" in line}
    assert "was killed by the system, most likely for lack of memory: give the job more memory" in reason
    assert "was killed by the system" in people["sub-02"]["message"]
    assert "sub-02" in (out / "group_T1w.html").read_text()

    settings = write_settings(tmp_path / "a", repo_root / "data/ds-sample", FLAGS=flags)
    (plan,) = {len(rows(Call(0, path.read_text(), ""))) for path in out.glob("logs/slurm/*/plan.tsv")}
    assert plan == 10
    said, (array, group) = submit(settings, "--failed-only")
    assert "1 task(s)" in said
    wait_for(array, group)
    assert (states(array), states(group)) == ({1: "COMPLETED"}, {0: "COMPLETED"})
    assert {row["status"] for row in table(out).values()} == {"done"}
    assert validator_errors(out) == []
    assert leftovers(out) == []
    said, jobs = submit(settings)
    assert "nothing is left to do" in said and jobs == []


@pytest.fixture(scope="module")
def six(study, tmp_path_factory):
    """The small study with three more participants, and what one undisturbed call makes of it: (root, out, words)."""
    base = tmp_path_factory.mktemp("six")
    root = base / "raw"
    shutil.copytree(study[0], root)
    for label in ("03", "04", "05"):
        (root / f"sub-{label}/anat").mkdir(parents=True)
        shutil.copyfile(root / SOURCES[3], root / f"sub-{label}/anat/sub-{label}_T2w.nii.gz")
    words = ("participant", *study[2][3:])  # without the known transforms
    call = mmh(root, base / "out", *words, "-w", base / "work")
    assert call.code == 0, call.err
    return root, base / "out", words


#: What each of the eight tasks is asked for; three of them for what others work on, too.
TASKS = ["01 --session-label A", "01 --session-label B", "02", "03", "04", "05", "01", "01 02 03 04 05"]
EIGHT = """#!/bin/bash
#SBATCH --ntasks=8 --overcommit --exclusive --mem=12000 --output={folder}/slurm.txt
srun --overcommit --ntasks=8 --output={folder}/task-%t.txt bash -c '
  asked=({asked}); exec {command} --participant-label ${{asked[SLURM_PROCID]}}'
"""


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_eight_tasks_at_once_leave_what_one_call_leaves(six, turn):
    root, alone, words = six
    folder = root.parent / f"turn-{turn}"
    out = folder / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "mmh_bids.cli.run", root, out, *words, "-w", folder / "work"]
    script = EIGHT.format(
        folder=folder, command=" ".join(map(str, command)), asked=" ".join(f'"{asked}"' for asked in TASKS)
    )
    (folder / "job.sh").write_text(script)
    job = subprocess.run(["sbatch", "--parsable", folder / "job.sh"], capture_output=True, text=True, check=True)
    wait_for(job.stdout.strip())  # `sbatch --wait` looks every minute or two only
    said = "\n".join(path.read_text() for path in sorted(folder.glob("*.txt")))
    assert states(job.stdout.strip()) == {0: "COMPLETED"}, said
    assert said.count("ends with exit code 0") == 8
    assert len(list(out.glob("logs/mmh-*.log"))) == len(list(out.glob("logs/config-*.toml"))) == 8

    expected, found = hashes(alone), hashes(out)
    for each in (expected, found):
        each.pop("dataset_description.json")  # says where the raw data lie
    assert found == expected
    assert (out / "logs/images.tsv").read_bytes() == (alone / "logs/images.tsv").read_bytes()
    assert leftovers(out) == [] and list((out / "logs/calls").iterdir()) == []
    assert validator_errors(out) == []
    shutil.rmtree(folder)


@pytest.fixture(params=["virtual environment", "Apptainer image"])
def app(request, six, tmp_path, open_to_all):
    """Settings that say where the app is."""
    if request.param == "virtual environment":
        return {}
    if not os.environ.get("MMH_SIF"):
        pytest.skip("there is no Apptainer image (set MMH_SIF)")
    root, _, words = six
    bundle = words[words.index("--model") + 1]
    # MMH_APPTAINER may run as another user
    for name in ("", "out", "out/logs", "work"):
        open_to_all(tmp_path / "a" / name)
    for folder in (root, bundle):
        open_to_all(folder.parent)
    runtime = tmp_path / "apptainer"
    # the tests' own TMPDIR may be closed to another user
    runtime.write_text(f'#!/bin/bash\nunset TMPDIR\nexec {os.environ.get("MMH_APPTAINER", "apptainer")} "$@"\n')
    runtime.chmod(0o755)
    return {"VENV": "", "IMAGE": os.environ["MMH_SIF"], "APPTAINER": runtime, "BINDS": f"({bundle})"}


def test_a_task_whose_time_is_up_goes_back_into_the_queue_and_goes_on(six, app, tmp_path):
    root, alone, words = six
    flags = " ".join(map(str, words[1:]))
    settings = write_settings(tmp_path / "a", root, FLAGS=f"({flags})", MEM=3000, **app)
    _, (array, group) = submit(settings, "--participant-label", "01")
    log = next((tmp_path / "a/out/logs/slurm").iterdir()) / f"1-{array}.txt"
    try:
        wait_for_words(log, "bias field corrected")
        subprocess.run(["scancel", "--batch", "--signal=USR1", f"{array}_1"], check=True)
        wait_for_words(log, "back into the queue")
        for _ in range(60):  # Slurm lets a requeued job rest for some minutes unless told otherwise
            if "PENDING" in states(array).values():
                scontrol("update", f"JobId={array}_1", "StartTime=now")
                break
            time.sleep(1)
        wait_for(array, group)
    finally:
        subprocess.run(["scancel", array, group], check=False)
    said = log.read_text()
    assert "mmh: interrupted; run the same command again to resume" in said
    assert "(start 2)" in said and "ends with exit code 0" in said
    second = said.split("(start 2)")[1]
    assert second.count("read and checked") < 3  # what was done is not done again
    assert states(array) == {1: "COMPLETED"}
    assert hashes(tmp_path / "a/out", "sub-01/") == hashes(alone, "sub-01/")


def wait_for_words(path, words, seconds=900):
    until = time.monotonic() + seconds
    while not path.exists() or words not in path.read_text():
        assert time.monotonic() < until, path.read_text() if path.exists() else f"no {path}"
        time.sleep(0.2)


def test_nipype_sends_the_steps_to_slurm(six, tmp_path, monkeypatch):
    root, alone, words = six
    plugin = tmp_path / "plugin.json"
    plugin.write_text(json.dumps({"plugin": "SLURM", "plugin_args": {"sbatch_args": "--mem=2G --cpus-per-task=1"}}))
    monkeypatch.delenv("LOGNAME", raising=False)
    command = [sys.executable, "-m", "mmh_bids.cli.run", root, tmp_path / "out", *words, "-w", tmp_path / "work"]
    command += ["--participant-label", "02", "--nipype-plugin-file", plugin]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "out", "sub-02/") == hashes(alone, "sub-02/")
    names = re.findall(r"JobName=(\S+)", scontrol("show", "job"))
    assert any(name.startswith("write_derivatives.sub_02_T2w_wf") for name in names), names
