"""Scan a head: contrast, fields, sampling on the scanner's grid, noise, storage."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray
from scipy import ndimage

from mmh_bids.simulate import tissues
from mmh_bids.simulate.ghosting import displacements, moved_during_scan
from mmh_bids.simulate.phantom import Head, bounding_box, rotation_matrix
from mmh_bids.simulate.sampling import nearest, voxel_average
from mmh_bids.simulate.scanner import IMAGE_AXES, Protocol, Scanner
from mmh_bids.simulate.tables import signal_tables

#: Air around the head inside the field of view, and how far it reaches below the brain, millimetres.
_AIR_MARGIN = 8.0
NECK = 45.0
#: Width (standard deviation, voxels) of the in-plane point spread that comes on top of the voxel's own
#: average.
POINT_SPREAD = 0.35


@dataclass(frozen=True)
class Acquisition:
    """One simulated image with its truth, all on the scanner's grid.

    Attributes
    ----------
    image
        What the scanner stores: 3D, integer or float32, sform and qform set.
    mask
        uint8 image, true brain mask (at least half of the voxel is brain or fluid around it).
    tissue
        uint8 image of the main tissue of each voxel, indices into `tissues.NAMES`.
    noise_free
        (X, Y, Z) float32, the image before noise and rounding, with the receive field and ghosts, in the units of
        `image`.
    metadata
        BIDS sidecar of `image`.
    """

    image: nib.Nifti1Image
    mask: nib.Nifti1Image
    tissue: nib.Nifti1Image
    noise_free: NDArray[np.float32]
    metadata: Mapping[str, Any]


def acquire(
    head: Head, scanner: Scanner, sequence: str, seed: int = 0, neck: float = NECK, noise_seed: int = 0
) -> Acquisition:
    """Simulate one image.

    Parameters
    ----------
    head
        Anatomy, placed where it lies in the scanner (see `phantom.transform_head`).
    scanner
        Fields, protocol, grid and storage.
    sequence
        ``"T1w"`` or ``"T2w"``.
    seed
        Seed of the receive field, the motion and the noise.
    neck
        How far the field of view reaches below the brain, millimetres; everywhere else it holds the whole
        head.

    noise_seed
        Changes the noise only: two values are a scan and its rescan.

    Returns
    -------
    Acquisition

    Raises
    ------
    UsageError
        If the scanner lacks the sequence or its protocol cannot be played out.

    Notes
    -----
    Voxel values are averages over the voxel, so partial volume and slice thickness come out of the sampling.
    Noise is Rician: magnitude of a complex signal with equal Gaussian noise in both channels (Gudbjartsson
    and Patz, Magn Reson Med 1995;34:910).
    """
    protocol = scanner.protocol(sequence)
    shape, affine = field_of_view(head, protocol, neck)
    anatomy, white = signal_volume(head, scanner, protocol)
    sampled = voxel_average(anatomy, head.affine, shape, affine)
    inside = voxel_average(head.mask.astype(np.float32), head.affine, shape, affine) >= 0.5
    sampled = _point_spread(sampled, protocol)
    sampled *= protocol.level / white
    number = 0 if sequence == "T1w" else 1
    # Before the receive field: the head moves, the coil does not.
    sampled = _ghosts(sampled, protocol, np.random.default_rng([seed, 6, number]))
    sampled *= receive_field(shape, affine, head, scanner.bias, np.random.default_rng([seed, 4]))
    rng = np.random.default_rng([seed, 5, number, noise_seed])
    sigma = np.float32(protocol.level / protocol.snr)
    noisy = sampled + sigma * rng.standard_normal(shape, dtype=np.float32)
    noisy = np.hypot(noisy, sigma * rng.standard_normal(shape, dtype=np.float32))
    main = nearest(_main_tissue(head), head.affine, shape, affine)
    return Acquisition(
        store(noisy, affine, protocol),
        _labels(inside, affine),
        _labels(main, affine),
        sampled * np.float32(protocol.slope),
        scanner.sidecar(sequence) | {"SliceThickness": float(max(protocol.voxel))},
    )


def field_of_view(head: Head, protocol: Protocol, neck: float) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Grid of the scanner around a head.

    Parameters
    ----------
    head
        Placed anatomy.
    protocol
        Axes, voxel size and oblique angles.
    neck
        Millimetres below the brain that are still inside.

    Returns
    -------
    shape
        Three sizes.
    affine
        (4, 4) voxel to world, millimetres.
    """
    directions = _oblique(protocol.oblique) @ _axes(protocol.axes)
    outside = _corners(head.first > 0, head.affine) @ directions
    brain = _corners(head.mask, head.affine) @ directions
    low, high = outside.min(0) - _AIR_MARGIN, outside.max(0) + _AIR_MARGIN
    for axis, letter in enumerate(protocol.axes):
        if letter == "S":
            low[axis] = max(low[axis], brain[:, axis].min() - neck)
        if letter == "I":
            high[axis] = min(high[axis], brain[:, axis].max() + neck)
    voxel = np.array(protocol.voxel)
    shape = np.ceil((high - low) / voxel).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = directions * voxel
    # An eighth of a voxel off centre: samples halfway between the head's voxels would all be ties in the mask.
    affine[:3, 3] = directions @ ((low + high) / 2 - voxel * ((shape - 1) / 2 + 0.125))
    return (int(shape[0]), int(shape[1]), int(shape[2])), affine


def signal_volume(head: Head, scanner: Scanner, protocol: Protocol) -> tuple[NDArray[np.float32], float]:
    """Noise-free signal on the head's own grid.

    Parameters
    ----------
    head
        Anatomy.
    scanner, protocol
        Field strength, transmit field and sequence.

    Returns
    -------
    volume
        (X, Y, Z) float32, units of `signal`.
    white
        Signal of an average person's white matter at the nominal transmit field, for the receive gain.
    """
    average = tissues.relaxation(scanner.field)
    own = average.scaled(*head.scales)
    planes = list(signal_tables(protocol, own))
    deviation = _transmit_deviation(head, scanner.transmit)
    volume = _look_up(planes, head.first, head.texture, deviation)
    if head.second is not None and head.weight is not None:
        other = _look_up(planes, head.second, head.texture, deviation)
        volume += head.weight * np.float32(1 / 255) * (other - volume)
    return np.maximum(volume, 0, out=volume), float(protocol.signals(average)[tissues.WHITE])


def receive_field(
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    head: Head,
    strength: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Smooth positive receive field: exponential of a random polynomial of third order in world coordinates.

    Parameters
    ----------
    shape, affine
        Grid.
    head
        Centre of the field's coordinates.
    strength
        Standard deviation of its logarithm over the brain's surroundings.
    rng
        Source of randomness.

    Returns
    -------
    numpy.ndarray
        float32 of that shape, mean 1 inside a ball of 80 mm about the brain's centre.
    """
    powers = [p for p in itertools.product(range(4), repeat=3) if 1 <= sum(p) <= 3]
    weights = rng.standard_normal(len(powers)) / np.array([sum(p) for p in powers])
    # Array coils see their surroundings better than the middle of the head.
    weights += np.array([0.8 if sorted(p) == [0, 0, 2] else 0.0 for p in powers])
    coarse = tuple(-(-size // 4) + 1 for size in shape)
    grid = np.indices(coarse).reshape(3, -1) * 4.0
    world = (affine[:3, :3] @ grid + affine[:3, 3:] - head.brain_centre[:, None]) / 100.0
    # Far corners (neck, air) would blow a cubic up: coordinates saturate outside the head.
    world = np.tanh(world)
    values = sum(w * np.prod(world.T**p, axis=1) for w, p in zip(weights, powers, strict=True))
    near = (world**2).sum(0) < np.tanh(0.8) ** 2
    values = (values - values[near].mean()) / values[near].std() * strength
    field = np.exp(values)
    field = (field / field[near].mean()).reshape(coarse).astype(np.float32)
    factors = [np.arange(size) / 4.0 for size in shape]
    return _interpolate_axes(field, factors)


def store(values: NDArray[np.float32], affine: NDArray[np.float64], protocol: Protocol) -> nib.Nifti1Image:
    """Round to the protocol's data type and wrap as NIfTI, as read back from a file (slope applied on
    access).

    Parameters
    ----------
    values
        (X, Y, Z), stored-value scale (before `slope`).
    affine
        (4, 4) voxel to world.
    protocol
        `dtype` and `slope`.

    Returns
    -------
    nibabel.Nifti1Image
        sform and qform set with code 1.
    """
    kind = np.dtype(protocol.dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        stored = np.clip(np.rint(values), max(limits.min, 0), limits.max).astype(kind)
    else:
        stored = (values * protocol.slope).astype(kind)
    image = _nifti(stored, affine)
    if kind.kind in "iu" and protocol.slope != 1:
        image.header.set_slope_inter(protocol.slope, 0)
    return nib.Nifti1Image.from_bytes(image.to_bytes())


def stored_bytes(image: nib.Nifti1Image) -> bytes:
    """An image of `store` as the bytes of a .nii file with its very values and scl_slope.

    nibabel forgets the slope of an image that it has read and would scale anew.

    Examples
    --------
    >>> spoiled = Protocol("spoiled_gradient_echo", 0.02, 0.005, 20.0, (2.0, 2.0, 2.0), slope=2.5)
    >>> image = store(np.full((2, 2, 2), 7, np.float32), np.eye(4), spoiled)
    >>> again = nib.Nifti1Image.from_bytes(stored_bytes(image))
    >>> float(again.dataobj.slope), float(again.get_fdata().max())
    (2.5, 17.5)
    """
    proxy = image.dataobj
    if not isinstance(proxy, ArrayProxy) or proxy.slope == 1:
        return image.to_bytes()
    plain = nib.Nifti1Image(proxy.get_unscaled(), None, image.header)
    plain.header.set_slope_inter(proxy.slope, 0)
    return plain.to_bytes()


def _nifti(data: NDArray, affine: NDArray[np.float64]) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"simulated by mmh-simulate"
    return image


def _labels(data: NDArray, affine: NDArray[np.float64]) -> nib.Nifti1Image:
    return _nifti(data.astype(np.uint8), affine)


def _look_up(
    planes: list[NDArray[np.float32]],
    index: NDArray[np.uint8],
    texture: NDArray[np.float32],
    transmit: NDArray[np.float32],
) -> NDArray[np.float32]:
    base, by_texture, by_transmit, by_square = planes
    out = by_square[index]
    out *= transmit
    out += by_transmit[index]
    out *= transmit
    out += by_texture[index] * texture
    out += base[index]
    return out


def _transmit_deviation(head: Head, strength: float) -> NDArray[np.float32]:
    """Transmit field minus 1: positive in the middle of the brain, negative at its edge."""
    linear = head.affine[:3, :3]
    centre = np.mean(bounding_box(head.mask), axis=0)
    # |A v|^2 is separable only without shear; heads keep nearly orthogonal axes, so the lengths will do.
    lengths = np.linalg.norm(linear, axis=0)
    squares = [
        ((np.arange(size) - middle) * length / 90.0) ** 2
        for size, middle, length in zip(head.first.shape, centre, lengths, strict=True)
    ]
    radius = np.add.outer(np.add.outer(squares[0], squares[1]), squares[2]).astype(np.float32)
    return np.float32(strength) * (np.float32(0.4) - np.minimum(radius, np.float32(1.6)))


def _main_tissue(head: Head) -> NDArray[np.uint8]:
    if head.second is None or head.weight is None:
        return head.first
    return np.where(head.weight > 127, head.second, head.first)


def _point_spread(volume: NDArray[np.float32], protocol: Protocol) -> NDArray[np.float32]:
    smallest = min(protocol.voxel)
    for axis, size in enumerate(protocol.voxel):
        if size < 1.5 * smallest:  # across thick slices the profile is the slice itself
            volume = ndimage.gaussian_filter1d(volume, POINT_SPREAD, axis=axis, mode="constant")
    return volume


def _ghosts(volume: NDArray[np.float32], protocol: Protocol, rng: np.random.Generator) -> NDArray[np.float32]:
    if not protocol.ghosting or protocol.phase_encoding is None:
        return volume
    axis = IMAGE_AXES.index(protocol.phase_encoding)
    amplitude = protocol.ghosting / protocol.voxel[axis]
    return moved_during_scan(volume, axis, displacements(volume.shape[axis], amplitude, rng))


def _axes(code: str) -> NDArray[np.float64]:
    out = np.zeros((3, 3))
    for column, letter in enumerate(code):
        row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        out[row, column] = 1.0 if letter in "RAS" else -1.0
    return out


def _oblique(angles: tuple[float, float, float]) -> NDArray[np.float64]:
    x, y, z = (rotation_matrix(np.deg2rad(angle) * unit) for angle, unit in zip(angles, np.eye(3), strict=True))
    return z @ y @ x


def _corners(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """World coordinates (N, 3) of the mask's outline: both ends of every fourth line along each axis."""
    points = []
    for axis in range(3):
        moved = np.moveaxis(mask, axis, 0)
        touched = moved.any(axis=0)
        lines = np.argwhere(touched)[::4]
        columns = moved[:, lines[:, 0], lines[:, 1]]
        for position in (columns.argmax(0), moved.shape[0] - 1 - columns[::-1].argmax(0)):
            points.append(np.insert(lines, axis, position, axis=1))
    voxels = np.concatenate(points)
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def _interpolate_axes(volume: NDArray[np.float32], positions: list[NDArray[np.float64]]) -> NDArray[np.float32]:
    out = volume
    for axis, position in enumerate(positions):
        lower = position.astype(int)
        share = np.reshape((position - lower).astype(np.float32), [-1 if a == axis else 1 for a in range(3)])
        below = np.take(out, lower, axis=axis)
        out = below + share * (np.take(out, lower + 1, axis=axis) - below)
    return np.asarray(out, np.float32)
