"""Train stage 2 of MMH: fine-tune the denoising half of stage 1 towards one site.

Method: Wu et al., arXiv 2601.08193 (2026). Stage 1 takes the style off every image; its latents (the images inverted to
noise) are computed once. Style reconstruction denoises those of the site's images and compares with the images
themselves; style transfer denoises those of other sites, and asks that they move in the style encoder's space as the
site's images do. Gradients flow through the last steps of the denoising only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmh_bids.errors import UsageError
from mmh_bids.harmonizers.moments import match_moments
from mmh_bids.models.gradient import gradient_condition
from mmh_bids.models.sampler import Sampler
from mmh_bids.models.style import TriPlanarEncoder
from mmh_bids.models.unet import SEQUENCE_CLASS, StyleUNet, from_signed, to_signed
from mmh_bids.training.diffusion import StageOne
from mmh_bids.training.losses import KERNEL_WIDTHS, RunningStatistics, measure, soft_histogram, wasserstein
from mmh_bids.training.share import Share
from mmh_bids.training.standards import Sample
from mmh_bids.training.style_losses import EDGES, displacement_loss, displacement_weight, multiscale_gradient_loss
from mmh_bids.training.volumes import prepare

#: Passes over the target's images before each over the others', an epoch.
PASSES = 8
#: Share of the old running mean and standard deviation that an image of the target leaves.
DECAY = 0.8
#: Learning rate of the style encoder's aggregator over that of the network: 6e-7 over 5e-7.
AGGREGATOR_FACTOR = 1.2


def latent_of(
    sample: Sample, stage_one: StageOne, sampler: Sampler, factor: int, moments: tuple[float, float]
) -> dict[str, torch.Tensor]:
    """What stage 2 learns from one image.

    Parameters
    ----------
    stage_one
        In evaluation mode, on the device it is to run on.
    factor
        Cubes of so many voxels are averaged, as in the training of stage 1.
    moments
        Mean and standard deviation of the target's brains, [0, 1].

    Returns
    -------
    ``image`` and ``matched`` (the same without style, at the target's mean and spread) in [0, 1], ``latent``, all
    (1, 1, X, Y, Z) float32, and ``mask`` uint8.
    """
    volume = prepare(sample, factor)
    device = stage_one.statistics.mean.device
    mask = volume.mask[0, 0].numpy()
    with torch.no_grad():
        label = volume.label.to(device)
        plain = from_signed(stage_one.harmonize(sampler, volume.image.to(device), label))[0, 0].cpu().numpy()
        matched = torch.from_numpy(match_moments(plain, mask, *moments))[None, None]
        latent = invert(stage_one, sampler, to_signed(matched).to(device), label).cpu()
    return {
        "image": from_signed(volume.image),
        "matched": matched,
        "latent": latent,
        "mask": volume.mask.to(torch.uint8),
    }


def invert(stage_one: nn.Module, sampler: Sampler, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Noise images (B, 1, X, Y, Z) in [-1, 1] with the network of stage 1 and its styles."""
    condition = gradient_condition(image)
    return sampler.invert(lambda noisy, times: stage_one(noisy, condition, times, label), image)


class StageTwo(nn.Module):
    """Stage 1's network on its way to a site, the site's running statistics, and the encoder's trainable part."""

    def __init__(self, network: Mapping[str, Any], aggregator: nn.Module | None = None) -> None:
        super().__init__()
        self.unet = StyleUNet(**network)
        self.statistics = RunningStatistics(DECAY, len(SEQUENCE_CLASS))
        self.aggregator = aggregator

    def forward(
        self, noisy: torch.Tensor, condition: torch.Tensor, timesteps: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        """Predict the noise (B, 1, X, Y, Z) with the styles of the statistics as they are now."""
        return self.unet(noisy, condition, timesteps, label, self.statistics.style(label))


@dataclass
class TargetRecipe:
    """Latents of the target site's images and of the others'.

    Attributes
    ----------
    start
        Stage 1, trained.
    sampler
        Of stage 1's bundle.
    target, sources, validation
        Files of `latent_of` by sequence; those of validation are the target's too.
    encoder
        Style encoder; what of it can learn does so. Without one, or without `sources`, there is no style transfer.
    last
        How many of the denoising steps gradients flow through.
    voxel_mm
        Voxel size of the latents' grid.
    """

    start: StageOne
    sampler: Sampler
    target: Mapping[str, Sequence[Path]]
    sources: Mapping[str, Sequence[Path]]
    validation: Mapping[str, Sequence[Path]]
    encoder: TriPlanarEncoder | None = None
    last: int = 10
    voxel_mm: float = 1.0

    def __post_init__(self) -> None:
        if not any(self.target.values()):
            raise UsageError("there is no image of the target site to learn from")
        self._target = _listed(self.target)
        known = {sequence for sequence, _ in self._target}
        transfer = self.encoder is not None
        self._sources = [one for one in _listed(self.sources) if one[0] in known] if transfer else []
        self.last = min(self.last, len(self.sampler.down))

    @property
    def epoch(self) -> int:
        """Steps of one epoch."""
        return PASSES * len(self._target) + len(self._sources)

    def build(self) -> StageTwo:
        """Return stage 1's network and statistics, to begin with."""
        aggregator = None if self.encoder is None else self.encoder.aggregator.requires_grad_(True)
        network = StageTwo(self.start.unet.arguments, aggregator)
        network.unet.load_state_dict(self.start.unet.state_dict())
        network.statistics.load_state_dict(self.start.statistics.state_dict())
        return network

    def groups(self, network: Any) -> list[dict[str, Any]]:
        """Return the network's parameters and the aggregator's."""
        groups: list[dict[str, Any]] = [{"params": list(network.unet.parameters()), "factor": 1.0}]
        if network.aggregator is not None:
            groups.append({"params": list(network.aggregator.parameters()), "factor": AGGREGATOR_FACTOR})
        return groups

    def losses(self, network: Any, rng: Share, device: torch.device) -> dict[str, torch.Tensor]:
        """Losses of the step's image, in the order of its epoch."""
        epoch, place = divmod(rng.step, self.epoch)
        rounds = PASSES * len(self._target)
        if place < rounds:
            repeat, number = divmod(place, len(self._target))
            return self._reconstruct(network, _shuffled(self._target, epoch, repeat)[number], device)
        number = place - rounds
        sequence, path = _shuffled(self._sources, epoch, PASSES)[number]
        same = [one for one in self._target if one[0] == sequence]
        aim = _shuffled(same, epoch, PASSES + 1)[number % len(same)]
        return self._transfer(network, (sequence, path), aim, epoch, device)

    def _reconstruct(self, network: Any, one: tuple[str, Path], device: torch.device) -> dict[str, torch.Tensor]:
        tensors, label = _loaded(one, device)
        image, mask = to_signed(tensors["image"]), tensors["mask"].bool()
        with torch.no_grad():
            found = measure(image[mask], int(label))
            network.statistics.update(int(label), *found)
        made = self.translate(network, tensors, label)
        error = (made - image)[mask].abs().mean()
        edges = multiscale_gradient_loss(made, image)
        return {"loss": error + EDGES * edges, "reconstruction": error, "reconstructed_edges": edges}

    def _transfer(
        self, network: Any, one: tuple[str, Path], aim: tuple[str, Path], epoch: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        assert self.encoder is not None
        encoder = self.encoder.to(device)
        source, label = _loaded(one, device)
        target, _ = _loaded(aim, device)
        made = self.translate(network, source, label) * 0.5 + 0.5
        volumes = (made * source["mask"], source["matched"], target["image"], target["matched"])
        embeddings = [encoder(volume.clamp(0, 1), voxel_mm=self.voxel_mm) for volume in volumes]
        displacement = displacement_loss(*embeddings)
        edges = multiscale_gradient_loss(made, source["matched"])
        loss = displacement_weight(epoch) * displacement + EDGES * edges
        return {"loss": loss, "displacement": displacement, "transferred_edges": edges}

    def translate(self, network: Any, tensors: Mapping[str, torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        """Denoise a latent; gradients flow through the last steps, whose features are computed again, not kept."""
        condition = gradient_condition(to_signed(tensors["matched"]))

        def predict(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            if not torch.is_grad_enabled():
                return network(noisy, condition, times, label)
            return checkpoint(network, noisy, condition, times, label, use_reentrant=False)

        first = len(self.sampler.down) - self.last
        with torch.no_grad():
            latent = self.sampler.denoise(predict, tensors["latent"], slice(0, first))
        return self.sampler.denoise(predict, latent, slice(first, None))

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
        for one in _listed(self.validation):
            tensors, label = _loaded(one, device)
            mask, width = tensors["mask"].bool(), KERNEL_WIDTHS[int(label)]
            image = tensors["image"][mask]
            aim = soft_histogram(image, width)
            for when, made in (
                ("before", tensors["matched"]),
                ("after", from_signed(self.translate(network, tensors, label))),
            ):
                error = float((made[mask] - image).abs().mean())
                values.setdefault(f"error_{when}_{one[0]}", []).append(error)
                distance = float(wasserstein(soft_histogram(made[mask], width), aim))
                values.setdefault(f"distance_{when}_{one[0]}", []).append(distance)
        return {name: float(np.mean(numbers)) for name, numbers in values.items()}


def _listed(files: Mapping[str, Sequence[Path]]) -> list[tuple[str, Path]]:
    return [(sequence, path) for sequence in sorted(files) for path in files[sequence]]


def _shuffled(items: Sequence[tuple[str, Path]], *seed: int) -> list[tuple[str, Path]]:
    return [items[index] for index in np.random.default_rng(seed).permutation(len(items))]


def _loaded(one: tuple[str, Path], device: torch.device) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    tensors = {name: value.to(device) for name, value in load_file(one[1]).items()}
    return tensors, torch.tensor([SEQUENCE_CLASS[one[0]]], device=device)
