"""How far sites, people and scans of one person lie apart, before and after, by the group's features.

All numbers are root mean squares or means over blocks of 16 mm, in units of the median white-grey difference of all
images (`group_distances.contrast_unit`), so that neither a gain nor a flattened contrast counts as harmonization.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmh_bids.evaluation.bootstrap import ratio_interval
from mmh_bids.evaluation.estimate import person_means
from mmh_bids.evaluation.group_distances import contrast_unit
from mmh_bids.evaluation.group_table import WHEN, GroupImage, number_of, stacked
from mmh_bids.evaluation.matrix import CannotSayError
from mmh_bids.evaluation.travelling import Pair, find_pairs

#: Fewer people give no interval that means anything.
LEAST_PEOPLE = 4


@dataclass(frozen=True)
class Change:
    """A measure before and after.

    Attributes
    ----------
    before, after
        Mean over people.
    low, high
        95 % interval of after / before, by bootstrap over people; NaN below four people.
    people
        How many went in.
    """

    before: float
    after: float
    low: float
    high: float
    people: int

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before if self.before > 0 else float("nan")

    @property
    def verdict(self) -> str:
        """``closer``, ``farther`` or ``alike``: by the interval, and by the ratio alone where there is none.

        >>> Change(1.0, 0.5, 0.4, 0.7, 9).verdict, Change(1.0, 0.9, 0.8, 1.1, 9).verdict
        ('closer', 'alike')
        """
        low, high = (self.ratio, self.ratio) if np.isnan(self.low) else (self.low, self.high)
        if high < 1:
            return "closer"
        return "farther" if low > 1 else "alike"


@dataclass(frozen=True)
class Spread:
    """Standard deviations over blocks: between the sites' means, and between people of one site.

    Attributes
    ----------
    between
        Of the sites' means.
    expected
        What `between` would be if all sites were one and only had other people.
    within
        Between images of one site.
    """

    between: float
    expected: float
    within: float


@dataclass(frozen=True)
class Traveller:
    """One person scanned at several sites: mean difference of pairs of scans of different sites, and of one site."""

    person: str
    sites: tuple[str, ...]
    before: float
    after: float
    rescan_before: float
    rescan_after: float


def site_distance(images: Sequence[GroupImage]) -> Change:
    """Distance of people's histograms to the other sites' mean, before and after.

    Raises
    ------
    CannotSayError
        One site.
    """
    columns = np.array([[number_of(image, f"distance_to_other_sites_{when}") for when in WHEN] for image in images])
    known = np.isfinite(columns).all(axis=1) if len(images) else np.zeros(0, bool)
    if not known.any():
        raise CannotSayError("all images are of one site: there is no other to compare with")
    return _change(columns[known], [image.person for image, kept in zip(images, known, strict=True) if kept])


def site_spread(images: Sequence[GroupImage], when: str) -> Spread:
    """Spread between and within sites over blocks of 16 mm.

    Raises
    ------
    CannotSayError
        Fewer than two sites with two images.

    Notes
    -----
    One-way analysis of variance by block, blocks averaged; `expected` is the root of the mean over sites of the
    variance within over the number of images.
    """
    groups = defaultdict(list)
    for place, image in enumerate(images):
        if image.site:
            groups[image.site].append(place)
    large = [places for places in groups.values() if len(places) > 1]
    if len(large) < 2:
        raise CannotSayError("needs two sites with two images each at least")
    regions = stacked(images, when, "regions") / contrast_unit(images, when)
    regions = regions[:, np.isfinite(regions).all(axis=0)]
    if not regions.size:
        raise CannotSayError("no block of 16 mm is brain in all images")
    means = np.array([regions[places].mean(axis=0) for places in large])
    variances = np.array([regions[places].var(axis=0, ddof=1).mean() for places in large])
    sizes = np.array([len(places) for places in large])
    return Spread(
        between=float(np.sqrt(means.var(axis=0, ddof=1).mean())),
        expected=float(np.sqrt((variances / sizes).mean())),
        within=float(np.sqrt(((sizes - 1) * variances).sum() / (sizes - 1).sum())),
    )


def travellers(images: Sequence[GroupImage]) -> list[Traveller]:
    """People with scans at more than one site, each with the mean absolute difference of blocks between its scans.

    Raises
    ------
    CannotSayError
        Nobody was scanned at two sites.
    """
    own = defaultdict(list)
    for pair in find_pairs([image.person for image in images], [image.site or None for image in images]):
        own[pair.person].append(pair)
    chosen = {who: pairs for who, pairs in own.items() if any(pair.kind == "between" for pair in pairs)}
    if not chosen:
        raise CannotSayError("nobody was scanned at two sites")
    regions = {when: stacked(images, when, "regions") / contrast_unit(images, when) for when in WHEN}
    found = []
    for who, pairs in chosen.items():
        sites = {str(images[place].site) for pair in pairs for place in (pair.first, pair.second)}
        values = [
            _mean_difference(regions[when], [pair for pair in pairs if pair.kind == kind])
            for kind in ("between", "rescan")
            for when in WHEN
        ]
        found.append(Traveller(who, tuple(sorted(sites)), *values))
    return found


def travelling_change(found: Sequence[Traveller]) -> Change:
    """Mean over travelling people."""
    return _change(np.array([[one.before, one.after] for one in found]), [one.person for one in found])


def _mean_difference(regions: NDArray[np.float64], pairs: Sequence[Pair]) -> float:
    if not pairs:
        return float("nan")
    return float(np.mean([np.nanmean(np.abs(regions[pair.first] - regions[pair.second])) for pair in pairs]))


def _change(values: NDArray[np.float64], people: Sequence[str]) -> Change:
    """Mean over people of rows (before, after), of each person's images first; rows with a gap are left out."""
    low = high = float("nan")
    known = np.isfinite(values).all(axis=1)
    if not known.any():  # no image has three classes, so that there is no unit
        return Change(low, low, low, low, len(set(people)))
    whose = [people[place] for place in np.flatnonzero(known).tolist()]
    before, after = (person_means(column, whose)[1] for column in values[known].T)
    if before.size >= LEAST_PEOPLE and (before > 0).all():
        low, high = ratio_interval(after, before)
    return Change(float(before.mean()), float(after.mean()), low, high, before.size)
