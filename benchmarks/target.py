"""How near do scans of other scanners come to a target scanner's look?

    python benchmarks/target.py --looks build/looks --model build/mmh-light-ab       everything
    python benchmarks/target.py ... --heads 13 --scanners P --targets A               a part of it

`make train-looks` makes both. Heads and scanners were not trained on, and no target is among the scanners. Every scan
is brought to the target's look by the bundle's stage 2 and by the classical methods, whose standards of the target come
from the same images that the looks were trained on, and compared with the truth: the same head with the target's
contrast, on the scan's own voxels. What is in the work folder already is not done again. Exit code 1 if a condition is
not met.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance
from target_data import Scan, prepare
from target_report import conditions, page
from travelling_bars import CLASSICAL
from travelling_data import label_map

from mmh_bids.evaluation.agreement import voxel_mae
from mmh_bids.evaluation.contrast import white_grey_contrast
from mmh_bids.evaluation.regions import region_index, regional_difference
from mmh_bids.files import atomic_write
from mmh_bids.harmonizers.base import find_method
from mmh_bids.harmonizers.light import MmhLight
from mmh_bids.image.qc import gradient_correlation
from mmh_bids.models.bundle import Bundle, open_bundle
from mmh_bids.training.people import bright_fluid, site_tissues
from mmh_bids.training.standards import find_samples, train_standards
from mmh_bids.training.target import style_removed

SEQUENCES = ("T1w", "T2w")


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--looks", type=Path, default=Path("build/looks"), help="none-*: what the looks learned from")
    out.add_argument("--model", default="mmh-light", help="bundle that knows the targets, name or folder")
    out.add_argument("--work", type=Path, default=Path("build/target"), help="kept between calls; about 8 GB")
    out.add_argument("--docs", type=Path, default=Path("docs/benchmarks"), help="where page and JSON go")
    out.add_argument("--heads", type=int, nargs="+", default=[13, 14, 15, 16], help="numbers of label maps")
    out.add_argument("--scanners", nargs="+", default=["P", "Q", "R"], help="where the scans come from")
    out.add_argument("--targets", nargs="+", default=["A", "B"], metavar="SCANNER[=LABEL]", help="and its name there")
    return out


def truth_factor(own: Scan) -> float:
    """What brings the truth, in units of white matter, into the scale of the head's own scan on the target.

    A scan's gain is arbitrary, and the app scales each image by its brightest voxels: by least squares.
    """
    inside = own.brain & own.true_brain
    image, truth = own.scale.to_unit(own.preprocessed)[inside], own.look_of(own.scanner)[inside]
    return float((image * truth).sum() / (truth * truth).sum())


def measure(scan: Scan, own: Scan, truth: np.ndarray, outputs: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Measures of each output against the truth, all in units of its white-grey contrast."""
    inside = scan.brain & scan.true_brain
    zooms = np.linalg.norm(scan.affine[:3, :3], axis=0)
    regions, true = region_index(scan.labels, inside, zooms), truth[inside]
    unit = white_grey_contrast(true, scan.tissue[inside], scan.sequence)
    target = own.scale.to_unit(own.preprocessed)[own.brain & own.true_brain]
    before = scan.preprocessed
    return {
        name: {
            "regional": regional_difference(out[inside], true, regions) / unit,
            "mae": voxel_mae(out[inside], true) / unit,
            "wasserstein": float(wasserstein_distance(out[inside], target)) / unit,
            "gradient": gradient_correlation(before, out, inside),
        }
        for name, out in outputs.items()
    }


def average_people(asked: argparse.Namespace, model: Bundle) -> dict[str, Any]:
    """What the bundle is to know of the sites that the scans come from, as `mmh-train target` learns it from them."""
    light = MmhLight.load(model, "cpu")
    cache = style_removed(asked.work / "removed", model, light, print)
    levels = {sequence: light.levels(sequence) for sequence in SEQUENCES}
    samples = find_samples([asked.work / f"head-{number:02d}" / "none" for number in asked.heads])
    samples = [one for one in samples if one.site in asked.scanners and bright_fluid(levels[one.sequence])]
    return site_tissues(cache.prepare(samples), levels)


def knowing(model: Bundle, sites: dict[str, Any]) -> Bundle:
    """The bundle with the average people of sites in its card."""
    sequences = {name: {**one, "sites": sites.get(name, {})} for name, one in model.card["sequences"].items()}
    return replace(model, card={**model.card, "sequences": sequences})


def harmonized(scan: Scan, model: Bundle, standards: Bundle, targets: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Per target the outputs of all methods on the scan's own grid, [0, 1] of the target's images."""
    volume, _ = scan.model
    mask, light = volume > 0, MmhLight.load(model, "cpu")
    unified, _ = light.unify(volume, mask, scan.sequence)
    same = {"none": scan.scale.to_unit(scan.preprocessed), "stage 1": scan.carried(unified)}
    found = {}
    for target, label in targets.items():
        classical = {}
        for name in CLASSICAL:
            method = find_method(name).load(standards, "cpu")
            result = method.harmonize(volume[None], mask, scan.sequence, f"site:{target}", 0)
            classical[name] = scan.carried(result.volume[0])
        found[target] = {**same, **classical}
        for name, site in (("one scan", None), ("stage 2", scan.scanner)):
            look, _ = light.look(unified, mask, scan.sequence, f"site:{label}", volume, site)
            found[target][name] = scan.carried(look)
    return found


def run(asked: argparse.Namespace) -> int:
    targets = {name: label or name for name, _, label in (pair.partition("=") for pair in asked.targets)}
    if set(targets) & set(asked.scanners):
        raise SystemExit("--targets: a target must not be among --scanners")
    model, standards = open_bundle(asked.model), _standards(asked)
    raw: dict[str, Any] = {}
    for number in asked.heads:
        prepare(asked.work / f"head-{number:02d}", label_map(number), number, [*asked.scanners, *targets], print)
    sites = average_people(asked, model)
    for number in asked.heads:
        folder = asked.work / f"head-{number:02d}"
        for scanner in asked.scanners:
            for sequence in SEQUENCES:
                key = {"model": model.sha256, "standards": standards.sha256, "targets": targets, "sites": sites}
                path = folder / "measures" / f"{scanner}_{sequence}.json"
                scan = Scan.of(folder, number, scanner, sequence)
                values = _cached(path, key, lambda: _measured(scan, knowing(model, sites), standards, targets))  # noqa: B023
                for target in targets:
                    raw.setdefault(f"{target} {sequence}", {})[f"{number} {scanner}"] = values[target]
                print(f"head {number}, scanner {scanner}, {sequence}: measured", flush=True)
    bars = {name: conditions(cases) for name, cases in raw.items()}
    text = page(raw, bars, {"model": model.name, "heads": asked.heads, "scanners": asked.scanners})
    print(text)
    atomic_write(asked.docs / "target.md", text)
    atomic_write(asked.docs / "target.json", json.dumps(raw, indent=1) + "\n")
    return 0 if all(bar.passed for some in bars.values() for bar in some) else 1


def _measured(scan: Scan, model: Bundle, standards: Bundle, targets: dict[str, str]) -> dict[str, Any]:
    found = {}
    for target, outputs in harmonized(scan, model, standards, targets).items():
        own = Scan(scan.folder, scan.head, target, scan.sequence)
        truth = scan.look_of(target) * np.float32(truth_factor(own))
        found[target] = measure(scan, own, truth, {**outputs, "truth": truth})
    return found


def _standards(asked: argparse.Namespace) -> Bundle:
    """The classical methods' standards, learned from the images that the looks were trained on."""
    folder = asked.work / "standards"
    if not (folder / "bundle.json").is_file():
        asked.work.mkdir(parents=True, exist_ok=True)
        train_standards(sorted(asked.looks.glob("none-*")), folder, "targets")
    return open_bundle(folder)


def _cached(path: Path, key: Any, make: Any) -> Any:
    """What `make` returns, kept in a JSON file as long as key and code are the same."""
    code = [Path(__file__).with_name(name).read_bytes() for name in ("target.py", "target_data.py")]
    mark = hashlib.sha256(json.dumps(key, sort_keys=True).encode() + b"".join(code)).hexdigest()
    if path.is_file() and (known := json.loads(path.read_text()))["key"] == mark:
        return known["value"]
    value = make()
    atomic_write(path, json.dumps({"key": mark, "value": value}, indent=1))
    return value


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
