"""Train stage 1 of MMH: the diffusion network that brings a sequence's images to its unified look.

Method: Wu et al., arXiv 2601.08193 (2026). The loss is the error of the predicted noise, plus that of the gradients of
the one-step estimate, plus, for nearly clean estimates, the distance of its intensities to the running statistics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mmh_bids.errors import UsageError
from mmh_bids.models.gradient import gradient_condition
from mmh_bids.models.memory import training_gb
from mmh_bids.models.sampler import Sampler, estimate_clean, make_sampler, training_schedule
from mmh_bids.models.unet import SEQUENCE_CLASS, StyleUNet, from_signed
from mmh_bids.training.loop import all_parameters
from mmh_bids.training.losses import (
    KERNEL_WIDTHS,
    RunningStatistics,
    gradient_loss,
    ramp,
    soft_histogram,
    style_losses,
    wasserstein,
)
from mmh_bids.training.memory import free_gb, require_memory
from mmh_bids.training.pictures import save_comparison
from mmh_bids.training.standards import Sample
from mmh_bids.training.volumes import Volume, prepare

#: Weights of the losses beside that of the noise; the histogram's is reached after `RAMP_EPOCHS`.
WEIGHTS = {"gradient": 1.0, "histogram": 10.0, "moments": 1.0, "peak": 1.0}
RAMP_EPOCHS = 20
#: Noise levels at which a held-out volume is looked at, always with the same noise.
_VALIDATION_STEPS = (50, 200, 500, 800)
#: Largest factor a refusal proposes.
_MOST_FACTOR = 8


class StageOne(nn.Module):
    """The network with the running statistics it takes its style from.

    Parameters
    ----------
    network
        Arguments of `StyleUNet`.
    """

    def __init__(self, network: Mapping[str, Any]) -> None:
        super().__init__()
        self.unet = StyleUNet(**network)
        self.statistics = RunningStatistics(sequences=len(SEQUENCE_CLASS))

    def forward(
        self, noisy: torch.Tensor, condition: torch.Tensor, timesteps: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        """Predict the noise (B, 1, X, Y, Z) in images of the sequences `label` (B,)."""
        return self.unet(noisy, condition, timesteps, label, self.statistics.style(label))

    def harmonize(self, sampler: Sampler, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Bring images (B, 1, X, Y, Z) in [-1, 1] to the unified look."""
        condition = gradient_condition(image)

        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return self(noisy, condition, timesteps, label)

        return sampler.denoise(predict, sampler.invert(predict, image))


@dataclass
class DiffusionRecipe:
    """Model-grid images of many sites; every sequence is drawn as often as any other.

    Attributes
    ----------
    train, validation
        Images that ``mmh --method none`` wrote, all of one grid.
    network
        Arguments of `StyleUNet`.
    sampler
        Arguments of `make_sampler`: for the pictures of the validation, and for the bundle.
    factor
        Cubes of so many voxels are averaged.
    crop
        Edge of the cube (voxels after shrinking) that is trained on, None for the whole volume. The running
        statistics are then those of cubes: shrink rather than crop where memory allows.
    batch
        Images a step.
    ramp_images
        Images until the histogram loss has its full weight; None for 20 epochs.
    mixed
        Whether Fabric was told to train in mixed precision, for the estimate of the memory.
    """

    train: Sequence[Sample]
    validation: Sequence[Sample]
    network: Mapping[str, Any] = field(default_factory=dict)
    sampler: Mapping[str, Any] = field(default_factory=lambda: {"name": "paper"})
    factor: int = 1
    crop: int | None = None
    batch: int = 1
    ramp_images: int | None = None
    mixed: bool = False

    def __post_init__(self) -> None:
        if not self.train:
            raise UsageError("there are no images to train on")
        if self.factor < 1 or self.batch < 1 or (self.crop is not None and self.crop < 1):
            raise UsageError(f"factor {self.factor}, batch {self.batch} and crop {self.crop} must be at least 1")
        try:
            self._sampler = make_sampler(self.sampler)
            with torch.device("meta"):  # takes no memory
                self._arguments = StyleUNet(**self.network).arguments
        except (ValueError, TypeError) as error:
            raise UsageError(f"the network or the sampler cannot be made: {error}") from None
        self._schedule = training_schedule()
        self._by_sequence: dict[str, list[Sample]] = defaultdict(list)
        for sample in self.train:
            self._by_sequence[sample.sequence].append(sample)
        self._over = RAMP_EPOCHS * len(self.train) if self.ramp_images is None else self.ramp_images
        self._checked = False

    @property
    def facts(self) -> dict[str, Any]:
        """JSON-ready description of recipe and data, for `loop.fit` and for the bundle's card."""
        return {
            "recipe": "mmh-diffusion, stage 1",
            "network": self._arguments,
            "sampler": self._sampler.card,
            "factor": self.factor,
            "crop": self.crop,
            "batch": self.batch,
            "ramp_images": self._over,
            "loss_weights": WEIGHTS,
            "train": [sample.path.name for sample in self.train],
            "validation": [sample.path.name for sample in self.validation],
        }

    def build(self) -> StageOne:
        """Return a new network with empty statistics."""
        return StageOne(self.network)

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Return all parameters as one group."""
        return all_parameters(network)

    def check_memory(self, device: torch.device) -> None:
        """Raise UsageError, naming what to change, if `device` has too little memory left for a step.

        The first step does so too; call it before `loop.fit` to have it said before anything is written.
        """
        needed = self._gb(self.factor)
        fits = [factor for factor in range(self.factor + 1, _MOST_FACTOR + 1) if self._gb(factor) <= free_gb(device)]
        proposal = f" (factor {fits[0]} would need {self._gb(fits[0]):.1f} GB)" if fits else ""
        channels = self._arguments["channels"]
        change = (
            f"shrink the images by more than factor {self.factor}{proposal}, crop them to a smaller cube (crop is "
            f"{self.crop}), lower batch ({self.batch}) or the network's channels ({channels})"
        )
        require_memory(needed, device, change)
        self._checked = True

    def _gb(self, factor: int) -> float:
        shape = [size // factor for size in nib.Nifti1Image.from_filename(self.train[0].path).shape[:3]]
        if self.crop is not None:
            shape = [min(size, self.crop) for size in shape]
        return training_gb(self._arguments, shape, self.batch, self.mixed)

    def losses(self, network: nn.Module, rng: np.random.Generator, device: torch.device) -> dict[str, torch.Tensor]:
        """Losses of one step on `batch` images; moves the running statistics."""
        if not self._checked:
            self.check_memory(device)
        batch = Volume.stack([self._draw(rng) for _ in range(self.batch)], device)
        statistics = _statistics(network)
        for image, mask, label in zip(batch.image, batch.mask, batch.label.tolist(), strict=True):
            statistics.start(label, image[mask])
        # drawn on the CPU, so that a GPU sees the same noise
        noise = torch.randn(batch.image.shape).to(device)
        timesteps = torch.from_numpy(rng.integers(0, self._schedule.num_train_timesteps, self.batch)).to(device)
        noisy = self._schedule.add_noise(batch.image, noise, timesteps)
        predicted = network(noisy, batch.condition, timesteps, batch.label).float()
        estimate = estimate_clean(self._schedule, noisy, predicted, timesteps)
        parts = {
            "noise": functional.mse_loss(predicted, noise),
            "gradient": gradient_loss(estimate, batch.image),
            **self._style(estimate, batch, timesteps, statistics),
        }
        weights = {"noise": 1.0, **WEIGHTS}
        weights["histogram"] *= ramp(int(statistics.images), self._over)
        statistics.images += self.batch
        return {"loss": torch.stack([weights[name] * value for name, value in parts.items()]).sum(), **parts}

    def _draw(self, rng: np.random.Generator) -> Volume:
        names = sorted(self._by_sequence)
        samples = self._by_sequence[names[int(rng.integers(len(names)))]]
        return prepare(samples[int(rng.integers(len(samples)))], self.factor).cropped(self.crop, rng)

    def _style(
        self, estimate: torch.Tensor, batch: Volume, timesteps: torch.Tensor, statistics: RunningStatistics
    ) -> dict[str, torch.Tensor]:
        """Style losses, mean over the batch."""
        each = [
            style_losses(one[mask], label, step, statistics)
            for one, mask, label, step in zip(
                estimate, batch.mask, batch.label.tolist(), timesteps.tolist(), strict=True
            )
        ]
        return {name: torch.stack([losses[name] for losses in each]).mean() for name in each[0]}

    def validate(self, network: nn.Module, device: torch.device, folder: Path, step: int) -> Mapping[str, float]:
        """Error of the noise on held-out volumes; one volume of each sequence is harmonized, measured and drawn.

        Returns
        -------
        ``noise``: mean squared error at four noise levels. Per sequence ``change_<sequence>``, the mean absolute
        change inside the brain, and ``distance_before_``, ``distance_after_<sequence>``, Wasserstein-1 to the running
        histogram; all in [0, 1] of intensity. Sequences that were not trained on yet are left out.
        """
        assert isinstance(network, StageOne)
        values: dict[str, float] = {}
        errors: list[float] = []
        for index, sample in enumerate(self.validation):
            volume = Volume.stack([prepare(sample, self.factor)], device)
            if not network.statistics.seen[volume.label[0]]:
                continue
            errors += [self._noise_error(network, volume, level, index) for level in _VALIDATION_STEPS]
            if f"change_{sample.sequence}" not in values:
                picture = folder / "pictures" / f"step-{step:06d}_{sample.sequence}.png"
                values |= self._harmonized(network, volume, sample.sequence, picture)
        return {"noise": float(np.mean(errors)), **values} if errors else {}

    def _noise_error(self, network: StageOne, volume: Volume, level: int, seed: int) -> float:
        generator = torch.Generator().manual_seed(1000 * seed + level)
        noise = torch.randn(volume.image.shape, generator=generator).to(volume.image.device)
        timesteps = torch.full((1,), level, device=noise.device)
        noisy = self._schedule.add_noise(volume.image, noise, timesteps)
        return float(functional.mse_loss(network(noisy, volume.condition, timesteps, volume.label), noise))

    def _harmonized(self, network: StageOne, volume: Volume, sequence: str, picture: Path) -> dict[str, float]:
        """Harmonize one volume, draw it beside the input, and measure both."""
        after = from_signed(network.harmonize(self._sampler, volume.image, volume.label)) * volume.mask
        before = from_signed(volume.image)
        save_comparison(before[0, 0].cpu().numpy(), after[0, 0].cpu().numpy(), f"{sequence}, {picture.stem}", picture)
        label = int(volume.label[0])
        aim, width = network.statistics.histogram[label], KERNEL_WIDTHS[label]
        distances = [wasserstein(soft_histogram(one[volume.mask], width), aim) for one in (before, after)]
        return {
            f"change_{sequence}": float((after - before)[volume.mask].abs().mean()),
            f"distance_before_{sequence}": float(distances[0]),
            f"distance_after_{sequence}": float(distances[1]),
        }


def _statistics(network: nn.Module) -> RunningStatistics:
    """The statistics of a network that Fabric may have wrapped."""
    statistics = network.statistics
    assert isinstance(statistics, RunningStatistics)
    return statistics
