"""Where do the verdicts' measures lie for methods that are sound, and for controls that are not?

    python benchmarks/evaluation_thresholds.py FOLDER [FOLDER ...]

FOLDER are outputs of ``mmh --method none``, whose ``desc-model`` images are what a method sees. Each method changes
them on the model grid; they are measured on the grid of 2 mm, as `mmh-evaluate` does, but without the way back to the
images' own grids. Prints the quantiles of each measure for each method: the thresholds of `evaluation/verdicts.py` lie
between those of sound methods and of the controls.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mmh_bids.evaluation.anatomy import OTHERS, Edges, choose_others, detail, own_edges, own_share
from mmh_bids.evaluation.features import features_of
from mmh_bids.evaluation.smoothing import smooth_inside
from mmh_bids.evaluation.travelling import change_beyond_gain, pooled_units
from mmh_bids.harmonizers.base import find_method
from mmh_bids.models.bundle import bundle_of, open_bundle

METHODS = ("zscore", "whitestripe", "nyul", "histmatch", "mmh-light")
BLURS = (2.0, 3.0, 4.0)
MEASURES = ("change", "sharpness", "own edges", "own share")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--modalities", nargs="+", default=["T1w", "T2w"], choices=["T1w", "T2w"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--most", type=int, default=16, help="images a sequence (default: 16)")
    args = parser.parse_args()
    print("| sequence | method | images | " + " | ".join(f"{name}: 5 %, median, 95 %" for name in MEASURES) + " |")
    print("|---|---|---:|" + "---|" * len(MEASURES))
    for sequence in args.modalities:
        table(args.folders, sequence, args.methods, args.most)


def table(folders: list[Path], sequence: str, methods: list[str], most: int) -> None:
    """Measure all methods on the images of one sequence, and print a row each."""
    paths = [path for folder in folders for path in sorted(folder.glob(f"sub-*/**/*_desc-model_{sequence}.nii.gz"))]
    step = max(1, len(paths) // most)
    paths = paths[::step][:most]
    # each folder may number its people from 1
    people = [f"{path.parents[-2]} {folder_of(path)} {re.match(r'sub-[^_]+', path.name).group()}" for path in paths]
    before = [np.asarray(nib.load(path).dataobj, np.float32) for path in paths]
    small = [pooled(volume) for volume in before]
    for name, made in (
        *((method, applied(method, before, sequence)) for method in methods),
        *((f"blur {width:g} mm", [smooth_inside(volume, volume > 0, width) for volume in before]) for width in BLURS),
        ("swapped", [before[choose_others(people, index, 1)[0]] for index in range(len(before))]),
        ("mean of all", [np.mean(before, axis=0) * (volume > 0) for volume in before]),
    ):
        show(sequence, name, small, [pooled(volume) for volume in made], people)


def folder_of(path: Path) -> str:
    """The folder that holds the participant's."""
    return next(
        str(parent.parent) for parent in path.parents if parent.name.startswith("sub-") and "ses" not in parent.name
    )


def applied(method: str, volumes: list[NDArray[np.float32]], sequence: str) -> list[NDArray[np.float32]]:
    """What a method makes of volumes on the model grid."""
    harmonizer = find_method(method).load(open_bundle(bundle_of(method)), "cpu")
    return [harmonizer.harmonize(one[None], one > 0, sequence, "unified", 0).volume[0] for one in volumes]


def pooled(volume: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A volume of the model grid on the grid of 2 mm, and its brain."""
    cubes = volume.reshape(72, 2, 92, 2, 92, 2)
    count = (cubes != 0).sum(axis=(1, 3, 5))
    inside = count >= 4
    return np.where(inside, cubes.sum(axis=(1, 3, 5)) / np.maximum(count, 1), 0).astype(np.float32), inside


def show(sequence: str, name: str, before: list, after: list, people: list[str]) -> None:
    """Print one row."""
    features = [[features_of(*one, sequence) for one in images] for images in (before, after)]
    units = pooled_units([one.quantiles for one in features[1]])
    edges = [Edges.of(one) for one in before]
    found: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        both = old[1] & new[1]
        found["change"].append(change_beyond_gain(old[0][both], new[0][both], units))
        found["sharpness"].append(detail(new) / detail(old))
        now = Edges.of(new)
        found["own edges"].append(own_edges(now, edges[index]))
        others = [edges[other] for other in choose_others(people, index, OTHERS)]
        found["own share"].append(own_share(now, edges[index], others))
    cells = (" / ".join(f"{x:.3f}" for x in np.quantile(found[measure], (0.05, 0.5, 0.95))) for measure in MEASURES)
    print(f"| {sequence} | {name} | {len(before)} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
