"""The simulator in torch: cubes of the model grid, scanned as the app would see them after its preprocessing.

Signal tables, tissues and scanners are those of the whole-image simulator (`mmh_bids.simulate.acquire`); here the
receive field is what bias correction leaves of it, and resampling to the model grid has blurred image and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mmh_bids.simulate import tissues
from mmh_bids.simulate.draw import draw_scanner
from mmh_bids.simulate.modelhead import ModelHead
from mmh_bids.simulate.scanner import Protocol, Scanner
from mmh_bids.simulate.tables import signal_tables
from mmh_bids.simulate.unified import IDEAL, WHITE_LEVEL

#: Powers of the residual field's polynomial: all of order 1 to 4.
_POWERS = [(a, b, c) for a in range(5) for b in range(5) for c in range(5) if 1 <= a + b + c <= 4]
#: Brain voxels that the image's statistics are taken from.
_STATISTICS = 20_000


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
    blur
        (3,) standard deviation of the point spread along the head's axes, millimetres.
    bias
        (P,) weights of the residual field's polynomial in its logarithm.
    noise
        Standard deviation of the noise on the model grid over average white matter.
    smooth
        Standard deviation (voxels) of the noise's correlation.
    lost
        Share of the fluid at the rim that the brain mask misses.
    """

    sequence: str
    tables: torch.Tensor
    target: torch.Tensor
    transmit: float
    blur: tuple[float, float, float]
    bias: torch.Tensor
    noise: float
    smooth: float
    lost: float

    def to(self, device: torch.device) -> Scan:
        """Return the same scan with its tensors on another device."""
        moved = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return Scan(**{**vars(self), **moved})


def draw_scan(sequence: str, rng: np.random.Generator, scanner: Scanner | None = None) -> Scan:
    """Draw a scanner (unless given), a person's tissue properties and what preprocessing leaves behind.

    Parameters
    ----------
    sequence
        ``"T1w"`` or ``"T2w"``.
    rng
        Source of randomness.
    scanner
        Use this one.
    """
    scanner = scanner or draw_scanner(rng)
    protocol, scales = scanner.protocol(sequence), tissues.person_scales(rng)
    voxel = np.array(protocol.voxel)[rng.permutation(3)]
    # A voxel's average has the variance of a box, size^2 / 12, on top of the in-plane point spread and resampling.
    blur = np.sqrt(np.maximum(voxel**2 - 1.0, 0) / 12 + (0.35 * np.minimum(voxel, 1.5)) ** 2 + 0.15)
    smooth = float(rng.uniform(0.35, 0.65))
    # Trilinear resampling averages the noise of eight voxels by about half; larger voxels carry the noise they have.
    level = rng.uniform(0.45, 0.75) / protocol.snr
    weights = (
        rng.standard_normal(len(_POWERS)) * rng.uniform(0.0, 0.045) / np.array([max(sum(p) - 1, 1) for p in _POWERS])
    )
    return Scan(
        sequence,
        _tables(protocol, scanner.field, scales, 1.0),
        _tables(IDEAL.protocol(sequence), IDEAL.field, scales, WHITE_LEVEL[sequence]),
        scanner.transmit,
        (float(blur[0]), float(blur[1]), float(blur[2])),
        torch.from_numpy(weights).float(),
        float(level),
        smooth,
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
        (A, B, C), the unified look with the image's resolution, no noise.
    brain
        (A, B, C), 0 to 1.
    """
    part, shift = _part(head, where)
    tissue, texture, mask = (array[part] for array in (head.tissue, head.texture, head.mask))
    index = tissue.long()
    deviation = _transmit(head, part, scan.transmit)
    signal = _signal(scan.tables, index, texture, deviation).clamp_min(0)
    ideal = _signal(scan.target, index, texture, None).clamp(0, 1)
    volumes = _blurred(torch.stack([signal, ideal]), [sigma / head.spacing for sigma in scan.blur])
    volumes = torch.cat([volumes, mask.float()[None]])
    image, truth, brain = _sampled(volumes, where - shift)
    image = image * _smooth_field(head, scan, where)
    # drawn on the CPU, so that a GPU sees the same noise
    noise = torch.randn((2, *image.shape), generator=generator).to(image.device)
    noise = _blurred(noise, [scan.smooth] * 3)
    noise = noise * (scan.noise / noise.std())
    return torch.hypot(image + noise[0], noise[1]), truth, brain


def brain_values(
    head: ModelHead, scan: Scan, rng: np.random.Generator, count: int = _STATISTICS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Intensities of `count` random brain voxels, as `simulate` would show them: for whole-brain statistics.

    Returns
    -------
    values
        (N,) at most `count`, less what the mask misses; units as in `simulate`.
    truth
        (N,) the same voxels in the unified look.
    """
    device = head.mask.device
    chosen = head.inside[torch.from_numpy(rng.integers(0, head.inside.numel(), count)).to(device)]
    chosen = chosen[~head.rim.flatten()[chosen] | (torch.from_numpy(rng.random(count)).to(device) >= scan.lost)]
    x, y, z = head.tissue.shape
    place = torch.stack([chosen // (y * z), (chosen // z) % y, chosen % z], dim=1)
    flat, weights = _neighbours(place, (x, y, z), [sigma / head.spacing for sigma in scan.blur])
    index, texture = head.tissue.flatten()[flat].long(), head.texture.flatten()[flat]
    distance = ((place - head.centre) * (head.spacing / 90.0)).square().sum(-1)
    deviation = scan.transmit * (0.4 - distance.clamp_max(1.6))
    signal = _signal(scan.tables, index, texture, deviation[:, None]).clamp_min(0) @ weights
    truth = _signal(scan.target, index, texture, None).clamp(0, 1) @ weights
    signal = signal * _field(scan.bias, _relative(head, place.float()))
    noise = torch.from_numpy(rng.standard_normal((2, signal.numel()))).float().to(device) * scan.noise
    return torch.hypot(signal + noise[0], noise[1]), truth


def _neighbours(
    place: torch.Tensor, shape: tuple[int, int, int], sigmas: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat indices (N, 27) of the voxels around each place (N, 3), and their shares (27,) of a Gaussian blur."""
    steps = torch.cartesian_prod(*[torch.tensor([-1, 0, 1], device=place.device)] * 3)
    spread = torch.tensor(sigmas, device=place.device).clamp_min(0.3)
    weights = torch.exp(-0.5 * ((steps / spread) ** 2).sum(1))
    around = torch.minimum((place[:, None] + steps).clamp_min(0), torch.tensor(shape, device=place.device) - 1)
    return (around[..., 0] * shape[1] + around[..., 1]) * shape[2] + around[..., 2], weights / weights.sum()


def _tables(protocol: Protocol, field: float, scales: np.ndarray, white: float) -> torch.Tensor:
    average = tissues.relaxation(field)
    gain = white / float(protocol.signals(average)[tissues.WHITE])
    return torch.from_numpy(signal_tables(protocol, average.scaled(*scales)) * np.float32(gain))


def _signal(
    tables: torch.Tensor, index: torch.Tensor, texture: torch.Tensor, deviation: torch.Tensor | None
) -> torch.Tensor:
    out = tables[0][index] + tables[1][index] * texture
    return out if deviation is None else out + deviation * (tables[2][index] + deviation * tables[3][index])


def _part(head: ModelHead, where: torch.Tensor) -> tuple[tuple[slice, ...], torch.Tensor]:
    """The part of the head's arrays that the cube and its blur touch, and its first voxel."""
    flat = where.reshape(-1, 3)
    low, high = (flat.amin(0).floor().long() - 5).tolist(), (flat.amax(0).ceil().long() + 6).tolist()
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
