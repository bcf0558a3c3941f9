"""Pictures that a validation leaves behind, so that one sees what the numbers do not say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray


def save_comparison(before: NDArray[np.float32], after: NDArray[np.float32], title: str, path: Path) -> None:
    """Draw the middle slices of two volumes, the input above, and write a PNG; its folder is made.

    Parameters
    ----------
    before, after
        (X, Y, Z) in [0, 1], RAS+ axes.
    """
    figure = Figure(figsize=(9, 6.4), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    for row, (name, volume) in enumerate((("input", before), ("harmonized", after))):
        for axis in range(3):
            panel = axes[row, axis]
            middle = np.take(volume, volume.shape[axis] // 2, axis=axis)
            panel.imshow(middle.T, cmap="gray", vmin=0, vmax=1, origin="lower", interpolation="nearest")
            panel.axis("off")
        axes[row, 0].set_title(name, color="white", loc="left")
    figure.suptitle(title, color="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
