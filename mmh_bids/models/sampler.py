"""Noise schedules of MMH, and the loops that bring an image to noise and back (DDIM; Song et al. 2021).

Training adds noise by `training_schedule`. At run time a sampler inverts the image (deterministic noising with the
predicted noise), then denoises; nothing is drawn at random. Samplers are named in a bundle's card:

==========  ==============================================================================================
``paper``   what the authors' scripts do (Wu et al., arXiv 2601.08193): a schedule of 50 steps of its own, its
            inversion one step short, its denoising from a noisier level than the inversion reached
``plain``   any number of steps over the schedule of the training; denoising starts where inversion ended
==========  ==============================================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, NoiseSchedules

#: Predicts the noise in an image (B, 1, X, Y, Z) at steps (B,) of the schedule that the network was trained with.
Predictor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_SCHEDULE = "scaled_linear_beta"
_RESPACED = "mmh_respaced"


@NoiseSchedules.add_def(_RESPACED, "Some levels of a longer scaled-linear schedule")
def _respaced(
    num_train_timesteps: int, levels: Sequence[int], train_steps: int, beta_start: float, beta_end: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Betas, alphas and cumulative alphas of the given levels."""
    del num_train_timesteps  # there are as many as levels
    full = DDPMScheduler(train_steps, _SCHEDULE, beta_start=beta_start, beta_end=beta_end)
    cumulative = full.alphas_cumprod[list(levels)]
    alphas = cumulative / torch.cat([torch.ones(1), cumulative[:-1]])
    return 1 - alphas, alphas, cumulative


def training_schedule(steps: int = 1000, beta_start: float = 0.0015, beta_end: float = 0.0195) -> DDPMScheduler:
    """Noise schedule of the training: square roots of beta evenly spaced.

    >>> [round(float(training_schedule().alphas_cumprod[t]), 4) for t in (0, 100, 999)]
    [0.9985, 0.8231, 0.0001]
    """
    return DDPMScheduler(steps, _SCHEDULE, beta_start=beta_start, beta_end=beta_end)


def estimate_clean(
    schedule: DDPMScheduler, noisy: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """One-step estimate of the clean image: (x_t - sqrt(1 - a) noise) / sqrt(a), cut to [-1, 1].

    Uncut it would be an error times 80 at the last steps, where a is nearly zero.

    Parameters
    ----------
    noisy, noise
        (B, 1, X, Y, Z).
    timesteps
        (B,) long.
    """
    cumulative = schedule.alphas_cumprod.to(noisy)[timesteps].reshape(-1, 1, 1, 1, 1)
    return ((noisy - (1 - cumulative).sqrt() * noise) / cumulative.sqrt()).clamp(-1, 1)


class Sampler(ABC):
    """Owns the loop over the steps. `up` and `down` are indices into a schedule; `label` is what the network is told.

    Gradients flow through, unless the caller says ``torch.no_grad()``.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def up(self) -> tuple[int, ...]:
        """Indices the inversion steps on from, in order."""

    @property
    @abstractmethod
    def down(self) -> tuple[int, ...]:
        """Indices the denoising steps on from, in order."""

    @abstractmethod
    def label(self, index: int) -> int:
        """Step of the training's schedule that the network is told at an index."""

    @abstractmethod
    def _scheduler(self, upwards: bool) -> DDIMScheduler:
        """MONAI's scheduler, its stride that of the inversion or of the denoising."""

    @property
    def passes(self) -> int:
        """How often the network runs for one image."""
        return len(self.up) + len(self.down)

    @property
    def card(self) -> dict[str, Any]:
        """JSON-ready arguments for `make_sampler`."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]

    def invert(self, predict: Predictor, image: torch.Tensor) -> torch.Tensor:
        """Noise an image (B, 1, X, Y, Z) of the scale [-1, 1] with the network's own noise."""
        scheduler = self._scheduler(upwards=True)
        for index in self.up:
            image, _ = scheduler.reversed_step(predict(image, self._times(index, image)), index, image)
        return image

    def denoise(self, predict: Predictor, latent: torch.Tensor, part: slice = slice(None)) -> torch.Tensor:
        """Take the noise out of a latent (B, 1, X, Y, Z); `part` of the steps only, such as the last ten."""
        scheduler = self._scheduler(upwards=False)
        for index in self.down[part]:
            latent, _ = scheduler.step(predict(latent, self._times(index, latent)), index, latent)
        return latent

    def _times(self, index: int, image: torch.Tensor) -> torch.Tensor:
        return torch.full((image.shape[0],), self.label(index), dtype=torch.long, device=image.device)


@dataclass(frozen=True)
class PaperSampler(Sampler):
    """The published sampler, as it behaves.

    The schedule has 50 steps in all (it is no thinning of the thousand), and its indices are what the network is told
    though it learned them with less noise. "35 steps" of inversion with stride 1 are 34 passes, and end at index 34.
    "25 steps" of denoising with stride 2 start at index 48. `beta_start` is the one of the authors' inference script;
    their training script has 0.0015.
    """

    name: ClassVar[str] = "paper"
    schedule_steps: int = 50
    invert_steps: int = 35
    denoise_steps: int = 25
    beta_start: float = 0.0005
    beta_end: float = 0.0195

    def __post_init__(self) -> None:
        if not (2 <= self.invert_steps <= self.schedule_steps and 1 <= self.denoise_steps <= self.schedule_steps):
            raise ValueError(f"steps of inversion and denoising must lie within the schedule's {self.schedule_steps}")

    @property
    def up(self) -> tuple[int, ...]:
        """See `Sampler.up`."""
        stride = self.schedule_steps // self.invert_steps
        return tuple(step * stride for step in range(self.invert_steps - 1))

    @property
    def down(self) -> tuple[int, ...]:
        """See `Sampler.down`."""
        stride = self.schedule_steps // self.denoise_steps
        return tuple(step * stride for step in reversed(range(self.denoise_steps)))

    def label(self, index: int) -> int:
        """The index itself."""
        return index

    def _scheduler(self, upwards: bool) -> DDIMScheduler:
        scheduler = DDIMScheduler(
            self.schedule_steps, _SCHEDULE, clip_sample=False, beta_start=self.beta_start, beta_end=self.beta_end
        )
        # only the stride is taken: this MONAI spaces its `timesteps` in another way than its steps, see `up`, `down`
        scheduler.set_timesteps(self.invert_steps if upwards else self.denoise_steps)
        return scheduler


@dataclass(frozen=True)
class PlainSampler(Sampler):
    """A consistent sampler: `steps` passes up to noise level `top`, as many down from there to where it began.

    At the default `top` there is as much noise as where the paper's denoising starts.

    The image counts as the schedule's level 0, before and after; levels between are evenly spaced. Were the predicted
    noise the same at all levels, the image would come back unchanged.
    """

    name: ClassVar[str] = "plain"
    steps: int = 25
    top: int = 160
    train_steps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.top < self.train_steps:
            raise ValueError(f"needs 1 <= steps <= top < {self.train_steps}; steps is {self.steps}, top {self.top}")

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Steps of the training's schedule from 0 to `top`.

        >>> PlainSampler(steps=4, top=10).levels
        (0, 2, 5, 8, 10)
        """
        return tuple(round(self.top * index / self.steps) for index in range(self.steps + 1))

    @property
    def up(self) -> tuple[int, ...]:
        """See `Sampler.up`."""
        return tuple(range(self.steps))

    @property
    def down(self) -> tuple[int, ...]:
        """See `Sampler.down`."""
        return tuple(range(self.steps, 0, -1))

    def label(self, index: int) -> int:
        """The level of the index."""
        return self.levels[index]

    def _scheduler(self, upwards: bool) -> DDIMScheduler:
        del upwards  # the stride is one in both directions
        return DDIMScheduler(
            len(self.levels), _RESPACED, clip_sample=False, levels=self.levels,
            train_steps=self.train_steps, beta_start=self.beta_start, beta_end=self.beta_end,
        )  # fmt: skip


_SAMPLERS: dict[str, type[Sampler]] = {kind.name: kind for kind in (PaperSampler, PlainSampler)}


def make_sampler(card: Mapping[str, Any]) -> Sampler:
    """Make the sampler that a bundle's card names.

    Raises
    ------
    ValueError
        An unknown name or argument, or arguments that do not go together.

    Examples
    --------
    >>> make_sampler({"name": "plain", "steps": 10}).passes, make_sampler({"name": "paper"}).passes
    (20, 59)
    """
    arguments = dict(card)
    kind = _SAMPLERS.get(arguments.pop("name", ""))
    if kind is None:
        raise ValueError(f"sampler {card.get('name')!r} is unknown; there are {', '.join(_SAMPLERS)}")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"sampler {card['name']}: {error}") from None
