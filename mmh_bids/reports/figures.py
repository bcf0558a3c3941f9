"""The pictures of one image's report: mask, before/after, difference, histograms, registration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.files import atomic_write
from mmh_bids.reports.difference import change_of, difference_sheet
from mmh_bids.reports.histogram import Intensities, histogram_svg
from mmh_bids.reports.rows import GAP, LABEL, Row, draw_outline, draw_raster, lay, rows_of
from mmh_bids.reports.slices import PLANES, Volume, jpeg_uri, load_volume, mask_box, picture, to_bytes
from mmh_bids.reports.svg import ORANGE, SKY, Sheet

#: What each figure shows, by the label in its file name; the report prints these under the pictures.
CAPTIONS = {
    "mask": (
        "Brain mask (orange outline) over the input image. The outline should follow the outer edge "
        "of the brain: no skull, eyes or scalp inside, no brain outside."
    ),
    "beforeafter": (
        "Input and output, the same slices. One rule sets the grey scale of both: black is 0 (or the "
        "0.5th percentile where that is negative), white is the 99.5th percentile inside the brain "
        "mask, each in its own units (given in the picture). So compare contrast and detail here; a "
        "change of overall brightness alone does not show, the histograms tell it. The edge of the "
        "brain and all fine structure must be in the same place."
    ),
    "difference": (
        "Output less input, each on its own brightness scale (0 black, 1 the brightest of the brain), once the input "
        "was made as bright over all as the output (the percentage given). Orange: "
        "brighter than it was; blue: darker; black: no change; full colour stands for 10 % of the scale or more. "
        "The first row of each plane shows all of it, so also a new contrast between tissues, which is what "
        "harmonization is for. The second row shows what the one intensity map does not explain: "
        "smooth patches are a field that was evened out, speckle is noise that was taken off; lines along "
        "the folds mean edges that were sharpened, blurred or moved: compare the pictures above there."
    ),
    "histogram": (
        "Intensities inside the brain mask: input in its own units, output with the reference it "
        "should come near to (dashed), and the map from input to output intensity. Grey dots, where "
        "drawn, are the voxels; those off the line changed by more than the one map explains."
    ),
    "registration": (
        "The image in template space with the outline of the ICBM152 2009a brain (orange) and of its "
        "white matter (blue). Outlines should follow the brain's surface and the ventricles within a "
        "few millimetres; individual folds never match."
    ),
}
#: File name label to heading, in the order of the report.
TITLES = {
    "mask": "Brain mask",
    "registration": "Registration to the template",
    "beforeafter": "Before and after",
    "difference": "Difference map",
    "histogram": "Histograms and intensity map",
}
_TEMPLATE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
_TEMPLATE_WHITE = "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz"
_SLICES_MASK = {"sagittal": 5, "coronal": 6, "axial": 6}
_SLICES_PAIR = {"sagittal": 4, "coronal": 5, "axial": 5}


def draw_figures(
    before: Path,
    after: Path,
    mask: Path,
    folder: Path,
    stem: str,
    sequence: str,
    intensity_map: Mapping[str, Any] | None,
    reference_quantiles: Sequence[float] | NDArray | None,
    registration: Path | None = None,
    sloppy: bool = False,
) -> list[Path]:
    """Draw the figures of one image as SVG files, the same bytes for the same input.

    Parameters
    ----------
    before, after, mask
        NIfTI files on one grid, of any orientation and voxel size: the preprocessed input, the harmonized
        image, and the brain mask (above 0.5 is brain).
    folder
        Where the files go; made if missing.
    stem, sequence
        Start of the file names and suffix: ``<stem>_desc-mask_<sequence>.svg`` and so on.
    intensity_map, reference_quantiles
        See `mmh_bids.reports.histogram.Intensities`.
    registration
        The image resampled to template space (mm of ICBM152), or None for no such figure.
    sloppy
        Two slices a plane only.

    Returns
    -------
    The files, in the order mask, beforeafter, difference, histogram, registration.

    Raises
    ------
    ImageError
        The grids differ, or a file is not a 3-D image.
    """
    inside = load_volume(mask)
    inside = Volume(inside.data > 0.5, inside.zooms, inside.origin)
    box = mask_box(inside)
    cropped = inside.crop(box)
    pair = []
    for path in (before, after):
        volume = load_volume(path)
        if volume.data.shape != inside.data.shape:
            shapes = f"{volume.data.shape} and {inside.data.shape}"
            raise ImageError(f"{path}: not on the grid of its mask {mask} ({shapes}); figures need one grid")
        # A copy, so that the whole head does not stay in memory behind a view of it.
        part = volume.crop(box)
        pair.append(Volume(part.data.copy(), part.zooms, part.origin))
    inside = cropped
    values = [volume.data[inside.data] for volume in pair]
    drawn = {
        "mask": _mask_sheet(pair[0], inside, _window(values[0]), sequence, sloppy),
        "beforeafter": _pair_sheet(pair, inside, [_window(each) for each in values], sequence, sloppy),
        "difference": difference_sheet(
            pair[0],
            inside,
            change_of(pair[0].data, pair[1].data, inside.data, intensity_map, [_window(each) for each in values]),
            sequence,
            sloppy,
        ),
        "histogram": histogram_svg(Intensities(values[0], values[1], intensity_map, reference_quantiles), sequence),
    }
    if registration is not None:
        drawn["registration"] = _registration_sheet(load_volume(registration), sequence, sloppy)
    return [atomic_write(folder / f"{stem}_desc-{name}_{sequence}.svg", text) for name, text in drawn.items()]


def _window(values: NDArray) -> tuple[float, float]:
    """Black and white of a picture: 0 (or the 0.5th percentile if negative) to the 99.5th percentile.

    >>> _window(np.arange(201.0))
    (0.0, 199.0)
    >>> _window(np.array([]))
    (0.0, 1.0)
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, (0.5, 99.5)))
    low = min(low, 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def _mask_sheet(volume: Volume, inside: Volume, window: tuple[float, float], sequence: str, sloppy: bool) -> str:
    rows = rows_of(volume, inside.data, _SLICES_MASK, sloppy)
    sheet = Sheet(max(row.total for row in rows), sum(row.height + LABEL + GAP for row in rows))
    y = 0.0
    for row in rows:
        y += LABEL

        def draw(index: int, x: float, row: Row = row, y: float = y) -> None:
            draw_raster(sheet, volume, row, index, x, y, window)
            draw_outline(sheet, inside, row, index, x, y, ORANGE)

        lay(sheet, row, y, draw, row.plane)
        y += row.height + GAP
    return sheet.render(f"Outline of the brain mask over the {sequence} image in three planes")


def _pair_sheet(
    pair: Sequence[Volume],
    inside: Volume,
    windows: Sequence[tuple[float, float]],
    sequence: str,
    sloppy: bool,
) -> str:
    """Rows of slices, before and after in turn.

    Each row is a group that tells where it lies if both are shown (``data-both``) and if one is
    (``data-one``), which the report's toggle uses to lay one upon the other.
    """
    rows = rows_of(pair[0], inside.data, _SLICES_PAIR, sloppy)
    width, tall = max(row.total for row in rows), sum(row.height + LABEL + GAP for row in rows)
    sheet = Sheet(width, 2 * tall)
    top_one = 0.0
    for row in rows:
        step = row.height + LABEL + GAP
        for number, (name, volume, window) in enumerate(zip(("before", "after"), pair, windows, strict=True)):
            both = f"{2 * top_one + number * step:.1f}"
            sheet.open_group(
                data_show=name, data_both=both, data_one=f"{top_one:.1f}", transform=f"translate(0 {both})"
            )

            def draw(index: int, x: float, row: Row = row, volume: Volume = volume, window=window) -> None:
                draw_raster(sheet, volume, row, index, x, LABEL, window)

            label = f"{row.plane}, {name}: black {window[0]:.4g}, white {window[1]:.4g}"
            lay(sheet, row, LABEL, draw, label)
            sheet.close_group()
        top_one += step
    return sheet.render(
        f"{sequence} image before and after harmonization in three planes",
        data_toggle="beforeafter",
        data_one=f"0 0 {width:.1f} {tall:.1f}",
        data_both=f"0 0 {width:.1f} {2 * tall:.1f}",
    )


def _template(name: str) -> Volume:
    with as_file(files("nilearn") / "datasets" / "data" / name) as path:
        return load_volume(path, np.uint8)


def _registration_sheet(volume: Volume, sequence: str, sloppy: bool) -> str:
    """The image in template space under the template's outlines, slices matched by their place in mm."""
    brain, white = _template(_TEMPLATE), _template(_TEMPLATE_WHITE)
    brain = Volume(brain.data > 0, brain.zooms, brain.origin)
    white = Volume(white.data > white.data.max() / 2, white.zooms, white.origin)
    box = mask_box(brain)
    brain, white = brain.crop(box), white.crop(box)
    values = volume.data[volume.data > 0]
    window = _window(values)
    rows = rows_of(brain, brain.data, _SLICES_MASK, sloppy)
    sheet = Sheet(max(row.total for row in rows), sum(row.height + LABEL + GAP for row in rows))
    y = 0.0
    for row in rows:
        y += LABEL
        axis = PLANES[row.plane][0]
        places = [brain.origin[axis] + index * brain.zooms[axis] for index in row.indices]

        def draw(index: int, x: float, row: Row = row, y: float = y, axis: int = axis) -> None:
            place = brain.origin[axis] + index * brain.zooms[axis]
            _place_raster(sheet, volume, brain, row, volume.index_at(axis, place), (x, y), window)
            draw_outline(sheet, white, row, index, x, y, SKY)
            draw_outline(sheet, brain, row, index, x, y, ORANGE)

        lay(
            sheet,
            row,
            y,
            draw,
            f"{row.plane}, {'xyz'[axis]} = {', '.join(f'{place:.0f}' for place in places)} mm",
        )
        y += row.height + GAP
    return sheet.render(f"{sequence} image in template space with the outlines of the template")


def _place_raster(
    sheet: Sheet,
    volume: Volume,
    frame: Volume,
    row: Row,
    index: int,
    corner: tuple[float, float],
    window: tuple[float, float],
) -> None:
    """Draw the part of a slice of `volume` that lies in `frame`, where the two overlap in mm."""
    axis, right, up = PLANES[row.plane]
    if not 0 <= index < volume.data.shape[axis]:
        return
    box = [slice(0, n) for n in volume.data.shape]
    for each in (right, up):
        low = volume.index_at(each, frame.origin[each])
        high = volume.index_at(each, frame.origin[each] + frame.size[each] - frame.zooms[each]) + 1
        box[each] = slice(max(low, 0), max(min(high, volume.data.shape[each]), 0))
    part = volume.crop((box[0], box[1], box[2]))
    if 0 in part.data.shape:
        return
    # Edges of the first voxel of either grid, from its centre.
    x = corner[0] + (part.origin[right] - part.zooms[right] / 2) - (frame.origin[right] - frame.zooms[right] / 2)
    bottom = (part.origin[up] - part.zooms[up] / 2) - (frame.origin[up] - frame.zooms[up] / 2)
    y = corner[1] + row.height - bottom - part.size[up]
    grey = to_bytes(picture(part.data, row.plane, index), window)
    sheet.image(x, y, part.size[right], part.size[up], jpeg_uri(grey))
