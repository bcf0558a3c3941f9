"""How near images are to what they were meant to look like: the images of the site that was the target.

That is apart from how much a method changed, and from how near sites are to each other: a method may do a lot, and
bring all sites together, and miss the look it was asked for.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmh_bids.evaluation.estimate import mean_over_people, ratio_over_people
from mmh_bids.evaluation.matrix import CannotSayError, mean_row
from mmh_bids.evaluation.sample import Row, Sample, row_that_cannot

#: By the measure's name, the features it compares.
MEASURES = {"histogram": "quantiles", "regions": "regions"}
_SITE = "site:"


def target_rows(sample: Sample, plain: Sample, sequence: str, seed: int = 0) -> list[Row]:
    """Distance of a method's images to the target site's own, after, before and their ratio.

    Parameters
    ----------
    sample
        The method's images; those of the target's own site do not count.
    plain
        Preprocessed images: those of the target's site are the reference, the same images as the method's are what was
        before.
    sequence
        For the rows.
    seed
        Of the bootstrap over people; the reference stays as it is.

    Returns
    -------
    Rows ``target.histogram`` (Wasserstein-1 distance) and ``target.regions`` (mean absolute difference by region), in
    preprocessing's pooled standard deviations, with ``.before`` and ``.ratio``; or one row that says why not.

    Notes
    -----
    The reference is the median over the people of the site but the one who is compared: one's own anatomy is no part of
    a scanner's look.
    """
    own, before = sample.common(plain)
    usable, reasons = _usable(own, plain)
    if not usable:
        error = CannotSayError("; ".join(sorted(set(reasons))) or "no image has both this method and preprocessing")
        return [row_that_cannot(sample.method, sequence, "target", error)]
    own, before = own.chosen(usable), before.chosen(usable)
    rows, unit = [], plain.units.deviation
    note = f"towards {', '.join(sorted({str(target) for target in own.targets}))}, {len(usable)} images"
    for name, features in MEASURES.items():
        references = _references(own, plain, features)
        after, was = (
            [_distance(row, there) / unit for row, there in zip(one.table(features), references, strict=True)]
            for one in (own, before)
        )
        rows += [
            Row.of(sample.method, sequence, f"target.{name}", mean_over_people(after, own.people, seed), note),
            Row.of(sample.method, sequence, f"target.{name}.before", mean_over_people(was, own.people, seed), note),
        ]
        if min(was) > 0:
            ratio = ratio_over_people(after, was, own.people, seed)
            rows.append(Row.of(sample.method, sequence, f"target.{name}.ratio", ratio, "over preprocessing"))
    return rows


def _usable(own: Sample, plain: Sample) -> tuple[list[int], list[str]]:
    """Images whose target can be compared with, and why others have none."""
    usable, reasons = [], []
    there: dict[str, set[str]] = {}
    for site, person in zip(plain.sites, plain.people, strict=True):
        if site is not None:
            there.setdefault(site, set()).add(person)
    for index, (target, person) in enumerate(zip(own.targets, own.people, strict=True)):
        site = (target or "").removeprefix(_SITE)
        if not target:
            reasons.append("the images do not say what their target was (Target in the sidecar's Harmonization)")
        elif not target.startswith(_SITE):
            reasons.append(f"the target was {target.partition(':')[0]}, a look of which the dataset has no image")
        elif site not in there:
            reasons.append(f"the dataset has no image of the target's site {site}")
        elif own.sites[index] == site:
            reasons.append(f"images of the target's own site {site} are not compared with themselves")
        elif not there[site] - {person}:
            reasons.append(f"nobody else was scanned at the target's site {site}")
        else:
            usable.append(index)
    return usable, reasons


def _references(own: Sample, plain: Sample, features: str) -> list[NDArray[np.float64]]:
    """For each image the median over the people of its target's site, without its own person."""
    table = plain.table(features)

    @cache
    def reference(site: str, person: str) -> NDArray[np.float64]:
        scans: dict[str, list[int]] = {}
        for index, (where, who) in enumerate(zip(plain.sites, plain.people, strict=True)):
            if where == site and who != person:
                scans.setdefault(who, []).append(index)
        people = np.array([mean_row(table[indices]) for indices in scans.values()])
        known = np.isfinite(people).any(axis=0)
        out = np.full(table.shape[1], np.nan)
        out[known] = np.nanmedian(people[:, known], axis=0)
        return out

    return [
        reference(str(target).removeprefix(_SITE), person)
        for target, person in zip(own.targets, own.people, strict=True)
    ]


def _distance(row: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    difference = np.abs(row - reference)
    known = np.isfinite(difference)
    return float(difference[known].mean()) if known.any() else float("nan")
