"""The histogram figure: intensities of input, output and reference in the brain, and the intensity map."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from mmh_bids.image.intensity import MonotoneMap
from mmh_bids.reports.svg import BLUE, VERMILLION

_BINS = 120
_INK = "#222222"
#: Everything that decides the bytes of the file, so that a user's matplotlibrc does not.
_STYLE: Any = {
    "svg.hashsalt": "mmh_bids",
    "svg.fonttype": "path",
    "svg.image_inline": True,
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": True,
}


@dataclass(frozen=True, eq=False)
class Intensities:
    """What the figure shows.

    Attributes
    ----------
    before, after
        (N,) values inside the brain mask, voxel by voxel the same places, each in its image's own units.
    intensity_map
        The sidecar's map (keys of `MonotoneMap.to_json`), in model units, or None. With the optional keys
        ``InputScale`` and ``OutputScale``, each ``[low, high]`` = the own units that 0 and 1 of the model
        stand for, it is drawn over the voxels; else on axes of its own.
    reference_quantiles
        Quantiles of the reference at the probabilities (i + 0.5) / n, in model units, or None. Drawn only if
        ``OutputScale`` tells their place on the axis of `after`.
    """

    before: NDArray
    after: NDArray
    intensity_map: Mapping[str, Any] | None = None
    reference_quantiles: Sequence[float] | NDArray | None = None

    @property
    def reference(self) -> NDArray[np.float64] | None:
        """The reference's quantiles in the units of `after`, None where they cannot be placed."""
        scale = (self.intensity_map or {}).get("OutputScale")
        if self.reference_quantiles is None or scale is None:
            return None
        low, high = scale
        return low + np.asarray(self.reference_quantiles, dtype=np.float64) * (high - low)


def histogram_svg(shown: Intensities, sequence: str) -> str:
    """Draw the figure and return the SVG text, the same bytes for the same input."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(6.4, 7.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(3, 1, height_ratios=(1, 1, 2.1))
        _draw_histogram(axes[0], shown.before, BLUE, f"{sequence} input, in its own units")
        _draw_histogram(axes[1], shown.after, VERMILLION, f"{sequence} output", shown.reference)
        _draw_map(axes[2], shown)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # Without the prologue, which names an outside document type: the file stands for itself.
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def reference_density(quantiles: ArrayLike, edges: NDArray) -> NDArray[np.float64]:
    """Share of a distribution in each bin, from its quantiles at (i + 0.5) / n.

    >>> reference_density(np.linspace(0, 1, 256), np.array([0.0, 0.25, 1.0])).round(2)
    array([0.25, 0.75])
    """
    quantiles = np.asarray(quantiles, dtype=np.float64)
    probabilities = (np.arange(quantiles.size) + 0.5) / quantiles.size
    return np.diff(np.interp(edges, quantiles, probabilities, left=0.0, right=1.0))


def _axis_range(values: NDArray, *more: float) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, (0.1, 99.9)))
    low, high = min(low, 0.0), max([high * 1.05, *more])
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _draw_histogram(axes: Axes, values: NDArray, colour: str, title: str, quantiles: ArrayLike | None = None) -> None:
    tops = [] if quantiles is None else [float(np.quantile(np.asarray(quantiles), 0.999))]
    edges = np.linspace(*_axis_range(values, *tops), _BINS + 1)
    shares = np.histogram(values[np.isfinite(values)], bins=edges)[0] / max(values.size, 1)
    axes.stairs(shares, edges, fill=True, color=colour, alpha=0.45)
    axes.stairs(shares, edges, color=colour, linewidth=1.2, label="this image")
    if quantiles is not None:
        expected = reference_density(quantiles, edges)
        axes.stairs(expected, edges, color=_INK, linewidth=1.6, linestyle="--", label="reference")
        axes.legend(frameon=False, loc="upper left", fontsize=10)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.set_ylabel("share of\nbrain voxels")
    axes.set_title(title, loc="left")


def _draw_map(axes: Axes, shown: Intensities) -> None:
    curve = shown.intensity_map
    scales = (curve or {}).get("InputScale"), (curve or {}).get("OutputScale")
    axes.set_title("Intensity map: input to output", loc="left")
    if curve is None or all(scale is not None for scale in scales):
        _draw_voxels(axes, shown.before, shown.after)
        axes.set_xlabel("input")
        axes.set_ylabel("output")
    else:
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle=":", label="no change")
        axes.set_xlabel("input (0 to 1: its own range)")
        axes.set_ylabel("output (0 to 1)")
    if curve is None:
        return
    fitted = MonotoneMap.from_json({"SlopeBelow": 1.0, "SlopeAbove": 1.0, **curve})
    (low_in, high_in), (low_out, high_out) = (scale or (0.0, 1.0) for scale in scales)
    x = np.unique(np.concatenate([np.linspace(0, 1, 201), np.clip(fitted.x, 0, 1)]))
    axes.plot(
        low_in + x * (high_in - low_in),
        low_out + fitted(x) * (high_out - low_out),
        color=VERMILLION,
        linewidth=2,
        label="fitted map",
    )
    axes.legend(frameon=False, loc="upper left", fontsize=10)


def _draw_voxels(axes: Axes, before: NDArray, after: NDArray) -> None:
    """How often each pair of input and output values occurs, darker for more, on a logarithmic scale."""
    good = np.isfinite(before) & np.isfinite(after)
    x_range, y_range = _axis_range(before), _axis_range(after)
    counts, x_edges, y_edges = np.histogram2d(before[good], after[good], bins=_BINS, range=(x_range, y_range))
    if counts.max(initial=0) > 0:
        shown = np.ma.masked_equal(counts.T, 0)
        extent = (x_edges[0], x_edges[-1], y_edges[0], y_edges[-1])
        axes.imshow(
            shown, origin="lower", extent=extent, aspect="auto", cmap="Greys", interpolation="nearest",
            norm=LogNorm(vmin=0.5, vmax=max(float(counts.max()), 1.0)),
        )  # fmt: skip
    axes.set_xlim(*x_range)
    axes.set_ylim(*y_range)
