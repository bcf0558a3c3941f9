"""What a method's numbers mean, in plain words, and an order of methods.

Each threshold lies between what sound methods and what controls measure; `benchmarks/evaluation_thresholds.py` prints
those, and docs/evaluation.md shows them. A flag says what to look at; it proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Level = Literal["good", "look", "bad"]

#: Distance of sites over that of preprocessing that counts as nearer where one person leaves no interval.
CLEARLY_NEARER = 0.8
#: Change at the best gain, in pooled standard deviations, below which nothing has changed.
NO_CHANGE = 0.01
#: Sharpness over that of preprocessing below which an image is blurred.
LEAST_SHARPNESS = 0.92
#: Share of an image's edges that are its own input's, below which the anatomy is somebody else's or nobody's.
LEAST_OWN_SHARE = 0.5
#: Differences between people over those of preprocessing, below which everybody looks alike.
LEAST_PEOPLE = 0.2
#: Share of a known effect's score above chance that must be left.
LEAST_EFFECT = 0.5
#: Score of an effect, above chance, below which there was none to lose.
SMALLEST_EFFECT = 0.15


@dataclass(frozen=True)
class Ratio:
    """A number over that of preprocessing, with its 95 % interval over people; NaN where there is none."""

    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class EffectChange:
    """A known effect before (preprocessing) and after, scores above chance, and their difference's interval."""

    name: str
    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True)
class Facts:
    """What verdicts are made of; NaN is not known.

    Attributes
    ----------
    change
        Median of `travelling.change_beyond_gain` against preprocessing.
    sharpness
        Median of `anatomy.detail` over that of preprocessing.
    own_share
        Median of `anatomy.own_share` against preprocessing.
    people
        `alignment.between_people` over that of preprocessing.
    sites
        How far sites are apart over that of preprocessing: voxel differences within travelling people, or where there
        are none the regional distance of the sites' means.
    travelled
        Whether `sites` is of travelling people.
    effects
        Known effects.
    told
        Sites told by any probe of regional means; None where that is not known.
    told_before
        The same of preprocessing. Probes that found no site there, either, are no sign of anything.
    """

    change: float = float("nan")
    sharpness: float = float("nan")
    own_share: float = float("nan")
    people: float = float("nan")
    sites: Ratio = Ratio()
    travelled: bool = False
    effects: tuple[EffectChange, ...] = ()
    told: bool | None = None
    told_before: bool | None = None


@dataclass(frozen=True)
class Flag:
    """One thing to know about a method.

    Attributes
    ----------
    code
        ``unchanged``, ``gain``, ``blurred``, ``anatomy``, ``alike``, ``effect``, ``together``, ``apart``, ``told`` or
        ``not-told``.
    level
        ``bad`` rules the method out, ``look`` asks for a look.
    text
        A sentence.
    """

    code: str
    level: Level
    text: str


def flags_of(facts: Facts) -> list[Flag]:
    """Judge a method.

    Returns
    -------
    Flags, bad ones first.

    Examples
    --------
    >>> [flag.code for flag in flags_of(Facts(change=0.0, sharpness=1.0, own_share=1.0, people=1.0))]
    ['unchanged']
    >>> [flag.code for flag in flags_of(Facts(change=0.3, sharpness=0.7, own_share=0.8, people=0.9))]
    ['blurred']
    """
    found = _broken(facts)
    # how near the sites are says nothing where the images are not the people's own
    near = _near(facts) if not found else None
    if near is not None:
        found.append(near)
    if facts.change < NO_CHANGE:
        if near is not None and near.code == "together":
            found.append(Flag("gain", "look", "Changes each image's gain and offset, and nothing else."))
        else:
            found.append(Flag("unchanged", "look", "Changes nothing: images are the input's, but for gain and offset."))
    if not any(flag.level == "bad" for flag in found):
        if facts.told:
            found.append(Flag("told", "look", "The site can still be told from the images' regional brightness."))
        elif facts.told is False and facts.told_before:
            text = (
                "The site, which probes told before, is no longer told from regional brightness better than by chance."
            )
            found.append(Flag("not-told", "good", text))
    order: dict[str, int] = {"bad": 0, "look": 1, "good": 2}
    return sorted(found, key=lambda flag: order[flag.level])


def _near(facts: Facts) -> Flag | None:
    """Whether sites came nearer; None where it cannot be told from chance."""
    sites = facts.sites
    where = "scans of one person at different sites" if facts.travelled else "the sites' mean images"
    if sites.high < 1 or (np.isnan(sites.high) and sites.value < CLEARLY_NEARER):
        text = f"Brings sites together: {where} differ {sites.value:.2f} times as much as before."
        return Flag("together", "good", text)
    if sites.low > 1 or (np.isnan(sites.low) and sites.value > 1 / CLEARLY_NEARER):
        return Flag("apart", "look", f"Drives sites apart: {where} differ {sites.value:.2f} times as much as before.")
    return None


def _broken(facts: Facts) -> list[Flag]:
    """Flags that rule a method out."""
    found = []
    if facts.own_share < LEAST_OWN_SHARE:
        found.append(
            Flag(
                "anatomy",
                "bad",
                "The anatomy is not the input's: edges are hardly more those of the own input than of other people's.",
            )
        )
    elif facts.sharpness < LEAST_SHARPNESS:
        # somebody else's anatomy has a sharpness of its own, which says nothing about blur
        found.append(
            Flag("blurred", "bad", f"Blurs: images are {1 - facts.sharpness:.0%} less sharp than their inputs.")
        )
    if facts.people < LEAST_PEOPLE:
        found.append(
            Flag(
                "alike",
                "bad",
                f"All images look alike: people differ only {facts.people:.2f} times as much as in the inputs.",
            )
        )
    for effect in facts.effects:
        lost = effect.after < LEAST_EFFECT * effect.before and effect.high < 0
        if effect.before >= SMALLEST_EFFECT and lost:
            found.append(
                Flag(
                    "effect",
                    "bad",
                    f"A known effect is lost ({effect.name}): above chance, {max(effect.after, 0):.2f} is left of "
                    f"{effect.before:.2f}.",
                )
            )
    return found


def ranking(facts: Mapping[str, Facts], flags: Mapping[str, Sequence[Flag]]) -> list[str]:
    """Methods from best to worst.

    First those with no bad flag that bring sites together, then those that do not, then those with bad flags, fewest
    first. Within each, by how near the sites lie to each other, and then by how much is left of people's differences.

    Examples
    --------
    >>> facts = {
    ...     "none": Facts(0.0, 1.0, 1.0, 1.0, Ratio(1.0, 1.0, 1.0)),
    ...     "mean": Facts(0.9, 1.0, 0.0, 0.0, Ratio(0.0, 0.0, 0.0)),
    ...     "good": Facts(0.3, 1.0, 0.9, 0.9, Ratio(0.5, 0.4, 0.6)),
    ... }
    >>> ranking(facts, {name: flags_of(one) for name, one in facts.items()})
    ['good', 'none', 'mean']
    """

    def place(name: str) -> tuple[float, ...]:
        own = flags[name]
        bad = sum(flag.level == "bad" for flag in own)
        together = any(flag.code == "together" for flag in own)
        return (
            float(bad),
            0.0 if together else 1.0,
            _known(facts[name].sites.value, 2.0),
            -_known(facts[name].people, 0.0),
        )

    return sorted(facts, key=place)


def _known(value: float, otherwise: float) -> float:
    return value if np.isfinite(value) else otherwise
