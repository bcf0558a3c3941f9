"""Train the light harmonizer on simulated pairs: a head on any scanner, and the same head in the unified look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mmh_bids.image.grid import MODEL_SHAPE
from mmh_bids.models.light import SEQUENCES, LightNetwork, Style, join_styles, measure_style, place_in_grid
from mmh_bids.simulate import tissues
from mmh_bids.simulate.batch import Scan, brain_values, draw_scan, simulate
from mmh_bids.simulate.modelhead import ModelHead, load_head
from mmh_bids.simulate.unified import IDEAL, unified_tissues

#: How far registration and anatomy may differ from the training heads': radians, relative size, mm.
_ROTATION, _SCALE, _SHIFT, _BEND = 0.1, 0.08, 3.0, 2.0
#: Edge (voxels) of the blocks whose mean error per tissue class is penalised.
_BLOCK = 12
#: Share of inputs that already have the unified look.
_UNIFIED = 0.08
#: Weights of the loss on block means and on edges, beside the mean absolute error.
_REGIONAL, _EDGES = 2.0, 0.5
#: Weight of the error of the curve that is the same everywhere, and voxels a scan it is measured on.
_ONE_CURVE, _CURVE_VALUES = 0.5, 8_000


@dataclass(frozen=True)
class Pair:
    """One image and its truth, (1, X, Y, Z) each, with the image's whole-brain statistics."""

    image: torch.Tensor
    truth: torch.Tensor
    brain: torch.Tensor
    place: torch.Tensor
    style: Style


@dataclass
class LightRecipe:
    """Patches of simulated heads.

    Attributes
    ----------
    train, validation
        Files of `modelhead.make_heads`.
    filters, knots
        Of `LightNetwork`.
    patch
        Edge of the cubes, voxels of 1 mm, a multiple of 8.
    batch
        Cubes a step; T1w and T2w take turns.
    curves
        Further scans a step, of which only a sample of voxels is seen.
    """

    train: Sequence[Path]
    validation: Sequence[Path]
    filters: int = 16
    knots: int = 12
    patch: int = 96
    batch: int = 2
    curves: int = 8
    _heads: dict[tuple[Path, str], ModelHead] = field(default_factory=dict)

    def head(self, path: Path, device: torch.device) -> ModelHead:
        """Return a head, read once a device."""
        key = path, str(device)
        if key not in self._heads:
            self._heads[key] = load_head(path).to(device)
        return self._heads[key]

    def build(self) -> LightNetwork:
        """Return a network that z-scores to the mean look of the training heads in the unified domain."""
        rng, cpu = np.random.default_rng(0), torch.device("cpu")
        found: dict[str, tuple[float, float]] = {}
        for sequence in SEQUENCES:
            values = [_ideal_values(self.head(path, cpu), sequence, rng) for path in self.train]
            means, stds = zip(*((float(v.mean()), float(v.std())) for v in values), strict=True)
            found[sequence] = (float(np.mean(means)), float(np.mean(stds)))
        return LightNetwork(self.filters, self.knots, found)

    def groups(self, network: Any) -> list[dict[str, Any]]:
        """Return the parameters: the curve that is the same everywhere learns faster than the rest."""
        fast = [*network.style.parameters(), *network.everywhere.parameters()]
        chosen = {id(parameter) for parameter in fast}
        rest = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
        return [{"params": rest, "factor": 1.0}, {"params": fast, "factor": 3.0}]

    def losses(self, network: Any, rng: np.random.Generator, device: torch.device) -> dict[str, torch.Tensor]:
        """Mean absolute error, error of block means per tissue class, error of edges: units of white-grey contrast."""
        pairs = []
        for number in range(self.batch):
            head = self.head(self.train[int(rng.integers(len(self.train)))], device)
            pairs.append(draw_pair(head, SEQUENCES[number % 2], rng, self.patch))
        sequences = [SEQUENCES[number % 2] for number in range(self.batch)]
        out = network(*batch_of(pairs))
        total: dict[str, list[torch.Tensor]] = {}
        for number, (pair, sequence) in enumerate(zip(pairs, sequences, strict=True)):
            for name, value in _errors(out[number, 0], pair.truth[0], pair.brain[0], sequence).items():
                total.setdefault(name, []).append(value)
        mean = {name: torch.stack(values).mean() for name, values in total.items()}
        mean["one_curve"] = self._one_curve(network, rng, device)
        parts = mean["absolute"] + _REGIONAL * mean["regional"] + _EDGES * mean["edges"]
        mean["loss"] = parts + _ONE_CURVE * mean["one_curve"]
        return mean

    def _one_curve(self, network: Any, rng: np.random.Generator, device: torch.device) -> torch.Tensor:
        """Error of the curve that is the same everywhere: scans cost little here, and there are many to learn."""
        styles, images, truths = [], [], []
        for number in range(self.curves):
            head = self.head(self.train[int(rng.integers(len(self.train)))], device)
            sequence = SEQUENCES[number % 2]
            values, truth = brain_values(head, _draw(head, sequence, rng), rng)
            styles.append(measure_style(values, sequence))
            unit = _contrast(sequence)
            images.append(values[:_CURVE_VALUES])
            truths.append((truth[:_CURVE_VALUES], unit))
        out = network.one_curve(torch.stack(images), join_styles(styles))
        return torch.stack([((o - t).abs() / unit).mean() for o, (t, unit) in zip(out, truths, strict=True)]).mean()

    def validate(self, network: Any, device: torch.device, folder: Path, step: int) -> Mapping[str, float]:
        """Errors on whole brains of held-out heads on fixed scanners, beside those of the z-scored image."""
        found: dict[str, list[float]] = {}
        untrained = LightNetwork(self.filters, self.knots).to(device)
        untrained.unified.copy_(network.unified)
        for number, path in enumerate(self.validation):
            for sequence in SEQUENCES:
                rng = np.random.default_rng([77, number])
                pair = draw_pair(self.head(path, device), sequence, rng, None, torch.Generator().manual_seed(number))
                for name, one in (("", network), ("zscore_", untrained)):
                    out = one(*batch_of([pair]))[0, 0]
                    for key, value in _errors(out, pair.truth[0], pair.brain[0], sequence).items():
                        found.setdefault(f"{sequence}_{name}{key}", []).append(float(value))
                    if not name and number == 0:
                        _picture(folder / f"step-{step:06d}_{sequence}.png", pair, out)
        return {name: float(np.mean(values)) for name, values in found.items()}


def batch_of(pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Style]:
    """Arguments of `LightNetwork`."""
    image, brain, place = (torch.stack([getattr(pair, key) for pair in pairs]) for key in ("image", "brain", "place"))
    return image, brain, place, join_styles([pair.style for pair in pairs])


def draw_pair(
    head: ModelHead,
    sequence: str,
    rng: np.random.Generator,
    patch: int | None,
    generator: torch.Generator | None = None,
) -> Pair:
    """Scan a head on a scanner drawn at random and cut out a cube.

    Parameters
    ----------
    head
        Anatomy; is turned, stretched, bent, shifted and mirrored at random.
    sequence
        ``"T1w"`` or ``"T2w"``.
    rng
        Source of all randomness but the cube's noise.
    patch
        Edge in voxels; None takes the whole model grid.
    generator
        Source of the cube's noise; torch's own if None.
    """
    scan = _draw(head, sequence, rng)
    size = MODEL_SHAPE if patch is None else (patch,) * 3
    # even, for the network's places are those of every second voxel
    start = [2 * int(rng.integers(0, (whole - side) // 2 + 1)) for whole, side in zip(MODEL_SHAPE, size, strict=True)]
    image, truth, brain = simulate(head, scan, _positions(head, size, start, rng), generator)
    brain = (brain >= 0.5).float()
    style = measure_style(brain_values(head, scan, rng)[0], sequence)
    place = place_in_grid(MODEL_SHAPE).to(image.device)
    half = tuple(slice(a // 2, a // 2 + side // 2) for a, side in zip(start, size, strict=True))
    return Pair((image * brain)[None], truth[None], brain[None], place[(slice(None), *half)], style)


def unified_volume(head: ModelHead, sequence: str) -> tuple[np.ndarray, np.ndarray]:
    """A head of an average person in the unified look on the model grid: truth (X, Y, Z) float32 and brain, bool."""
    scan = _ideal(draw_scan(sequence, np.random.default_rng(0), IDEAL))
    axes = [torch.arange(size, dtype=torch.float32) for size in MODEL_SHAPE]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    _, truth, brain = simulate(head, scan, grid @ head.from_model[:3, :3].T + head.from_model[:3, 3])
    return truth.numpy(), (brain >= 0.5).numpy()


def _draw(head: ModelHead, sequence: str, rng: np.random.Generator) -> Scan:
    scan = draw_scan(sequence, rng).to(head.tissue.device)
    return _ideal(scan) if rng.random() < _UNIFIED else scan


def _ideal(scan: Scan) -> Scan:
    """The same person in the unified look: no noise, no field."""
    changed = {"tables": scan.target, "transmit": 0.0, "bias": torch.zeros_like(scan.bias), "noise": 0.0}
    return Scan(**{**vars(scan), **changed})


def _ideal_values(head: ModelHead, sequence: str, rng: np.random.Generator) -> torch.Tensor:
    return brain_values(head, _ideal(draw_scan(sequence, rng)), rng)[1]


def _contrast(sequence: str) -> float:
    """White-grey contrast of the unified look."""
    values = unified_tissues(sequence)
    return abs(float(values[tissues.WHITE] - values[tissues.GREY]))


def _positions(head: ModelHead, size: tuple[int, ...], start: list[int], rng: np.random.Generator) -> torch.Tensor:
    """Voxel coordinates (A, B, C, 3) in the head's arrays of the cube's voxels, anatomy changed at random."""
    device = head.tissue.device
    axes = [torch.arange(first, first + side, dtype=torch.float32) for first, side in zip(start, size, strict=True)]
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


def _errors(out: torch.Tensor, truth: torch.Tensor, brain: torch.Tensor, sequence: str) -> dict[str, torch.Tensor]:
    """Errors of one (X, Y, Z) volume in units of the unified white-grey contrast."""
    values = unified_tissues(sequence)
    white, grey, fluid = values[tissues.WHITE], values[tissues.GREY], values[tissues.INDEX["fluid"]]
    error = (out - truth) * brain / _contrast(sequence)
    count = brain.sum().clamp_min(1)
    middle = sorted([float(white + grey) / 2, float(grey + fluid) / 2])
    classes = torch.bucketize(truth, torch.tensor(middle, device=truth.device))
    regional, weight = out.new_zeros(()), out.new_zeros(())
    for number in range(3):
        member = ((classes == number) & (brain > 0)).float()
        sums = functional.avg_pool3d((error * member)[None, None], _BLOCK)
        share = functional.avg_pool3d(member[None, None], _BLOCK)
        seen = share * _BLOCK**3 >= 30
        regional, weight = regional + sums[seen].abs().sum(), weight + share[seen].sum()
    edges = [
        (torch.diff(error, dim=axis).abs() * torch.minimum(brain.narrow(axis, 1, n), brain.narrow(axis, 0, n))).sum()
        for axis, n in enumerate(side - 1 for side in out.shape)
    ]
    return {
        "absolute": error.abs().sum() / count,
        "regional": regional / weight.clamp_min(1e-6),
        "edges": torch.stack(edges).sum() / (3 * count),
    }


def _picture(path: Path, pair: Pair, out: torch.Tensor) -> None:
    """Middle axial slices: input, output, truth."""
    from matplotlib import figure

    brain = pair.brain[0].bool()
    picture = figure.Figure(figsize=(9, 4), layout="constrained")
    titles = (("input", pair.image[0]), ("output", out), ("unified truth", pair.truth[0] * pair.brain[0]))
    for axes, (title, volume) in zip(picture.subplots(1, 3), titles, strict=True):
        top = float(volume[brain].quantile(0.995)) if int(brain.sum()) < 2**24 else float(volume.max())
        axes.imshow(volume[:, :, volume.shape[2] // 2].cpu().T, cmap="gray", origin="lower", vmin=0, vmax=top)
        axes.set_title(title)
        axes.axis("off")
    picture.savefig(path, dpi=80)
