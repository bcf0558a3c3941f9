"""The difference map: where harmonization made the image brighter or darker, in colours on one fixed scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.image.intensity import MonotoneMap
from mmh_bids.reports.rows import GAP, LABEL, Row, draw_outline, lay, rows_of
from mmh_bids.reports.slices import Volume, jpeg_uri, picture
from mmh_bids.reports.svg import Sheet

#: Change, as a share of the brightness scale, from which the colour is full. Fixed, so that reports compare.
FULL = 0.1
#: Full colours for darker and brighter: Okabe and Ito's sky blue and orange, which people with any common colour
#: vision tell apart. Black between them is "no change", as the sheet around the brain.
DARKER, BRIGHTER = (86, 180, 233), (240, 170, 20)
_SLICES = {"sagittal": 3, "coronal": 3, "axial": 3}
_KEY = 40.0
_OUTLINE = "#777"


@dataclass(frozen=True, eq=False)
class Change:
    """What became of each voxel, as a share of the brightness scale (1 = from black to the brightest of the brain).

    Attributes
    ----------
    whole
        (X, Y, Z) float32: output less input, each on its own scale, once the input has the output's overall brightness;
        0 outside the brain.
    rest
        Output less what the one intensity map makes of the input; None where there is no map.
    gain
        By how much the output is brighter over all: the median ratio. Shown as colour it would hide all else.
    """

    whole: NDArray[np.float32]
    rest: NDArray[np.float32] | None
    gain: float = 1.0


def change_of(
    before: NDArray,
    after: NDArray,
    inside: NDArray[np.bool_],
    intensity_map: Mapping[str, Any] | None,
    windows: Sequence[tuple[float, float]],
) -> Change:
    """The change inside the brain.

    Parameters
    ----------
    before, after
        (X, Y, Z), each in its own units.
    inside
        (X, Y, Z) the brain.
    intensity_map
        See `mmh_bids.reports.histogram.Intensities`.
    windows
        Intensities of `before` and `after` that stand for 0 and 1 where `intensity_map` has no scales.

    Examples
    --------
    >>> before, inside = np.array([9.0, 5.0, 6.0, 7.0]), np.array([False, True, True, True])
    >>> change = change_of(before, 2 * before + [0, 0, 3, 0], inside, None, [(0, 10), (0, 20)])
    >>> change.gain, change.whole.round(2), change.rest
    (1.0, array([0.  , 0.  , 0.15, 0.  ], dtype=float32), None)
    """
    curve = intensity_map or {}
    scales = [curve.get(name) or window for name, window in zip(("InputScale", "OutputScale"), windows, strict=True)]
    old, new = (
        (image[inside].astype(np.float64) - low) / max(high - low, 1e-12)
        for image, (low, high) in zip((before, after), scales, strict=True)
    )
    lit = (old > 0) & np.isfinite(old) & np.isfinite(new)
    gain = float(np.median(new[lit] / old[lit])) if lit.any() else 1.0
    whole = _placed(new - gain * old, inside)
    if "Input" not in curve:
        return Change(whole, None, gain)
    fitted = MonotoneMap.from_json({"SlopeBelow": 1.0, "SlopeAbove": 1.0, **curve})
    return Change(whole, _placed(new - fitted(old), inside), gain)


def _placed(values: NDArray, inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    out = np.zeros(inside.shape, np.float32)
    out[inside] = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return out


def colours(change: NDArray) -> NDArray[np.uint8]:
    """Blue for darker, orange for brighter, black for no change; full from `FULL` on.

    >>> colours(np.array([-1.0, -0.05, 0.0, 0.1])).tolist()
    [[86, 180, 233], [43, 90, 116], [0, 0, 0], [240, 170, 20]]
    """
    share = np.clip(np.asarray(change, np.float64) / FULL, -1, 1)[..., None]
    mixed = np.where(share < 0, -share * DARKER, share * BRIGHTER)
    return np.rint(mixed).astype(np.uint8)


def difference_sheet(volume: Volume, inside: Volume, change: Change, sequence: str, sloppy: bool = False) -> str:
    """The figure: per plane a row of the change apart from overall brightness and one beyond the intensity map.

    Parameters
    ----------
    volume, inside
        The input and its mask, for the geometry.
    """
    rows = rows_of(volume, inside.data, _SLICES, sloppy)
    kinds = [(f"change apart from brightness ({100 * (change.gain - 1):+.0f} %)", change.whole)]
    if change.rest is not None:
        kinds.append(("beyond the intensity map", change.rest))
    width = max(row.total for row in rows)
    sheet = Sheet(width, _KEY + len(kinds) * sum(row.height + LABEL + GAP for row in rows))
    _draw_key(sheet, width)
    y = _KEY
    for row in rows:
        for name, data in kinds:
            y += LABEL

            def draw(index: int, x: float, row: Row = row, y: float = y, data: NDArray = data) -> None:
                uri = jpeg_uri(colours(picture(data, row.plane, index)))
                sheet.image(x, y, row.width, row.height, uri)
                draw_outline(sheet, inside, row, index, x, y, _OUTLINE)

            mean = float(np.abs(data[inside.data]).mean()) if inside.data.any() else 0.0
            size = f": mean {100 * mean:.1f} %" if row is rows[0] else ""
            lay(sheet, row, y, draw, f"{row.plane}, {name}{size}")
            y += row.height + GAP
    return sheet.render(f"Where the {sequence} image became brighter (orange) or darker (blue)")


def _draw_key(sheet: Sheet, width: float) -> None:
    """The scale of the colours, from darker to brighter."""
    ramp = colours(np.linspace(-FULL, FULL, 201)[None, :].repeat(8, axis=0))
    bar = min(0.4 * width, 180.0)
    left = (width - bar) / 2
    sheet.image(left, 6, bar, 10, jpeg_uri(ramp))
    percent = f"{100 * FULL:.0f} %"
    sheet.text(left - 6, 16, f"{percent} darker", 13, "end")
    sheet.text(left + bar + 6, 16, f"{percent} brighter", 13)
    sheet.text(width / 2, 31, "no change", 13, "middle")
