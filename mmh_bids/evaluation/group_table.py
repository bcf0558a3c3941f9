"""The group level's table: one row an image of a sequence, and the JSON file that says what its columns are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.bids.derivatives import write_json
from mmh_bids.bids.inventory import OutputImage
from mmh_bids.bids.tsv import tsv_text
from mmh_bids.evaluation.features import ImageFeatures
from mmh_bids.evaluation.measured import AFTER, BEFORE
from mmh_bids.files import atomic_write
from mmh_bids.image.tissue import CLASSES
from mmh_bids.reports.flags import QUANTITIES, flags

WHEN = (BEFORE, AFTER)
_WHEN_WORDS = {BEFORE: "of the preprocessed image", AFTER: "of the harmonized image"}
_CONTRAST = "in units of the median white-grey difference of all these images"


@dataclass(frozen=True, eq=False)
class GroupImage:
    """One image of the group: where it comes from, its features, and what the group says of it.

    Attributes
    ----------
    source
        The image with its status and sidecar.
    features
        By ``before`` and ``after``; empty for an image that was not harmonized.
    distances
        Columns that compare the image with others, by name; NaN where there is nothing to compare with.
    outlier_in
        Columns in which it lies far from the others, see `mmh_bids.evaluation.group_distances`.
    """

    source: OutputImage
    features: Mapping[str, ImageFeatures] = field(default_factory=dict)
    distances: Mapping[str, float] = field(default_factory=dict)
    outlier_in: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether it was harmonized."""
        return self.source.status == "done"

    @property
    def site(self) -> str | None:
        """Site, None where it is not known."""
        return self.source.run.site

    @property
    def person(self) -> str:
        """Participant label with ``sub-``."""
        return f"sub-{self.source.run.participant}"

    @property
    def qc(self) -> Mapping[str, Any]:
        """Quality values of the sidecar."""
        return self.source.facts.get("QC") or {}

    @property
    def flagged(self) -> list[str]:
        """Keys of the quality values beyond their thresholds."""
        return [flag.key for flag in flags(self.qc)] if self.done else []

    @property
    def verdict(self) -> str:
        """``ok``; ``look``: harmonized, but something stands out; else what became of it: ``failed``, ``excluded``."""
        if not self.done:
            return self.source.status
        return "look" if self.flagged or self.outlier_in else "ok"


@dataclass(frozen=True)
class Column:
    """One column: its name, what the JSON file says of it, and where its values come from."""

    name: str
    description: str
    value: Callable[[GroupImage], Any]
    units: str | None = None
    levels: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Its entry in the JSON file, by the names of BIDS."""
        entry: dict[str, Any] = {"Description": self.description}
        if self.units:
            entry["Units"] = self.units
        if self.levels:
            entry["Levels"] = dict(self.levels)
        return entry


def snake(name: str) -> str:
    """A sidecar's key as BIDS writes columns.

    >>> snake("MappedGradientCorrelation"), snake("Finite")
    ('mapped_gradient_correlation', 'finite')
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@lru_cache(maxsize=1)
def columns() -> tuple[Column, ...]:
    """All columns, in order; the same for every dataset."""
    return (*_identity(), *_quality(), *_tissue(), *_compared())


def write_table(images: Sequence[GroupImage], path: Path) -> Path:
    """Write ``group_<sequence>.tsv`` and the JSON file beside it; numbers with six digits, ``n/a`` for what is missing.

    The same bytes for the same images. How to read it with pandas is in docs/group-report.md.
    """
    known = columns()
    rows = [[column.value(image) for column in known] for image in images]
    write_json(path.with_suffix(".json"), {column.name: column.to_json() for column in known})
    return atomic_write(path, tsv_text([column.name for column in known], rows))


def number_of(image: GroupImage, name: str) -> float:
    """A numeric column of one image; NaN where it has none.

    >>> from mmh_bids.bids.run import Run
    >>> image = OutputImage(Run(Path("a"), "T1w", {"sub": "1"}), "a", "done", "", {"QC": {"RangeMax": 2}})
    >>> number_of(GroupImage(image), "range_max"), number_of(GroupImage(image), "sharpness_after")
    (2.0, nan)
    """
    value = _by_name()[name].value(image)
    return float(value) if isinstance(value, bool | int | float | np.number) else math.nan


@lru_cache(maxsize=1)
def _by_name() -> dict[str, Column]:
    return {column.name: column for column in columns()}


def _identity() -> list[Column]:
    def fact(name: str) -> Callable[[GroupImage], Any]:
        return lambda image: image.source.facts.get(name)

    session = "Session, with ses-; n/a without sessions"
    return [
        Column("image", "Source image, relative to the source dataset", lambda image: image.source.image),
        Column("participant_id", "Participant, with sub-", lambda image: image.person),
        Column("session_id", session, lambda image: (label := image.source.run.session) and f"ses-{label}"),
        Column("site", "Site that the image was taken to come from", lambda image: image.site),
        Column("site_from", "Where the site was read", lambda image: image.source.run.site_source),
        Column("status", "What became of the image", lambda image: image.source.status, levels={
            "done": "Harmonized", "failed": "Not harmonized, see message",
            "excluded": "Beyond a quality threshold: the harmonized image was not kept (--qc-fail)",
        }),
        Column("verdict", "Whether somebody should look at it", lambda image: image.verdict, levels={
            "ok": "Nothing stands out", "look": "Harmonized, but flagged or far from the other images",
            "failed": "Not harmonized", "excluded": "The harmonized image was not kept",
        }),
        Column("flags", "Quality values beyond their thresholds, by name, with commas",
               lambda image: ",".join(map(snake, image.flagged))),
        Column("outlier_in", "Columns in which the image lies far from the others, with commas",
               lambda image: ",".join(image.outlier_in)),
        Column("message", "Why it was not harmonized", lambda image: image.source.message),
        Column("method", "Harmonization method", fact("Method")),
        Column("model", "Model bundle", fact("Model")),
        Column("target", "What it was harmonized towards", fact("Target")),
    ]  # fmt: skip


def _quality() -> list[Column]:
    def value(key: str) -> Callable[[GroupImage], Any]:
        return lambda image: image.qc.get(key)

    return [
        Column(snake(quantity.key), quantity.label, value(quantity.key), quantity.unit or None)
        for quantity in QUANTITIES
    ]


def _tissue() -> list[Column]:
    def feature(when: str, read: Callable[[ImageFeatures], Any]) -> Callable[[GroupImage], Any]:
        return lambda image: float(read(image.features[when])) if when in image.features else None

    def entry(name: str, place: int) -> Callable[[ImageFeatures], Any]:
        return lambda features: getattr(features, name)[place]

    made = []
    for when in WHEN:
        scale = "1 is its own 99.9th percentile" if when == BEFORE else "1 is the upper end of its OutputScale"
        for place, name in enumerate(CLASSES):
            made.append(Column(
                f"{name.lower()}_mean_{when}", f"Mean intensity of {name} by three classes, {_WHEN_WORDS[when]}",
                feature(when, entry("levels", place)), scale,
            ))  # fmt: skip
        for place, name in enumerate(CLASSES):
            made.append(Column(
                f"{name.lower()}_volume_{when}", f"Volume of {name} by three classes, {_WHEN_WORDS[when]}",
                feature(when, entry("volumes_ml", place)), "mL",
            ))  # fmt: skip
        made.append(Column(
            f"sharpness_{when}", f"Mean gradient over the standard deviation in the brain, {_WHEN_WORDS[when]}",
            feature(when, lambda features: features.sharpness), "1/mm",
        ))  # fmt: skip
    return made


def _compared() -> list[Column]:
    def distance(name: str) -> Callable[[GroupImage], Any]:
        return lambda image: image.distances.get(name)

    made = []
    for when in WHEN:
        name = f"distance_to_other_sites_{when}"
        made.append(Column(
            name, f"Wasserstein-1 distance of the histogram to the mean histogram of the other sites, "
            f"{_WHEN_WORDS[when]}, {_CONTRAST}", distance(name),
        ))  # fmt: skip
        name = f"regional_distance_{when}"
        made.append(Column(
            name, f"Median distance over blocks of 16 mm to the median of all images, {_WHEN_WORDS[when]}, "
            f"{_CONTRAST}", distance(name),
        ))  # fmt: skip
    return made


def stacked(images: Sequence[GroupImage], when: str, name: str) -> NDArray[np.float64]:
    """One feature of all images, (N, ...), rows in the order of `images`; all must have features."""
    return np.stack([np.asarray(getattr(image.features[when], name), np.float64) for image in images])
