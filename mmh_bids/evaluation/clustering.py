"""Do images lie together by site, or by person? Silhouettes of their features, beside those of shuffled labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmh_bids.evaluation.matrix import CannotSayError, principal, shuffled

#: Components that images are compared by.
COMPONENTS = 10
LEVEL = 0.95
PERMUTATIONS = 500


@dataclass(frozen=True)
class Silhouette:
    """A mean silhouette and what shuffled labels give.

    Attributes
    ----------
    value
        -1 to 1; 0 says that images lie as near to the next group as to their own.
    null_low, null_high
        Between them lie 95 % of the silhouettes of shuffled labels.
    p
        Share of shuffled labels with as high a silhouette; the real one counts as one of them.
    images, groups
        How many went in.
    """

    value: float
    null_low: float
    null_high: float
    p: float
    images: int
    groups: int


def by_site(
    features: ArrayLike, sites: Sequence[Any], subjects: Sequence[Any], seed: int = 0, permutations: int = PERMUTATIONS
) -> Silhouette:
    """Silhouette by site of images' principal components; after harmonization it should be near zero or below.

    Parameters
    ----------
    features
        (N, F); NaN are gaps.
    sites, subjects
        (N,) labels. The null shuffles sites by person (`matrix.shuffled`).

    Raises
    ------
    CannotSayError
        Fewer than two sites with two images each.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sites = ["A", "B"] * 10
    >>> found = by_site(rng.normal(0, 1, (20, 3)) + 9 * (np.array(sites) == "B")[:, None], sites, range(20))
    >>> found.value > 0.7 > found.null_high, found.groups
    (True, 2)
    """
    labels, keep = _groups(sites, "sites")
    people = np.asarray([str(subject) for subject in subjects])[keep]
    scores = principal(np.asarray(features, np.float64)[keep], COMPONENTS)
    rng = np.random.default_rng(seed)
    return _tested(scores, labels, [shuffled(labels, people, rng) for _ in range(permutations)])


def by_subject(
    features: ArrayLike, subjects: Sequence[Any], seed: int = 0, permutations: int = PERMUTATIONS
) -> Silhouette:
    """Silhouette by person, of people with several scans; after harmonization it should not fall.

    Parameters
    ----------
    features
        (N, F); NaN are gaps.
    subjects
        (N,) labels; people with one scan are left out. The null gives scans to anybody.

    Raises
    ------
    CannotSayError
        Fewer than two people with two scans each.
    """
    labels, keep = _groups(subjects, "people")
    scores = principal(np.asarray(features, np.float64)[keep], COMPONENTS)
    rng = np.random.default_rng(seed)
    return _tested(scores, labels, [rng.permutation(labels) for _ in range(permutations)])


def _groups(labels: Sequence[Any], what: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    names = np.asarray([str(label) for label in labels])
    values, counts = np.unique(names, return_counts=True)
    large = values[counts >= 2]
    keep = np.isin(names, large)
    if large.size < 2 or keep.sum() <= large.size:
        raise CannotSayError(f"needs two {what} with two images each at least; there are {large.size}")
    return names[keep], keep


def _tested(scores: NDArray[np.float64], labels: NDArray[Any], null_labels: Sequence[NDArray[Any]]) -> Silhouette:
    from sklearn.metrics import pairwise_distances, silhouette_score

    distances = pairwise_distances(scores)
    value = float(silhouette_score(distances, labels, metric="precomputed"))
    null = np.array([silhouette_score(distances, other, metric="precomputed") for other in null_labels])
    low, high = np.quantile(null, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    p = (1 + int((null >= value - 1e-12).sum())) / (1 + null.size)
    return Silhouette(value, float(low), float(high), p, len(labels), np.unique(labels).size)
