"""Stage 2 of MMH for the light harmonizer: learn a site's look from its images beside the same without style.

Style reconstruction: what stage 1 took off an image of the site is to be put back on. Style transfer: an image of
another site, brought to the look, is to be moved in the style encoder's space as the site's own images are, and to keep
its edges. Both as in Wu et al., arXiv 2601.08193 (2026), but for the network: a look has no noise to take out and can
move no edge, so that it is reconstructed from the voxels that hold one tissue (`mmh_bids.training.evenness`), without
the paper's loss of edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from mmh_bids.errors import UsageError
from mmh_bids.evaluation.agreement import wasserstein1
from mmh_bids.harmonizers.base import SEQUENCES
from mmh_bids.harmonizers.light import MmhLight, evened
from mmh_bids.harmonizers.people import CUBE
from mmh_bids.image.intensity import MonotoneMap, fit_monotone_map
from mmh_bids.models.look import BRIGHTEST, Looks
from mmh_bids.models.shrink import shrink_brain
from mmh_bids.models.style import TriPlanarEncoder
from mmh_bids.training.evenness import evenness
from mmh_bids.training.share import Share
from mmh_bids.training.standards import Sample
from mmh_bids.training.style_losses import EDGES, displacement_loss, displacement_weight, multiscale_gradient_loss
from mmh_bids.training.volumes import read_volume

#: Voxels of 1 mm averaged along each axis: noise that stage 1 left in both images would teach a look to keep it.
FACTOR = CUBE
#: Steps of style reconstruction for each one of style transfer (the paper's eight passes over the target's images).
RECONSTRUCTIONS = 8
#: What `removed_pair` does; counted up with every change that makes pairs in a cache those of another stage 1.
PAIRS = 2
#: Weight of the local curves' roughness.
_ROUGHNESS = 1.0
#: Voxels that count at least this much, as a share of the most, give the one curve to begin with.
_EVEN = 0.3
#: What every voxel of the brain counts beside that: between two tissues there is hardly one with even surroundings, and
#: what lies there would be anyone's guess. On people held out a little better than none, and than all of it.
_OTHERS = 0.1


def removed_pair(sample: Sample, harmonizer: MmhLight) -> dict[str, torch.Tensor]:
    """An image and what a look starts from, (1, 1, X, Y, Z) at 2 mm: ``image``, ``removed``, ``mask``.

    What bias correction left of the field is taken off the image as well: a look is no field.
    """
    volume = read_volume(sample.path)
    whole = volume[0, 0].numpy()
    brain = whole > 0
    unified, _ = harmonizer.unify(whole, brain, sample.sequence)
    removed, _ = harmonizer.settled(unified, brain, sample.sequence)
    even, _ = evened(whole, brain, harmonizer.bundle.affine)
    pair = {}
    for name, values in (("image", even), ("removed", removed)):
        pair[name], mask = shrink_brain(values, brain, FACTOR)
    return pair | {"mask": mask.to(torch.uint8)}


@dataclass
class LookRecipe:
    """Learn the looks of one site, one a sequence.

    Attributes
    ----------
    target, sources, validation
        Files of `removed_pair` by sequence: images of the site, of the others, and some of the site for validation
        only. Without `sources` there is no style transfer.
    encoder
        Style encoder; its aggregator is left as it is.
    epoch
        Steps that count as one for the displacement's weight.
    transfer
        Weight of style transfer beside style reconstruction.
    """

    target: Mapping[str, Sequence[Path]]
    sources: Mapping[str, Sequence[Path]]
    validation: Mapping[str, Sequence[Path]]
    encoder: TriPlanarEncoder | None = None
    epoch: int = 40
    transfer: float = 1.0

    forward_methods = ("roughness",)

    def __post_init__(self) -> None:
        self.sequences = tuple(sequence for sequence in SEQUENCES if self.target.get(sequence))
        if not self.sequences:
            raise UsageError("there is no image of the target site to learn from")
        self.moments = {sequence: _moments(self.target[sequence]) for sequence in self.sequences}

    def build(self) -> Looks:
        """Return looks that begin with the one curve that fits the training pairs best."""
        looks = Looks(self.sequences)
        for sequence in self.sequences:
            look = looks[sequence]
            knots = np.linspace(0, BRIGHTEST, len(look.rises) + 1)
            look.start(torch.from_numpy(_curve(self.target[sequence])(knots)).float())
        return looks

    def groups(self, network: Any) -> list[dict[str, Any]]:
        """Return the parameters; the one curve has nearly its best values already and moves slowly."""
        looks = [network[sequence] for sequence in self.sequences]
        return [
            {"params": [look.rises for look in looks], "factor": 0.1},
            {"params": [look.local for look in looks], "factor": 1.0},
        ]

    def losses(self, network: Any, rng: Share, device: torch.device) -> dict[str, torch.Tensor]:
        """Losses of one image of each sequence, in units of the target's standard deviation."""
        transfer = self.encoder is not None and int(rng.integers(RECONSTRUCTIONS + 1)) == 0
        found: dict[str, list[torch.Tensor]] = {}
        for sequence in self.sequences:
            parts = self._reconstruction(network, sequence, rng, device)
            if transfer and self.sources.get(sequence):
                parts |= self._transfer(network, sequence, rng, device)
            for name, value in parts.items():
                found.setdefault(name, []).append(value)
        means = {name: torch.stack(values).mean() for name, values in found.items()}
        total = means["error"] + _ROUGHNESS * means["roughness"]
        if "displacement" in means:
            total = total + self.transfer * (means["displacement"] + EDGES * means["kept_edges"])
        return {"loss": total, **means}

    def _reconstruction(self, network: Any, sequence: str, rng: Share, device: torch.device) -> dict[str, torch.Tensor]:
        image, removed, mask = _drawn(self.target[sequence], rng, device)
        unit, weight = self.moments[sequence]["image"][1], _weight(image, removed, mask)
        error = ((network(removed, sequence) - image).abs() * weight).sum() / weight.sum()
        return {
            "error": error / unit,
            "roughness": network.roughness(sequence) / unit**2,
        }

    def _transfer(self, network: Any, sequence: str, rng: Share, device: torch.device) -> dict[str, torch.Tensor]:
        """Both without style are moved to the target's mean and spread first, as in the paper."""
        assert self.encoder is not None
        encoder = self.encoder.to(device)
        _, source, source_mask = _drawn(self.sources[sequence], rng, device)
        image, removed, mask = _drawn(self.target[sequence], rng, device)
        made = network(source, sequence) * source_mask
        source, removed = (
            self._matched(one, where, sequence) for one, where in ((source, source_mask), (removed, mask))
        )
        embeddings = [encoder(one.clamp(0, 1), voxel_mm=float(FACTOR)) for one in (made, source, image, removed)]
        weight = displacement_weight(rng.step // self.epoch)
        return {
            "displacement": weight * displacement_loss(*embeddings),
            "kept_edges": multiscale_gradient_loss(made, source) / self.moments[sequence]["image"][1],
        }

    def _matched(self, volume: torch.Tensor, mask: torch.Tensor, sequence: str) -> torch.Tensor:
        """Images without style, which all have one look, moved to the mean and spread of the target's."""
        (own_mean, own_std), (mean, std) = (self.moments[sequence][name] for name in ("removed", "image"))
        return ((volume - own_mean) * (std / own_std) + mean) * mask

    @torch.no_grad()
    def validate(self, network: Any, device: torch.device, folder: Path, step: int) -> Mapping[str, float]:
        """Held-out images of the target, their style taken off and put back.

        Returns
        -------
        Per sequence ``error_before_``, ``error_after_<sequence>``: mean absolute error in the brain; and
        ``distance_before_``, ``distance_after_<sequence>``: Wasserstein-1 of the histograms; all in [0, 1] of
        intensity. Before is without style, at the target's mean and spread.
        """
        del folder, step
        values: dict[str, list[float]] = {}
        for sequence in self.sequences:
            for path in self.validation.get(sequence, ()):
                image, removed, mask = _read(path, device)
                inside = mask.bool()
                before, after = self._matched(removed, mask, sequence), network(removed, sequence)
                for when, made in (("before", before), ("after", after)):
                    error = float((made - image)[inside].abs().mean())
                    values.setdefault(f"error_{when}_{sequence}", []).append(error)
                    distance = wasserstein1(made[inside].cpu().numpy(), image[inside].cpu().numpy())
                    values.setdefault(f"distance_{when}_{sequence}", []).append(distance)
        return {name: float(np.mean(numbers)) for name, numbers in values.items()}


def _drawn(
    files: Sequence[Path], rng: np.random.Generator, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _read(files[int(rng.integers(len(files)))], device)


def _read(path: Path, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``image``, ``removed`` and ``mask`` of `removed_pair`, (1, 1, X, Y, Z) float32."""
    pair = load_file(path)
    image, removed, mask = (pair[name].float().to(device) for name in ("image", "removed", "mask"))
    return image, removed, mask


def _weight(image: torch.Tensor, removed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How much voxels count: those whose surroundings are even in both, which have one tissue in either, the most."""
    return evenness(image, mask) * evenness(removed, mask) + _OTHERS * mask


def _curve(files: Sequence[Path]) -> MonotoneMap:
    """The one rising curve from images without style to the images, in voxels that count."""
    before, after = [], []
    for path in files:
        image, removed, mask = _read(path, torch.device("cpu"))
        weight = _weight(image, removed, mask)
        counts = weight >= _EVEN * weight.max()
        before.append(removed[counts].numpy())
        after.append(image[counts].numpy())
    return fit_monotone_map(np.concatenate(before), np.concatenate(after))


def _moments(files: Sequence[Path]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of the brains, means over the files: of ``image`` and of ``removed``."""
    found: dict[str, list[tuple[float, float]]] = {"image": [], "removed": []}
    for path in files:
        image, removed, mask = _read(path, torch.device("cpu"))
        for name, volume in (("image", image), ("removed", removed)):
            values = volume[mask.bool()]
            found[name].append((float(values.mean()), float(values.std())))
    return {name: tuple(np.mean(pairs, axis=0).tolist()) for name, pairs in found.items()}
