"""Train stage 1 of MMH: the diffusion network that brings a sequence's images to its unified look.

Method: Wu et al., arXiv 2601.08193 (2026). The loss is the error of the predicted noise, plus that of the gradients of
the one-step estimate, plus, for nearly clean estimates, the distance of its intensities to the running statistics.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
from mmh_bids.models.memory import free_gb, training_gb
from mmh_bids.models.sampler import Sampler, estimate_clean, make_sampler, training_schedule
from mmh_bids.models.unet import SEQUENCE_CLASS, StyleUNet, from_signed
from mmh_bids.training.cache import VolumeCache
from mmh_bids.training.loop import all_parameters
from mmh_bids.training.losses import (
    KERNEL_WIDTHS,
    RunningStatistics,
    gradient_loss,
    ramp,
    soft_histogram,
    start_all,
    style_losses,
    wasserstein,
)
from mmh_bids.training.memory import require_memory
from mmh_bids.training.pictures import save_comparison
from mmh_bids.training.share import Item, Share
from mmh_bids.training.standards import Sample
from mmh_bids.training.stream import Ahead, ShuffledOrder
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
    """Model-grid images of many sites, shuffled; every sequence is drawn as often as any other.

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
        Images a step, on all processes together.
    ramp_images
        Images until the histogram loss has its full weight; None for 20 epochs.
    mixed
        Whether Fabric was told to train in mixed precision, for the estimate of the memory.
    at_once
        Images that one process works on at once, for the estimate of the memory; None: the batch.
    cache
        Filled with `train` and `validation`; without one every image is read from its NIfTI file whenever it is drawn.
    readers
        Threads that read what comes next.
    processes
        How many share the device's memory.
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
    at_once: int | None = None
    cache: VolumeCache | None = None
    readers: int = 1
    processes: int = 1

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
        by_sequence: dict[str, list[Sample]] = defaultdict(list)
        for sample in self.train:
            by_sequence[sample.sequence].append(sample)
        self._labels = [SEQUENCE_CLASS[sequence] for sequence in sorted(by_sequence)]
        self._order = ShuffledOrder([by_sequence[sequence] for sequence in sorted(by_sequence)])
        self._ahead: Ahead[tuple[int, int], Volume] = Ahead(self._drawn, self.readers)
        self._moving = RunningStatistics()
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
        free = free_gb(str(device))
        fits = [factor for factor in range(self.factor + 1, _MOST_FACTOR + 1) if self._gb(factor) <= free]
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
        return self.processes * training_gb(self._arguments, shape, self.at_once or self.batch, self.mixed)

    def losses(self, network: nn.Module, rng: Share, device: torch.device) -> dict[str, torch.Tensor]:
        """Losses of a share of one step's images; moves the running statistics at the end of the step."""
        if not self._checked:
            self.check_memory(device)
        items = rng.items(self.batch)
        batch = Volume.stack(self._volumes(items, rng), device)
        statistics, moving = _statistics(network), self._begun(_statistics(network), batch, rng)
        # drawn on the CPU, so that a GPU sees the same noise
        noise = torch.stack([torch.randn(batch.image.shape[1:], generator=item.noise) for item in items]).to(device)
        steps = [int(item.rng.integers(self._schedule.num_train_timesteps)) for item in items]
        timesteps = torch.tensor(steps, device=device)
        noisy = self._schedule.add_noise(batch.image, noise, timesteps)
        predicted = network(noisy, batch.condition, timesteps, batch.label).float()
        estimate = estimate_clean(self._schedule, noisy, predicted, timesteps)
        inside = [one[mask] for one, mask in zip(estimate, batch.mask, strict=True)]
        parts = {
            "noise": functional.mse_loss(predicted, noise),
            "gradient": gradient_loss(estimate, batch.image),
            **style_losses(inside, batch.label.tolist(), steps, moving, rng),
        }
        weights = {"noise": 1.0, **WEIGHTS}
        weights["histogram"] *= ramp(int(statistics.images), self._over)
        if rng.is_last:
            moving.images += self.batch
            statistics.load_state_dict(moving.state_dict())
        return {"loss": torch.stack([weights[name] * value for name, value in parts.items()]).sum(), **parts}

    def _begun(self, statistics: RunningStatistics, batch: Volume, share: Share) -> RunningStatistics:
        """The statistics as they move within a step: what the network is shown stays the same for all its passes."""
        if share.is_first:
            self._moving = copy.deepcopy(statistics)
        moving = self._moving
        if not all(moving.seen[label] for label in self._labels):
            brains = [image[mask] for image, mask in zip(batch.image, batch.mask, strict=True)]
            start_all(moving, brains, batch.label.tolist(), share)
            for label in moving.seen.nonzero().flatten().tolist():
                statistics.take(label, moving.mean[label], moving.std[label], moving.histogram[label])
        return moving

    def _volumes(self, items: Sequence[Item], share: Share) -> list[Volume]:
        """The images of this share, cropped; those of the next are being read meanwhile."""

        def following() -> Iterator[tuple[int, int]]:
            for later in share.following():
                yield from ((share.seed, later.step * self.batch + place) for place in later.numbers(self.batch))

        whole = self._ahead.get([(share.seed, item.number) for item in items], following())
        return [volume.cropped(self.crop, item.rng) for volume, item in zip(whole, items, strict=True)]

    def _drawn(self, key: tuple[int, int]) -> Volume:
        """The image that is drawn as the so-manieth of a training of this seed."""
        return self._read(self._order.thing(*key))

    def _read(self, sample: Sample) -> Volume:
        return prepare(sample, self.factor) if self.cache is None else self.cache.read(sample)

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
            volume = Volume.stack([self._read(sample)], device)
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
