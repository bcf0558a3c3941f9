"""How much of what a person's T2w adds to the average of one scanner is seen on another?

    python benchmarks/person_levels.py --looks build/looks --scanners A B

People whom `make train-looks` had scanned on both scanners, grey and white matter as stage 2 measures them
(`mmh_bids.harmonizers.people`). Prints, for each tissue, the standard deviation over people on either scanner, the
correlation of the two, and the slope by least squares from one to the other: the share of a deviation that goes along.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from mmh_bids.harmonizers.light import MmhLight
from mmh_bids.harmonizers.people import tissue_logs
from mmh_bids.models.bundle import open_bundle
from mmh_bids.training.standards import find_samples
from mmh_bids.training.target import style_removed

TISSUES = ("grey matter", "white matter")


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--looks", type=Path, default=Path("build/looks"), help="none-*: preprocessed; removed: the cache")
    out.add_argument("--model", default="mmh-light", help="bundle of stage 1")
    out.add_argument("--scanners", nargs=2, default=["A", "B"])
    return out


def run(asked: argparse.Namespace) -> int:
    model = open_bundle(asked.model)
    light = MmhLight.load(model, "cpu")
    levels = light.levels("T2w")
    found: dict[tuple[Path, str], np.ndarray] = {}
    samples = [one for one in find_samples(sorted(asked.looks.glob("none-*"))) if one.sequence == "T2w"]
    files = style_removed(asked.looks / "removed", model, light, print).prepare(samples)
    for sample, path in files.items():
        pair = load_file(path)
        image, removed, mask = (pair[name][0, 0] for name in ("image", "removed", "mask"))
        found[sample.path.parents[2], str(sample.site)] = tissue_logs(image, removed, mask > 0, levels)
    people = sorted({person for person, _ in found if all((person, name) in found for name in asked.scanners)})
    first, second = (np.array([found[person, name] for person in people]) for name in asked.scanners)
    a, b = asked.scanners
    print(f"{len(people)} people, natural logarithms\n")
    print(f"| | sd on {a} | sd on {b} | correlation | {b} by {a} | {a} by {b} |\n|---|---:|---:|---:|---:|---:|")
    for place, tissue in enumerate(TISSUES):
        x, y = first[:, place], second[:, place]
        slopes = np.polyfit(x, y, 1)[0], np.polyfit(y, x, 1)[0]
        numbers = (x.std(), y.std(), np.corrcoef(x, y)[0, 1], *slopes)
        print(f"| {tissue} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
