"""One method's images of one sequence, and a row of the long table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.evaluation.estimate import Estimate
from mmh_bids.evaluation.features import ImageFeatures
from mmh_bids.evaluation.matrix import CannotSayError
from mmh_bids.evaluation.measure import kept_features, kept_grid
from mmh_bids.evaluation.placement import Placed
from mmh_bids.evaluation.sources import Source
from mmh_bids.evaluation.travelling import Units, pooled_units


@dataclass(frozen=True)
class Row:
    """One number about a method: `low` and `high` are a 95 % interval over people unless `note` says what else."""

    method: str
    sequence: str
    measure: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0
    note: str = ""

    @classmethod
    def of(cls, method: str, sequence: str, measure: str, estimate: Estimate, note: str = "") -> Row:
        """A row of an estimate over people."""
        return cls(method, sequence, measure, estimate.value, estimate.low, estimate.high, estimate.people, note)


def row_that_cannot(method: str, sequence: str, measure: str, error: Exception) -> Row:
    """The row of a measure that the data cannot support.

    >>> row_that_cannot("none", "T1w", "probe.mask", CannotSayError("one site")).note
    'cannot say: one site'
    """
    return Row(method, sequence, measure, float("nan"), note=f"cannot say: {error}")


@dataclass(frozen=True, eq=False)
class Sample:
    """Images of a method.

    Attributes
    ----------
    method
        Its name.
    sources, features, paths
        One an image: where it is from, its features, and where its measurements are kept.
    units
        Of all images of the method.
    targets
        What each was to look like (`sources.Entry.target`).
    """

    method: str
    sources: list[Source]
    features: list[ImageFeatures]
    paths: list[Path]
    units: Units
    targets: list[str | None]

    @classmethod
    def read(
        cls, method: str, sources: Sequence[Source], paths: Sequence[Path], targets: Sequence[str | None]
    ) -> tuple[Sample | None, list[str]]:
        """Read what `measure` kept; None if nothing is there. Lines say what is damaged, or why there is no sample."""
        kept, problems = [], []
        for source, path, target in zip(sources, paths, targets, strict=True):
            if not path.is_file():
                continue  # a line about it was written when it could not be measured
            try:
                kept.append((source, kept_features(path), path, target))
            except ImageError as error:
                problems.append(str(error))
        if not kept:
            return None, problems
        try:
            units = pooled_units([features.quantiles for _, features, *_ in kept])
        except CannotSayError as error:
            return None, [*problems, f"{method}: {error}"]
        own, features, where, aims = (list(column) for column in zip(*kept, strict=True))
        return cls(method, own, features, where, units, aims), problems

    @property
    def people(self) -> list[str]:
        """Who each image shows."""
        return [source.person for source in self.sources]

    @property
    def sites(self) -> list[str | None]:
        """Each image's site; None where it is not known."""
        return [source.run.site for source in self.sources]

    def table(self, name: str) -> NDArray[np.float64]:
        """One array of the features as rows, (N, F)."""
        return np.array([np.atleast_1d(getattr(one, name)) for one in self.features], np.float64)

    def grid(self, index: int) -> Placed:
        """An image on the grid of 2 mm, read from disk."""
        return kept_grid(self.paths[index])

    def chosen(self, indices: Sequence[int]) -> Sample:
        """Some of the images, in the same units."""
        return replace(
            self,
            sources=[self.sources[index] for index in indices],
            features=[self.features[index] for index in indices],
            paths=[self.paths[index] for index in indices],
            targets=[self.targets[index] for index in indices],
        )

    def with_site(self) -> Sample:
        """The images whose site is known."""
        return self.chosen([index for index, site in enumerate(self.sites) if site is not None])

    def common(self, other: Sample) -> tuple[Sample, Sample]:
        """The images that both have, in the same order."""
        mine = {source.key: index for index, source in enumerate(self.sources)}
        yours = {source.key: index for index, source in enumerate(other.sources)}
        both = [key for key in mine if key in yours]
        return self.chosen([mine[key] for key in both]), other.chosen([yours[key] for key in both])
