"""How near do the people that the looks learned from come to the truth, each scanned on the other target?

    python benchmarks/look_people.py --looks build/looks --model build/looks/both --sets 3 --sequences T2w

For tuning; `target.py`, whose heads and scanners nothing was tuned on, counts. Everyone of `make train-looks` was
scanned on both targets, so that A's scan can be brought to B's look, and compared with the truth as `target.py` does.
Beside its measures, by tissue: the result less the truth where the truth has one tissue only, mean over voxels, in
units of the truth's white-grey contrast. One person's is his own T2; the mean over people should be zero.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from target import harmonized, measure, truth_factor
from target_data import Scan
from travelling_data import label_map

from mmh_bids.evaluation.contrast import white_grey_contrast
from mmh_bids.models.bundle import Bundle, open_bundle
from mmh_bids.simulate import tissues
from mmh_bids.simulate.phantom import head_from_labels

#: Seeds of the sets in the Makefile.
SEEDS = {1: 0, 2: 0, 3: 21, 4: 22}
TISSUES = {"fluid": tissues.INDEX["fluid"], "grey": tissues.GREY, "white": tissues.WHITE}
OURS = "stage 2"
COLUMNS = ("regional", "mae", "wasserstein", *TISSUES)


def linked(looks: Path, number: int, work: Path) -> Path:
    """A folder with the set's ``raw`` and ``none``, as `Scan` wants them."""
    folder = work / f"set-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("raw", "none"):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to((looks / f"{name}-{number}").resolve())
    return folder


def people(looks: Path, number: int) -> list[tuple[str, int, int]]:
    """Subject, label map and seed of each person of a set."""
    heads = (looks / f"raw-{number}.txt").read_text().split()
    return [
        (f"sub-{place:02d}", int(head.removeprefix("head-")), SEEDS[number] * 1000 + place)
        for place, head in enumerate(heads, 1)
    ]


def errors(out: np.ndarray, truth: np.ndarray, scan: Scan) -> dict[str, float]:
    """Mean error by tissue over the contrast."""
    inside = scan.brain & scan.true_brain
    unit = abs(white_grey_contrast(truth[inside], scan.tissue[inside], scan.sequence))
    tissue = scan.tissue
    return {name: float((out - truth)[inside & (tissue == code)].mean()) / unit for name, code in TISSUES.items()}


def compared(scan: Scan, own: Scan, model: Bundle, standards: Bundle, label: str) -> dict[str, list[float]]:
    """`COLUMNS` of two classical methods and ours, of a scan in the look of the person's own scan on the target."""
    target = own.scanner
    truth = scan.look_of(target) * np.float32(truth_factor(own))
    outputs = harmonized(scan, model, standards, {target: label})[target]
    measured = measure(scan, own, truth, outputs)
    rows = {name: {**measured[name], **errors(outputs[name], truth, scan)} for name in ("zscore", "histmatch", OURS)}
    return {name: [row[column] for column in COLUMNS] for name, row in rows.items()}


def main() -> None:
    """Print a line a scan and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--looks", type=Path, default=Path("build/looks"))
    parser.add_argument("--model", default="mmh-light")
    parser.add_argument("--standards", type=Path, default=Path("build/target/standards"), help="of target.py")
    parser.add_argument("--work", type=Path, default=Path("build/look-people"))
    parser.add_argument("--sets", type=int, nargs="+", default=[3])
    parser.add_argument("--sequences", nargs="+", default=["T1w", "T2w"])
    parser.add_argument("--targets", nargs=2, default=["A=sim-A", "B=sim-B"], metavar="SCANNER=LABEL")
    asked = parser.parse_args()
    targets = dict(pair.split("=") for pair in asked.targets)
    model, standards = open_bundle(asked.model), open_bundle(asked.standards)
    found: dict[tuple[str, str], list[list[float]]] = {}
    for number in asked.sets:
        folder = linked(asked.looks, number, asked.work)
        for subject, head, seed in people(asked.looks, number):
            person = head_from_labels(label_map(head), seed)
            for sequence in asked.sequences:
                for target, label in targets.items():
                    source = next(name for name in targets if name != target)
                    scan, own = (Scan(folder, person, name, sequence, subject) for name in (source, target))
                    rows = compared(scan, own, model, standards, label)
                    for method, values in rows.items():
                        found.setdefault((f"{target} {sequence}", method), []).append(values)
                    line = "  ".join(f"{name} {value:+.3f}" for name, value in zip(COLUMNS, rows[OURS], strict=True))
                    print(f"set {number} {subject} {source} to {target} {sequence}: {line}", flush=True)
    print("\n| | " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS))
    for (case, method), rows in found.items():
        print(f"| {case}, {method} | " + " | ".join(f"{value:.3f}" for value in np.mean(rows, axis=0)) + " |")


if __name__ == "__main__":
    main()
