"""`Head`: tissues on an isotropic grid, out of a label map; and how one is placed in space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmh_bids.errors import ImageError
from mmh_bids.simulate import tissues
from mmh_bids.simulate.tissues import INDEX

#: FreeSurfer's codes and those that SynthSeg's training maps use outside the brain (above 500), per tissue.
LABEL_TISSUES: dict[str, tuple[int, ...]] = {
    "white_matter": (2, 41, 85, 192, 250, 251, 252, 253, 254, 255),
    "cortex": (3, 42, 17, 18, 53, 54, 96, 97, 136, 137, 163, 164),
    "deep_grey": (9, 10, 11, 12, 26, 28, 48, 49, 50, 51, 58, 60),
    "pallidum": (13, 52),
    "cerebellar_white": (7, 46),
    "cerebellar_cortex": (8, 47, 172),
    "brainstem": (16,),
    "fluid": (4, 5, 14, 15, 24, 43, 44, 72, 257),
    "lesion": (25, 57, 77, 78, 79, 99),
    "vein": (30, 31, 62, 63, 514),
    "artery": (502,),
    "cortical_bone": (515,),
    "marrow": (516,),
    "skin": (511,),
    "muscle": (507, 508),
    "mucosa": (509,),
    "eye": (506,),
    "optic_nerve": (530,),
    "cord": (512,),
}
_FIRST_OUTSIDE = 500
_SOFT_TISSUE = 507


@dataclass(frozen=True)
class Head:
    """Anatomy that can be scanned: each voxel holds one tissue or a mixture of two.

    Attributes
    ----------
    first, second
        (X, Y, Z) uint8, indices into `tissues.NAMES`.
    weight
        (X, Y, Z) uint8, share of `second` in 1/255; None where no voxel is mixed (then `second` is None too).
    affine
        (4, 4) voxel to world, millimetres, RAS+. Any invertible matrix: placing a head changes this only.
    mask
        (X, Y, Z) bool, brain and the fluid around it: the truth of brain extraction.
    texture
        (X, Y, Z) float32, zero mean and unit variance: how far T1 and T2 deviate at this place, in standard
        deviations of the tissue. Part of the anatomy, so that it travels with the person from scanner to
        scanner.
    scales
        (3, T) factors on T1, T2 and proton density of this person.
    name
        For messages.
    labels
        (X, Y, Z) int16, codes of the label map that the head was made of; None where there was none.
    """

    first: NDArray[np.uint8]
    affine: NDArray[np.float64]
    mask: NDArray[np.bool_]
    texture: NDArray[np.float32]
    second: NDArray[np.uint8] | None = None
    weight: NDArray[np.uint8] | None = None
    scales: NDArray[np.float64] = field(default_factory=lambda: np.ones((3, len(tissues.NAMES))))
    name: str = "head"
    labels: NDArray[np.int16] | None = None

    @property
    def brain_centre(self) -> NDArray[np.float64]:
        """(3,) world coordinates, millimetres, of the centre of the brain mask's bounding box."""
        return self.affine[:3, :3] @ np.mean(bounding_box(self.mask), axis=0) + self.affine[:3, 3]


def transform_head(head: Head, world: NDArray[np.float64]) -> Head:
    """Place the head elsewhere; nothing is resampled, so the truth is exact and no brain is lost.

    Parameters
    ----------
    head
        Any head.
    world
        (4, 4) map from old to new world coordinates, millimetres.

    Returns
    -------
    Head
        The same arrays under the affine ``world @ head.affine``.
    """
    return replace(head, affine=np.asarray(world, float) @ head.affine)


def random_affine(
    rng: np.random.Generator,
    centre: NDArray[np.float64],
    rotation: float = 25.0,
    translation: float = 30.0,
    scale: float = 0.1,
) -> NDArray[np.float64]:
    """Draw a rotation, translation and scaling about `centre`.

    Parameters
    ----------
    rng
        Source of randomness.
    centre
        (3,) world point that is only translated, millimetres.
    rotation
        Largest angle about a random axis, degrees; uniform.
    translation
        Largest length, millimetres; random direction, uniform length.
    scale
        Largest relative size change of each axis; uniform.

    Returns
    -------
    numpy.ndarray
        (4, 4) old to new world coordinates.

    Examples
    --------
    >>> out = random_affine(np.random.default_rng(1), np.zeros(3), scale=0.0)
    >>> bool(np.isclose(np.linalg.det(out), 1)), bool(np.linalg.norm(out[:3, 3]) <= 30)
    (True, True)
    """
    axis, shift = _direction(rng), _direction(rng) * rng.uniform(0, translation)
    linear = rotation_matrix(axis * np.deg2rad(rng.uniform(-rotation, rotation)))
    linear = linear @ np.diag(1 + rng.uniform(-scale, scale, 3))
    out = np.eye(4)
    out[:3, :3] = linear
    out[:3, 3] = centre - linear @ centre + shift
    return out


def rotation_matrix(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation about the direction of `vector` (3,) by its length in radians (Rodrigues' formula).

    >>> bool(np.allclose(rotation_matrix(np.array([0, 0, np.pi / 2])) @ [1, 0, 0], [0, 1, 0]))
    True
    """
    angle = float(np.linalg.norm(vector))
    if angle == 0:
        return np.eye(3)
    x, y, z = np.asarray(vector, float) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def head_from_labels(path: str | Path, seed: int = 0, person_spread: bool = True) -> Head:
    """Read a whole-head label map (FreeSurfer codes, above 500 outside the brain) as a head.

    Parameters
    ----------
    path
        3D NIfTI with integer labels; see `LABEL_TISSUES`. Codes from 1 to 499 are the brain mask.
    seed
        Seed of texture, of the share of fat in soft tissue, and of the person's tissue properties.
    person_spread
        False gives every tissue its value from the table.

    Returns
    -------
    Head
        On the map's own grid, turned to RAS and cropped to the head.

    Raises
    ------
    ImageError
        If the file is not a 3D label map or holds codes that stand for no tissue we know.
    """
    labels, affine = _read_labels(Path(path))
    mask = largest_component((labels > 0) & (labels < _FIRST_OUTSIDE))
    # Specks of brain labels far from the brain are errors of the map: neither anatomy nor truth.
    labels[(labels < _FIRST_OUTSIDE) & ~mask] = 0
    low, high = bounding_box(labels > 0)
    box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    affine = affine @ _shift(low)
    labels, mask = labels[box], np.ascontiguousarray(mask[box])
    first = _lookup(labels, Path(path))
    rng = np.random.default_rng([seed, 1])
    spacing = float(np.mean(np.linalg.norm(affine[:3, :3], axis=0)))
    add_fat(first, labels == _SOFT_TISSUE, spacing, rng)
    texture = smooth_noise(first.shape, (1.2 / spacing, 4.0 / spacing), rng)
    scales = tissues.person_scales(rng) if person_spread else np.ones((3, len(tissues.NAMES)))
    # Codes that stand for a tissue, and no others are left here, fit into 16 bits.
    return Head(first, affine, mask, texture, scales=scales, name=Path(path).name, labels=labels.astype(np.int16))


def add_fat(first: NDArray[np.uint8], soft: NDArray[np.bool_], spacing: float, rng: np.random.Generator) -> None:
    """Turn part of the soft tissue into fat, in place: a layer under the skin of 3 to 9 mm and strands
    between muscles.

    Parameters
    ----------
    first
        (X, Y, Z) uint8 tissue indices, changed.
    soft
        (X, Y, Z) bool, where fat may lie.
    spacing
        Millimetres per voxel.
    rng
        Source of randomness.
    """
    inside = ~np.isin(first, (INDEX["air"], INDEX["skin"]))
    # Every second voxel is fine enough for layers of millimetres and eight times faster. The grid's border
    # does not count as skin: there the head was cut off.
    depth = ndimage.distance_transform_edt(inside[::2, ::2, ::2]).astype(np.float32) * np.float32(2 * spacing)
    variation = smooth_noise(depth.shape, (6.0 / spacing,), rng)
    strands = smooth_noise(depth.shape, (2.0 / spacing,), rng)
    fat = (depth < 6 + 1.5 * variation) | (strands > 0.8)
    first[soft & _upsample(fat, first.shape)] = INDEX["fat"]


def smooth_noise(shape: Iterable[int], widths: Iterable[float], rng: np.random.Generator) -> NDArray[np.float32]:
    """Random field of zero mean and unit variance: noise of several smoothness added up.

    Parameters
    ----------
    shape
        Three sizes.
    widths
        Standard deviations of the Gaussians, voxels, above 0.5.
    rng
        Source of randomness.

    Returns
    -------
    numpy.ndarray
        float32 of that shape.

    Examples
    --------
    >>> out = smooth_noise((20, 20, 20), (1.0, 2.0), np.random.default_rng(0))
    >>> abs(float(out.mean())) < 1e-5, round(float(out.std()), 4)
    (True, 1.0)
    """
    shape = tuple(shape)
    total = np.zeros(shape, np.float32)
    for width in widths:
        step = max(1, int(width / 1.5))
        coarse = rng.standard_normal([-(-size // step) + 1 for size in shape], dtype=np.float32)
        coarse = ndimage.gaussian_filter(coarse, width / step, mode="wrap")
        coarse /= coarse.std()
        total += _stretch(coarse, step, shape)
    total -= total.mean()
    return np.asarray(total / total.std(), np.float32)


def bounding_box(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """First and last voxel of a mask along each axis, (2, 3)."""
    ranges = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return np.array([[index[0], index[-1]] for index in ranges]).T


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest part of a mask that hangs together by faces."""
    return cc3d.largest_k(mask, k=1, connectivity=6) > 0


def _read_labels(path: Path) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    try:
        image = nib.as_closest_canonical(nib.load(path))
        data = np.asanyarray(image.dataobj)
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise ImageError(f"{path}: cannot be read as NIfTI ({error}); give a label map") from None
    data = data[..., 0] if data.ndim == 4 and data.shape[3] == 1 else data
    if data.ndim != 3 or data.min() < 0 or not np.array_equal(data, np.round(data)):
        raise ImageError(f"{path}: not a label map; give a 3D image of whole numbers (FreeSurfer codes)")
    if not ((data > 0) & (data < _FIRST_OUTSIDE)).any():
        raise ImageError(f"{path}: no brain label (1 to {_FIRST_OUTSIDE - 1}); give a FreeSurfer-coded label map")
    return np.array(data, np.int32), np.asarray(image.affine, float)


def _lookup(labels: NDArray[np.int32], path: Path) -> NDArray[np.uint8]:
    unknown = 255
    table = np.full(int(labels.max()) + 1, unknown, np.uint8)
    table[0] = INDEX["air"]
    for name, codes in LABEL_TISSUES.items():
        for code in codes:
            if code < table.size:
                table[code] = INDEX[name]
    out = table[labels]
    if (out == unknown).any():
        examples = ", ".join(str(code) for code in np.unique(labels[out == unknown])[:5])
        raise ImageError(f"{path}: label(s) {examples} stand for no known tissue; recode them to FreeSurfer's codes")
    return out


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    vector = rng.standard_normal(3)
    return vector / np.linalg.norm(vector)


def _shift(voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    out = np.eye(4)
    out[:3, 3] = voxels
    return out


def _upsample(coarse: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    out = coarse
    for axis in range(3):
        out = np.repeat(out, 2, axis=axis)
    return out[tuple(slice(size) for size in shape)]


def _stretch(coarse: NDArray[np.float32], step: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Linear interpolation of a coarse field with nodes every `step` voxels, one axis at a time."""
    out = coarse
    for axis, size in enumerate(shape):
        if step == 1:
            out = np.take(out, np.arange(size), axis=axis)
            continue
        position = np.arange(size) / step
        lower = position.astype(int)
        share = np.reshape((position - lower).astype(np.float32), [-1 if a == axis else 1 for a in range(3)])
        below = np.take(out, lower, axis=axis)
        out = below + share * (np.take(out, np.minimum(lower + 1, out.shape[axis] - 1), axis=axis) - below)
    return out
