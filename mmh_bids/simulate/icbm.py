"""Heads made of nilearn's ICBM152 tissue maps, with skull, scalp, neck and a face-like block built around
them.

Nothing is downloaded: the maps lie in the nilearn package (ICBM152 2009a symmetric, 1 mm, Fonov et al.,
NeuroImage 2011;54:313). Everything outside the brain is geometry in MNI coordinates (millimetres): shells
around the brain and ellipsoids for neck, face, eyes and air-filled spaces. No person's face can come out of
that.
"""

from __future__ import annotations

from importlib import resources

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmh_bids.simulate import tissues
from mmh_bids.simulate.phantom import Head, add_fat, largest_component, random_affine, smooth_noise
from mmh_bids.simulate.tissues import INDEX

_MAPS = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
#: World coordinates of the first voxel and number of 1 mm voxels of the grid that holds the whole head.
_ORIGIN = np.array([-104.0, -142.0, -140.0])
_SHAPE = (209, 265, 262)
#: Outer limits of the shells, millimetres from the inner surface of the skull.
_DURA, _INNER_TABLE, _DIPLOE, _OUTER_TABLE, _SKIN = 0.9, 2.7, 5.6, 7.5, 13.9
#: The template is larger than people are; this brings brain and fluid to about 1.5 litres. Lengths here are
#: before it.
_SIZE = 0.9
#: How far the inner surface of the skull lies outside the closed brain surface.
_FLUID = 1.4

Volume = NDArray[np.float32]

#: Ellipsoids of face and neck, mirrored to both sides, later ones on top: tissue, centre, radii.
_Place = tuple[float, float, float]
_PARTS: tuple[tuple[str, _Place, _Place], ...] = (
    ("cortical_bone", (0, 22, -48), (40, 34, 13)),  # base of the skull
    ("cortical_bone", (46, -22, -46), (18, 22, 15)),
    ("marrow", (0, -14, -52), (13, 15, 12)),
    ("mucosa", (0, 62, -56), (15, 34, 24)),  # nose and its sinuses
    ("air", (5, 66, -56), (2.5, 28, 17)),
    ("mucosa", (29, 56, -60), (17, 19, 19)),
    ("air", (29, 56, -60), (15, 17, 17)),
    ("mucosa", (0, 26, -38), (13, 11, 9)),
    ("air", (0, 26, -38), (11.5, 9.5, 7.5)),
    ("air", (52, -30, -48), (7, 10, 10)),  # ear
    ("cortical_bone", (0, 50, -84), (30, 36, 3.5)),  # palate
    ("mucosa", (0, 8, -98), (17, 9, 46)),  # throat
    ("air", (0, 10, -96), (9, 5, 40)),
    ("cortical_bone", (42, 26, -112), (4, 30, 14)),  # jaw
    ("marrow", (42, 26, -112), (2, 27, 11)),
    ("muscle", (0, 44, -100), (26, 34, 14)),  # tongue
    ("fat", (33, 50, -30), (19, 24, 17)),  # orbit
    ("optic_nerve", (24, 38, -28), (4, 22, 3)),
    ("eye", (34, 66, -32), (12, 12, 12)),
    ("vein", (38, -4, -100), (5, 5, 60)),
    ("artery", (32, 2, -100), (3, 3, 60)),
)


def head_from_template(seed: int = 0, person_spread: bool = True) -> Head:
    """Make one person out of the template.

    Parameters
    ----------
    seed
        Seed of the person's anatomy (smooth deformation, size, thickness of the shells), texture and tissue
        properties.
    person_spread
        False gives every tissue its value from the table.

    Returns
    -------
    Head
        On a 0.9 mm grid, axes along MNI's; the mask is the template's brain with the fluid between it and
        the skull.
    """
    rng = np.random.default_rng([seed, 2])
    first, second, weight = _brain(_load("t1"), _load("gm"), _load("wm"))
    brain = first != INDEX["air"]
    shells = smooth_noise(_SHAPE, (15.0,), rng)
    mask = _build_outside(first, brain, shells, rng)
    second[~brain] = 0
    weight[~brain] = 0
    first, second, weight, whole = _deform([first, second, weight, mask.astype(np.uint8)], rng)
    texture = smooth_noise(_SHAPE, (1.2, 4.0), rng)
    affine = np.eye(4)
    affine[:3, 3] = _ORIGIN
    centre = np.array([0.0, -18.0, 5.0])
    affine = random_affine(rng, centre, rotation=0.0, translation=0.0, scale=0.03) @ affine
    affine = _about(centre, _SIZE) @ affine
    scales = tissues.person_scales(rng) if person_spread else np.ones((3, len(tissues.NAMES)))
    return Head(first, affine, whole > 0, texture, second, weight, scales, f"template head {seed}")


def _load(kind: str) -> Volume:
    """One packaged map on the head's grid, 0 to 1."""
    source = resources.files("nilearn.datasets.data") / _MAPS.format(kind)
    with resources.as_file(source) as path:
        image = nib.Nifti1Image.from_filename(path)
        values = np.asarray(image.dataobj, np.float32) / 255
    out = np.zeros(_SHAPE, np.float32)
    start = np.rint(image.affine[:3, 3] - _ORIGIN).astype(int)
    out[tuple(slice(a, a + size) for a, size in zip(start, values.shape, strict=True))] = values
    return out


def _brain(t1: Volume, grey: Volume, white: Volume) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Two main tissues of every brain voxel and the share of the second."""
    inside = largest_component(ndimage.binary_fill_holes(t1 > 0))
    # Squaring sharpens the averages over 152 people towards what one person's voxels hold.
    shares = np.stack([white, grey, np.clip(1 - white - grey, 0, 1)]) ** 2
    order = np.argsort(shares, axis=0)
    names = np.array([INDEX["white_matter"], INDEX["cortex"], INDEX["fluid"]], np.uint8)
    top = np.take_along_axis(shares, order[1:], axis=0)
    weight = 255 * top[0] / np.maximum(top.sum(0), 1e-6)
    first = np.where(inside, names[order[2]], INDEX["air"]).astype(np.uint8)
    return (
        first,
        np.where(inside, names[order[1]], 0).astype(np.uint8),
        np.where(inside, weight, 0).astype(np.uint8),
    )


def _build_outside(
    first: NDArray[np.uint8], brain: NDArray[np.bool_], variation: Volume, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Fill in all tissues around the brain, in place; returns the mask of brain and fluid."""
    distance = _skull_distance(brain)
    distance += np.float32(0.5) * variation
    x, y, z = (axis.astype(np.float32) for axis in _axes())
    outer = _outer_surface(distance, x, y, z)
    mask = (distance <= 0) | brain
    body = outer & ~mask
    first[body] = INDEX["muscle"]
    soft = body & (distance > _OUTER_TABLE)
    for name, centre, radii in _PARTS:
        for side in (-1, 1):
            _put_ellipsoid(first, soft, INDEX[name], (side * centre[0], centre[1], centre[2]), radii)
    _put_spine(first, soft)
    add_fat(first, soft & (first == INDEX["muscle"]), 1.0, rng)
    rim = outer & ~ndimage.binary_erosion(outer, iterations=2, border_value=1)
    first[body & rim] = INDEX["skin"]
    first[body & (distance <= _DURA)] = INDEX["dura"]
    skull = body & (distance > _DURA) & (distance <= _OUTER_TABLE)
    first[skull] = INDEX["cortical_bone"]
    diploe = (distance > _INNER_TABLE) & (distance <= _DIPLOE + np.float32(0.4) * variation)
    first[skull & diploe & (z > -30 + 8 * variation)] = INDEX["marrow"]
    _put_cord(first, body)
    first[mask & ~brain] = INDEX["fluid"]
    return mask


def _skull_distance(brain: NDArray[np.bool_]) -> Volume:
    """Signed distance, millimetres, to the inner surface of the skull: the brain closed over its sulci."""
    closing = 9.0
    dilated = ndimage.distance_transform_edt(~brain) <= closing
    filled = ndimage.distance_transform_edt(dilated) > closing - _FLUID
    filled |= brain
    outward = ndimage.distance_transform_edt(~filled).astype(np.float32)
    inward = ndimage.distance_transform_edt(filled).astype(np.float32)
    return ndimage.gaussian_filter(outward - inward, 1.0)


def _outer_surface(distance: Volume, x: Volume, y: Volume, z: Volume) -> NDArray[np.bool_]:
    """Skin: the scalp joined smoothly with a neck and a face-like block."""
    neck = np.maximum(np.hypot(x / 62, (y + 32) / 68) - 1 + 0 * z, (z + 20) / 60) * 55
    face = _ellipsoid(x, y, z, (0, 42, -62), (66, 62, 72))
    nose = _ellipsoid(x, y, z, (0, 100, -62), (11, 14, 24))
    pieces = np.stack([distance - _SKIN, neck, face, nose])
    # Smooth minimum: without it the joints would be sharp creases.
    sharpness = np.float32(6.0)
    return -sharpness * np.log(np.exp(-np.clip(pieces, -200, 60) / sharpness).sum(0)) < 0


def _put_ellipsoid(
    first: NDArray[np.uint8],
    allowed: NDArray[np.bool_],
    tissue: int,
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
) -> None:
    low = np.maximum(np.floor(np.array(centre) - radii - _ORIGIN), 0).astype(int)
    high = np.maximum(np.ceil(np.array(centre) + radii - _ORIGIN) + 1, 0).astype(int)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    x, y, z = (axis.astype(np.float32) for axis in _axes(box))
    inside = _ellipsoid(x, y, z, centre, radii) < 0
    first[box][inside & allowed[box]] = tissue


def _put_spine(first: NDArray[np.uint8], allowed: NDArray[np.bool_]) -> None:
    """Vertebrae with discs between them, and the arches around the canal."""
    box = (slice(None), slice(None), slice(0, int(-60 - _ORIGIN[2])))
    x, y, z = (axis.astype(np.float32) for axis in _axes(box))
    body = _ellipsoid(x, y, z, (0, -18, -110), (13, 11, 60))
    arch = _canal_distance(x, y, z)
    level = np.mod(z, 20)
    view, free = first[box], allowed[box]
    view[free & (body < 1.5)] = INDEX["cortical_bone"]
    view[free & (body < -1) & (level > 4)] = INDEX["marrow"]
    view[free & (arch < 14) & (arch > 11) & (z < -66) & (level > 8)] = INDEX["cortical_bone"]


def _put_cord(first: NDArray[np.uint8], allowed: NDArray[np.bool_]) -> None:
    box = (slice(None), slice(None), slice(0, int(-62 - _ORIGIN[2])))
    canal = _canal_distance(*(axis.astype(np.float32) for axis in _axes(box)))
    first[box][allowed[box] & (canal < 11)] = INDEX["fluid"]
    first[box][allowed[box] & (canal < 5.5)] = INDEX["cord"]


def _canal_distance(x: Volume, y: Volume, z: Volume) -> Volume:
    """Distance from the axis of the spinal canal, which leans backwards as it goes down."""
    return np.hypot(x, y + 44 - np.float32(0.18) * (z + 70))


def _ellipsoid(
    x: Volume, y: Volume, z: Volume, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> Volume:
    """Approximate signed distance, millimetres, to an ellipsoid's surface (negative inside)."""
    (a, b, c), (rx, ry, rz) = centre, radii
    scaled = ((x - a) / rx) ** 2 + ((y - b) / ry) ** 2 + ((z - c) / rz) ** 2
    length = np.sqrt(scaled)
    gradient = np.sqrt(((x - a) / rx**2) ** 2 + ((y - b) / ry**2) ** 2 + ((z - c) / rz**2) ** 2)
    return (length * (length - 1) / np.maximum(gradient, np.float32(1e-6))).astype(np.float32)


def _about(centre: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    out = np.diag([factor, factor, factor, 1.0])
    out[:3, 3] = centre * (1 - factor)
    return out


def _axes(box: tuple[slice, ...] = (slice(None),) * 3) -> list[NDArray[np.float64]]:
    """World coordinates of the grid (or of a box of it) along each axis, ready to broadcast."""
    ranges = [start + np.arange(size) for start, size in zip(_ORIGIN, _SHAPE, strict=True)]
    return list(np.ix_(*(values[part] for values, part in zip(ranges, box, strict=True))))


def _deform(volumes: list[NDArray[np.uint8]], rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Pull all volumes through one smooth random displacement of about 2.5 mm (standard deviation)."""
    shift = [smooth_noise(_SHAPE, (22.0,), rng) * np.float32(2.5) for _ in range(3)]
    places = [
        axis.astype(np.float32) - origin + move for axis, origin, move in zip(_axes(), _ORIGIN, shift, strict=True)
    ]
    index = tuple(
        np.clip(np.rint(place), 0, size - 1).astype(np.int32) for place, size in zip(places, _SHAPE, strict=True)
    )
    return [volume[index] for volume in volumes]
