"""What this process may use of the machine: processors and memory; and how it ends with the one that started it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available_cpus() -> int:
    """CPUs this process may use: affinity, cpusets, and what Slurm gave to the task."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # where a cluster does not bind jobs to their CPUs, the affinity is that of the whole node
    granted = [int(text) for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE") if (text := _number(name))]
    return max(1, min([own, *granted]))


def available_gb() -> float:
    """Memory this process may use in GB: the machine's, its control groups' or its Slurm job's, whichever is least."""
    import psutil

    limits = [psutil.virtual_memory().total, *limits_of_groups(CGROUPS, own_groups()), *_slurm_limits()]
    return round(min(limits) / 1e9, 3)


def own_groups(membership: Path = Path("/proc/self/cgroup")) -> list[str]:
    """Paths of the process's control groups that limit memory, of either version."""
    try:
        rows = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return [""]
    version_2 = [path for _, kinds, path in rows if not kinds]
    return [*version_2, *("memory" + path for _, kinds, path in rows if "memory" in kinds.split(",")), "", "memory"]


def group_folders(root: Path, groups: Sequence[str]) -> set[Path]:
    """Folders of the groups, and of all that they lie in."""
    folders = {root / group.strip("/") for group in groups}
    return folders | {parent for one in folders for parent in one.parents if parent.is_relative_to(root)}


def limits_of_groups(root: Path, groups: Sequence[str]) -> Iterator[int]:
    """Bytes that the groups, and those they lie in, may use; those without a limit are left out."""
    for folder in group_folders(root, groups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit():
                yield int(text)


def slurm_job() -> str:
    """Number of the Slurm job this runs in, ``12_3`` in an array; empty outside of Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def end_with_parent(seconds: float = 1.0) -> None:
    """Let this process end soon after the one that started it: one that was killed cannot end its children.

    Left behind, they would go on writing while the same command, given again, does so too.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def _slurm_limits() -> Iterator[int]:
    """Bytes of memory that Slurm gave the job on this node; where it enforces no limit, it still expects it kept."""
    node, cpu, cpus = (_number(f"SLURM_{name}") for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"))
    if node:
        yield int(node) << 20
    if cpu and cpus:
        yield int(cpu) * int(cpus) << 20


def _number(name: str) -> str:
    """A whole number above 0 in the environment, else nothing (Slurm's 0 means no limit)."""
    text = os.environ.get(name, "")
    return text if text.isdigit() and int(text) else ""
