"""``mmh-train encoder``: the small style encoder, from label maps to the folder that the package ships."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmh_bids import __version__
from mmh_bids.errors import UsageError
from mmh_bids.models.encoders import check_output, write_small
from mmh_bids.simulate.modelhead import make_heads
from mmh_bids.training.contrast import ContrastRecipe
from mmh_bids.training.distributed import make_fabric
from mmh_bids.training.loop import Plan, fit
from mmh_bids.training.memory import require_memory
from mmh_bids.training.request import check_numbers, head_names, last_validation, split
from mmh_bids.training.requeue import StopRequests
from mmh_bids.training.scanners import FACTOR, make_scans

#: Arguments of `build_small`: all of a volume's style in 64 numbers, from 8 slices of each plane at 2 mm.
NETWORK: dict[str, Any] = {
    "dim": 64,
    "slices": 8,
    "margin_mm": 50.0,
    "heads": 8,
    "alpha": 0.2,
    "voxel_mm": float(FACTOR),
    "tower": {"channels": [24, 48], "bins": 25, "image_size": 96},
}
#: Heads that each training scanner scans.
_TOGETHER = 2
#: Added to the seed for the scanners to validate on.
_OTHER = 1001


@dataclass(frozen=True)
class EncoderRequest:
    """What ``mmh-train encoder`` was asked for.

    Attributes
    ----------
    labels
        Label maps, see `mmh_bids.simulate.phantom.head_from_labels`.
    held_out
        Names of two label maps or more (``head-04``) to validate on, never trained on.
    output, work
        Folder of the encoder; folder of scans, checkpoint and log, which a second call goes on from.
    name
        Of the encoder.
    scanners, validation_scanners
        Simulated for the training; others to validate on, which scan all that is held out.
    steps, learning_rate, batch, seed, validate_every
        Of the training; `batch` counts pairs of scans.
    device, workers
        ``auto``, ``cpu`` or ``cuda[:N]``; processes that simulate.
    source, overwrite
        Where the label maps come from, for the card; whether to replace an encoder.
    """

    labels: tuple[Path, ...]
    held_out: tuple[str, ...]
    output: Path
    work: Path
    name: str
    scanners: int
    validation_scanners: int
    steps: int
    learning_rate: float
    batch: int
    seed: int
    validate_every: int
    device: str
    workers: int
    source: str
    overwrite: bool


def train_encoder(request: EncoderRequest, say: Callable[[str], None] = print) -> tuple[Path, dict[str, float]]:
    """Simulate, train, and write the encoder; return its folder and what it reaches on held-out heads.

    Raises
    ------
    UsageError
        Wrong numbers or names, too little memory, or a work folder of another training.
    Interrupted
        After SIGINT, SIGTERM or SIGUSR1; the same request goes on.
    """
    _check(request)
    train, validation = split(request.held_out, request.labels, head_names(request.labels))
    if len(train) < _TOGETHER or len(validation) < _TOGETHER:
        raise UsageError("--held-out: two label maps or more must be held out, and two or more must be left")
    fabric = make_fabric(request.device)
    require_memory(2.0 + 0.7 * request.workers, fabric.device, "lower --workers")
    recipe = _recipe(request, train, validation, say)
    plan = Plan(
        request.steps, request.learning_rate, seed=request.seed, validate_every=request.validate_every,
        warmup=min(20, request.steps), average=0.97,
    )  # fmt: skip
    facts = {
        "recipe": "contrast",
        "train": [path.name for path in train],
        "validation": [path.name for path in validation],
        "scanners": request.scanners,
        "batch": request.batch,
        "network": NETWORK,
    }
    fabric.launch()
    encoder: Any = fit(recipe, plan, request.work, fabric, facts, say)
    metrics = last_validation(request.work / "log.csv") | {"chance": 1 / len(recipe.validation)}
    return write_small(request.output, encoder, _card(request, facts, plan, metrics), request.overwrite), metrics


def _check(request: EncoderRequest) -> None:
    check_numbers(request, ("scanners", "validation_scanners", "steps", "validate_every", "workers"))
    if request.batch < 4 or request.batch % 2:
        raise UsageError(f"--batch {request.batch}: must be even, 4 or more: half of the pairs are T1w, half T2w")
    if request.scanners < request.batch // 2:
        raise UsageError(f"--scanners {request.scanners}: must be at least half of --batch {request.batch}")
    check_output(request.output, request.overwrite)


def _recipe(
    request: EncoderRequest, train: list[Path], validation: list[Path], say: Callable[[str], None]
) -> ContrastRecipe:
    """The recipe on simulated scans, which are made unless they are there."""
    made = make_heads(request.labels, request.work / "heads", 0, request.workers, say)
    heads = dict(zip(request.labels, made, strict=True))
    say(f"{request.scanners} scanners and {request.validation_scanners} to validate on scan simulated heads")
    with StopRequests() as stop:

        def scans(labels: list[Path], count: int, folder: str, seed: int, together: int | None) -> list[Path]:
            return make_scans(
                [heads[path] for path in labels], count, request.work / folder, seed, request.workers, together,
                lambda: stop.check("simulating scans"),
            )  # fmt: skip

        seen = scans(train, request.scanners, "scans-train", request.seed, _TOGETHER)
        unseen = scans(validation, request.validation_scanners, "scans-validation", request.seed + _OTHER, None)
    return ContrastRecipe(seen, unseen, NETWORK, request.batch)


def _card(request: EncoderRequest, facts: dict[str, Any], plan: Plan, metrics: dict[str, float]) -> dict[str, Any]:
    data = f"Simulated scans of {len(facts['train'])} label maps on {request.scanners} scanners drawn at random."
    return {
        "name": request.name,
        "version": __version__,
        "description": "Style of a T1w or T2w brain in 64 numbers: a small convolutional tower on 8 slices of each "
        "plane at 2 mm, pooled by attention; learned by contrast on simulated scanners.",
        "authors": "The mmh_bids team",
        "license": "Apache-2.0",
        "intended_use": "Research. Training of stage 2 where BiomedCLIP is not at hand. Not a medical device.",
        "data_source": f"{data} {request.source}".strip(),
        "references": [
            "Chen T, et al. A simple framework for contrastive learning of visual representations. ICML 2020."
        ],
        "network": NETWORK,
        "training": {**facts, "plan": asdict(plan)},
        "metrics": metrics,
    }
