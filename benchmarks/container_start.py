"""What a container costs: time to the first line and to the first harmonized image, in the image and outside it.

One image of the sample dataset, in turns, in a closed container (read-only root, no network) and by the same code
outside; output and work folders are empty. Without --default-method by z-scoring with --sloppy, so that start-up is
measured and not the network. Engine and image as for ``make container-test``: MMH_CONTAINER_ENGINE, MMH_IMAGE.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "ds-sample"
WORDS = ("participant", "--participant-label", "03")
QUICK = ("--method", "zscore", "--sloppy")
#: Seconds between looks at the output folder.
POLL = 0.02


def measure(command: list[str], out: Path) -> tuple[float, float, float]:
    """Seconds to the first line on standard error, to the first harmonized image, and to the end."""
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        line = time.monotonic() - begun
        image = None
        os.set_blocking(process.stderr.fileno(), False)
        while process.poll() is None:
            process.stderr.read()  # a full pipe would stop it
            if image is None and any(out.glob("sub-*/anat/*_desc-harmonized_T?w.nii.gz")):
                image = time.monotonic() - begun
            time.sleep(POLL)
    ended = time.monotonic() - begun
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {process.returncode}")
    return line, ended if image is None else image, ended


def once(engine: list[str], image: str | None, words: tuple[str, ...]) -> tuple[float, float, float]:
    """One run from empty folders, in `image` or, with none, outside."""
    with tempfile.TemporaryDirectory() as base:
        out = Path(base) / "out"
        out.mkdir()
        if image is None:
            own = ("-w", str(out.with_name("app")))
            command = [sys.executable, "-m", "mmh_bids.cli.run", str(SAMPLE), str(out), *words, *own]
        else:
            user = f"--user={os.getuid()}:{os.getgid()}"  # as the owner of the folders, so that they can be removed
            closed = ["--rm", "--read-only", "--network=none", user, "-v", f"{SAMPLE}:/data:ro", "-v", f"{out}:/out"]
            command = [*engine, "run", *closed, image, "/data", "/out", *words]
        return measure(command, out)


def main() -> None:
    """Run in turns and print a Markdown table of medians, with the smallest and the largest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--default-method", action="store_true", help="the default method, not the quick one")
    parser.add_argument("--image", default=os.environ.get("MMH_IMAGE", "mmh:0.1.0"))
    asked = parser.parse_args()
    engine = shlex.split(os.environ.get("MMH_CONTAINER_ENGINE", "")) or [shutil.which("docker") or "podman"]
    words = WORDS if asked.default_method else WORDS + QUICK
    runs: dict[str, list[tuple[float, float, float]]] = {"outside": [], "container": []}
    for _ in range(asked.repeat):
        runs["outside"].append(once(engine, None, words))
        runs["container"].append(once(engine, asked.image, words))
    print(f"{asked.repeat} runs each, in turns; seconds, median (smallest to largest)\n")
    print("| to | outside | container | overhead of the medians |\n|---|---|---|---|")
    for number, what in enumerate(("first line", "first harmonized image", "end")):
        cells, medians = [], []
        for found in runs.values():
            values = [run[number] for run in found]
            medians.append(statistics.median(values))
            cells.append(f"{medians[-1]:.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"| {what} | {cells[0]} | {cells[1]} | {medians[1] - medians[0]:.1f} |")


if __name__ == "__main__":
    main()
