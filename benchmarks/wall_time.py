"""Wall time and peak memory of the app on one 1 mm T1w head with two processes, split by step.

The head is simulated (a label map where ../shared has them, else the ICBM template's), 1 mm isotropic. Memory is the
proportional set size of the whole process tree, sampled ten times a second; "idle" is the time in which no step ran.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import nibabel as nib
import psutil
from common import label_maps

from mmh_bids.simulate.acquire import acquire
from mmh_bids.simulate.icbm import head_from_template
from mmh_bids.simulate.phantom import head_from_labels
from mmh_bids.simulate.scanner import load_scanners

LINE = re.compile(r"^(\S+ \S+) INFO \[\d+/\d+\] \S+: (.+) \(([\d.]+) s\)$")


def make_dataset(root: Path) -> tuple[int, ...]:
    """Write a BIDS dataset of one T1w image; return its shape."""
    try:
        head = head_from_labels(label_maps()[0])
    except SystemExit:
        head = head_from_template()
    image = acquire(head, load_scanners()["A"], "T1w").image
    anat = root / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "one head", "BIDSVersion": "1.10.0"}')
    nib.save(image, anat / "sub-01_T1w.nii.gz")
    return image.shape


def tree_gb(process: psutil.Process) -> float:
    """Memory of a process and its descendants."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 1e9


def main() -> None:
    """Run the app once and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nprocs", default="2")
    parser.add_argument("--method", default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shape = make_dataset(root / "raw")
        command = [sys.executable, "-m", "mmh_bids.cli.run", str(root / "raw"), str(root / "out"), "participant"]
        command += ["-w", str(root / "work"), "--nprocs", asked.nprocs]
        command += ["--method", asked.method] if asked.method else []
        begun, samples = time.time(), []
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            samples.append((time.time(), tree_gb(process)))
            time.sleep(0.1)
        ended = time.time()
        if process.returncode:
            raise SystemExit(f"mmh ended with {process.returncode}")
        log = next((root / "out" / "logs").glob("mmh-*.log")).read_text()
    report(shape, begun, ended, samples, log)


def report(shape: tuple[int, ...], begun: float, ended: float, samples: list, log: str) -> None:
    """Print the table."""
    steps = []
    for line in log.splitlines():
        match = LINE.match(line)
        if match:
            end = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
            steps.append((end - float(match[3]), end, match[2]))
    size = " x ".join(map(str, shape))
    print(f"1 mm T1w head, {size} voxels\n\n| step | seconds | peak memory (GB) |\n|---|---|---|")
    first = min(start for start, _, _ in steps)
    last = max(end for _, end, _ in steps)
    print(f"| start-up, discovery, graph | {first - begun:.1f} | {peak(samples, begun, first):.2f} |")
    busy, reached = 0.0, first
    for start, end, name in steps:
        print(f"| {name} | {end - start:.1f} | {peak(samples, start, end):.2f} |")
    for start, end, _ in sorted(steps):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    print(f"| report, provenance | {ended - last:.1f} | {peak(samples, last, ended):.2f} |")
    print(f"| **all** | **{ended - begun:.1f}** | **{max(gb for _, gb in samples):.2f}** |")
    print(f"\nidle between steps: {last - first - busy:.1f} s of {last - first:.1f} s")


def peak(samples: list, start: float, end: float) -> float:
    """Largest memory sampled between two moments."""
    return max((gb for moment, gb in samples if start <= moment <= end), default=0.0)


if __name__ == "__main__":
    main()
