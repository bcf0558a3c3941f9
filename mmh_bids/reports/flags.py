"""Quality thresholds, in one place, with a plain sentence for each.

There are two kinds. Beyond the first an image asks for a look; that decides nothing. Beyond the second, which lies
farther out and which not all values have, it is called unusable, and ``--qc-fail`` may keep it out. docs/qc.md says
from which measured distributions both follow. Keys are those of the sidecar's quality values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Flag:
    """One quality value beyond its threshold.

    Attributes
    ----------
    key
        The value that is marked, e.g. ``"GradientCorrelation"``.
    value
        What was measured, for people, with its unit.
    limit
        The accepted range, for people.
    sentence
        What it means and what to do, one or two sentences.
    usable
        The range in which the image can still be used, for people; empty where no value is called unusable.
    unusable
        The value is outside that range too.
    """

    key: str
    value: str
    limit: str
    sentence: str
    usable: str = ""
    unusable: bool = False


@dataclass(frozen=True)
class Quantity:
    """How one quality value is shown: name for people, unit, digits after the point."""

    key: str
    label: str
    unit: str = ""
    digits: int = 3


@dataclass(frozen=True)
class Rule:
    """A threshold: where `accepts` is False for the values of `keys`, ``keys[-1]`` gets a flag.

    Where `endures` is False as well, the image is unusable; None: this value alone never says so.
    """

    keys: tuple[str, ...]
    accepts: Callable[..., bool]
    limit: str
    sentence: str
    endures: Callable[..., bool] | None = None
    usable: str = ""


def _at_least(key: str, least: float, sentence: str, usable: float | None = None) -> Rule:
    """A value that must not be lower; below `usable` the image is unusable."""
    endures = None if usable is None else (lambda value: value >= usable)
    return Rule(
        (key,),
        lambda value: value >= least,
        f"at least {least:.2f}",
        sentence,
        endures,
        "" if usable is None else f"at least {usable:.2f}",
    )


def _must_be(key: str, sentence: str) -> Rule:
    """Yes or no, and unusable if no."""
    return Rule((key,), bool, "yes", sentence, bool, "yes")


QUANTITIES = (
    Quantity("MappedGradientCorrelation", "Edges kept: gradient correlation of output and input seen through the map"),
    Quantity("GradientCorrelation", "Edges and their weights kept: gradient correlation of output and input"),
    Quantity("RangeMin", "Smallest output value", digits=4),
    Quantity("RangeMax", "Largest output value", digits=4),
    Quantity("Finite", "All output values are finite"),
    Quantity("NonNegative", "No output value is negative"),
    Quantity("IntensityMapMonotone", "Intensity map never falls"),
    Quantity("BrainMaskVolume", "Volume of the brain mask", "mL", 0),
    Quantity("ParenchymaVolumeBefore", "Parenchyma volume, input", "mL", 0),
    Quantity("ParenchymaVolumeAfter", "Parenchyma volume, output", "mL", 0),
    Quantity("ReferenceDistanceBefore", "Distance to the reference histogram, input", digits=4),
    Quantity("ReferenceDistanceAfter", "Distance to the reference histogram, output", digits=4),
    Quantity("WhiteGreyContrastBefore", "White-grey contrast, input"),
    Quantity("WhiteGreyContrastAfter", "White-grey contrast, output"),
    Quantity("GridCoverage", "Share of the brain mask inside the model grid", digits=4),
    Quantity("TemplateSimilarity", "Similarity to the template after registration"),
    Quantity("TemplateDice", "Overlap (Dice) with the template's brain after registration"),
)

#: Largest accepted change of the parenchyma volume, as a share of the input's.
PARENCHYMA_CHANGE = 0.10
#: Change from which volumes of the output are beyond use.
PARENCHYMA_LOSS = 0.25
#: Growth of the distance to the reference below this share is rounding, not a finding.
DISTANCE_GROWTH = 0.001

RULES = (
    _at_least(
        "MappedGradientCorrelation",
        0.95,
        "Edges of the output differ from those of the input: anatomy may have been blurred or changed. "
        "Compare the two pictures closely before using this image.",
        usable=0.90,
    ),
    _at_least(
        "GradientCorrelation",
        0.85,
        "The contrast was stretched a lot, and noise with it: the input has little contrast, or much noise. "
        "Compare the two pictures, and think twice before measuring small things in this image.",
    ),
    Rule(
        ("BrainMaskVolume",),
        lambda value: 900 <= value <= 1900,
        "900 to 1900 mL",
        "The brain mask is smaller or larger than an adult brain: look at the mask outline. A wrong mask "
        "spoils everything after it; give a better one with --derivatives. (A child's brain or a cropped "
        "scan may be right.)",
        lambda value: 600 <= value <= 2200,
        "600 to 2200 mL",
    ),
    _must_be(
        "Finite", "The output holds NaN or infinite values and must not be used; please report this with the log."
    ),
    _must_be(
        "NonNegative",
        "The output holds negative values, which a magnitude image cannot have; some tools will misread it.",
    ),
    _must_be(
        "IntensityMapMonotone",
        "Brighter tissue of the input became darker in the output: the contrast was turned over somewhere. "
        "Do not use this image for segmentation without looking at it.",
    ),
    Rule(
        ("ParenchymaVolumeBefore", "ParenchymaVolumeAfter"),
        lambda before, after: before > 0 and abs(after - before) <= PARENCHYMA_CHANGE * before,
        "within 10 % of the input's",
        "Grey plus white matter measure differently after harmonization: volumes from this image cannot be trusted.",
        # Without three classes in the input there is nothing to compare with.
        lambda before, after: before <= 0 or abs(after - before) <= PARENCHYMA_LOSS * before,
        "within 25 % of the input's",
    ),
    Rule(
        ("ReferenceDistanceBefore", "ReferenceDistanceAfter"),
        lambda before, after: after <= before * (1 + DISTANCE_GROWTH),
        "not above the input's",
        "The image is farther from the reference than it was: harmonization did not help here. Look at the "
        "histograms; an unusual contrast or a wrong mask are the usual causes.",
    ),
    _at_least(
        "GridCoverage",
        0.99,
        "Part of the brain lies outside the model grid and was only changed by the intensity map: check the "
        "registration picture.",
        usable=0.95,
    ),
    _at_least(
        "TemplateDice",
        0.90,
        "The brain does not lie well on the template: compare the outlines in the registration picture. A wrong mask, "
        "a cropped scan or a failed registration are the usual causes.",
        usable=0.80,
    ),
)


def flags(qc: Mapping[str, Any]) -> list[Flag]:
    """The values of `qc` that call for a look, in the order of the rules.

    Missing keys and None are passed over, unknown keys are never flagged, and a value with a threshold that
    is not a finite number is flagged, since it could not be measured.

    >>> [flag.key for flag in flags({"GradientCorrelation": 0.8, "Finite": True, "Something": -1})]
    ['GradientCorrelation']
    >>> [flag.key for flag in flags({"ParenchymaVolumeBefore": 1000, "ParenchymaVolumeAfter": 1101})]
    ['ParenchymaVolumeAfter']
    >>> flags({"BrainMaskVolume": float("nan")})[0].value
    'not measurable'
    >>> flags({})
    []
    """
    found = []
    for rule in RULES:
        values = [qc.get(key) for key in rule.keys]
        if any(value is None for value in values):
            continue
        key = rule.keys[-1]
        if not all(_is_number(value) for value in values):
            broken = rule.endures is not None
            found.append(Flag(key, "not measurable", rule.limit, rule.sentence, rule.usable, broken))
        elif not rule.accepts(*values):
            broken = rule.endures is not None and not rule.endures(*values)
            found.append(Flag(key, show(key, qc[key]), rule.limit, rule.sentence, rule.usable, broken))
    return found


def unusable(qc: Mapping[str, Any]) -> list[Flag]:
    """The values of `qc` beyond which an image should not be used, in the order of the rules.

    >>> [flag.key for flag in unusable({"MappedGradientCorrelation": 0.92, "GridCoverage": 0.9, "Finite": True})]
    ['GridCoverage']
    """
    return [flag for flag in flags(qc) if flag.unusable]


def limit(key: str) -> str:
    """The accepted range of a value for people, empty where there is none.

    >>> limit("BrainMaskVolume"), limit("RangeMax")
    ('900 to 1900 mL', '')
    """
    return next((rule.limit for rule in RULES if rule.keys[-1] == key), "")


def usable(key: str) -> str:
    """The range in which an image can still be used, for people; empty where this value never says otherwise.

    >>> usable("BrainMaskVolume"), usable("GradientCorrelation")
    ('600 to 2200 mL', '')
    """
    return next((rule.usable for rule in RULES if rule.keys[-1] == key), "")


def label(key: str) -> str:
    """Name of a value for people; the key itself where it is unknown.

    >>> label("RangeMin"), label("SomethingNew")
    ('Smallest output value', 'SomethingNew')
    """
    return next((quantity.label for quantity in QUANTITIES if quantity.key == key), key)


def show(key: str, value: Any) -> str:
    """A value with its digits and unit.

    >>> show("BrainMaskVolume", 1234.56), show("Finite", True), show("SomethingNew", 0.123456)
    ('1235 mL', 'yes', '0.1235')
    """
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not _is_number(value):
        return "not measurable" if isinstance(value, float) else str(value)
    known = next((quantity for quantity in QUANTITIES if quantity.key == key), None)
    if known is None:
        return f"{value:.4g}"
    return f"{value:.{known.digits}f} {known.unit}".strip()


def ordered(qc: Mapping[str, Any]) -> list[str]:
    """Keys of `qc`: the known ones in their fixed order, then the others by name.

    >>> ordered({"Zeta": 1, "Finite": True, "GradientCorrelation": 1.0, "Alpha": 2})
    ['GradientCorrelation', 'Finite', 'Alpha', 'Zeta']
    """
    known = [quantity.key for quantity in QUANTITIES if quantity.key in qc]
    return known + sorted(set(qc) - set(known))


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) and math.isfinite(value)
