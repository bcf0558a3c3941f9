"""Real heads of several sites: how far apart are they before and after, and do lesions stay?

    python benchmarks/real_multisite.py build/real-multisite          both, on ../shared/data/real-multisite

Runs the app without and with harmonization (what is done already is not done again), writes a page, a JSON file and a
picture of brain-only slices. Nobody drew these lesions: candidates are found by a fixed rule in the preprocessed T2w
and T1w, before any harmonization. Exit code 1 if a condition is not met.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from common import WHOLE, shared_folder
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from mmh_bids.evaluation.contrast import spread
from mmh_bids.evaluation.segmentation import NO_CLASS, segment_brain
from mmh_bids.image.grid import TEMPLATE_SPACE, resample
from mmh_bids.image.priors import SURE, sure_tissues, template_tissues
from mmh_bids.image.registration import read_matrix
from mmh_bids.image.tissue import CLASSES

PLAIN, SPACE = "none", f"space-{TEMPLATE_SPACE}_res-1"
PATIENTS = ("sub-ljA", "sub-ljB", "sub-ljC")
#: Spreads must fall to this share; lesions must keep this share of their contrast.
HALF, KEPT = 0.5, 0.8
#: A candidate: T2w above white matter by this many robust standard deviations, this far (mm) from fluid and from the
#: border of the template's white matter (where that is this likely), of this volume (mm3).
_BRIGHT, _FROM_FLUID, _FROM_BORDER, _LIKELY, _SMALLEST, _LARGEST = 4.0, 3.0, 3.0, 0.8, 20, 4000
#: Surroundings: white matter between these distances (mm).
_NEAR, _FAR = 1.5, 4.5
FLUID = CLASSES.index("CSF")
#: What classes the spreads are measured in.
KINDS = ("intensity", "place", "both")


@dataclass(frozen=True)
class Image:
    """One source image."""

    folder: Path
    stem: str
    sequence: str
    site: str

    @property
    def person(self) -> str:
        return self.stem.split("_")[0]

    def load(self, out: Path, name: str) -> nib.Nifti1Image:
        return nib.load(out / self.folder / f"{self.stem}_{name}.nii.gz")

    def mask(self, out: Path) -> nib.Nifti1Image:
        return self.load(out, "desc-brain_mask" if self.sequence == "T1w" else "desc-brainT2w_mask")


def find(raw: Path) -> list[Image]:
    """All T1w and T2w images with their participant's site."""
    with open(raw / "participants.tsv", newline="") as stream:
        sites = {row["participant_id"]: row["site"] for row in csv.DictReader(stream, delimiter="\t")}
    found = []
    for path in sorted(raw.glob("sub-*/**/anat/*_T[12]w.nii.gz")):
        stem, sequence = path.name.removesuffix(".nii.gz").rsplit("_", 1)
        found.append(Image(path.parent.relative_to(raw), stem, sequence, sites[stem.split("_")[0]]))
    return found


def run(raw: Path, work: Path, method: str, nprocs: int) -> Path:
    """Run the app; where a method's output folder is."""
    out = work / method
    command = [
        sys.executable, "-m", "mmh_bids.cli.run", str(raw), str(out), "participant", "-w", str(work / "app"),
        "--method", method, "--output-spaces", "MNI152NLin2009aSym", "--nprocs", str(nprocs),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mmh --method {method} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return out


def tissue_means(image: Image, outs: dict[str, Path]) -> dict[str, dict[str, dict[str, float]]]:
    """Kind of class -> method -> class means and white/grey ratio.

    By intensity: classes of the preprocessed image, the same for every method. By place: where the template is all but
    sure of a tissue, whatever an image shows there. By both: where place and intensity agree. The preprocessed image is
    on its own scale: the 99.9th percentile of the brain is 1.
    """
    mask = np.asanyarray(image.mask(outs[PLAIN]).dataobj) > 0
    plain = image.load(outs[PLAIN], f"desc-harmonized_{image.sequence}")
    classes = segment_brain(plain.get_fdata(dtype=np.float32), mask, image.sequence, plain.header.get_zooms()[:3])
    there, agreed = placed_classes(image, outs[PLAIN])
    found: dict[str, dict[str, dict[str, float]]] = {kind: {} for kind in KINDS}
    for method, out in outs.items():
        values = image.load(out, f"desc-harmonized_{image.sequence}").get_fdata(dtype=np.float32)[mask]
        moved = image.load(out, f"{SPACE}_desc-harmonized_{image.sequence}").get_fdata(dtype=np.float32)
        scale = float(np.percentile(values, 99.9)) if method == PLAIN else 1000.0
        pairs = ((values, classes), (moved, there), (moved, agreed))
        for kind, (all_values, all_classes) in zip(KINDS, pairs, strict=True):
            means = {key: float(all_values[all_classes == CLASSES.index(key)].mean()) / scale for key in CLASSES}
            found[kind][method] = means | {"WM/GM": means["WM"] / means["GM"]}
    return found


def placed_classes(image: Image, plain: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Classes by place in the preprocessed brain on the template's grid, and those of them that intensity agrees to.

    At the brain's rim, where sulci hold fluid, interpolation mixes it with the zeros around the brain: not counted.
    """
    moved = image.load(plain, f"{SPACE}_desc-harmonized_{image.sequence}")
    values, mask = moved.get_fdata(dtype=np.float32), image.mask(plain)
    name = f"{image.stem}_from-{image.sequence}_to-{TEMPLATE_SPACE}_mode-image_xfm.txt"
    brain = (np.asanyarray(mask.dataobj) > 0).astype(np.float32)
    matrix = read_matrix(str(plain / image.folder / name))
    inside = resample(brain, mask.affine, moved.shape, moved.affine, matrix) > WHOLE
    there = np.where(inside, template_classes(moved.shape, moved.affine), NO_CLASS).astype(np.uint8)
    shown = np.full(there.shape, NO_CLASS, np.uint8)
    shown[inside] = segment_brain(values, inside, image.sequence, moved.header.get_zooms()[:3])
    return there, np.where(there == shown, there, NO_CLASS).astype(np.uint8)


def template_classes(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Where the template is all but sure of a tissue: index into `CLASSES`, else `NO_CLASS`; fluid is the rest."""
    classes = np.full(shape, NO_CLASS, np.uint8)
    for key, sure in zip(("CSF", "GM", "WM"), sure_tissues(shape, affine), strict=True):
        classes[sure] = CLASSES.index(key)
    return classes


def spreads(images: list[Image], rows: list[dict[str, dict[str, float]]], method: str) -> dict[str, float]:
    """Standard deviation over mean between sites, a site being the mean of its images."""
    by_site: dict[str, list[dict[str, float]]] = defaultdict(list)
    for image, row in zip(images, rows, strict=True):
        by_site[image.site].append(row[method])
    return {
        key: spread([float(np.mean([one[key] for one in some])) for some in by_site.values()])
        for key in rows[0][method]
    }


def in_template(images: list[Image], person: str, out: Path) -> dict[str, NDArray[np.float32]]:
    """A person's first session in the template's grid, by sequence."""
    found: dict[str, NDArray[np.float32]] = {}
    for image in images:
        if image.person == person and image.sequence not in found:
            made = image.load(out, f"{SPACE}_desc-harmonized_{image.sequence}")
            found[image.sequence] = made.get_fdata(dtype=np.float32)
    return found


def candidates_of(images: list[Image], person: str, plain: Path) -> tuple[NDArray[np.int32], NDArray]:
    """`lesion_candidates` of a patient's preprocessed images."""
    volumes = in_template(images, person, plain)
    first = next(image for image in images if image.person == person)
    made = first.load(plain, f"{SPACE}_desc-harmonized_{first.sequence}")
    return lesion_candidates(volumes["T1w"], volumes["T2w"], template_white(made.shape, made.affine))


def template_white(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Deep white matter of the template: a scan's own classes take cortex for it where contrast is low."""
    likely = template_tissues(shape, affine)[1] > _LIKELY
    return ndimage.distance_transform_edt(likely) > _FROM_BORDER


def lesion_candidates(
    t1w: NDArray[np.float32], t2w: NDArray[np.float32], deep: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray]:
    """Bright spots of the T2w in `deep` (1 mm grid): numbered components, and the white matter that was searched."""
    mask = (t1w > 0) & (t2w > 0)
    classes = np.full(mask.shape, 255, np.uint8)
    classes[mask] = segment_brain(t1w, mask, "T1w")
    # one large body of fluid; dark spots in the white matter of the T1w may be the lesions themselves
    fluid, _ = ndimage.label(ndimage.binary_opening(classes == FLUID))
    large = np.flatnonzero(np.bincount(fluid.ravel())[1:] > _LARGEST) + 1
    white = deep & mask & (ndimage.distance_transform_edt(~np.isin(fluid, large)) > _FROM_FLUID)
    middle = float(np.median(t2w[white]))
    width = 1.4826 * float(np.median(np.abs(t2w[white] - middle)))
    parts, _ = ndimage.label(white & (t2w > middle + _BRIGHT * width))
    sizes = np.bincount(parts.ravel())
    keep = (sizes >= _SMALLEST) & (sizes <= _LARGEST)
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return numbers[parts], white


def lesion_contrasts(parts: NDArray[np.int32], white: NDArray, volume: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean of each candidate less that of the white matter around it, over the white matter's median."""
    away = ndimage.distance_transform_edt(parts == 0)
    clean = white & (parts == 0)
    found = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        wide = tuple(slice(max(0, side.start - 6), side.stop + 6) for side in box)
        own = parts[wide] == number
        distance = ndimage.distance_transform_edt(~own)
        around = clean[wide] & (distance > _NEAR) & (distance <= _FAR) & (away[wide] > _NEAR)
        if around.sum() >= 10:
            found.append(volume[wide][own].mean() - volume[wide][around].mean())
    return np.array(found, float) / float(np.median(volume[white]))


def lesion_rows(
    images: list[Image], outs: dict[str, Path], person: str, parts: NDArray[np.int32], white: NDArray
) -> dict[str, Any]:
    """Contrast of a patient's candidates with every method, in units of the method's white matter."""
    row: dict[str, Any] = {"candidates": int(parts.max()), "volume": int((parts > 0).sum())}
    for method, out in outs.items():
        for sequence, volume in in_template(images, person, out).items():
            row[f"{sequence} {method}"] = float(np.mean(lesion_contrasts(parts, white, volume)))
    return row


def conditions(
    table: dict[str, dict[str, dict[str, float]]], lesions: dict[str, dict[str, Any]], method: str
) -> list[tuple[str, float, bool]]:
    """What is asked, what came out, and whether that is enough."""
    found = []
    for title, by_method in table.items():
        for key, value in by_method[method].items():
            ratio = value / by_method[PLAIN][key]
            found.append((f"{title}, spread of {key} over preprocessing only: at most {HALF:g}", ratio, ratio <= HALF))
    for person, row in lesions.items():
        for sequence in ("T1w", "T2w"):
            kept = row[f"{sequence} {method}"] / row[f"{sequence} {PLAIN}"]
            text = f"{person}, {sequence}: lesion contrast over preprocessing only: at least {KEPT:g}"
            found.append((text, kept, kept >= KEPT))
    return found


def page(
    images: list[Image],
    table: dict[str, dict[str, dict[str, float]]],
    lesions: dict[str, dict[str, Any]],
    bars: list[tuple[str, float, bool]],
) -> str:
    """Markdown."""
    lines = [
        "# Real heads of several sites\n",
        f"{len(images)} images of {len({i.person for i in images})} people, {len({i.site for i in images})} sites; "
        "made by `make benchmark-real-multisite`. Different people at different sites: part of a spread is theirs.\n",
        "Spread: standard deviation over mean between sites; `none` is on each image's own scale (99.9th percentile = "
        "1). Classes by intensity are those of the preprocessed image (three, Gaussian mixture), the same for every "
        "method; where grey and white matter hardly differ, as in spin-echo T1w, they are no tissues. Classes by place "
        f"are the voxels where the template is surer than {SURE:g} of a tissue, whatever an image shows there: another "
        "brain's ventricles may have other tissue. By both: voxels on which place and intensity agree. In either case "
        "only voxels that lie in the brain mask with all they were interpolated from.\n",
    ]
    for title, by_method in table.items():
        sites = len({i.site for i in images if i.sequence == title.split()[0]})
        lines += [f"## {title}, {sites} sites\n", "| spread of | " + " | ".join(by_method) + " |"]
        lines.append("|---|" + "---:|" * len(by_method))
        for key in next(iter(by_method.values())):
            lines.append(f"| {key} | " + " | ".join(f"{one[key]:.3f}" for one in by_method.values()) + " |")
        lines.append("")
    lines += [
        "## Lesions\n",
        "Bright spots of the T2w deep in the template's white matter, found in the preprocessed images by a fixed "
        "rule. Contrast: mean of a spot less that of the white matter around it, over the median of the white matter; "
        "mean of spots.\n",
    ]
    names = list(next(iter(lesions.values())))
    lines += ["| patient | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for person, row in lesions.items():
        cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append(f"| {person} | " + " | ".join(cells) + " |")
    lines += ["\n![Brain-only slices through the lesions](real-multisite.png)\n", "## Conditions\n"]
    lines += ["| condition | measured | |", "|---|---:|---|"]
    lines += [f"| {text} | {value:.3f} | {'pass' if good else '**FAIL**'} |" for text, value, good in bars]
    return "\n".join(lines) + "\n"


def picture(images: list[Image], outs: dict[str, Path], spots: dict[str, NDArray[np.int32]], path: Path) -> None:
    """Each patient's axial slice with most candidate voxels, brain only: before and after, T1w and T2w."""
    figure = Figure(figsize=(2.2 * 2 * len(outs), 2.75 * len(PATIENTS)), dpi=80)
    axes = figure.subplots(len(PATIENTS), 2 * len(outs), squeeze=False)
    figure.subplots_adjust(left=0.03, right=0.99, bottom=0.01, top=0.94, wspace=0.03, hspace=0.03)
    for line, person in zip(axes, PATIENTS, strict=True):
        parts = spots[person]
        level = int((parts > 0).sum(axis=(0, 1)).argmax())
        place = 0
        for sequence in ("T1w", "T2w"):
            for method, out in outs.items():
                volume = in_template(images, person, out)[sequence]
                top = float(np.percentile(volume[volume > 0], 99))
                line[place].imshow(volume[:, :, level].T, cmap="gray", vmin=0, vmax=top, origin="lower")
                if method == PLAIN and sequence == "T2w":
                    line[place].contour(parts[:, :, level].T > 0, [0.5], colors="tab:orange", linewidths=0.5)
                line[place].set(xticks=[], yticks=[], ylabel=person if place == 0 else "")
                if person == PATIENTS[0]:
                    line[place].set_title(f"{sequence}, {method}", fontsize=9)
                place += 1
    figure.savefig(path, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="outputs and work directory; kept between calls")
    parser.add_argument("--raw", type=Path, default=shared_folder() / "data" / "real-multisite")
    parser.add_argument("--docs", type=Path, default=Path("docs/benchmarks"), help="where page, JSON and picture go")
    parser.add_argument("--methods", nargs="+", default=["zscore", "mmh-light"], help="the last one is judged")
    parser.add_argument("--nprocs", type=int, default=2, help="processes of the app")
    asked = parser.parse_args()
    images, work = find(asked.raw), asked.work.absolute()
    outs = {method: run(asked.raw, work, method, asked.nprocs) for method in dict.fromkeys([PLAIN, *asked.methods])}
    table: dict[str, dict[str, dict[str, float]]] = {}
    for sequence in ("T1w", "T2w"):
        some = [image for image in images if image.sequence == sequence]
        rows = [tissue_means(image, outs) for image in some]
        for kind in KINDS:
            own = [row[kind] for row in rows]
            table[f"{sequence} by {kind}"] = {method: spreads(some, own, method) for method in outs}
    found = {person: candidates_of(images, person, outs[PLAIN]) for person in PATIENTS}
    lesions = {person: lesion_rows(images, outs, person, *found[person]) for person in PATIENTS}
    bars = conditions(table, lesions, asked.methods[-1])
    text = page(images, table, lesions, bars)
    print(text)
    asked.docs.mkdir(parents=True, exist_ok=True)
    (asked.docs / "real-multisite.md").write_text(text)
    facts = {"spreads": table, "lesions": lesions, "conditions": bars}
    (asked.docs / "real-multisite.json").write_text(json.dumps(facts, indent=1) + "\n")
    picture(images, outs, {person: parts for person, (parts, _) in found.items()}, asked.docs / "real-multisite.png")
    return 0 if all(good for *_, good in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
