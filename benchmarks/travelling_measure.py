"""Measures of one head, one sequence and one method of `travelling.py`.

All images of a head are brought by their exact poses into the grid of its label map (1 mm, trilinear) and compared in
the voxels of the true brain that every extracted brain covers. Gradients and the distance to the unified truth are
measured on each image's own grid, where nothing was resampled.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import travelling_data as data
from common import WHOLE
from numpy.typing import NDArray
from travelling_data import MADE_HERE, PLAIN, Study

from mmh_bids import evaluation
from mmh_bids.evaluation.agreement import mean_over_pairs, ssim, voxel_mae, wasserstein1
from mmh_bids.evaluation.contrast import spread, white_grey_contrast
from mmh_bids.evaluation.fidelity import LinearSums, change
from mmh_bids.evaluation.regions import region_index, regional_difference
from mmh_bids.evaluation.segmentation import class_dice, class_volumes, segment_brain, true_classes
from mmh_bids.image.grid import bounding_box, box_affine, resample
from mmh_bids.image.qc import gradient_correlation
from mmh_bids.simulate.files import write_json
from mmh_bids.simulate.phantom import head_from_labels


@dataclass(frozen=True)
class Anatomy:
    """A head's truth on its label map's grid, cut to the brain; all (X, Y, Z)."""

    affine: NDArray[np.float64]
    labels: NDArray[np.int16]
    tissue: NDArray[np.uint8]
    mask: NDArray[np.bool_]

    @property
    def zooms(self) -> NDArray[np.float64]:
        return np.linalg.norm(self.affine[:3, :3], axis=0)


@dataclass(frozen=True)
class Common:
    """Where a head's images of one sequence are compared, and what is true there; (N,) but for the mask."""

    mask: NDArray[np.bool_]
    regions: NDArray[np.int32]
    tissue: NDArray[np.uint8]
    coverage: float


def anatomy(head: int) -> Anatomy:
    """The truth of a head, as the simulator read it."""
    whole = head_from_labels(data.label_map(head), data.person(head))
    box = bounding_box(whole.mask, margin=4)
    if whole.labels is None:
        raise SystemExit(f"head {head}: the simulator kept no region labels")
    return Anatomy(box_affine(whole.affine, box), whole.labels[box], whole.first[box], whole.mask[box])


def to_head(volume: NDArray, affine: NDArray, pose: NDArray, grid: Anatomy) -> NDArray[np.float32]:
    """Interpolate a volume of a session into the label map's grid."""
    return resample(volume, affine, grid.mask.shape, grid.affine, np.linalg.inv(pose))


def stems(study: Study) -> tuple[str, ...]:
    """All images of a head and sequence."""
    return (*study.visits(), study.rescan, study.unified)


def common_voxels(covered: Iterable[NDArray[np.floating]], grid: Anatomy) -> Common:
    """True brain that extracted brains cover: shares (X, Y, Z) of each of `grid`'s voxels."""
    mask = grid.mask.copy()
    for share in covered:
        mask &= share > WHOLE
    regions = region_index(grid.labels, mask, grid.zooms)
    return Common(mask, regions, grid.tissue[mask], float(mask.sum() / grid.mask.sum()))


def extracted_brains(study: Study, head: int, sequence: str, grid: Anatomy) -> Iterator[NDArray[np.float32]]:
    """The brain mask of each image, interpolated into the label map's grid."""
    for stem in stems(study):
        found = data.brain_mask(study, head, stem, sequence).astype(np.float32)
        affine = data.output(study, head, PLAIN, stem, sequence).affine
        yield to_head(found, affine, data.pose(study, head, stem), grid)


class Comparison:
    """Images of one head and sequence in its label map's grid, all made by one method.

    Parameters
    ----------
    images
        (X, Y, Z) by stem.
    visits
        Stems of those that are compared between scanners.
    name
        For messages: head, sequence, method.
    """

    def __init__(
        self,
        images: Mapping[str, NDArray[np.float32]],
        visits: Sequence[str],
        sequence: str,
        grid: Anatomy,
        common: Common,
        name: str,
    ) -> None:
        self.images, self.visits, self.sequence, self.grid, self.common = images, tuple(visits), sequence, grid, common
        self.contrasts = [white_grey_contrast(self.values(stem), common.tissue, sequence) for stem in self.visits]
        self.unit = float(np.mean(self.contrasts))
        if not self.unit > 0:
            raise SystemExit(f"{name}: white and grey matter are inverted or alike")

    def values(self, stem: str) -> NDArray[np.float32]:
        """(N,) in the voxels that are compared."""
        return self.images[stem][self.common.mask]

    def regional(self, one: str, other: str) -> float:
        """Regional difference of two images, in units of the contrast; `mae` and `wasserstein` likewise."""
        return regional_difference(self.values(one), self.values(other), self.common.regions) / self.unit

    def mae(self, one: str, other: str) -> float:
        return voxel_mae(self.values(one), self.values(other)) / self.unit

    def wasserstein(self, one: str, other: str) -> float:
        return wasserstein1(self.values(one), self.values(other)) / self.unit

    def ssim(self, one: str, other: str) -> float:
        return ssim(self.images[one], self.images[other], self.common.mask, self._range)

    @cached_property
    def _range(self) -> float:
        return float(np.mean([np.percentile(self.values(stem), 99.9) for stem in self.visits]))

    def tissue(self) -> dict[str, float]:
        """Dice with the truth, and how much class volumes vary between scanners."""
        true, dice, volumes = true_classes(self.common.tissue), [], []
        for stem in self.visits:
            found = segment_brain(self.images[stem], self.common.mask, self.sequence, self.grid.zooms)
            dice.append(class_dice(found, true))
            volumes.append(class_volumes(found, float(np.prod(self.grid.zooms)) / 1000))
        spreads = [spread(one) for one in np.transpose(volumes)]
        return {"dice": float(np.mean(dice)), "volume_spread": float(np.mean(spreads))}

    def changes(self, plain: Comparison, unified: str) -> dict[str, float]:
        """What the method did to foreign images and to the one of stem `unified`, in units of its contrast."""
        foreign = [change(plain.values(stem), self.values(stem)) for stem in self.visits]
        same = change(plain.values(unified), self.values(unified))
        return {"change_foreign": float(np.mean(foreign)) / self.unit, "change_unified": same / self.unit}


class Measurement(Comparison):
    """One method of the app on one head and sequence."""

    def __init__(self, study: Study, head: int, sequence: str, method: str, grid: Anatomy, common: Common):
        self.study, self.head, self.method = study, head, method
        images = {}
        for stem in stems(study):
            image = data.output(study, head, method, stem, sequence)
            values = image.get_fdata(dtype=np.float32)
            images[stem] = to_head(values, image.affine, data.pose(study, head, stem), grid)
        super().__init__(images, study.visits(), sequence, grid, common, f"head {head}, {sequence}, {method}")

    def all(self) -> dict[str, Any]:
        """All measures; differences in units of the method's own mean white-grey contrast."""
        rescan = (self.study.first(self.study.rescanned), self.study.rescan)
        result: dict[str, Any] = {"contrast": self.unit, "coverage": self.common.coverage}
        for name in ("regional", "mae", "ssim", "wasserstein"):
            compare = getattr(self, name)
            result[name] = mean_over_pairs(self.visits, compare)
            result[f"{name}_rescan"] = compare(*rescan)
        result["contrast_spread"] = spread(self.contrasts)
        result |= self.tissue() | self._fidelity()
        result["by_pair"] = {
            f"{one} {other}": self.regional(self.study.first(one), self.study.first(other))
            for one, other in itertools.combinations(self.study.scanners, 2)
        }
        result["by_scanner"] = {"contrast": dict(zip(self.study.scanners, self.contrasts, strict=True))}
        return result

    def slices(self) -> dict[str, NDArray[np.float32]]:
        """The middle axial slice of each scanner, brain only."""
        middle = int(np.argwhere(self.common.mask.any(axis=(0, 1))).mean())
        return {
            name: np.where(self.common.mask, self.images[self.study.first(name)], 0)[:, :, middle]
            for name in self.study.scanners
        }

    def _fidelity(self) -> dict[str, Any]:
        """Gradients against the input with and without noise, sums against the truth, on the image's own grid."""
        edges, ideal, kept, sums = [], [], [], []
        for stem in self.visits:
            inside = data.brain_mask(self.study, self.head, stem, self.sequence)
            inside &= self._truth(stem, f"desc-brain{self.sequence}_mask") > 0
            box = bounding_box(inside, margin=1)
            inside = inside[box]
            values, plain = (
                data.output(self.study, self.head, name, stem, self.sequence).get_fdata(dtype=np.float32)[box]
                for name in (self.method, PLAIN)
            )
            clean = self._truth(stem, f"desc-noisefree_{self.sequence}")[box]
            unified = self._truth(stem, f"desc-unified_{self.sequence}")[box]
            edges.append(gradient_correlation(clean, values, inside))
            ideal.append(gradient_correlation(clean, unified, inside))
            kept.append(gradient_correlation(plain, values, inside))
            sums.append(LinearSums.of(values[inside], unified[inside]))
        total = sums[0]
        for one in sums[1:]:
            total = total + one
        means = {"gradient": edges, "gradient_ideal": ideal, "gradient_input": kept}
        return {name: float(np.mean(values)) for name, values in means.items()} | {"sums": vars(total)}

    def _truth(self, stem: str, name: str) -> NDArray[np.float32]:
        return data.truth(self.study, self.head, stem, name).get_fdata(dtype=np.float32)


def measure_head(study: Study, head: int, sequence: str, say: data.Say) -> dict[str, dict[str, Any]]:
    """Measures of every method on a head, by method; what was measured before on the same outputs is read back."""
    folder = study.folder(head) / "measures"
    keys = {method: _key(study, head, sequence, method) for method in study.methods}
    found = {method: _stored(folder / f"{sequence}_{method}.json", keys[method]) for method in study.methods}
    if any(one is None for one in found.values()):
        grid = anatomy(head)
        common = common_voxels(extracted_brains(study, head, sequence, grid), grid)
        plain = Measurement(study, head, sequence, PLAIN, grid, common)
        for method in [name for name, one in found.items() if one is None]:
            data.check_masks(study, head, sequence, method, stems(study))
            one = plain if method == PLAIN else Measurement(study, head, sequence, method, grid, common)
            values = one.all() | (one.changes(plain, study.unified) if method != PLAIN else {})
            folder.mkdir(exist_ok=True)
            np.savez_compressed(folder / f"{sequence}_{method}.npz", **one.slices())
            write_json(folder / f"{sequence}_{method}.json", {"key": keys[method], "measures": values})
            found[method] = values
            say(f"head {head}, {sequence}, {method}: measured")
    return {method: values for method, values in found.items() if values is not None}


def slices(study: Study, head: int, sequence: str, method: str) -> dict[str, NDArray[np.float32]]:
    """What `Measurement.slices` gave, by scanner."""
    with np.load(study.folder(head) / "measures" / f"{sequence}_{method}.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in study.scanners}


def _stored(path: Path, key: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    return stored["measures"] if stored["key"] == key else None


def _key(study: Study, head: int, sequence: str, method: str) -> str:
    """Hash of all that decides the measures: outputs by their sidecars, scanners, and the code that measures."""
    parts = [",".join(study.scanners), sequence, method]
    for name in dict.fromkeys((PLAIN, PLAIN if method in MADE_HERE else method)):
        for stem in stems(study):
            path = data.anat(study, head, name, stem) / f"{stem}_desc-harmonized_{sequence}.json"
            parts.append(path.read_text())
    code = [Path(__file__), Path(data.__file__), *sorted(Path(evaluation.__file__).parent.glob("*.py"))]
    parts += [path.read_text() for path in code]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
