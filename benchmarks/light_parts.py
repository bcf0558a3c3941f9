"""What does each part of `mmh-light` do? Its steps one after the other, and all but one, on heads kept for tuning.

    python benchmarks/light_parts.py                          heads 4 and 5, scanners A, C, F and B
    python benchmarks/light_parts.py --heads 4 --modalities T2w --model build/mmh-light

Simulates the scans, lets the app preprocess them (``--method none``), and goes through the parts on the model grid.
Measured as in `travelling.py`, on the label map's grid, but without the way back to the images' own grids. These
heads and scanners may be looked at while the method is built; those of `travelling.py` may not. Writes a page.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import travelling_data as data
from numpy.typing import NDArray
from travelling import say, study_of, write
from travelling_data import PLAIN, Study
from travelling_measure import Anatomy, Comparison, anatomy, common_voxels

from mmh_bids.evaluation.agreement import mean_over_pairs
from mmh_bids.evaluation.contrast import spread
from mmh_bids.harmonizers.levelling import CEILING, levelled
from mmh_bids.harmonizers.light import MmhLight, evened, without_habit
from mmh_bids.image.grid import TEMPLATE_SPACE, resample
from mmh_bids.image.registration import read_matrix
from mmh_bids.models.bundle import open_bundle

HEADS, SCANNERS = (4, 5), ("A", "C", "F", "B")
#: Each part after those before it, then the whole without one of them.
PARTS = (
    "preprocessing", "field before", "network", "habit taken back", "field after", "levels: as shipped",
    "without habit taken back", "without field after",
)  # fmt: skip
COLUMNS = ("regional", "mae", "contrast_spread", "dice", "volume_spread", "unified")


@dataclass(frozen=True)
class ModelImage:
    """An image on the model grid, zero outside its brain, and the map from the head's world to the template's."""

    volume: NDArray[np.float32]
    affine: NDArray[np.float64]
    from_head: NDArray[np.float64]

    @property
    def mask(self) -> NDArray[np.bool_]:
        return self.volume > 0

    def in_head(self, volume: NDArray, grid: Anatomy) -> NDArray[np.float32]:
        """A volume on the model grid, interpolated into the label map's."""
        return resample(volume.astype(np.float32), self.affine, grid.mask.shape, grid.affine, self.from_head)


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--work", type=Path, default=Path("build/light-parts"), help="kept between calls; about 3 GB")
    out.add_argument("--docs", type=Path, default=Path("docs/benchmarks"), help="where the page goes")
    out.add_argument("--heads", type=int, nargs="+", default=list(HEADS), help="numbers of label maps")
    out.add_argument("--scanners", nargs="+", default=list(SCANNERS), help="two at least")
    out.add_argument("--modalities", nargs="+", choices=("T1w", "T2w"), default=["T1w", "T2w"])
    out.add_argument("--model", dest="bundle", default=MmhLight.name, help="name or folder of a bundle")
    out.add_argument("--nprocs", type=int, default=1, help="processes of the app")
    # what a study has beside: preprocessing alone
    out.set_defaults(methods=[], model=[], device=None)
    return out


def parts(method: MmhLight, image: ModelImage, sequence: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each of `PARTS` with what it makes of an image; the steps of `MmhLight.harmonize`."""
    mask, affine, levels = image.mask, image.affine, method.levels(sequence)

    def even(volume: NDArray[np.float32]) -> NDArray[np.float32]:
        return evened(volume, mask, affine)[0]

    def level(volume: NDArray[np.float32]) -> NDArray[np.float32]:
        return levelled(volume, mask, affine, levels)[0]

    flat = even(image.volume)
    first = method.run(flat, mask, sequence)[0]
    kept = without_habit(first, method.run(first, mask, sequence)[0], mask).clip(0, CEILING)
    after = even(kept)
    yield from zip(PARTS[:5], (image.volume, flat, first, kept, after), strict=True)
    yield from zip(PARTS[5:], (level(after), level(even(first)), level(kept)), strict=True)


def read(study: Study, head: int, stem: str, sequence: str) -> ModelImage:
    """What preprocessing made of an image."""
    folder = data.anat(study, head, PLAIN, stem)
    image = nib.load(folder / f"{stem}_space-{TEMPLATE_SPACE}_desc-model_{sequence}.nii.gz")
    matrix = read_matrix(str(folder / f"{stem}_from-{sequence}_to-{TEMPLATE_SPACE}_mode-image_xfm.txt"))
    from_head = np.linalg.inv(matrix) @ np.linalg.inv(data.pose(study, head, stem))
    return ModelImage(image.get_fdata(dtype=np.float32), image.affine, from_head)


def measure_head(study: Study, head: int, sequence: str, method: MmhLight) -> dict[str, list[float]]:
    """`COLUMNS` of each part."""
    grid = anatomy(head)
    images = {stem: read(study, head, stem, sequence) for stem in (*study.visits(), study.unified)}
    common = common_voxels((image.in_head(image.mask, grid) for image in images.values()), grid)
    made: dict[str, dict[str, NDArray[np.float32]]] = {part: {} for part in PARTS}
    for stem, image in images.items():
        for part, volume in parts(method, image, sequence):
            made[part][stem] = image.in_head(volume, grid)
        say(f"head {head}, {stem}, {sequence}: done")
    compared = {
        part: Comparison(some, study.visits(), sequence, grid, common, f"head {head}, {sequence}, {part}")
        for part, some in made.items()
    }
    return {part: figures(one, compared[PARTS[0]], study.unified) for part, one in compared.items()}


def figures(one: Comparison, plain: Comparison, unified: str) -> list[float]:
    """`COLUMNS` of one part; preprocessing changes nothing, so that it has no ratio of changes."""
    tissue, moved = one.tissue(), one.changes(plain, unified)
    foreign = moved["change_foreign"]
    return [
        mean_over_pairs(one.visits, one.regional),
        mean_over_pairs(one.visits, one.mae),
        spread(one.contrasts),
        tissue["dice"],
        tissue["volume_spread"],
        moved["change_unified"] / foreign if foreign else float("nan"),
    ]


def page(study: Study, model: str, results: dict[tuple[int, str], dict[str, list[float]]]) -> str:
    """The tables as Markdown."""
    out = [
        "# The parts of mmh-light, one after the other",
        "",
        f"By `benchmarks/light_parts.py`: heads {', '.join(map(str, study.heads))} on scanners "
        f"{', '.join(study.scanners)}, bundle {model}, on the model grid. Regional difference and voxel MAE between "
        "scanners in units of each row's own white-grey contrast; Dice with the truth, contrast and volume spread as "
        "in [travelling.md](travelling.md); change of a unified image over that of foreign ones. Each row has the "
        "parts of those above it; the last rows lack one part.",
    ]
    for (head, sequence), rows in results.items():
        out += ["", f"## Head {head}, {sequence}", "", f"| | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
        for part, values in rows.items():
            cells = ("–" if np.isnan(value) else f"{value:.4f}" for value in values)
            out.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def main() -> int:
    asked = parser().parse_args()
    study = study_of(asked)
    method = MmhLight.load(open_bundle(asked.bundle), "cpu")
    results = {}
    for head in study.heads:
        data.simulate(study, head, say)
        say(f"head {head}: preprocessed in {data.run_app(study, head, PLAIN):.0f} s")
    for head, sequence in itertools.product(study.heads, study.sequences):
        results[head, sequence] = measure_head(study, head, sequence, method)
    text = page(study, method.bundle.name, results)
    print(text)
    write(asked.docs / "light-parts.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
