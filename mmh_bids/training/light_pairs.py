"""Simulated pairs for the light harmonizer: cubes of heads on any scanner, and the same in the unified look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mmh_bids.image.grid import MODEL_SHAPE
from mmh_bids.models.light import Style, join_styles, measure_style, place_in_grid
from mmh_bids.simulate.batch import Scan, brain_values, draw_scan, simulate
from mmh_bids.simulate.modelhead import ModelHead
from mmh_bids.simulate.unified import IDEAL

#: How far registration and anatomy may differ from the training heads': radians, relative size, mm.
_ROTATION, _SCALE, _SHIFT, _BEND = 0.1, 0.08, 3.0, 2.0
#: Share of inputs that already have the unified look.
_UNIFIED = 0.3


@dataclass(frozen=True)
class Pair:
    """One image and its truth, (1, X, Y, Z) each, with the image's whole-brain statistics."""

    image: torch.Tensor
    truth: torch.Tensor
    brain: torch.Tensor
    place: torch.Tensor
    style: Style


@dataclass(frozen=True)
class View:
    """A cube of a head: voxel coordinates (A, B, C, 3) in the head's arrays, the network's places (3, A / 2, ...)."""

    where: torch.Tensor
    place: torch.Tensor


def batch_of(pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Style]:
    """Arguments of `LightNetwork`."""
    image, brain, place = (torch.stack([getattr(pair, key) for pair in pairs]) for key in ("image", "brain", "place"))
    return image, brain, place, join_styles([pair.style for pair in pairs])


def draw_view(head: ModelHead, rng: np.random.Generator, patch: int | None) -> View:
    """Cut a cube of `patch` voxels (None: the whole model grid) out of a head turned, bent and mirrored at random."""
    size = MODEL_SHAPE if patch is None else (patch,) * 3
    # even, for the network's places are those of every second voxel
    start = [2 * int(rng.integers(0, (whole - side) // 2 + 1)) for whole, side in zip(MODEL_SHAPE, size, strict=True)]
    half = tuple(slice(a // 2, a // 2 + side // 2) for a, side in zip(start, size, strict=True))
    place = place_in_grid(MODEL_SHAPE)[(slice(None), *half)].to(head.tissue.device)
    axes = [torch.arange(first, first + side, dtype=torch.float32) for first, side in zip(start, size, strict=True)]
    return View(positions(head, axes, rng), place)


def draw_pair(
    head: ModelHead,
    sequence: str,
    rng: np.random.Generator,
    view: View,
    generator: torch.Generator | None = None,
    scales: NDArray[np.float64] | None = None,
) -> Pair:
    """Scan a cube of a head on a scanner drawn at random.

    Parameters
    ----------
    head, view
        Anatomy and cube.
    sequence
        ``"T1w"`` or ``"T2w"``.
    rng
        Source of all randomness but the cube's noise.
    generator
        Source of the cube's noise; torch's own if None.
    scales
        The person's tissue properties; drawn if None.
    """
    scan = draw_input(head, sequence, rng, scales)
    image, truth, brain = simulate(head, scan, view.where, generator)
    brain = (brain >= 0.5).float()
    style = measure_style(brain_values(head, scan, rng).values, sequence)
    return Pair((image * brain)[None], truth[None], brain[None], view.place, style)


def unified_volume(head: ModelHead, sequence: str) -> tuple[np.ndarray, np.ndarray]:
    """A head of an average person in the unified look on the model grid: truth (X, Y, Z) float32 and brain, bool."""
    scan = ideal(draw_scan(sequence, np.random.default_rng(0), IDEAL))
    axes = [torch.arange(size, dtype=torch.float32) for size in MODEL_SHAPE]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    _, truth, brain = simulate(head, scan, grid @ head.from_model[:3, :3].T + head.from_model[:3, 3])
    return truth.numpy(), (brain >= 0.5).numpy()


def draw_input(
    head: ModelHead, sequence: str, rng: np.random.Generator, scales: NDArray[np.float64] | None = None
) -> Scan:
    """Draw a scan to learn from, now and then one that has the unified look already; on the head's device."""
    scan = draw_scan(sequence, rng, scales=scales).to(head.tissue.device)
    return ideal(scan) if rng.random() < _UNIFIED else scan


def ideal(scan: Scan) -> Scan:
    """The same person on the ideal scanner: no noise, no field, small voxels."""
    voxel = IDEAL.protocol(scan.sequence).voxel
    still = {"transmit": 0.0, "bias": torch.zeros_like(scan.bias), "noise": 0.0}
    changed = {**still, "tables": scan.target, "voxel": voxel}
    return Scan(**{**vars(scan), **changed})


def positions(head: ModelHead, axes: Sequence[torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
    """Where points of the model grid lie in a head whose anatomy is turned, stretched, bent and mirrored at random.

    Parameters
    ----------
    axes
        (A,), (B,), (C,): the points' voxel coordinates along the model grid's axes.

    Returns
    -------
    (A, B, C, 3) voxel coordinates in the head's arrays.
    """
    device, size = head.tissue.device, [len(axis) for axis in axes]
    middle = (torch.tensor(MODEL_SHAPE, dtype=torch.float32) - 1) / 2
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) - middle
    if rng.random() < 0.5:
        grid = grid * torch.tensor([-1.0, 1, 1])
    angles = torch.from_numpy(rng.uniform(-_ROTATION, _ROTATION, 3)).float()
    cross = torch.zeros(3, 3)
    cross[0, 1], cross[0, 2], cross[1, 2] = -angles[2], angles[1], -angles[0]
    stretch = torch.from_numpy(rng.uniform(1 - _SCALE, 1 + _SCALE, 3)).float()
    linear = torch.matrix_exp(cross - cross.T) @ torch.diag(stretch)
    knots = torch.from_numpy(rng.standard_normal((1, 3, 6, 6, 6)) * _BEND).float()
    bend = functional.interpolate(knots, size, mode="trilinear", align_corners=True)[0].permute(1, 2, 3, 0)
    shift = torch.from_numpy(rng.uniform(-_SHIFT, _SHIFT, 3)).float()
    grid = grid @ linear.T + bend + shift + middle
    to_head = head.from_model.to("cpu")
    return (grid @ to_head[:3, :3].T + to_head[:3, 3]).to(device)
