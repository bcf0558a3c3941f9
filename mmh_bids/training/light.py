"""Train the light harmonizer on simulated pairs: a head on any scanner, and the same head in the unified look.

Each person is scanned twice in a step, so that what differs between two scanners can be penalised beside the error.

How bright a tissue of this person truly is, an image tells only in part. That error is the same all over the brain; in
the gradient of a few cubes it drowns what a network can learn about noise, fields and partial volume. So what changes
over the brain is asked to mend all but the mean error of each tissue class that the curve left which is the same
everywhere. That curve learns tissue brightness, from voxels of whole brains. (Taking off the mean errors of the sum
instead rewards a network for squeezing the contrast, and noise with it.)

The curve is asked to carry noise and field along, scaled as the contrast is, and leave them to the local part. Asked
for the truth, it would learn the likeliest tissue of an intensity, which is a staircase: where grey and white matter
lie close it turns noise into speckle and lesions into their surroundings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mmh_bids.models.light import SEQUENCES, LightNetwork, join_styles, measure_style
from mmh_bids.simulate import tissues
from mmh_bids.simulate.batch import Scan, brain_values, draw_scan
from mmh_bids.simulate.modelhead import ModelHead, load_head
from mmh_bids.simulate.unified import unified_tissues
from mmh_bids.training.light_pairs import Pair, batch_of, draw_input, draw_pair, draw_view, ideal
from mmh_bids.training.share import Share, require_even

#: Edge (voxels) of the blocks whose mean error per tissue class is penalised.
_BLOCK = 12
#: Scans of one person in a step; heads that are kept in memory, about 60 MB each.
SCANS, _HELD = 2, 32
#: Weights of the voxels' errors, of those of block means, of edges, and of the disagreement of two scans' block means;
#: of the mean absolute error with the classes' mean errors left in.
_VOXELS, _REGIONAL, _EDGES, _AGREEMENT, _WHOLE = 2.0, 2.0, 0.5, 1.0, 0.15
#: Voxels' errors below this count by their square: where two tissues are as likely, the middle is right, not either.
_SMALL_ERROR = 0.1
#: Weights of the error of the curve that is the same everywhere, and of two scans' disagreement about class means;
#: voxels a scan these are measured on.
_ONE_CURVE, _ONE_CURVE_AGREEMENT, _CURVE_VALUES = 1.0, 0.5, 8_000


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
        Cubes a step on all processes, two scans of one cube after each other; whether T1w or T2w is drawn.
    curves
        Further scans a step on all processes, of which only a sample of voxels is seen.
    start
        Weights to begin with instead of random ones: those of a network of the same size.
    """

    train: Sequence[Path]
    validation: Sequence[Path]
    filters: int = 16
    knots: int = 12
    patch: int = 80
    batch: int = 4
    curves: int = 12
    start: Mapping[str, torch.Tensor] | None = None
    _heads: dict[tuple[Path, str], ModelHead] = field(default_factory=dict)

    #: Methods of the network that are called beside `forward`.
    forward_methods = ("parts", "one_curve")

    def head(self, path: Path, device: torch.device) -> ModelHead:
        """Return a head; the last ones asked for are kept."""
        key = path, str(device)
        head = self._heads.pop(key, None) or load_head(path).to(device)
        self._heads[key] = head
        if len(self._heads) > _HELD:
            del self._heads[next(iter(self._heads))]
        return head

    def build(self) -> LightNetwork:
        """Return a network that z-scores to the mean look of the training heads in the unified domain."""
        rng, cpu = np.random.default_rng(0), torch.device("cpu")
        found: dict[str, tuple[float, float]] = {}
        for sequence in SEQUENCES:
            values = [_ideal_values(self.head(path, cpu), sequence, rng) for path in self.train]
            means, stds = zip(*((float(v.mean()), float(v.std())) for v in values), strict=True)
            found[sequence] = (float(np.mean(means)), float(np.mean(stds)))
        network = LightNetwork(self.filters, self.knots, found)
        if self.start is not None:
            network.load_state_dict({**self.start, "unified": network.unified})
        return network

    def groups(self, network: Any) -> list[dict[str, Any]]:
        """Return the parameters: the curve that is the same everywhere learns faster than the rest."""
        fast = [*network.style.parameters(), *network.everywhere.parameters()]
        chosen = {id(parameter) for parameter in fast}
        rest = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
        return [{"params": rest, "factor": 1.0}, {"params": fast, "factor": 3.0}]

    def losses(self, network: Any, rng: Share, device: torch.device) -> dict[str, torch.Tensor]:
        """Errors in units of the unified white-grey contrast, of the persons of a share; see the weights above."""
        require_even(self.batch, rng.count, SCANS, "scans of each person")
        pairs: list[Pair] = []
        sequences: list[str] = []
        for person in rng.items(-(-self.batch // SCANS)):
            own = person.rng
            head = self.head(self.train[int(own.integers(len(self.train)))], device)
            sequence, scales = SEQUENCES[int(own.integers(2))], tissues.person_scales(own)
            view = draw_view(head, own, self.patch)
            for _ in range(min(SCANS, self.batch - len(pairs))):
                pairs.append(draw_pair(head, sequence, own, view, person.noise, scales))
                sequences.append(sequence)
        total = _cube_losses(network.parts(*batch_of(pairs)), pairs, sequences)
        parts = _VOXELS * total["voxels"] + _REGIONAL * total["regional"] + _EDGES * total["edges"]
        parts = parts + _WHOLE * total["whole"]
        if "agreement" in total:
            parts = parts + _AGREEMENT * total["agreement"]
        total |= self._one_curve(network, rng, device)
        curve = _ONE_CURVE * total["one_curve"] + _ONE_CURVE_AGREEMENT * total["one_curve_agreement"]
        return total | {"loss": parts + curve}

    def _one_curve(self, network: Any, share: Share, device: torch.device) -> dict[str, torch.Tensor]:
        """Losses of the curve that is the same everywhere: scans cost little here, so there are many."""
        persons = self.curves // SCANS
        numbers = share.numbers(persons)
        # shares may differ by a person; one without any still needs a gradient for every weight, if of zero
        weight = share.count * len(numbers) / persons
        styles, images, truths, classes, sequences = [], [], [], [], []
        for person in numbers or range(1):
            rng = share.item(person, persons, stream=1).rng
            head = self.head(self.train[int(rng.integers(len(self.train)))], device)
            sequence, scales = SEQUENCES[person % 2], tissues.person_scales(rng)
            for _ in range(SCANS):
                scan = draw_input(head, sequence, rng, scales)
                sample = brain_values(head, scan, rng)
                styles.append(measure_style(sample.values, sequence))
                images.append(sample.values[:_CURVE_VALUES])
                truths.append((sample.truth + _stretch(scan) * (sample.values - sample.clean))[:_CURVE_VALUES])
                classes.append(_classes(sample.truth[:_CURVE_VALUES], sequence))
                sequences.append(sequence)
        out = network.one_curve(torch.stack(images), join_styles(styles))
        errors, means, apart = [], [], []
        for values, truth, tissue, sequence in zip(out, truths, classes, sequences, strict=True):
            errors.append((values - truth).square().mean().sqrt() / _contrast(sequence))
            # of the errors, so that two random choices of voxels do not differ by what they happen to hold
            means.append(_class_means(values - truth, tissue) / _contrast(sequence))
        for first, second in zip(means[::SCANS], means[1::SCANS], strict=True):
            apart.append((first - second).abs().mean())
        means_of = {"one_curve": torch.stack(errors).mean(), "one_curve_agreement": torch.stack(apart).mean()}
        return {name: weight * value for name, value in means_of.items()}

    def validate(self, network: Any, device: torch.device, folder: Path, step: int) -> Mapping[str, float]:
        """Errors on whole brains of held-out heads on fixed scanners, beside those of the z-scored image."""
        found: dict[str, list[float]] = {}
        untrained = LightNetwork(self.filters, self.knots).to(device)
        untrained.unified.copy_(network.unified)
        for number, path in enumerate(self.validation):
            for sequence in SEQUENCES:
                rng = np.random.default_rng([77, number])
                head, noise = self.head(path, device), torch.Generator().manual_seed(number)
                pair = draw_pair(head, sequence, rng, draw_view(head, rng, None), noise)
                for name, one in (("", network), ("zscore_", untrained)):
                    out = one(*batch_of([pair]))[0, 0]
                    for key, value in _validation(out, pair, sequence).items():
                        found.setdefault(f"{sequence}_{name}{key}", []).append(float(value))
                    if not name and number == 0:
                        _picture(folder / f"step-{step:06d}_{sequence}.png", pair, out)
        return {name: float(np.mean(values)) for name, values in found.items()}


def _ideal_values(head: ModelHead, sequence: str, rng: np.random.Generator) -> torch.Tensor:
    return brain_values(head, ideal(draw_scan(sequence, rng)), rng).truth


def _contrast(sequence: str) -> float:
    """White-grey contrast of the unified look."""
    values = unified_tissues(sequence)
    return abs(float(values[tissues.WHITE] - values[tissues.GREY]))


def _stretch(scan: Scan) -> float:
    """White-grey contrast of this person in the unified look over that in the scan."""
    apart = [float(table[0, tissues.WHITE] - table[0, tissues.GREY]) for table in (scan.target, scan.tables)]
    return apart[0] / apart[1]


def _cube_losses(out: torch.Tensor, pairs: Sequence[Pair], sequences: Sequence[str]) -> dict[str, torch.Tensor]:
    """Means over cubes of `LightNetwork.parts`; of two scans of a person the second follows the first."""
    total: dict[str, list[torch.Tensor]] = {}
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    for number, ((same, change), pair, sequence) in enumerate(zip(out, pairs, sequences, strict=True)):
        brain, classes = pair.brain[0], _classes(pair.truth[0], sequence)
        left = (same - pair.truth[0]) * brain / _contrast(sequence)
        change = change / _contrast(sequence)
        local = _without_class_means(left, classes, brain) + change
        found = _errors(local, classes, brain)
        bent = (local.square() + _SMALL_ERROR**2).sqrt() - _SMALL_ERROR
        found["voxels"] = bent.sum() / brain.sum().clamp_min(1)
        found["whole"] = (left + change).abs().sum() / brain.sum().clamp_min(1)
        if number % SCANS and before is not None:
            found["agreement"] = _block_means(local - before[0], classes, brain * before[1])
        before = local, brain
        for name, value in found.items():
            total.setdefault(name, []).append(value)
    return {name: torch.stack(values).mean() for name, values in total.items()}


def _validation(out: torch.Tensor, pair: Pair, sequence: str) -> dict[str, torch.Tensor]:
    """Errors of a whole brain, and what of them is local."""
    brain, classes = pair.brain[0], _classes(pair.truth[0], sequence)
    error = (out - pair.truth[0]) * brain / _contrast(sequence)
    local = _errors(_without_class_means(error, classes, brain), classes, brain)
    return _errors(error, classes, brain) | {f"local_{name}": value for name, value in local.items()}


def _errors(error: torch.Tensor, classes: torch.Tensor, brain: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean absolute error, that of block means, that of edges; (X, Y, Z), zero outside the brain."""
    count = brain.sum().clamp_min(1)
    edges = [
        (torch.diff(error, dim=axis).abs() * torch.minimum(brain.narrow(axis, 1, n), brain.narrow(axis, 0, n))).sum()
        for axis, n in enumerate(side - 1 for side in error.shape)
    ]
    return {
        "absolute": error.abs().sum() / count,
        "regional": _block_means(error, classes, brain),
        "edges": torch.stack(edges).sum() / (3 * count),
    }


def _without_class_means(error: torch.Tensor, classes: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """The error less the mean error of each class; zero outside the brain."""
    inside = brain > 0
    means = _class_means(error[inside], classes[inside])
    return (error - means[classes]) * brain


def _class_means(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Mean of (N,) values in each of the three classes; zero for a class that is not there."""
    sums = values.new_zeros(3).index_add(0, classes, values)
    return sums / torch.bincount(classes, minlength=3).clamp_min(1)


def _classes(truth: torch.Tensor, sequence: str) -> torch.Tensor:
    """Tissue class 0 to 2 by the unified intensity: thirds at the middles between fluid, grey and white matter."""
    values = unified_tissues(sequence)
    white, grey, fluid = (float(values[k]) for k in (tissues.WHITE, tissues.GREY, tissues.INDEX["fluid"]))
    middle = sorted([(white + grey) / 2, (grey + fluid) / 2])
    return torch.bucketize(truth, torch.tensor(middle, device=truth.device))


def _block_means(error: torch.Tensor, classes: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """Mean over blocks and classes, weighted by size, of the absolute mean error of a class in a block."""
    regional, weight = error.new_zeros(()), error.new_zeros(())
    for number in range(3):
        member = ((classes == number) & (brain > 0)).float()
        sums = functional.avg_pool3d((error * member)[None, None], _BLOCK)
        share = functional.avg_pool3d(member[None, None], _BLOCK)
        seen = share * _BLOCK**3 >= 30
        regional, weight = regional + sums[seen].abs().sum(), weight + share[seen].sum()
    return regional / weight.clamp_min(1e-6)


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
