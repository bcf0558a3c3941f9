"""Tables, page and picture of `travelling.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import travelling_measure
from matplotlib.figure import Figure
from travelling_bars import Bar, Figures
from travelling_data import BLUR_FWHM, PLAIN, Study

from mmh_bids.evaluation.bootstrap import mean_interval
from mmh_bids.evaluation.fidelity import LinearSums, psnr

#: measure: (row of the table, digits)
ROWS = {
    "regional": ("regional difference between scanners", 4),
    "regional_rescan": ("... scan-rescan on one scanner (floor)", 4),
    "mae": ("voxel MAE between scanners", 4),
    "mae_rescan": ("... floor", 4),
    "ssim": ("SSIM between scanners", 4),
    "ssim_rescan": ("... floor", 4),
    "wasserstein": ("Wasserstein-1 of histograms between scanners", 4),
    "wasserstein_rescan": ("... floor", 4),
    "contrast_spread": ("white/grey contrast spread", 4),
    "dice": ("tissue Dice with the truth", 4),
    "volume_spread": ("tissue volume spread", 4),
    "gradient": ("gradient correlation with the noise-free input", 4),
    "gradient_ideal": ("... of the unified truth itself, which no method made", 4),
    "gradient_input": ("gradient correlation with the preprocessed input", 4),
    "psnr": ("PSNR to the unified truth, dB", 2),
    "change_foreign": ("change of foreign images", 4),
    "change_unified": ("change of the unified image", 4),
    "contrast": ("white-grey contrast, method's own scale", 4),
}
NOTES = f"""\
Differences are in units of the same method's white-grey contrast: medians of the true white matter and cortex, mean
over the scanners. Values are means over heads; brackets hold the 95 % bootstrap interval over heads (10,000
resamples, fixed seed). With few heads such intervals are too narrow.

- Compared are the voxels of the true brain that all extracted brains of the head cover, on the 1 mm grid of the
  label map, brought there by the exact poses (trilinear).
- regional difference: means over label x 12 mm block, at least 30 voxels, weighted by size, over all pairs of
  scanners; MAE, SSIM (MONAI, uniform window of 7 voxels) and Wasserstein-1 in the same voxels.
- floor: the same measure for one head scanned twice on one scanner, other noise.
- tissue classes: Gaussian mixture of three classes of one width on the image smoothed by 1.5 mm (FWHM inside the
  mask), T2w on its logarithm, the same for every method; spreads are standard deviation over mean between scanners.
- gradients and PSNR on each image's own grid; PSNR after one gain and offset a method, common to all its images.
- change: mean absolute difference of preprocessed and harmonized image after one gain an image. The unified image
  is the head on the ideal scanner, without fields and noise.
- `{PLAIN}` is preprocessing only, each image on its own scale (99.9th percentile of the brain = 1); `blur` is that
  smoothed by {BLUR_FWHM:g} mm (FWHM) inside the extracted brain.
- `truth` is no method but the unified truth on each image's own grid, without noise: what differs there is slice
  thickness and resampling alone, and no method that keeps to the input's voxels should be expected to do better.
"""
_TOP = 99.5
#: Mean square error of an image with itself, but for rounding.
_EXACT = 1e-10


def add_psnr(by_method: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Turn the sums of each head into a PSNR, after one line a method; the truth itself has none."""
    for heads in by_method.values():
        sums = [LinearSums(**one["sums"]) for one in heads]
        total = sums[0]
        for one in sums[1:]:
            total = total + one
        line = total.line()
        for values, own in zip(heads, sums, strict=True):
            error = own.mean_square_error(*line)
            if error > _EXACT:
                values["psnr"] = psnr(error)


def figures(by_method: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """Method -> measure -> one number a head; a method lacks what is not measured for it."""
    return {
        method: {name: [one[name] for one in heads] for name in ROWS if name in heads[0]}
        for method, heads in by_method.items()
    }


def table(methods: Mapping[str, Figures]) -> str:
    """Markdown: a row a measure, a column a method."""
    lines = ["| measure | " + " | ".join(methods) + " |", "|---|" + "---:|" * len(methods)]
    for name, (title, digits) in ROWS.items():
        cells = [_cell(figures[name], digits) if name in figures else "-" for figures in methods.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    low, high = mean_interval(values)
    return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"


def bar_table(bars: Sequence[Bar]) -> str:
    """Markdown: one bar a row."""
    lines = ["| method | condition | measured | |", "|---|---|---:|---|"]
    for bar in bars:
        value = "-" if bar.value is None else f"{bar.value:.3f}"
        if bar.interval and bar.interval[0] != bar.interval[1]:
            value += f" [{bar.interval[0]:.3f}, {bar.interval[1]:.3f}]"
        verdict = {True: "pass", False: "**FAIL**", None: "not measured"}[bar.passed]
        lines.append(f"| {bar.method} | {bar.text} | {value} | {verdict} |")
    return "\n".join(lines)


def page(study: Study, results: Mapping[str, Mapping[str, Figures]], bars: Mapping[str, Sequence[Bar]]) -> str:
    """The whole Markdown page."""
    heads, scanners = ", ".join(map(str, study.heads)), ", ".join(study.scanners)
    parts = [
        "# Travelling subjects\n",
        f"Simulated heads {heads} on the simulated scanners {scanners}; scanned twice on {study.rescanned}. "
        "Made by `benchmarks/travelling.py`; nobody was scanned.\n",
        NOTES,
        "![Regional differences and slices](travelling.png)\n",
    ]
    for sequence, methods in results.items():
        parts += [f"## {sequence}\n", table(methods) + "\n"]
        if bars[sequence]:
            parts += [f"Conditions, {sequence}:\n", bar_table(bars[sequence]) + "\n"]
    return "\n".join(parts)


def as_json(
    study: Study,
    raw: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]],
    bars: Mapping[str, Sequence[Bar]],
) -> str:
    """Everything measured, head by head."""
    values = {
        "heads": study.heads,
        "scanners": study.scanners,
        "rescanned": study.rescanned,
        "measures": raw,
        "bars": {sequence: [vars(bar) for bar in some] for sequence, some in bars.items()},
    }
    return json.dumps(_rounded(values), indent=1) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def picture(study: Study, results: Mapping[str, Mapping[str, Figures]], path: Path) -> None:
    """Regional difference by method, and one head's middle slice on every scanner by method."""
    count = len(study.methods)
    figure = Figure(figsize=(4.5 + 2.1 * len(study.scanners), (1.2 + 1.25 * count) * len(results)), dpi=80)
    rows = np.atleast_1d(figure.subfigures(len(results), 1))
    for row, (sequence, methods) in zip(rows, results.items(), strict=True):
        left, right = row.subfigures(1, 2, width_ratios=[4.5, 2.1 * len(study.scanners)])
        _draw_differences(left, sequence, methods, study.rescanned)
        _draw_slices(right, study, sequence)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _draw_differences(part: Any, sequence: str, methods: Mapping[str, Figures], rescanned: str) -> None:
    axes = part.subplots()
    part.subplots_adjust(left=0.24, right=0.96, bottom=0.14, top=0.9)
    places = np.arange(len(methods))
    for measure, color, label in (
        ("regional", "#35618f", "between scanners"),
        ("regional_rescan", "#e08b3c", f"scan-rescan on {rescanned}"),
    ):
        means = np.array([np.mean(one[measure]) for one in methods.values()])
        limits = np.array([mean_interval(one[measure]) for one in methods.values()]).T
        errors = np.abs(limits - means)
        shift = -0.2 if measure == "regional" else 0.2
        axes.barh(places + shift, means, 0.38, xerr=errors, color=color, label=label, error_kw={"lw": 1})
    axes.set_yticks(places, list(methods))
    axes.invert_yaxis()
    axes.set_xlabel("regional difference / white-grey contrast")
    axes.set_title(f"{sequence}, simulated heads", fontsize=10)
    axes.legend(fontsize=7, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_slices(part: Any, study: Study, sequence: str) -> None:
    head = study.heads[0]
    axes = part.subplots(len(study.methods), len(study.scanners), squeeze=False)
    part.subplots_adjust(left=0.1, right=0.99, bottom=0.01, top=0.9, wspace=0.02, hspace=0.02)
    part.suptitle(f"simulated head {head}, {sequence}, brain only, one window a method", fontsize=10)
    for line, method in zip(axes, study.methods, strict=True):
        slices = travelling_measure.slices(study, head, sequence, method)
        top = float(np.mean([np.percentile(one[one > 0], _TOP) for one in slices.values()]))
        for place, (scanner, one) in zip(line, slices.items(), strict=True):
            # columns of the array run from left to right: radiological pictures would be mirrored
            place.imshow(one.T, cmap="gray", vmin=0, vmax=top, origin="lower", interpolation="bilinear")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
            if method == study.methods[0]:
                place.set_title(f"scanner {scanner}", fontsize=8)
        line[0].set_ylabel(method, fontsize=8)
