"""What a process may use: the machine's, its control groups' and its Slurm job's, whichever is least."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from mmh_bids import machine
from mmh_bids.machine import available_cpus, available_gb, limits_of_groups, slurm_job


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def test_limits_of_a_job_and_of_what_it_lies_in(tmp_path):
    job = tmp_path / "slurm" / "job_7"
    job.mkdir(parents=True)
    (job / "memory.max").write_text("2000000000\n")
    (job.parent / "memory.max").write_text("max\n")
    old = tmp_path / "memory" / "slurm"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("3000000000\n")
    assert list(limits_of_groups(tmp_path, ["/slurm/job_7"])) == [2_000_000_000]
    assert list(limits_of_groups(tmp_path, ["memory/slurm/job_8", "/gone"])) == [3_000_000_000]


def test_memory_of_a_slurm_job(monkeypatch):
    whole = available_gb()
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "300")
    assert available_gb() == pytest.approx(300 * 2**20 / 1e9, abs=1e-3)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # no limit
    assert available_gb() == whole
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    assert available_gb() == whole
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert available_gb() == pytest.approx(200 * 2**20 / 1e9, abs=1e-3)


def test_a_group_with_a_limit_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("123000000")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert available_gb() == 0.123


def test_cpus_of_a_slurm_task(monkeypatch):
    assert 1 <= available_cpus() <= os.cpu_count()
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "64")
    assert available_cpus() <= os.cpu_count()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert available_cpus() == 1


def test_name_of_a_slurm_job(monkeypatch):
    assert slurm_job() == ""
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    assert slurm_job() == "15"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert slurm_job() == "12_3"


def test_a_process_ends_with_the_one_that_started_it():
    inner = (
        "import time; from mmh_bids.machine import end_with_parent; end_with_parent(0.05); print('up', flush=True); "
    )
    inner += "time.sleep(60)"
    outer = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {inner!r}]); print(p.pid, flush=True); "
    )
    outer += "p.wait()"
    with subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True) as parent:
        said = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        (pid,) = said - {"up"}
        child = psutil.Process(int(pid))
        time.sleep(0.2)
        assert child.is_running()
        parent.kill()
    _, alive = psutil.wait_procs([child], timeout=10)
    # in a container nobody may ask for the exit code of an orphan
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
