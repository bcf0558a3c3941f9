"""How the quality values are distributed, for the thresholds in `mmh_bids.reports.flags` (docs/qc.md).

First the percentiles of each value over the sidecars of given output folders, by method and sequence, with the share
that each threshold marks. Then, with ``--damage N``, what known damage does to the values: N of the images, spread over
the folders, are blurred, moved, made noisy and so on, as a harmonizer that goes wrong might do; and the template's
brain is moved against itself, as a registration that goes wrong would.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from common import dice
from scipy.ndimage import gaussian_filter, map_coordinates, rotate, shift, zoom

from mmh_bids.image.grid import load_template
from mmh_bids.image.intensity import MonotoneMap
from mmh_bids.image.qc import image_qc
from mmh_bids.reports.flags import flags

PERCENTILES = (0, 1, 5, 50, 95, 99, 100)
#: Values that thresholds look at in pairs, as one number each.
PAIRS = {
    "ParenchymaChange": ("ParenchymaVolumeBefore", "ParenchymaVolumeAfter", lambda old, new: new / old - 1),
    "ReferenceDistanceRatio": ("ReferenceDistanceBefore", "ReferenceDistanceAfter", lambda old, new: new / old),
}
SHOWN = (
    "MappedGradientCorrelation", "GradientCorrelation", "BrainMaskVolume", "ParenchymaChange",
    "ReferenceDistanceRatio", "GridCoverage", "TemplateDice", "WhiteGreyContrastAfter",
)  # fmt: skip
SIGMA = 1 / 2.3548  # of a Gaussian, by its full width at half maximum


def sidecars(folders: Iterable[Path]) -> Iterator[tuple[Path, dict]]:
    """Every harmonized image's sidecar and its ``Harmonization`` object."""
    for folder in folders:
        for path in sorted(folder.glob("sub-*/**/*_desc-harmonized_T[12]w.json")):
            if "_space-" not in path.name:
                yield path, json.loads(path.read_text(encoding="utf-8"))["Harmonization"]


def with_pairs(qc: dict) -> dict:
    """The values, and those of PAIRS that can be told."""
    out = dict(qc)
    for name, (before, after, combine) in PAIRS.items():
        if qc.get(before) and qc.get(after) is not None:
            out[name] = combine(qc[before], qc[after])
    return out


def print_distributions(found: Iterable[tuple[Path, dict]]) -> None:
    """One table a method and sequence, and what the thresholds mark."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for path, facts in found:
        groups[str(facts["Method"]), path.stem[-3:]].append(with_pairs(facts["QC"]))
    for (method, sequence), rows in sorted(groups.items()):
        print(f"\n## {method}, {sequence}: {len(rows)} images\n")
        print(
            "| value | " + " | ".join(f"{p} %" for p in PERCENTILES) + " |\n|---" * 1 + "|---:" * len(PERCENTILES) + "|"
        )
        for name in SHOWN:
            values = [float(row[name]) for row in rows if row.get(name) is not None]
            if values:
                cells = " | ".join(f"{value:.4g}" for value in np.percentile(values, PERCENTILES))
                print(f"| {name} | {cells} |")
        marked = defaultdict(lambda: [0, 0])
        for row in rows:
            for flag in flags(row):
                marked[flag.key][0] += 1
                marked[flag.key][1] += flag.unusable
        words = [f"{key} {look} ({unusable} beyond use)" for key, (look, unusable) in sorted(marked.items())]
        print(f"\nmarked: {'; '.join(words) or 'none'}")


def damages(
    data: np.ndarray, mask: np.ndarray, zooms: np.ndarray, white: float
) -> Iterator[tuple[str, np.ndarray, MonotoneMap]]:
    """What a harmonizer might do wrong (or right), with the intensity map it would come with."""
    rng, same = np.random.default_rng(0), MonotoneMap.identity()
    unit = data / white
    knots = np.linspace(0, 1, 33)
    for power in (0.7, 1.4):
        curve = MonotoneMap(knots, knots**power, 1.0, 1.0)
        yield f"right: another contrast (power {power})", white * curve(np.clip(unit, 0, None)), curve
    for width in (1.0, 1.5, 2.0, 3.0, 4.0):
        blurred = gaussian_filter(np.where(mask, data, 0), width * SIGMA / zooms)
        share = gaussian_filter(mask.astype(np.float32), width * SIGMA / zooms)
        yield f"blur, {width:g} mm", np.where(mask, blurred / np.maximum(share, 1e-3), data), same
    for level in (0.03, 0.06):
        noisy = data + rng.normal(0, level * white, data.shape).astype(np.float32)
        yield f"noise, {100 * level:g} %", np.maximum(noisy, 0), same
    for mm in (0.5, 1.0, 2.0):
        places = np.indices(data.shape, dtype=np.float32)
        places[0] += mm / zooms[0]
        yield f"moved by {mm:g} mm", map_coordinates(data, places, order=1, mode="nearest"), same
    wave = 0.5 + 0.5 * np.cos(np.linspace(0, 2 * np.pi, data.shape[1]))[None, :, None]
    yield "a field of 30 %", data * (1 - 0.3 * wave), same
    folded = np.where(unit > 0.6, 1.2 - unit, unit)
    yield "bright tissue turned dark", white * np.clip(folded, 0, None), same


def print_damage(found: list[tuple[Path, dict]], count: int) -> None:
    """Range of the values over some images, by damage."""
    chosen = [found[round(place)] for place in np.linspace(0, len(found) - 1, count)] if found else []
    rows: dict[str, list[dict]] = defaultdict(list)
    for path, facts in chosen:
        sequence = path.stem[-3:]
        preproc = Path(str(path).replace("_desc-harmonized_", "_desc-preproc_").removesuffix("json") + "nii.gz")
        brain = f"_desc-brain{sequence if sequence == 'T2w' else ''}_mask.nii.gz"
        image = nib.load(preproc)
        mask = np.asanyarray(nib.load(str(preproc).split("_desc-")[0] + brain).dataobj) > 0
        box = tuple(slice(max(index.min() - 4, 0), index.max() + 5) for index in np.nonzero(mask))
        data, mask = np.asanyarray(image.dataobj, dtype=np.float32)[box], mask[box]
        zooms = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0))
        low, high = facts["InputScale"]
        for name, after, curve in damages(data, mask, zooms, high - low):
            qc = image_qc(
                data,
                after.astype(np.float32),
                mask,
                float(zooms.prod()) / 1000,
                sequence,
                curve,
                (low, high),
                (low, high),
            )
            rows[name].append(with_pairs(qc))
    print(f"\n## Known damage, {len(chosen)} images: least, median, most\n")
    names = ("MappedGradientCorrelation", "GradientCorrelation", "ParenchymaChange")
    print("| damage | " + " | ".join(names) + " | beyond use |\n|---" + "|---:" * (len(names) + 1) + "|")
    for name, values in rows.items():
        cells = []
        for key in names:
            known = [row[key] for row in values if key in row]
            cells.append(", ".join(f"{value:.3f}" for value in np.percentile(known, (0, 50, 100))) if known else "n/a")
        bad = sum(any(flag.unusable for flag in flags(row)) for row in values)
        print(f"| {name} | {' | '.join(cells)} | {bad} of {len(values)} |")


def print_misplaced() -> None:
    """Overlap of the template's brain with itself after a movement."""
    template = load_template()
    brain = (np.asanyarray(template.dataobj) > 0)[::2, ::2, ::2].astype(np.float32)
    print("\n## A registration that is off: TemplateDice\n\n| movement | Dice |\n|---|---:|")
    for mm in (4, 8, 12, 20, 30):
        print(f"| {mm} mm up | {dice(brain > 0.5, shift(brain, (0, 0, mm / 2), order=1) > 0.5):.3f} |")
    for degrees in (5, 10, 20, 40):
        turned = rotate(brain, degrees, axes=(1, 2), order=1, reshape=False)
        print(f"| {degrees} degrees of nodding | {dice(brain > 0.5, turned > 0.5):.3f} |")
    for size in (0.95, 0.9, 0.8):
        scaled = zoom(brain, size, order=1) > 0.5
        small = np.zeros(brain.shape, bool)
        place = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(brain.shape, scaled.shape, strict=True))
        small[place] = scaled
        print(f"| {size:g} of its size | {dice(brain > 0.5, small):.3f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="output folders of mmh")
    parser.add_argument("--damage", type=int, default=0, metavar="N", help="also damage N images")
    asked = parser.parse_args()
    found = list(sidecars(asked.folders))
    if not found:
        parser.error("no sidecar of a harmonized image in the given folders")
    print_distributions(found)
    if asked.damage:
        print_misplaced()
        print_damage(found, asked.damage)


if __name__ == "__main__":
    main()
