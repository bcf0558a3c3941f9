"""What `travelling.py` asks of a method, and whether it got it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmh_bids.evaluation.bootstrap import mean_interval, ratio_interval

PLAIN, BLUR = "none", "blur"
CLASSICAL = ("zscore", "whitestripe", "nyul", "histmatch")
LEAST_GRADIENT = 0.95
#: measure -> one number a head
Figures = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Bar:
    """One condition with what was measured; `passed` is None where the run holds nothing to compare with."""

    method: str
    text: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    passed: bool | None = None


def best_classical(figures: Mapping[str, Figures], measure: str) -> str | None:
    """The classical method of the run whose mean is the smallest."""
    present = [name for name in CLASSICAL if name in figures]
    return min(present, key=lambda name: float(np.mean(figures[name][measure]))) if present else None


def candidate_bars(figures: Mapping[str, Figures], method: str) -> list[Bar]:
    """The conditions for one method, from the figures of all methods of one sequence."""
    own, plain = figures[method], figures[PLAIN]
    bars = [
        _against_classical(figures, method, "regional", "regional difference", 0.5),
        _against_classical(figures, method, "mae", "voxel MAE", 1.0),
        _against_classical(figures, method, "contrast_spread", "white/grey contrast spread", 0.5),
        _ratio(method, "Wasserstein-1 over preprocessing only", own["wasserstein"], plain["wasserstein"], 0.25),
    ]
    more = np.subtract(own["dice"], plain["dice"])
    text = "tissue Dice minus preprocessing only: at least 0"
    bars.append(Bar(method, text, float(more.mean()), mean_interval(more), bool(more.mean() >= 0)))
    text = "tissue volume spread over preprocessing only"
    bars.append(_ratio(method, text, own["volume_spread"], plain["volume_spread"], 0.7))
    edges = float(np.mean(own["gradient"]))
    text = f"gradient correlation with the noise-free input: at least {LEAST_GRADIENT:g}"
    bars.append(Bar(method, text, edges, mean_interval(own["gradient"]), edges >= LEAST_GRADIENT))
    for measure, name in (("mae_rescan", "voxel MAE"), ("regional_rescan", "regional difference")):
        bars.append(_ratio(method, f"scan-rescan {name} over preprocessing only", own[measure], plain[measure], 1.1))
    text = "change of the unified image over change of foreign ones"
    bars.append(_ratio(method, text, own["change_unified"], own["change_foreign"], 1 / 3, "under"))
    return bars


def blur_bars(figures: Mapping[str, Figures]) -> list[Bar]:
    """Blur must lose: a benchmark that blur can win measures nothing."""
    if BLUR not in figures:
        return []
    own, plain = figures[BLUR], figures[PLAIN]
    edges, less = float(np.mean(own["gradient"])), np.subtract(own["dice"], plain["dice"])
    lost = edges - float(np.mean(plain["gradient"]))
    return [
        Bar(BLUR, f"gradient correlation with the noise-free input: below {LEAST_GRADIENT:g}, and at least 0.1 below "
            "preprocessing only", edges, mean_interval(own["gradient"]), edges < LEAST_GRADIENT and lost <= -0.1),
        Bar(BLUR, "tissue Dice minus preprocessing only: at most -0.05", float(less.mean()), mean_interval(less),
            bool(less.mean() <= -0.05)),
    ]  # fmt: skip


def _against_classical(figures: Mapping[str, Figures], method: str, measure: str, name: str, limit: float) -> Bar:
    best = best_classical(figures, measure)
    if best is None:
        return Bar(method, f"{name} over the best classical: no classical method in this run")
    text = f"{name} over the best classical ({best})"
    return _ratio(method, text, figures[method][measure], figures[best][measure], limit)


def _ratio(
    method: str, text: str, top: Sequence[float], bottom: Sequence[float], limit: float, word: str = "at most"
) -> Bar:
    """Ratio of two means; a bar of ``under`` is missed by equality."""
    text = f"{text}: {word} {limit:.3g}"
    if not min(bottom) > 0:
        return Bar(method, f"{text} (nothing to compare with: {min(bottom):.3g})")
    value = float(np.mean(top) / np.mean(bottom))
    return Bar(method, text, value, ratio_interval(top, bottom), value < limit if word == "under" else value <= limit)
