"""What can be learned of the site from a group's features, before and after: probes, controls and silhouettes.

The measures are `mmh_bids.evaluation.probes` and `mmh_bids.evaluation.clustering`; here they are asked for with
sizes that bound the group level's cost: a few hundred images, drawn by person, tell as much as thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmh_bids.evaluation.clustering import Silhouette, by_site, by_subject
from mmh_bids.evaluation.group_table import GroupImage, stacked
from mmh_bids.evaluation.matrix import COMPONENTS, CannotSayError, LeakError, check_identities, principal
from mmh_bids.evaluation.measured import AFTER, BEFORE
from mmh_bids.evaluation.pool import KILLED, in_processes
from mmh_bids.evaluation.probes import PROBES, ProbeResult, probe_site, usable_sites

#: Most images that probes are trained on; more add time, and next to nothing to the answer.
MOST_IMAGES = 400
#: Shuffled labels a probe. After: the fewest that give three probes together an interval of 95 %, as the verdict is
#: taken there. Before is only what to compare with: the fewest for an interval of 95 % of each probe by itself.
PERMUTATIONS = {BEFORE: 39, AFTER: 119}
SILHOUETTE_PERMUTATIONS = 200
#: Images for each principal component that probes see.
IMAGES_A_COMPONENT = 5

#: What probes are trained on, by the name of the feature: words for people, and which probes.
FEATURES = {
    "regions": ("mean intensity of blocks of 16 mm", tuple(PROBES)),
    "quantiles": ("histogram only (control)", ("logistic regression",)),
    "brain_share": ("brain mask only (control)", ("logistic regression",)),
}


@dataclass(frozen=True)
class Question:
    """One thing to measure: on which features, of which images, with which labels."""

    kind: str
    feature: str
    when: str
    values: NDArray[np.float64]
    sites: tuple[str, ...]
    people: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Answer:
    """What came out: probes or a silhouette, or why the data cannot say."""

    kind: str
    feature: str
    when: str
    probes: tuple[ProbeResult, ...] = ()
    silhouette: Silhouette | None = None
    refusal: str = ""


def sample_people(people: Sequence[str], most: int, seed: int) -> NDArray[np.bool_]:
    """Which images to take so that they are `most` or hardly more: all of a person's, or none; all where they are few.

    >>> sample_people(["1", "1", "2", "2", "3", "3"], 3, 0).sum()
    np.int64(4)
    """
    names = np.asarray(people)
    if names.size <= most:
        return np.ones(names.size, bool)
    order = np.random.default_rng(seed).permutation(np.unique(names))
    counts = np.cumsum([(names == name).sum() for name in order])
    return np.isin(names, order[: int(np.searchsorted(counts, most)) + 1])


def ask(images: Sequence[GroupImage], seed: int = 0, processes: int = 1) -> list[Answer]:
    """Probe sites and measure silhouettes, before and after.

    Parameters
    ----------
    images
        With features; those without a site are left out.
    seed
        Of the people drawn, splits and shuffling.
    processes
        At a time; the answers do not depend on it. One that is killed is an answer that says so (`pool.KILLED`).

    Returns
    -------
    Answers of the kinds ``probe``, ``sites`` and ``people``, in a fixed order.
    """
    known = [image for image in images if image.site and image.features]
    if not known:
        return []
    keep = sample_people([image.person for image in known], MOST_IMAGES, seed)
    chosen = [image for image, kept in zip(known, keep, strict=True) if kept]
    questions = list(_questions(chosen, seed))
    if len({image.site for image in chosen}) < 2:
        processes = 1  # each will say at once that it cannot say
    found = {
        place: answered or Answer(asked.kind, asked.feature, asked.when, refusal=KILLED)
        for place, answered in in_processes(answer, questions, processes)
        for asked in [questions[place]]
    }
    return [found[place] for place in sorted(found)]


def _questions(images: Sequence[GroupImage], seed: int):
    sites = tuple(image.site or "" for image in images)
    people = tuple(image.person for image in images)
    for kind, feature, when in (
        ("probe", "regions", BEFORE), ("probe", "regions", AFTER), ("probe", "quantiles", BEFORE),
        ("probe", "quantiles", AFTER), ("probe", "brain_share", AFTER), ("sites", "regions", BEFORE),
        ("sites", "regions", AFTER), ("people", "regions", BEFORE), ("people", "regions", AFTER),
    ):  # fmt: skip
        yield Question(kind, feature, when, stacked(images, when, feature), sites, people, seed)


def answer(question: Question) -> Answer:
    """Measure one thing; a refusal says in words why the data cannot say."""
    kind, feature, when = question.kind, question.feature, question.when
    values, sites, people, seed = question.values, question.sites, question.people, question.seed
    try:
        if kind == "probe":
            probes = FEATURES[feature][1]
            usable_sites(sites, people)
            # probes see components at equal spread: more than the images can carry, and noise hides the site
            values = principal(values, max(2, min(COMPONENTS, len(values) // IMAGES_A_COMPONENT)))
            found = probe_site(values, sites, people, seed, PERMUTATIONS[when], seeds=1, probes=probes)
            return Answer(kind, feature, when, tuple(found))
        if kind == "sites":
            silhouette = by_site(values, sites, people, seed, SILHOUETTE_PERMUTATIONS)
        else:
            silhouette = by_subject(values, people, seed, SILHOUETTE_PERMUTATIONS)
    except CannotSayError as refusal:
        return Answer(kind, feature, when, refusal=str(refusal))
    return Answer(kind, feature, when, silhouette=silhouette)


def leak(images: Sequence[GroupImage]) -> str:
    """One person under two labels, in words; empty if there is none."""
    measured = [image for image in images if image.features]
    if not measured:
        return ""
    try:
        check_identities(stacked(measured, BEFORE, "regions"), [image.person for image in measured])
    except LeakError as error:
        return str(error).partition(";")[0]
    return ""
