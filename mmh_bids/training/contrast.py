"""Train the small style encoder by contrast: scans of one scanner are alike whoever is scanned, of two they are not.

Normalised temperature-scaled cross entropy (Chen et al., ICML 2020, SimCLR), on pairs of heads on the same scanner.
A scanner's curve of intensity may be changed at random, the same way for both scans of a pair: that makes new scanners
of the simulated ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import ContrastiveLoss
from safetensors.torch import load_file
from torch.nn import functional

from mmh_bids.models.encoders import build_small
from mmh_bids.models.light import SEQUENCES
from mmh_bids.models.style import PLANES, TriPlanarEncoder
from mmh_bids.training.loop import all_parameters
from mmh_bids.training.scanners import FACTOR

#: What similarities are divided by in the loss.
_TEMPERATURE = 0.1
#: Weight of the same loss between slices that lie alike: many more examples for the tower.
_SLICES = 1.0
#: Share of the pairs whose curve is changed; standard deviation of the logarithm of its power; range of its gain.
_CHANGED, _POWER, _GAIN = 0.5, 0.12, (0.9, 1.0)
#: Most scanners that the start is made of; share of its own that is added to each variance within a scanner; length of
#: the start's embeddings in units of what two heads differ by.
_START, _SHRINKAGE, _LENGTH = 512, 0.02, 2.0
#: Voxels of 2 mm: most of the rim that is taken off, furthest that a brain is moved; least share of an axis shown.
_RIM, _MOVE, _SHOWN = 2, 4, 0.65


@dataclass
class ContrastRecipe:
    """Pairs of scans.

    Attributes
    ----------
    train, validation
        Files of `scanners.make_scans`, two heads or more in each.
    network
        Arguments of `encoders.build_small`.
    batch
        Pairs a step, half of them T1w and half T2w, each of another scanner.
    """

    train: Sequence[Path]
    validation: Sequence[Path]
    network: Mapping[str, Any]
    batch: int = 24
    #: Methods of the network that are called beside `forward`.
    forward_methods = ("embed",)
    _loss: ContrastiveLoss = field(default_factory=lambda: ContrastiveLoss(_TEMPERATURE))

    def build(self) -> TriPlanarEncoder:
        """Return an encoder whose tower learns as well, and begins with what a linear discriminant tells apart."""
        encoder = build_small(self.network, card={})
        discriminant_start(encoder, self.train[:_START])
        encoder.tower.requires_grad_(True)
        return encoder

    def groups(self, network: Any) -> list[dict[str, Any]]:
        """Return all parameters as one group."""
        return all_parameters(network)

    def losses(self, network: Any, rng: np.random.Generator, device: torch.device) -> dict[str, torch.Tensor]:
        """Contrastive loss of a batch, and the share of the scans whose nearest other one is of their scanner."""
        each = min(self.batch // 2, len(self.train))
        pairs = [
            self._pair(self.train[int(number)], sequence, rng)
            for sequence in SEQUENCES
            for number in rng.permutation(len(self.train))[:each]
        ]
        scans = torch.stack(pairs).to(device)
        embeddings = network.embed(scans.flatten(0, 1)[:, None], float(FACTOR))
        vectors = network.aggregator(embeddings).unflatten(0, scans.shape[:2])
        slices = embeddings.flatten(1, 2).unflatten(0, scans.shape[:2]).unbind(2)
        volumes = self._loss(*vectors.unbind(1))
        alone = torch.stack([self._loss(*one.unbind(1)) for one in slices]).mean()
        with torch.no_grad():
            near = [nearest_share(part.detach()) for part in vectors.split(each)]
        return {
            "loss": volumes + _SLICES * alone,
            "volumes": volumes,
            "slices": alone,
            "nearest": torch.tensor(near, device=device).mean(),
        }

    def validate(self, network: Any, device: torch.device, folder: Path, step: int) -> Mapping[str, float]:
        """Share of held-out heads' scans whose nearest of another head is of the same, unseen scanner."""
        del folder, step
        found = {}
        for sequence in SEQUENCES:
            rows = []
            for path in self.validation:
                scans = _volumes(path, sequence).to(device)
                rows.append(network(scans[:, None], float(FACTOR)))
            found[f"{sequence}_nearest"] = nearest_share(torch.stack(rows))
        return found

    def _pair(self, path: Path, sequence: str, rng: np.random.Generator) -> torch.Tensor:
        """Two scans (2, X, Y, Z) of one scanner, its curve changed or not, each of another part of its brain."""
        scans = _volumes(path, sequence)
        scans = scans[torch.from_numpy(rng.permutation(len(scans))[:2])]
        if rng.random() < _CHANGED:
            scans = scans ** float(np.exp(rng.normal(0, _POWER))) * float(rng.uniform(*_GAIN))
        return torch.stack([vary(scan, rng) for scan in scans])


@torch.no_grad()
def discriminant_start(encoder: TriPlanarEncoder, files: Sequence[Path]) -> None:
    """Let the small tower's linear part be a discriminant (Fisher 1936): scanners far apart, heads on a scanner near.

    Statistics of slices have scales and dependences that gradient descent takes thousands of steps to even out.

    Parameters
    ----------
    encoder
        Of `build_small`.
    files
        Of `scanners.make_scans`; the first two heads on each are compared, slice by slice.
    """
    linear = encoder.tower.linear
    assert isinstance(linear, torch.nn.Linear)
    found: list[torch.Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].double()))
    seen, centres = [], []
    for sequence in SEQUENCES:
        found.clear()
        for path in files:
            encoder.embed(_volumes(path, sequence)[:2, None], float(FACTOR))
        # scanners, planes, heads, slices, statistics
        rows = torch.cat(found).reshape(len(files), PLANES, 2, encoder.slices, -1)
        seen.append(rows - rows.mean(dim=(0, 2), keepdim=True))
        centres.append(rows.mean(dim=(0, 1, 2, 3)))
    hook.remove()
    rows = torch.cat(seen)
    apart = (rows[:, :, 0] - rows[:, :, 1]).flatten(0, 2) / math.sqrt(2)
    within = apart.T @ apart / len(apart)
    within = within + _SHRINKAGE * torch.diag(within.diagonal()) + 1e-9 * torch.eye(len(within))
    means = rows.mean(dim=2).flatten(0, 2)
    whiten = torch.linalg.inv(torch.linalg.cholesky(within))
    between, directions = torch.linalg.eigh(whiten @ (means.T @ means / len(means)) @ whiten.T)
    size = linear.out_features
    share = (between[-size:] / (1 + between[-size:])).sqrt()
    weight = _LENGTH * share[:, None] * directions[:, -size:].T @ whiten
    linear.weight.copy_(weight)
    assert linear.bias is not None
    linear.bias.copy_(-weight @ torch.stack(centres).mean(dim=0))


def vary(scan: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Show a part of a brain: mirrored or not, some of its rim and of its ends taken off, moved by some voxels.

    How much fluid there is differs more between people of all ages than between the training's label maps.

    Parameters
    ----------
    scan
        (X, Y, Z), zero outside the brain.

    Returns
    -------
    The same shape.
    """
    if rng.random() < 0.5:
        scan = scan.flip(0)
    rim = int(rng.integers(_RIM + 1))
    if rim:
        inside = (scan > 0).float()[None, None]
        for axis in range(3):
            reach = [rim if axis == other else 0 for other in range(3)]
            inside = -functional.max_pool3d(-inside, [2 * side + 1 for side in reach], 1, reach)
        scan = scan * inside[0, 0]
    shown = torch.zeros_like(scan)
    parts = []
    for size in scan.shape:
        length = int(size * rng.uniform(_SHOWN, 1.0))
        start = int(rng.integers(size - length + 1))
        parts.append(slice(start, start + length))
    shown[tuple(parts)] = scan[tuple(parts)]
    moves = [int(move) for move in rng.integers(-_MOVE, _MOVE + 1, 3)]
    return shown.roll(moves, dims=(0, 1, 2))


def nearest_share(vectors: torch.Tensor) -> float:
    """How often the nearest neighbour among other heads' scans is of the same scanner, by the cosine.

    Parameters
    ----------
    vectors
        (S, H, D): S scanners, H heads on each.

    Examples
    --------
    >>> nearest_share(torch.eye(3)[:, None].expand(3, 2, 3))
    1.0
    """
    unit = functional.normalize(vectors, dim=-1)
    return share_of_nearest(1 - torch.einsum("ihd,jgd->ihjg", unit, unit))


def share_of_nearest(distances: torch.Tensor) -> float:
    """The same, from distances (S, H, S, H).

    >>> distances = torch.ones(2, 2, 2, 2)
    >>> distances[0, 0, 1, 1] = 0.5
    >>> distances[1, :, 1, :] = 0.1
    >>> share_of_nearest(distances - 0.01 * torch.eye(2).reshape(2, 1, 2, 1))
    0.75
    """
    scanners, heads = distances.shape[:2]
    same_head = torch.eye(heads, dtype=torch.bool, device=distances.device)[None, :, None, :]
    best = distances.masked_fill(same_head, torch.inf).flatten(2).argmin(dim=-1) // heads
    return float((best == torch.arange(scanners, device=distances.device)[:, None]).float().mean())


def _volumes(path: Path, sequence: str) -> torch.Tensor:
    return load_file(path)[sequence].float() / 255
