"""``mmh-train global``: stage 1 from the first image to the bundle, for the light network and for the diffusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmh_bids.errors import BundleError, UsageError
from mmh_bids.harmonizers.light import WEIGHTS_FILE
from mmh_bids.image.grid import MODEL_SHAPE
from mmh_bids.models.bundle import Bundle, open_bundle
from mmh_bids.training.recipes import Preset, recipe_of
from mmh_bids.training.request import (
    check_numbers,
    check_output,
    head_names,
    last_validation,
    participant,
    split,
)


@dataclass(frozen=True)
class Request:
    """What ``mmh-train global`` was asked for.

    Attributes
    ----------
    method
        ``mmh-light`` or ``mmh-diffusion``.
    images
        Label maps (light), or output folders of ``mmh --method none`` (diffusion).
    held_out
        Names of label maps (``head-04``) or participants (``sub-03``) to validate on, never trained on.
    output, work
        Folder of the bundle; folder of checkpoint, log and pictures, which a second call goes on from.
    name, overwrite, source
        Of the bundle, see `write_bundle`; where the images come from, for the card.
    steps, learning_rate, batch, seed
        Of the training; the batch is that of all processes together.
    filters, patch, start
        Of the light network: channels at 2 mm, edge of the cubes in mm, bundle whose weights it begins with (name,
        path, or empty for none).
    factor, crop, sampler
        Of the diffusion: shrinking, cube, sampler (``paper`` or a number of steps).
    validate_every
        Steps between validations.
    device, precision, workers
        ``auto``, ``cpu`` or ``cuda[:N]``; Lightning's precision; processes or threads that prepare and read images.
    devices, nodes, accumulate
        Processes a machine; machines; passes over parts of the batch before the optimizer steps.
    cache
        Folder of the prepared images; ``cache`` in `work` if None.
    recipe
        Name of the diffusion's in `mmh_bids.training.recipes`, which says what is None here.
    """

    method: str
    images: tuple[Path, ...]
    held_out: tuple[str, ...]
    output: Path
    work: Path
    name: str
    steps: int | None
    learning_rate: float
    batch: int
    filters: int
    patch: int
    start: str
    seed: int
    validate_every: int | None
    factor: int
    crop: int | None
    sampler: str
    device: str
    precision: str | None
    workers: int
    source: str
    overwrite: bool
    devices: int = 1
    nodes: int = 1
    accumulate: int = 1
    cache: Path | None = None
    recipe: str = "small"

    @property
    def preset(self) -> Preset:
        """What the recipe says."""
        return recipe_of(self.method, self.recipe)

    @property
    def shares(self) -> int:
        """Parts that a step's batch is worked on in."""
        return self.devices * self.nodes * self.accumulate


def train_global(request: Request, say: Callable[[str], None] = print) -> Bundle | None:
    """Train and write the bundle.

    Every process of a training on several devices calls it; Fabric starts them unless Slurm does.

    Returns
    -------
    The bundle on the first process, None on the others.

    Raises
    ------
    UsageError
        Nothing to train on, too little memory, or a work folder of another training.
    Interrupted
        After SIGINT, SIGTERM or SIGUSR1; the same request goes on.
    """
    _check(request)
    check_output(request.output, request.overwrite)
    return _train_light(request, say) if request.method == "mmh-light" else _train_diffusion(request, say)


def _check(request: Request) -> None:
    """Raise UsageError for numbers that no training can have."""
    counts = "steps", "batch", "filters", "patch", "factor", "validate_every", "workers", "devices", "nodes"
    check_numbers(request, (*counts, "accumulate"))
    if request.patch % 8 or request.patch > min(MODEL_SHAPE):
        raise UsageError(f"--patch {request.patch}: must be a multiple of 8, at most {min(MODEL_SHAPE)}")
    if request.sampler != "paper" and not request.sampler.isdigit():
        raise UsageError(f"--sampler {request.sampler}: write paper, or a number of steps")


def _train_light(request: Request, say: Callable[[str], None]) -> Bundle | None:
    from mmh_bids.simulate.modelhead import make_heads
    from mmh_bids.training.light import SCANS, LightRecipe
    from mmh_bids.training.light_bundle import write_light
    from mmh_bids.training.memory import require_memory
    from mmh_bids.training.share import require_even

    require_even(request.batch, request.shares, SCANS, "scans of each person")
    train, validation = split(request.held_out, request.images, head_names(request.images))
    start, weights = _start(request)
    fabric = _fabric(request)
    at_once = 1.0 + 1.2 * request.batch / request.shares
    require_memory(at_once * _processes_of(request, fabric), fabric.device, "lower --batch or --filters")
    heads = make_heads(request.images, request.work / "heads", 0, request.workers, say)
    files = dict(zip(request.images, heads, strict=True))
    fabric.launch()
    recipe = LightRecipe(
        [files[path] for path in train], [files[path] for path in validation],
        filters=request.filters, patch=request.patch, batch=request.batch, start=weights,
    )  # fmt: skip
    plan = _plan(request, len(train))
    facts = {
        "recipe": "mmh-light",
        "train": [p.name for p in train],
        "validation": [p.name for p in validation],
        "filters": request.filters,
        "patch": request.patch,
        "batch": request.batch,
    }
    if start:
        # not the card's hash: name and description of the bundle make no difference
        facts["start"] = {"name": start.name, "sha256": start.card["files"][WEIGHTS_FILE]["sha256"]}
    network = _fit(recipe, plan, request, fabric, facts, say)
    if not fabric.is_global_zero:
        return None
    unified = {sequence: tuple(row) for sequence, row in zip(("T1w", "T2w"), network.unified.tolist(), strict=True)}
    network_card = {"filters": request.filters, "knots": recipe.knots, "unified": unified}
    data = f"Simulated scans of {len(train)} label maps on scanners drawn at random. {request.source}".strip()
    return write_light(
        request.output, request.name, network, network_card, [files[p] for p in train], {**facts, "plan": asdict(plan)},
        data, last_validation(request.work / "log.csv"), request.overwrite,
    )  # fmt: skip


def _start(request: Request) -> tuple[Bundle | None, dict[str, Any] | None]:
    """The light bundle to begin with and its weights; UsageError if there is no such or its network is another."""
    import torch

    if not request.start:
        return None, None
    try:
        bundle = open_bundle(request.start)
        bundle.require("mmh-light")
        arrays = bundle.arrays(WEIGHTS_FILE)
    except BundleError as error:
        raise UsageError(str(error).replace("--model", "--start")) from None
    there = bundle.card["network"]["filters"]
    if there != request.filters:
        raise UsageError(f"--start {request.start}: has {there} filters; give --filters {there}")
    return bundle, {name: torch.from_numpy(values).float() for name, values in arrays.items()}


def _train_diffusion(request: Request, say: Callable[[str], None]) -> Bundle | None:
    from mmh_bids.training.cache import VolumeCache
    from mmh_bids.training.diffusion import DiffusionRecipe
    from mmh_bids.training.diffusion_bundle import write_stage_one
    from mmh_bids.training.requeue import StopRequests
    from mmh_bids.training.share import require_even
    from mmh_bids.training.standards import find_samples

    require_even(request.batch, request.shares)
    samples = find_samples(request.images)
    train, validation = split(request.held_out, samples, [participant(sample.path) for sample in samples])
    sampler: dict[str, Any] = {"name": "paper"}
    if request.sampler != "paper":
        sampler = {"name": "plain", "steps": int(request.sampler)}
    fabric = _fabric(request)
    cache = VolumeCache(request.cache or request.work / "cache", request.factor)
    recipe = DiffusionRecipe(
        train, validation, request.preset.network, sampler, request.factor, request.crop, request.batch,
        mixed="mixed" in _precision(request), at_once=request.batch // request.shares, cache=cache,
        readers=request.workers, processes=_processes_of(request, fabric),
    )  # fmt: skip
    recipe.check_memory(fabric.device)
    with StopRequests() as stop:
        cache.fill([*train, *validation], request.workers, say, stop.check)
    fabric.launch()
    plan = _plan(request, len(train))
    network = _fit(recipe, plan, request, fabric, recipe.facts, say)
    if not fabric.is_global_zero:
        return None
    metrics = last_validation(request.work / "log.csv")
    return write_stage_one(
        request.output, request.name, network, recipe, request.source, metrics, request.overwrite, asdict(plan)
    )


def _fit(
    recipe: Any, plan: Any, request: Request, fabric: Any, facts: dict[str, Any], say: Callable[[str], None]
) -> Any:
    from mmh_bids.training.loop import fit

    return fit(recipe, plan, request.work, fabric, facts, say)


def _plan(request: Request, images: int) -> Any:
    """What flags and recipe say, for so many training images."""
    from mmh_bids.training.loop import Plan

    steps, between = request.preset.lengths(images, request.batch)
    steps = request.steps or steps
    values = {"warmup": min(20, steps), **request.preset.plan}
    return Plan(
        steps, request.learning_rate, seed=request.seed, validate_every=request.validate_every or between,
        accumulate=request.accumulate, **values,
    )  # fmt: skip


def _precision(request: Request) -> str:
    """The one asked for, else the recipe's on a GPU."""
    from mmh_bids.interfaces.child import resolve_device

    on_gpu = resolve_device(request.device) != "cpu"
    return request.precision or (request.preset.precision if on_gpu else "32-true")


def _fabric(request: Request) -> Any:
    """Lightning Fabric, not launched: what all processes need from the disk is made before, once."""
    from mmh_bids.training.distributed import make_fabric

    return make_fabric(request.device, request.devices, request.nodes, _precision(request))


def _processes_of(request: Request, fabric: Any) -> int:
    """How many processes share the memory that is asked about: those of the machine, but on GPUs each has its own."""
    return request.devices if fabric.device.type == "cpu" else 1
