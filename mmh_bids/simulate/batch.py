"""The simulator in torch: cubes of the model grid, scanned as the app would see them after its preprocessing.

Signal tables, tissues and scanners are those of the whole-image simulator (`mmh_bids.simulate.acquire`), and so are
voxels: averaged, noisy, then interpolated linearly to the model grid. The receive field is what bias correction leaves
of it. The scanner's axes are the head's; the model grid is turned against them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mmh_bids.simulate import tissues
from mmh_bids.simulate.draw import draw_scanner
from mmh_bids.simulate.modelhead import ModelHead
from mmh_bids.simulate.scanner import Protocol, Scanner
from mmh_bids.simulate.tables import signal_tables
from mmh_bids.simulate.unified import IDEAL, WHITE_LEVEL
from mmh_bids.simulate.voxels import AxisGrid, effective_sigma

#: Powers of the residual field's polynomial: all of order 1 to 4.
_POWERS = [(a, b, c) for a in range(5) for b in range(5) for c in range(5) if 1 <= a + b + c <= 4]
#: Brain voxels that the image's statistics are taken from.
_STATISTICS = 12_000
#: Point spread (standard deviation, mm) of the unified truth: that of a scan of 1 mm voxels after interpolation.
_TRUTH_SPREAD = 0.54


@dataclass(frozen=True)
class Scan:
    """What one scan of a head is like: drawn once, applied to any part of the head.

    Attributes
    ----------
    sequence
        ``"T1w"`` or ``"T2w"``.
    tables, target
        (4, T) signal tables of the scanner, white matter of an average person at 1, and of the unified look.
    transmit
        Strength of the transmit field.
    voxel, phase
        (3,) voxel size along the head's axes, millimetres; where the grid begins, in voxels, 0 to 1.
    bias
        (P,) weights of the residual field's polynomial in its logarithm.
    noise
        Standard deviation of a voxel's noise over average white matter.
    lost
        Share of the fluid at the rim that the brain mask misses.
    """

    sequence: str
    tables: torch.Tensor
    target: torch.Tensor
    transmit: float
    voxel: tuple[float, float, float]
    phase: tuple[float, float, float]
    bias: torch.Tensor
    noise: float
    lost: float

    def to(self, device: torch.device) -> Scan:
        """Return the same scan with its tensors on another device."""
        moved = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return Scan(**{**vars(self), **moved})


def draw_scan(
    sequence: str, rng: np.random.Generator, scanner: Scanner | None = None, scales: NDArray[np.float64] | None = None
) -> Scan:
    """Draw a scanner and a person's tissue properties (unless given), and what preprocessing leaves behind.

    Parameters
    ----------
    sequence
        ``"T1w"`` or ``"T2w"``.
    rng
        Source of randomness.
    scanner, scales
        Use these, see `tissues.person_scales`.
    """
    scanner = scanner or draw_scanner(rng)
    protocol = scanner.protocol(sequence)
    scales = tissues.person_scales(rng) if scales is None else scales
    voxel, phase = np.array(protocol.voxel)[rng.permutation(3)], rng.random(3)
    weights = (
        rng.standard_normal(len(_POWERS)) * rng.uniform(0.0, 0.045) / np.array([max(sum(p) - 1, 1) for p in _POWERS])
    )
    return Scan(
        sequence,
        _tables(protocol, scanner.field, scales, 1.0),
        _tables(IDEAL.protocol(sequence), IDEAL.field, scales, WHITE_LEVEL[sequence]),
        scanner.transmit,
        (float(voxel[0]), float(voxel[1]), float(voxel[2])),
        (float(phase[0]), float(phase[1]), float(phase[2])),
        torch.from_numpy(weights).float(),
        1.0 / protocol.snr,
        float(rng.uniform(0, 0.6)),
    )


def simulate(
    head: ModelHead, scan: Scan, where: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scan a cube.

    Parameters
    ----------
    head, scan
        Anatomy and scan, on one device.
    where
        (A, B, C, 3) voxel coordinates in the head's arrays of the cube's voxels.
    generator
        Source of the noise; torch's own if None.

    Returns
    -------
    image
        (A, B, C), units of average white matter; not masked.
    truth
        (A, B, C), the unified look, no noise; its resolution is the same whatever the scan's voxels.
    brain
        (A, B, C), 0 to 1.
    """
    part, shift = _part(head, where, max(scan.voxel) / head.spacing)
    tissue, texture, mask = (array[part] for array in (head.tissue, head.texture, head.mask))
    index = tissue.long()
    signal = _signal(scan.tables, index, texture, _transmit(head, part, scan.transmit)).clamp_min(0)
    axes = [
        AxisGrid(size, voxel / head.spacing, phase)
        for size, voxel, phase in zip(signal.shape, scan.voxel, scan.phase, strict=True)
    ]
    spread = [voxel < 1.5 * min(scan.voxel) for voxel in scan.voxel]
    native = _averaged(signal, [axis.averages(wide) for axis, wide in zip(axes, spread, strict=True)])
    # drawn on the CPU, so that a GPU sees the same noise
    noise = torch.randn((2, *native.shape), generator=generator).to(native.device) * scan.noise
    native = torch.hypot(native + noise[0], noise[1])
    where = where - shift
    places = torch.stack([axis.place(where[..., number]) for number, axis in enumerate(axes)], dim=-1)
    image = _sampled(native[None], places)[0] * _smooth_field(head, scan, where + shift)
    ideal = _signal(scan.target, index, texture, None).clamp(0, 1)
    truth = _blurred(ideal[None], [_TRUTH_SPREAD / head.spacing] * 3)
    truth, brain = _sampled(torch.cat([truth, mask.float()[None]]), where)
    return image, truth, brain


@dataclass(frozen=True)
class BrainSample:
    """Intensities of some brain voxels.

    Attributes
    ----------
    values
        (N,) as `simulate` would show them.
    clean
        (N,) without the residual field; the noise only lifts them, as it lifts the mean of a magnitude.
    truth
        (N,) in the unified look.
    """

    values: torch.Tensor
    clean: torch.Tensor
    truth: torch.Tensor


def brain_values(head: ModelHead, scan: Scan, rng: np.random.Generator, count: int = _STATISTICS) -> BrainSample:
    """Intensities of `count` random brain voxels, less what the mask misses: for whole-brain statistics."""
    device = head.mask.device
    chosen = head.inside[torch.from_numpy(rng.integers(0, head.inside.numel(), count)).to(device)]
    chosen = chosen[~head.rim.flatten()[chosen] | (torch.from_numpy(rng.random(count)).to(device) >= scan.lost)]
    x, y, z = head.tissue.shape
    place = torch.stack([chosen // (y * z), (chosen // z) % y, chosen % z], dim=1)
    spread = [effective_sigma(voxel / head.spacing) for voxel in scan.voxel]
    steps = _steps(spread).to(device)
    flat = _around(place, (x, y, z), steps)
    weights, exact = _gaussian(steps, spread), _gaussian(steps, [_TRUTH_SPREAD / head.spacing] * 3)
    index, texture = head.tissue.flatten()[flat].long(), head.texture.flatten()[flat]
    distance = ((place - head.centre) * (head.spacing / 90.0)).square().sum(-1)
    deviation = scan.transmit * (0.4 - distance.clamp_max(1.6))
    signal = _signal(scan.tables, index, texture, deviation[:, None]).clamp_min(0) @ weights
    truth = _signal(scan.target, index, texture, None).clamp(0, 1) @ exact
    # about the mean of a magnitude where there is signal; a fifth too little where there is none
    clean = (signal.square() + scan.noise**2).sqrt()
    signal = signal * _field(scan.bias, _relative(head, place.float()))
    noise = torch.from_numpy(rng.standard_normal((2, signal.numel()))).float().to(device) * scan.noise
    return BrainSample(torch.hypot(signal + noise[0], noise[1]), clean, truth)


def _around(place: torch.Tensor, shape: tuple[int, int, int], steps: torch.Tensor) -> torch.Tensor:
    """Flat indices (N, M) of the voxels that lie `steps` (M, 3) from each place (N, 3)."""
    around = torch.minimum((place[:, None] + steps).clamp_min(0), torch.tensor(shape, device=place.device) - 1)
    return (around[..., 0] * shape[1] + around[..., 1]) * shape[2] + around[..., 2]


def _steps(sigmas: Sequence[float]) -> torch.Tensor:
    """Steps (M, 3) to the voxels that a Gaussian blur reaches: one voxel, along thick slices more."""
    reaches = [1 + int(sigma > 1.0) + int(sigma > 1.4) for sigma in sigmas]
    return torch.cartesian_prod(*[torch.arange(-reach, reach + 1) for reach in reaches])


def _gaussian(steps: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    weights = torch.exp(-0.5 * ((steps / torch.tensor(sigmas, device=steps.device).clamp_min(0.3)) ** 2).sum(1))
    return weights / weights.sum()


def _tables(protocol: Protocol, field: float, scales: np.ndarray, white: float) -> torch.Tensor:
    average = tissues.relaxation(field)
    gain = white / float(protocol.signals(average)[tissues.WHITE])
    return torch.from_numpy(signal_tables(protocol, average.scaled(*scales)) * np.float32(gain))


def _signal(
    tables: torch.Tensor, index: torch.Tensor, texture: torch.Tensor, deviation: torch.Tensor | None
) -> torch.Tensor:
    out = tables[0][index] + tables[1][index] * texture
    return out if deviation is None else out + deviation * (tables[2][index] + deviation * tables[3][index])


def _part(head: ModelHead, where: torch.Tensor, thickest: float) -> tuple[tuple[slice, ...], torch.Tensor]:
    """The part of the head's arrays that the cube and the voxels around it touch, and its first voxel."""
    flat, margin = where.reshape(-1, 3), 3 + math.ceil(1.5 * thickest)
    low, high = (flat.amin(0).floor().long() - margin).tolist(), (flat.amax(0).ceil().long() + margin + 1).tolist()
    sizes = head.tissue.shape
    # a cube wholly outside still gets a voxel of air to look at
    starts = [min(max(0, a), size - 1) for a, size in zip(low, sizes, strict=True)]
    ends = [max(start + 1, min(b, size)) for start, b, size in zip(starts, high, sizes, strict=True)]
    shift = torch.tensor(starts, dtype=torch.float32, device=where.device)
    return tuple(slice(a, b) for a, b in zip(starts, ends, strict=True)), shift


def _transmit(head: ModelHead, part: tuple[slice, ...], strength: float) -> torch.Tensor:
    """Transmit field minus 1, as in `acquire`: positive in the middle of the brain, negative at its edge."""
    axes = [
        (torch.arange(side.start, side.stop, device=head.centre.device) - middle) * (head.spacing / 90.0)
        for side, middle in zip(part, head.centre, strict=True)
    ]
    radius = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2
    return strength * (0.4 - radius.clamp_max(1.6))


def _relative(head: ModelHead, where: torch.Tensor) -> torch.Tensor:
    """Coordinates for the residual field: about -1 to 1 over the brain."""
    return torch.tanh((where - head.centre) * (head.spacing / 80.0))


def _smooth_field(head: ModelHead, scan: Scan, where: torch.Tensor) -> torch.Tensor:
    """The residual field of a cube: worked out on every eighth voxel."""
    coarse = functional.avg_pool3d(where.movedim(-1, 0)[None], 8).movedim(1, -1)
    field = _field(scan.bias, _relative(head, coarse))
    return functional.interpolate(field[:, None], where.shape[:3], mode="trilinear")[0, 0]


def _field(weights: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """exp of the polynomial at `place` (..., 3)."""
    powers = [torch.ones_like(place), place, place**2, place**3, place**4]
    total = torch.zeros(place.shape[:-1], device=place.device)
    for weight, (a, b, c) in zip(weights, _POWERS, strict=True):
        total = total + weight * powers[a][..., 0] * powers[b][..., 1] * powers[c][..., 2]
    return torch.exp(total)


def _averaged(volume: torch.Tensor, operators: Sequence[torch.Tensor]) -> torch.Tensor:
    """Apply a matrix (M, N) along each axis of (N, N', N'')."""
    # each contraction takes the first axis away and appends the new one: after three the order is the old one
    for operator in operators:
        volume = torch.tensordot(volume, operator.to(volume.device), dims=([0], [1]))
    return volume


def _blurred(volumes: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
    """Gaussian blur of (C, X, Y, Z) along each axis; sigmas in voxels; zero beyond the edges."""
    out = volumes
    for axis, sigma in enumerate(sigmas, start=1):
        if sigma < 0.2:
            continue
        reach, size = max(1, round(2.5 * sigma)), out.shape[axis]
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        # Shifted sums: a convolution of one channel would be compiled anew for every size of cube.
        total = torch.zeros_like(out)
        for step, weight in zip(range(-reach, reach + 1), (line / line.sum()).tolist(), strict=True):
            overlap = size - abs(step)
            if overlap > 0:
                source = out.narrow(axis, max(0, step), overlap)
                total.narrow(axis, max(0, -step), overlap).add_(source, alpha=weight)
        out = total
    return out


def _sampled(volumes: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Trilinear values of (C, X, Y, Z) at voxel coordinates (A, B, C, 3); zero outside."""
    extent = torch.tensor(volumes.shape[1:], device=where.device)
    normal = (2 * where / (extent - 1).clamp_min(1) - 1).flip(-1)
    return functional.grid_sample(volumes[None], normal[None], align_corners=True)[0]
