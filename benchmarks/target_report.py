"""Conditions and page of `target.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from travelling_bars import CLASSICAL, Bar

from mmh_bids.evaluation.bootstrap import mean_interval, ratio_interval

Cases = Mapping[str, Mapping[str, Mapping[str, float]]]
METHODS = ("none", *CLASSICAL, "stage 1", "one scan", "stage 2", "truth")
ROWS = {
    "regional": "regional difference to the truth",
    "mae": "voxel MAE to the truth",
    "wasserstein": "Wasserstein-1 to the target's image of the head",
    "gradient": "gradient correlation with the input",
}
NOTES = """\
Differences are in units of the truth's white-grey contrast; values are means over heads and scanners, brackets 95 %
bootstrap intervals over heads of the means over scanners.

- truth: the same head with the target's contrast on the scan's own voxels, without field, noise and ghosts; in the
  scale of the head's own preprocessed scan on the target (one factor by least squares), as gains are arbitrary and the
  app scales every image by its own brightest voxels.
- stage 1: the unified look, which is not meant to come near; its Wasserstein-1 distance is what stage 2 is measured by.
- The target's image of the head is the app's preprocessed scan of the same head on the target scanner.
- stage 2: with the average person of each site known, as `mmh-train target` learns it, here from the preprocessed T2w
  of these heads on the scanners that they come from (no truth, no scan of a target). one scan: the same without, as
  for a scan of a site that nothing is known of. On T1w the two are one and the same.
- The classical methods get the target's standards, learned from the same images as the looks.
- The input is the preprocessed scan, noise and all; the truth has the gradient correlation that a perfect method gets.
"""


def values(cases: Cases, method: str, name: str) -> np.ndarray:
    """A measure of a method, mean over the scanners of each head."""
    heads = sorted({key.split()[0] for key in cases})
    return np.array([np.mean([cases[k][method][name] for k in cases if k.split()[0] == head]) for head in heads])


def conditions(cases: Cases) -> list[Bar]:
    """What stage 2 has to reach, for one target and sequence."""
    bars = [_ratio("Wasserstein-1 over stage 1", cases, "wasserstein", "stage 1", 0.4)]
    bars += _over_classical(cases, "stage 2")
    edges = values(cases, "stage 2", "gradient")
    text = "gradient correlation with the input: at least 0.95"
    bars.append(Bar("stage 2", text, float(edges.mean()), mean_interval(edges), bool(edges.mean() >= 0.95)))
    return bars


def _over_classical(cases: Cases, method: str) -> list[Bar]:
    bars = []
    for name, text in (("regional", "regional difference"), ("mae", "voxel MAE")):
        best = min(CLASSICAL, key=lambda one: float(values(cases, one, name).mean()))
        bars.append(_ratio(f"{text} over the best classical ({best})", cases, name, best, 0.7, method))
    return bars


def _ratio(text: str, cases: Cases, name: str, other: str, limit: float, method: str = "stage 2") -> Bar:
    own, base = values(cases, method, name), values(cases, other, name)
    ratio = float(own.mean() / base.mean())
    return Bar(method, f"{text}: at most {limit:g}", ratio, ratio_interval(own, base), ratio <= limit)


def _row(bar: Bar, text: str, said: str) -> str:
    low, high = bar.interval or (float("nan"), float("nan"))
    return f"| {text} | {bar.value:.3f} | [{low:.3f}, {high:.3f}] | {said} |"


def page(raw: Mapping[str, Cases], bars: Mapping[str, list[Bar]], about: Any) -> str:
    """The page as Markdown."""
    heads, scanners = (", ".join(map(str, about[key])) for key in ("heads", "scanners"))
    lines = [
        "# A target scanner's look",
        "",
        f"Made by `benchmarks/target.py` (`make benchmark-target`): heads {heads}, ",
    ]
    lines[-1] += f"scanners {scanners}, none of them trained on; bundle `{about['model']}`."
    lines += ["", NOTES]
    for name, cases in raw.items():
        lines += [f"## Target {name}", "", "| | " + " | ".join(METHODS) + " |", "|---|" + "---:|" * len(METHODS)]
        for row, text in ROWS.items():
            cells = [f"{values(cases, method, row).mean():.3f}" for method in METHODS]
            lines.append(f"| {text} | " + " | ".join(cells) + " |")
        lines += ["", "| condition | value | | |", "|---|---:|---|---|"]
        lines += [_row(bar, bar.text, "met" if bar.passed else "**missed**") for bar in bars[name]]
        for bar in _over_classical(cases, "one scan"):  # a site that nothing is known of
            lines.append(_row(bar, f"one scan: {bar.text.partition(':')[0]}", "no condition"))
        lines.append("")
    return "\n".join(lines)
