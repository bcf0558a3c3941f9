"""Simulated scans for contrast: several heads on each of many scanners, at the small style encoder's resolution.

A scan at 2 mm is nearly what averaging a scan at 1 mm gives, at a quarter of the cost: voxels of 1.5 mm that are
interpolated to points 2 mm apart have the noise and the sharpness, both to some percent, of voxels of 1 mm that are
interpolated to points 1 mm apart and averaged over cubes of 2 mm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmh_bids.files import atomic_path
from mmh_bids.image.grid import MODEL_SHAPE
from mmh_bids.image.intensity import robust_scale
from mmh_bids.models.light import SEQUENCES
from mmh_bids.simulate.batch import Scan, brain_values, draw_scan, simulate
from mmh_bids.simulate.draw import draw_scanner
from mmh_bids.simulate.modelhead import ModelHead, load_head
from mmh_bids.training.light_pairs import positions
from mmh_bids.training.requeue import ignore_stop_requests

#: Voxels of the model grid (1 mm) to one of the encoder's.
FACTOR = 2
#: Size (mm) of the voxels that stand for those of 1 mm, see the module.
_VOXEL = 1.5


def coarse_scan(scan: Scan) -> Scan:
    """The same scan with voxels of at least 1.5 mm: what smaller ones hold of noise is averaged.

    >>> scan = draw_scan("T1w", np.random.default_rng(0))
    >>> coarse = coarse_scan(replace(scan, voxel=(0.75, 0.75, 3.0), noise=0.04))
    >>> coarse.voxel, round(coarse.noise, 4)
    ((1.5, 1.5, 3.0), 0.02)
    """
    x, y, z = (max(size, _VOXEL) for size in scan.voxel)
    voxel = (x, y, z)
    return replace(scan, voxel=voxel, noise=scan.noise * math.sqrt(math.prod(scan.voxel) / math.prod(voxel)))


def scan_volume(head: ModelHead, scan: Scan, rng: np.random.Generator, factor: int = FACTOR) -> torch.Tensor:
    """A scan of a head as the app prepares it, on the model grid averaged over cubes.

    Parameters
    ----------
    head, scan
        Who and how; the anatomy is changed at random.
    factor
        Voxels of 1 mm a cube's edge; 1 for the model grid itself.

    Returns
    -------
    (X, Y, Z) in [0, 1], zero outside the brain; 1 is the 99.9th percentile of the brain's voxels as scanned.
    """
    axes = [torch.arange((factor - 1) / 2, size, factor) for size in MODEL_SHAPE]
    noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
    where = positions(head, axes, rng)
    image, _, brain = simulate(head, coarse_scan(scan) if factor > 1 else scan, where, noise)
    _, high = robust_scale(brain_values(head, scan, rng).values.numpy())
    return torch.where(brain >= 0.5, (image / high).clamp(0, 1), 0)


def draw_scans(heads: Sequence[ModelHead], rng: np.random.Generator, factor: int = FACTOR) -> dict[str, torch.Tensor]:
    """Scan some heads on one scanner drawn at random.

    Every scan has its own person's tissue properties, rest of the field, place on the grid and noise.

    Returns
    -------
    By sequence (H, X, Y, Z), see `scan_volume`.
    """
    scanner, out = draw_scanner(rng), {}
    for sequence in SEQUENCES:
        scans = [draw_scan(sequence, rng, scanner) for _ in heads]
        # thick slices lie the same way in all scans of a protocol
        scans = [replace(scan, voxel=scans[0].voxel) for scan in scans]
        out[sequence] = torch.stack(
            [scan_volume(head, scan, rng, factor) for head, scan in zip(heads, scans, strict=True)]
        )
    return out


def make_scans(
    heads: Sequence[Path],
    count: int,
    folder: Path,
    seed: int,
    workers: int,
    together: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Scan heads on `count` scanners and store the scans; files that are there are kept.

    Parameters
    ----------
    heads
        Files of `modelhead.make_heads`.
    together
        How many of them, drawn at random, each scanner scans; None: all, in the given order.
    check
        Called after each scanner; may raise to stop.

    Returns
    -------
    A file a scanner; by sequence (H, X, Y, Z) uint8, 255 for 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = [
        (tuple(heads), seed, number, together, folder / f"scanner-{number:04d}.safetensors") for number in range(count)
    ]
    # signals are the main process's to hear
    with ProcessPoolExecutor(workers, initializer=ignore_stop_requests) as pool:
        for _ in as_completed([pool.submit(_make, one) for one in asked]):
            try:
                check()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [one[-1] for one in asked]


def _make(asked: tuple[tuple[Path, ...], int, int, int | None, Path]) -> None:
    heads, seed, number, together, target = asked
    facts = {"heads": json.dumps([path.name for path in heads]), "seed": str(seed), "together": str(together)}
    if _facts(target) == facts:
        return
    rng = np.random.default_rng([seed, number])
    order = range(len(heads)) if together is None else rng.permutation(len(heads))[:together]
    scans = draw_scans([_head(heads[index]) for index in order], rng)
    stored = {sequence: (volumes * 255).round().to(torch.uint8) for sequence, volumes in scans.items()}
    with atomic_path(target) as temporary:
        save_file(stored, temporary, facts)


def _facts(path: Path) -> dict[str, str] | None:
    """What a stored file says of itself; None for none or a damaged one."""
    try:
        with safe_open(path, framework="pt") as stored:
            return dict(stored.metadata() or {})
    except (OSError, SafetensorError):
        return None


@cache
def _head(path: Path) -> ModelHead:
    return load_head(path)
