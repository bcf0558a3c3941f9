"""Did harmonization work, and for whom did it not: what a group report says of one sequence, in numbers and words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmh_bids.evaluation.group_probes import Answer, ask, leak
from mmh_bids.evaluation.group_spread import (
    Change,
    Spread,
    Traveller,
    site_distance,
    site_spread,
    travellers,
    travelling_change,
)
from mmh_bids.evaluation.group_table import WHEN, GroupImage
from mmh_bids.evaluation.matrix import CannotSayError

Found = TypeVar("Found")
#: Fewer people a site: what is said of the site is said of a handful of brains.
FEW_PEOPLE = 10


@dataclass(frozen=True)
class SiteCount:
    """How many images and people a site has, and how many of the images call for a look or failed."""

    site: str
    images: int
    people: int
    look: int
    failed: int


@dataclass(frozen=True)
class Summary:
    """One sequence. A measure that the data cannot support is a sentence that says why.

    Attributes
    ----------
    sites
        Counts by site.
    distance
        Between people and the other sites' histograms.
    spread
        Before and after, over blocks.
    travellers, travelling
        People scanned at several sites, and their mean.
    answers
        Of probes and silhouettes.
    caveats
        What to know before believing any of it.
    """

    sites: list[SiteCount]
    distance: Change | str
    spread: dict[str, Spread] | str
    travellers: list[Traveller] | str
    travelling: Change | str
    answers: list[Answer]
    caveats: list[str]


def summarize(images: Sequence[GroupImage], seed: int = 0, processes: int = 1) -> Summary:
    """Measure the group.

    Parameters
    ----------
    images
        Of one sequence, through `group_distances.compare`.
    seed, processes
        See `group_probes.ask`.
    """
    done = [image for image in images if image.features]
    people = _or_words(lambda: travellers(done))
    return Summary(
        sites=site_counts(images),
        distance=_or_words(lambda: site_distance(done)),
        spread=_or_words(lambda: {when: site_spread(done, when) for when in WHEN}),
        travellers=people,
        travelling=people if isinstance(people, str) else travelling_change(people),
        answers=ask(done, seed, processes),
        caveats=caveats(images),
    )


def site_counts(images: Sequence[GroupImage]) -> list[SiteCount]:
    """Counts by site, the largest first; images whose site is not known come last, under an empty name."""
    counts = []
    for site in {image.site for image in images}:
        own = [image for image in images if image.site == site]
        words = Counter(image.verdict for image in own)
        people = len({image.person for image in own})
        lost = len(own) - words["ok"] - words["look"]
        counts.append(SiteCount(site or "", len(own), people, words["look"], lost))
    return sorted(counts, key=lambda count: (not count.site, -count.images, count.site))


def caveats(images: Sequence[GroupImage]) -> list[str]:
    """What limits what can be said, in whole sentences."""
    done = [image for image in images if image.features]
    said = []
    for name in ("Method", "Model", "Target"):
        values = sorted({str(image.source.facts.get(name)) for image in done})
        if len(values) > 1:
            said.append(
                f"The images were not all made in the same way: {name.lower()} {', '.join(values)}. Run the "
                "participant level for all of them with the same settings before comparing sites."
            )
    if any(image.source.facts.get("Sloppy") for image in done):
        said.append("Some images were made with --sloppy, for tests only.")
    unknown = sum(not image.site for image in done)
    if unknown:
        said.append(f"The site of {unknown} image(s) is not known: they count for no site. See --site-from.")
    small = [count.site for count in site_counts(done) if count.site and count.people < FEW_PEOPLE]
    if small and len({image.site for image in done if image.site}) > 1:
        shown = ", ".join(small[:8]) + (f" and {len(small) - 8} more" if len(small) > 8 else "")
        said.append(
            f"Fewer than {FEW_PEOPLE} people: {shown}. Differences between sites may be differences between people."
        )
    twice = leak(done)
    if twice:
        said.append(f"{twice}: what is said of sites may then be said of people. Leave one out, or correct the labels.")
    return said


def _or_words(measure: Callable[[], Found]) -> Found | str:
    try:
        return measure()
    except CannotSayError as refusal:
        return str(refusal)
