"""Tissues to given levels by one curve of intensity, as far as can be told and without harm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError

#: The brightest value given out; the unified look itself ends at 1.
CEILING = 1.25
#: How far grey and white matter may lie from their levels, as a share of their contrast: beyond it is no brain, or one
#: that lies otherwise than the template, and a curve would do harm. Likewise bright fluid, as a share of what lies
#: between it and grey matter: beyond it its level was read off something else.
_PLAUSIBLE = 0.5
#: How much the last curve may stretch or squeeze what lies between two tissues where fluid is dark, and where it is
#: bright: more of a stretch would be noise. The network leaves grey and white matter of real T2w up to 1.6 times too
#: near each other, of simulated ones hardly ever 1.2 times.
_STRETCH, _STRETCH_BRIGHT = 1.3, 1.6
#: How far bright fluid of the unified look may stay from its level, as a share of what lies between it and grey matter:
#: among scans of the unified look itself the ventricles give it no more exactly than that.
ROOM = 0.1
#: Slope of the curve above bright fluid, the least that the network's own curve may have: in the unified look nothing
#: is brighter than fluid, so that this is noise for the most part.
_SLOPE_ABOVE = 1 / 3
#: What is left out at the rim where levels are to be exact, millimetres: two voxels of the model grid. Without, grey
#: matter of half of the T2w of a simulated 3 T scanner was found too dark, by up to a fifth of the contrast.
RIM_MM = 2.0


def levelled(
    volume: NDArray[np.float32],
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
    levels: Sequence[float],
    room: float = ROOM,
    rim_mm: float = 0.0,
) -> tuple[NDArray[np.float32], list[float] | None]:
    """Bring grey and white matter, and fluid to or near its level, to given levels by one curve.

    White matter gets its level; grey matter, and from there fluid, come as near theirs as a stretch between 1/1.3 and
    1.3 of what lies between allows (1/1.6 and 1.6 where fluid is bright). Bright fluid goes along with grey matter as
    long as it stays within some room around its level, or where it was found too far from that to be fluid. The curve
    is straight between tissues and down to zero, of slope 1/3 above bright fluid; else above the brightest tissue it is
    a shift, above white matter only from as far again as grey matter is below.

    Parameters
    ----------
    volume, mask
        (X, Y, Z), zero outside the mask.
    levels
        (3,) fluid, grey and white matter.
    room
        How far bright fluid may stay from its level, as a share of what lies between it and grey matter.
    rim_mm
        What is left out of the mask at its rim where levels are measured: voxels that bright fluid shares with the dark
        around the brain look like grey matter.

    Returns
    -------
    The volume, 0 to `CEILING`, and the levels it had; unchanged and None where no tissue can be told apart or what
    was found of grey and white matter is implausibly far from the levels.
    """
    from mmh_bids.image.levels import tissue_levels

    try:
        found = tissue_levels(volume, _inner(mask, affine, rim_mm), affine)
    except ImageError:
        return volume, None
    knots = _level_curve(found, np.asarray(levels, float), room)
    if knots is None:
        return volume, None
    x, y = knots
    out = (np.interp(volume, x, y) + np.maximum(volume - x[-1], 0)).clip(0, CEILING)
    return np.where(mask, out, 0).astype(np.float32), [round(float(level), 6) for level in found]


def _inner(mask: NDArray[np.bool_], affine: NDArray[np.float64], rim_mm: float) -> NDArray[np.bool_]:
    """The mask without its rim.

    >>> int(_inner(np.ones((9, 9, 9), bool), np.eye(4), 2.0).sum())
    125
    """
    from scipy.ndimage import binary_erosion

    voxels = round(rim_mm / float(np.linalg.norm(affine[:3, 0])))
    return binary_erosion(mask, iterations=voxels) if voxels else mask


def _level_curve(
    found: NDArray[np.float64], asked: NDArray[np.float64], room: float = ROOM
) -> tuple[NDArray, NDArray] | None:
    """Knots of `levelled`'s curve, both ascending from zero; None where it would do harm.

    Examples
    --------
    >>> x, y = _level_curve(np.array([0.2, 0.55, 0.7]), np.array([0.15, 0.5, 0.74]))
    >>> x.round(3).tolist(), y.round(3).tolist()
    ([0.0, 0.2, 0.55, 0.7, 0.85], [0.0, 0.195, 0.545, 0.74, 0.935])
    >>> x, y = _level_curve(np.array([0.75, 0.34, 0.22]), np.array([0.65, 0.33, 0.23]))
    >>> x.round(3).tolist(), y.round(3).tolist()
    ([0.0, 0.22, 0.34, 0.75, 1.75], [0.0, 0.23, 0.33, 0.682, 1.015])
    """
    has, wants = np.diff(found), np.diff(asked)
    if np.abs(found - asked)[1:].max() > _PLAUSIBLE * abs(wants[1]) or (has * wants).min() <= 0:
        return None
    dark = asked[0] < asked[2]
    most = _STRETCH if dark else _STRETCH_BRIGHT
    grey = asked[2] - _step(has[1], wants[1], most)
    if dark:
        x = [*found, 2 * found[2] - found[1]]
        y = [grey - _step(has[0], wants[0], most), grey, asked[2], 2 * asked[2] - grey]
    else:
        x, y = [found[2], found[1]], [asked[2], grey]
        if abs(found[0] - asked[0]) <= _PLAUSIBLE * abs(wants[0]):
            most_off = room * abs(wants[0])
            goal = np.clip(grey - has[0], asked[0] - most_off, asked[0] + most_off)
            fluid = grey - _step(has[0], grey - goal, most)
            x, y = [*x, found[0], found[0] + 1], [*y, fluid, fluid + _SLOPE_ABOVE]
    knots = np.array([0.0, *x]), np.array([0.0, *y])
    return knots if min(np.diff(side).min() for side in knots) > 0 else None


def _step(has: float, wants: float, most: float) -> float:
    """What lies between two tissues, stretched or squeezed towards what is wanted, `most`-fold at most.

    >>> _step(0.2, 0.3, 2.0), _step(-0.2, -0.1, 1.6)
    (0.3, -0.125)
    """
    return float(has * np.clip(wants / has, 1 / most, most))
