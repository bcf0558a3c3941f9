"""Which method makes the sessions of one person most alike, without losing who is who?

    python benchmarks/compare_methods.py OUT_none OUT_nyul OUT_zscore ... [--json FILE]

Each folder is the output of ``mmh ... --method M --output-spaces MNI152NLin2009aSym`` on the same dataset, with
travelling subjects whose sessions are sites. The first folder is the reference, best ``--method none``: its tissue
classes give the unit (the white-grey contrast), its edges the gradients to compare with. Read ``within`` together
with ``ratio`` and ``edges``: histogram matching makes *any* two brains more alike, so that a method is good
where sessions of one person come together (within, histogram: low) while persons stay apart (ratio: low)
and edges stay as they were (edges: near 1).

Columns, means over pairs of images in the voxels above zero in both and in all folders:
  within     mean absolute difference of the means of 12 mm blocks between sessions of a person, in units of the
             method's own white-grey contrast
  histogram  Wasserstein-1 distance of the two histograms, same unit
  gradient   correlation of the gradient magnitudes of the two sessions
  between    as within, for different persons
  ratio      within / between
  edges      correlation of an image's gradient magnitudes with those of the same image in the first folder
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mmh_bids.image.grid import TEMPLATE_SPACE, bounding_box
from mmh_bids.image.intensity import quantile_function, robust_scale, wasserstein
from mmh_bids.image.qc import gradient_correlation
from mmh_bids.image.tissue import CLASSES, segment

BLOCK = 12
COLUMNS = ("within", "histogram", "gradient", "between", "ratio", "edges")
_ENDING = f"_space-{TEMPLATE_SPACE}_res-1_desc-harmonized_"


@dataclass(frozen=True)
class Scan:
    """One source image: its name before ``_space-``, and what the name says."""

    stem: str
    sequence: str

    def label(self, entity: str) -> str | None:
        parts = dict(part.split("-", 1) for part in self.stem.split("_") if "-" in part)
        return parts.get(entity)


def find_scans(folder: Path) -> dict[Scan, Path]:
    found = {}
    for path in sorted(folder.rglob(f"sub-*{_ENDING}T[12]w.nii.gz")):
        stem, sequence = path.name.removesuffix(".nii.gz").split(_ENDING)
        found[Scan(stem, sequence)] = path
    return found


def method_of(folder: Path, paths: dict[Scan, Path]) -> str:
    """The method in the sidecars; the folder's name where there is none."""
    for path in paths.values():
        sidecar = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
        if sidecar.is_file():
            return json.loads(sidecar.read_text()).get("Harmonization", {}).get("Method", folder.name)
    return folder.name


def load(path: Path, own_scale: bool) -> NDArray[np.float32]:
    """An image; with `own_scale` divided by its upper end, as images in scanner units cannot be compared."""
    data = nib.Nifti1Image.from_filename(path).get_fdata(dtype=np.float32)
    return data / np.float32(robust_scale(data[data > 0])[1]) if own_scale else data


def block_means(data: NDArray[Any], mask: NDArray[np.bool_], size: int = BLOCK) -> NDArray[np.float64]:
    """Mean in the mask of each block of size^3 voxels; NaN where less than half of the block is in the mask."""
    pad = [(0, -side % size) for side in mask.shape]
    shape = [number for side in mask.shape for number in (-(-side // size), size)]

    def blocks(values):
        return np.pad(values, pad).reshape(shape).sum(axis=(1, 3, 5), dtype=np.float64)

    count = blocks(mask)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count >= size**3 / 2, blocks(np.where(mask, data, 0)) / count, np.nan)


class Comparison:
    """All measures of one sequence, over the methods in `folders` (method -> scan -> path)."""

    def __init__(self, folders: dict[str, dict[Scan, Path]], scans: list[Scan]):
        self.folders, self.scans = folders, scans
        self.reference = next(iter(folders))
        self.common = {scan: self._common_mask(scan) for scan in scans}

    def image(self, method: str, scan: Scan) -> NDArray[np.float32]:
        return load(self.folders[method][scan], own_scale=method == "none")

    def _common_mask(self, scan: Scan) -> NDArray[np.bool_]:
        return np.logical_and.reduce([self.image(method, scan) > 0 for method in self.folders])

    def contrast(self, images: dict[Scan, NDArray[np.float32]]) -> float:
        """Mean over the scans of |white - grey|, in the voxels that are white and grey in the reference."""
        found = []
        for scan in self.scans:
            mask = self.common[scan]
            tissue = segment(self.image(self.reference, scan)[mask], scan.sequence)
            values = images[scan][mask]
            white, grey = (values[tissue.labels == CLASSES.index(name)].mean() for name in ("WM", "GM"))
            found.append(abs(float(white - grey)))
        return float(np.mean(found))

    def pair(self, images: dict[Scan, NDArray[np.float32]], first: Scan, second: Scan, whole: bool) -> dict[str, float]:
        mask = self.common[first] & self.common[second]
        a, b = images[first], images[second]
        measures = {"blocks": float(np.nanmean(np.abs(block_means(a, mask) - block_means(b, mask))))}
        if whole:
            box = bounding_box(mask, margin=1)
            measures["histogram"] = wasserstein(a[mask], quantile_function(b[mask]))
            measures["gradient"] = gradient_correlation(a[box], b[box], mask[box])
        return measures

    def edges(self, image: NDArray[np.float32], scan: Scan) -> float:
        box = bounding_box(self.common[scan], margin=1)
        return gradient_correlation(self.image(self.reference, scan)[box], image[box], self.common[scan][box])

    def measure(self, method: str) -> dict[str, Any]:
        pairs = list(itertools.combinations(self.scans, 2))
        same = [(a, b) for a, b in pairs if a.label("sub") == b.label("sub") and a.label("ses") != b.label("ses")]
        other = [(a, b) for a, b in pairs if a.label("sub") != b.label("sub")]
        images = {scan: self.image(method, scan) for scan in self.scans}
        unit = self.contrast(images)
        inside = [self.pair(images, a, b, whole=True) for a, b in same]
        outside = [self.pair(images, a, b, whole=False)["blocks"] for a, b in other]
        within = np.array([one["blocks"] for one in inside]) / unit
        between = np.array(outside) / unit
        values = {
            "within": _mean(within),
            "histogram": _mean([one["histogram"] / unit for one in inside]),
            "gradient": _mean([one["gradient"] for one in inside]),
            "between": _mean(between),
            "ratio": _mean(within) / _mean(between),
            "edges": _mean([self.edges(images[scan], scan) for scan in self.scans]),
        }
        pair_names = [f"{a.stem} {b.stem}" for a, b in same]
        rounded = {name: _short(value) for name, value in values.items()}
        return rounded | {
            "white_grey_contrast": _short(unit),
            "images": len(self.scans),
            "pairs": {name: _short(value) for name, value in zip(pair_names, within, strict=True)},
        }


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def compare(folders: list[Path]) -> dict[str, dict[str, Any]]:
    """Sequence -> method -> measures, over the scans that every folder has."""
    found: dict[str, dict[Scan, Path]] = {}
    for folder in folders:
        paths = find_scans(folder)
        name = method_of(folder, paths)
        found[name if name not in found else str(folder)] = paths
    shared = set.intersection(*(set(paths) for paths in found.values()))
    result = {}
    for sequence in ("T1w", "T2w"):
        scans = sorted((scan for scan in shared if scan.sequence == sequence), key=lambda scan: scan.stem)
        if len({(scan.label("sub"), scan.label("ses")) for scan in scans}) > 1:
            comparison = Comparison(found, scans)
            result[sequence] = {method: comparison.measure(method) for method in found}
    return result


def table(result: dict[str, dict[str, Any]]) -> str:
    lines = []
    for sequence, methods in result.items():
        first = next(iter(methods.values()))
        lines.append(f"\n{sequence}: {first['images']} images, {len(first['pairs'])} pairs of sessions of one person")
        lines.append("".join(["| method |", *(f" {column} |" for column in COLUMNS)]))
        lines.append("|---|" + "---:|" * len(COLUMNS))
        for method, values in methods.items():
            cells = ("-" if values[column] is None else f"{values[column]:.4f}" for column in COLUMNS)
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best(result: dict[str, dict[str, Any]]) -> str:
    """The method whose ``within``, averaged over the sequences, is smallest."""
    sums: dict[str, float] = {}
    for methods in result.values():
        for method, values in methods.items():
            sums[method] = sums.get(method, 0.0) + values["within"] / len(result)
    name = min(sums, key=lambda method: sums[method])
    return f"{name} ({', '.join(f'{method} {value:.4f}' for method, value in sums.items())})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="OUT", nargs="+", type=Path)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the measures here")
    options = parser.parse_args()
    result = compare(options.folders)
    if not result:
        print(f"no *{_ENDING}T1w/T2w images of two or more sessions that all folders have", file=sys.stderr)
        return 3
    print(table(result))
    print(f"\nsmallest mean of within over the sequences: {best(result)}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
