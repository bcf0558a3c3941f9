"""The Slurm scripts, and a real Slurm to run them on."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "singularity"
SECONDS = 1800


def write_settings(folder, dataset, **values):
    """A copy of the committed settings with `values`; the outputs go to ``folder/out``."""
    folder.mkdir(exist_ok=True)
    text = (SCRIPTS / "cluster.conf").read_text()
    values = {
        "BIDS_DIR": dataset, "OUT_DIR": folder / "out", "WORK_DIR": folder / "work", "VENV": Path(sys.prefix),
        "CPUS": 1, "TIME": 120,
    } | values  # fmt: skip
    for name, value in values.items():
        text, count = re.subn(rf"(?m)^{name}=\S*( .*)?$", lambda _, line=f"{name}={value}": line, text)
        assert count == 1, name
    path = folder / "settings.conf"
    path.write_text(text)
    return path


def submit(settings, *words):
    """Give ``submit.sh``; return what it said, and the numbers of array and group job (none if nothing was left)."""
    done = subprocess.run(
        [SCRIPTS / "submit.sh", settings, *words], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr, re.findall(r"\b(?:array|group) (\d+)\b", done.stdout)


def scontrol(*words):
    """Run ``scontrol``."""
    return subprocess.run(["scontrol", *map(str, words)], check=True, capture_output=True, text=True, timeout=60).stdout


def states(job):
    """State of the job, or of each task of an array, by its number."""
    shown = [dict(re.findall(r"(\w+)=(\S+)", block)) for block in scontrol("show", "job", job).strip().split("\n\n")]
    return {int(row.get("ArrayTaskId", 0)): row["JobState"] for row in shown}


def wait_for(*jobs, seconds=SECONDS):
    """Wait until Slurm has none of the jobs in its queue."""
    until = time.monotonic() + seconds
    while subprocess.run(
        ["squeue", "-h", "-j", ",".join(jobs)], capture_output=True, text=True, check=False
    ).stdout.strip():
        if time.monotonic() > until:
            subprocess.run(["scancel", *jobs], check=False)
            raise AssertionError(f"jobs {jobs} do not end: {[states(job) for job in jobs]}")
        time.sleep(1)


def validator_errors(out):
    """What the BIDS validator has against a dataset."""
    import json

    program = shutil.which("bids-validator-deno", path=f"{Path(sys.executable).parent}")
    done = subprocess.run([program, "--json", str(out)], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [issue for issue in issues if issue.get("severity") == "error"]
