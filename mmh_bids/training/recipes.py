"""The recipes of ``mmh-train global``: each of their numbers stands here, and only here; a flag overrides it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """What a training does where no flag says otherwise.

    Attributes
    ----------
    method
        That it trains.
    learning_rate, batch
        At its top; images an optimizer step.
    at_once
        Images that one device works on at once, the rest of its part of the batch being accumulated; None for all.
    steps, validate_every
        Optimizer steps, and those between validations; None where epochs are counted.
    epochs, validate_epochs
        How often every image is seen, and how often between validations.
    factor, network
        Of the diffusion: shrinking, arguments of `StyleUNet`. Both recipes' sampler is ``paper``.
    precision
        Lightning's name of it, on a GPU; a CPU trains in float32.
    plan
        More of `mmh_bids.training.loop.Plan`.
    """

    method: str
    learning_rate: float
    batch: int
    at_once: int | None = None
    steps: int | None = None
    validate_every: int | None = None
    epochs: int = 0
    validate_epochs: int = 0
    factor: int = 1
    network: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "32-true"
    plan: Mapping[str, Any] = field(default_factory=dict)

    def accumulate(self, devices: int, batch: int) -> int:
        """Passes over a batch on so many devices.

        >>> [RECIPES["paper"].accumulate(devices, 4) for devices in (1, 2, 4, 8)]
        [4, 2, 1, 1]
        """
        return max(1, batch // (devices * self.at_once)) if self.at_once else 1

    def lengths(self, images: int, batch: int) -> tuple[int, int]:
        """Optimizer steps, and those between validations, for so many training images.

        >>> RECIPES["paper"].lengths(images=1000, batch=4), RECIPES["small"].lengths(images=1000, batch=4)
        ((75000, 2500), (1450, 150))
        """
        an_epoch = images / batch
        steps = self.steps or math.ceil(self.epochs * an_epoch)
        return steps, self.validate_every or math.ceil(self.validate_epochs * an_epoch)


RECIPES: dict[str, Preset] = {
    "light": Preset("mmh-light", learning_rate=1.2e-3, batch=4, steps=1450, validate_every=150),
    # affordable on a CPU
    "small": Preset(
        "mmh-diffusion", learning_rate=1.2e-3, batch=4, steps=1450, validate_every=150, factor=2,
        network={
            "channels": [16, 32, 64, 64],
            "attention_levels": [False, False, False, True],
            "num_head_channels": 16,
            "norm_num_groups": 8,
            "num_res_blocks": 1,
        },
    ),
    # Wu et al., arXiv 2601.08193, whose network is the default of `StyleUNet`. What plateau reduces by is torch's
    # default; neither clipping of gradients nor an average of weights is described.
    "paper": Preset(
        "mmh-diffusion", learning_rate=1e-4, batch=4, at_once=1, epochs=300, validate_epochs=10, precision="16-mixed",
        plan={
            "optimizer": "adam", "weight_decay": 0.0, "schedule": "plateau", "patience": 2, "monitor": "noise",
            "warmup": 0, "average": 0.0, "clip": None,
        },
    ),
}  # fmt: skip


def recipe_of(method: str, name: str) -> Preset:
    """The preset of a method; ``mmh-light`` has but one."""
    return RECIPES["light"] if method == "mmh-light" else RECIPES[name]
