"""Rows of slices on a sheet: one row a plane, as most figures lay them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from mmh_bids.reports.slices import PLANES, Volume, jpeg_uri, outline, picture, spread, to_bytes
from mmh_bids.reports.svg import Sheet

#: Space between two slices or rows, and height of a row's label, in mm.
GAP = 6.0
LABEL = 22.0
# The letters at the left and the right end of a row of slices.
_SIDES = {"sagittal": ("P", "A"), "coronal": ("L", "R"), "axial": ("L", "R")}


@dataclass(frozen=True)
class Row:
    """A row of slices in one plane: which, and how large one is in mm."""

    plane: str
    indices: Sequence[int]
    width: float
    height: float

    @property
    def total(self) -> float:
        """Width of the whole row in mm."""
        return len(self.indices) * (self.width + GAP) - GAP


def rows_of(volume: Volume, inside: NDArray, counts: Mapping[str, int], sloppy: bool) -> list[Row]:
    """The rows of a sheet: slices spread over the mask `inside`, `counts` by plane, two with `sloppy`."""
    rows = []
    for plane, (axis, right, up) in PLANES.items():
        indices = spread(inside, axis, 2 if sloppy else counts[plane])
        rows.append(Row(plane, indices, volume.size[right], volume.size[up]))
    return rows


def lay(sheet: Sheet, row: Row, y: float, draw: Callable[[int, float], None], label: str) -> None:
    """Draw one row of slices below the line `y`, centred, with its label and the letters of its sides."""
    left = (sheet.width - row.total) / 2
    for number, index in enumerate(row.indices):
        draw(index, left + number * (row.width + GAP))
    for x, letter, anchor in zip((left + 2, left + row.total - 2), _SIDES[row.plane], ("start", "end"), strict=True):
        sheet.text(x, y + row.height / 2, letter, 13, anchor)
    sheet.text(4, y - 6, label)


def draw_raster(
    sheet: Sheet, volume: Volume, row: Row, index: int, x: float, y: float, window: tuple[float, float]
) -> None:
    """One slice in grey, its upper left corner at (x, y)."""
    grey = to_bytes(picture(volume.data, row.plane, index), window)
    sheet.image(x, y, row.width, row.height, jpeg_uri(grey))


def draw_outline(sheet: Sheet, volume: Volume, row: Row, index: int, x: float, y: float, colour: str) -> None:
    """The outline of a mask in one slice, its picture's upper left corner at (x, y)."""
    _, right, up = PLANES[row.plane]
    data = outline(picture(volume.data, row.plane, index), (volume.zooms[up], volume.zooms[right]))
    sheet.path(x, y, data, colour, 1.2)
