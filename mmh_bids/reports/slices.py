"""Slices of a volume as small pictures and outlines: what the figures are put together from."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from contourpy import contour_generator
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from PIL import Image

from mmh_bids.errors import ImageError

#: Planes by name: the axis they cut, then the axes that run to the right and up in the picture (RAS+ order).
PLANES = {"sagittal": (0, 1, 2), "coronal": (1, 0, 2), "axial": (2, 0, 1)}
#: Longest side of one slice's raster in pixels; finer images are averaged down.
MAX_PIXELS = 256
_JPEG_QUALITY = 75


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D image with its axes turned to the nearest RAS+ order.

    Attributes
    ----------
    data
        (X, Y, Z) array; x to the participant's right, y to the front, z up, as near as the grid allows.
    zooms
        Voxel size along the three axes in mm.
    origin
        Position of voxel (0, 0, 0)'s centre in mm. With `zooms` it gives the place of a slice for grids that
        are parallel to the axes, such as those in template space.
    """

    data: NDArray
    zooms: tuple[float, float, float]
    origin: tuple[float, float, float]

    @property
    def size(self) -> tuple[float, float, float]:
        """Extent in mm along the three axes."""
        x, y, z = (n * zoom for n, zoom in zip(self.data.shape, self.zooms, strict=True))
        return x, y, z

    def crop(self, box: tuple[slice, slice, slice]) -> Volume:
        """The part inside `box`, voxel sizes unchanged, the origin moved."""
        starts = [part.indices(n)[0] for part, n in zip(box, self.data.shape, strict=True)]
        x, y, z = (o + s * zoom for o, s, zoom in zip(self.origin, starts, self.zooms, strict=True))
        return Volume(self.data[box], self.zooms, (x, y, z))

    def index_at(self, axis: int, mm: float) -> int:
        """Index of the slice across `axis` nearest to a position in mm; may lie outside the grid."""
        return round((mm - self.origin[axis]) / self.zooms[axis])


def load_volume(path: Path, dtype: type = np.float32) -> Volume:
    """Read a NIfTI file of any orientation.

    The same as ``nibabel.as_closest_canonical``, which would make a float64 copy of scaled images on the way.

    Raises
    ------
    ImageError
        The file is not a 3-D image.
    """
    image = cast(SpatialImage, nib.load(path))
    data: NDArray = np.asanyarray(image.dataobj, dtype=dtype)
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ImageError(f"{path}: a figure needs a 3-D image, this one has {data.ndim} axes")
    orientation = io_orientation(image.affine)
    affine = image.affine @ inv_ornt_aff(orientation, data.shape)
    x, y, z = (float(zoom) for zoom in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    left, back, low = (float(value) for value in affine[:3, 3])
    return Volume(apply_orientation(data, orientation), (x, y, z), (left, back, low))


def mask_box(mask: Volume, margin_mm: float = 6.0) -> tuple[slice, slice, slice]:
    """Bounding box of a mask with a margin; the whole volume if the mask is empty.

    >>> data = np.zeros((9, 9, 9), bool)
    >>> data[4, 3:6, 4] = True
    >>> mask_box(Volume(data, (1.0, 1.0, 2.0), (0.0, 0.0, 0.0)), margin_mm=2)
    (slice(2, 7, None), slice(1, 8, None), slice(3, 6, None))
    """
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(mask.data.any(axis=others))
        if inside.size == 0:
            return slice(0, mask.data.shape[0]), slice(0, mask.data.shape[1]), slice(0, mask.data.shape[2])
        margin = round(margin_mm / mask.zooms[axis])
        low, high = int(inside[0]) - margin, int(inside[-1]) + 1 + margin
        box.append(slice(max(low, 0), min(high, mask.data.shape[axis])))
    return box[0], box[1], box[2]


def spread(mask: NDArray, axis: int, count: int) -> list[int]:
    """Indices of up to `count` slices across `axis`, evenly over the middle 80 % of the mask's extent.

    >>> mask = np.zeros((5, 5, 40), bool)
    >>> mask[2, 2, 10:31] = True
    >>> spread(mask, axis=2, count=3), spread(mask, axis=0, count=4)
    ([12, 20, 28], [2])
    """
    others = tuple(other for other in range(3) if other != axis)
    inside = np.flatnonzero(mask.any(axis=others))
    low, high = (int(inside[0]), int(inside[-1])) if inside.size else (0, mask.shape[axis] - 1)
    edge = 0.1 * (high - low)
    places = np.linspace(low + edge, high - edge, count)
    return sorted({round(float(place)) for place in places})


def picture(data: NDArray, plane: str, index: int) -> NDArray:
    """One slice as rows from top to bottom: up is superior (or anterior), right is the participant's right.

    In sagittal slices right is anterior.

    >>> data = np.zeros((2, 3, 4))
    >>> data[1, 2, 3] = 1  # right, front, top
    >>> [picture(data, plane, -1)[0, -1] for plane in PLANES]
    [np.float64(1.0), np.float64(1.0), np.float64(1.0)]
    """
    axis, _, _ = PLANES[plane]
    return data.take(index, axis=axis).T[::-1]


def to_bytes(values: NDArray, window: tuple[float, float]) -> NDArray[np.uint8]:
    """Grey levels 0 to 255 for the values of a window; not-a-number is black.

    >>> to_bytes(np.array([-1.0, 0.0, 5.0, 10.0, np.nan]), (0.0, 10.0))
    array([  0,   0, 128, 255,   0], dtype=uint8)
    """
    low, high = window
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def jpeg_uri(grey: NDArray[np.uint8]) -> str:
    """A grey picture as a ``data:`` URI, averaged down if it is larger than MAX_PIXELS."""
    image = Image.fromarray(np.ascontiguousarray(grey))
    if max(image.size) > MAX_PIXELS:
        factor = MAX_PIXELS / max(image.size)
        width, height = (max(1, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def outline(inside: NDArray, zooms: Sequence[float]) -> str:
    """SVG path data, in mm from the picture's upper left corner, of the outline of a mask's picture.

    Parameters
    ----------
    inside
        (rows, columns), as from `picture`: a mask, or any field whose 0.5 level is wanted.
    zooms
        Size of a pixel in mm: height, width.

    Examples
    --------
    >>> outline(np.array([[1]]), (1.0, 2.0))
    'M0 .5l1-.5 1 .5-1 .5z'
    """
    padded = np.pad(np.asarray(inside, dtype=np.float64), 1)
    parts = []
    for line in contour_generator(z=padded).lines(0.5):
        # column and row of the padded grid; +0.5 goes from pixel centres to edges, -1 undoes the padding
        points = (np.asarray(line)[:-1] - 0.5) * (zooms[1], zooms[0])
        # Steps between points rounded to tenths are half as long as positions, and cannot drift.
        tenths = np.rint(points * 10).astype(int)
        steps = np.diff(tenths, axis=0).ravel()
        parts.append("M" + _numbers(tenths[0]) + "l" + _numbers(steps) + "z")
    return "".join(parts)


def _numbers(tenths: NDArray) -> str:
    """Tenths as SVG numbers, with a blank only where one is needed.

    >>> _numbers(np.array([10, -5, 0, 25]))
    '1-.5 0 2.5'
    """
    words = ""
    for value in tenths:
        word = f"{abs(value) / 10:g}"
        word = ("-" if value < 0 else " ") + (word[1:] if word.startswith("0.") else word)
        words += word
    return words.lstrip(" ")
