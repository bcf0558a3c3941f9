"""What the group level costs: time and peak memory for 200 and 2,000 generated images, each in a process of its own.

The images are rows: sidecars and features as the participant level leaves them (``benchmarks/group_data.py``). Memory
is that of the process and its children together, looked at twenty times a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from group_data import write_outputs

#: Our bar for 200 images: seconds, and GB.
MOST_SECONDS, MOST_GB = 120, 2.0


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--nprocs", type=int, default=2)
    asked = parser.parse_args()
    sites = [f"Site{number}" for number in range(asked.sites)]
    print(
        f"{asked.nprocs} processes, {asked.sites} sites, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before\n"
    )
    print("| images | seconds | CPU seconds | peak memory (GB) | report (MB) |\n|---:|---:|---:|---:|---:|")
    measured = []
    with tempfile.TemporaryDirectory() as name:
        for count in asked.images:
            folder = Path(name) / str(count)
            write_outputs(folder / "out", folder / "raw", people=count, sites=sites, flagged=count // 100)
            seconds, cpu, memory = run(folder, asked.nprocs)
            size = (folder / "out" / "group_T1w.html").stat().st_size / 1e6
            measured.append((count, seconds, cpu, memory))
            print(f"| {count} | {seconds:.1f} | {cpu:.1f} | {memory:.2f} | {size:.2f} |", flush=True)
    first, last = measured[0], measured[-1]
    if first is not last:
        print(f"\nTimes as many images: {last[0] / first[0]:.1f}; times as many CPU seconds: {last[2] / first[2]:.1f}")
    met = first[1] < MOST_SECONDS and first[3] < MOST_GB
    print(f"{first[0]} images under {MOST_SECONDS} s and {MOST_GB:g} GB: {'yes' if met else 'no'}")


def run(folder: Path, nprocs: int) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak GB of one call."""
    words = [folder / "raw", folder / "out", "group", "-w", folder / "work", "--nprocs", nprocs]
    begun, peak, cpu = time.perf_counter(), 0.0, {}
    with subprocess.Popen([sys.executable, "-m", "mmh_bids.cli.run", *map(str, words)], stderr=subprocess.PIPE) as call:
        process = psutil.Process(call.pid)
        while call.poll() is None:
            total = 0
            try:
                for one in (process, *process.children(recursive=True)):
                    total += one.memory_info().rss
                    used = one.cpu_times()
                    cpu[one.pid] = used.user + used.system
            except psutil.NoSuchProcess:
                pass
            peak = max(peak, total / 1e9)
            time.sleep(0.05)
        message = call.stderr.read().decode() if call.stderr else ""
    if call.returncode:
        raise SystemExit(f"the call ended with {call.returncode}:\n{message}")
    return time.perf_counter() - begun, sum(cpu.values()), peak


if __name__ == "__main__":
    main()
