"""``mmh-train target``: stage 2 from a site's images to a bundle that knows the site, light or diffusion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmh_bids.errors import BundleError, UsageError
from mmh_bids.harmonizers.light import LOOKS_FILE, MmhLight
from mmh_bids.harmonizers.light import WEIGHTS_FILE as LIGHT_FILE
from mmh_bids.harmonizers.mmh import WEIGHTS_FILE
from mmh_bids.harmonizers.standard import STANDARDS_FILE, Standard
from mmh_bids.models.bundle import Bundle, open_bundle
from mmh_bids.models.encoders import load_style_encoder
from mmh_bids.models.sampler import make_sampler
from mmh_bids.models.style import TriPlanarEncoder
from mmh_bids.models.unet import SEQUENCE_CLASS
from mmh_bids.training.diffusion import StageOne
from mmh_bids.training.distributed import make_fabric
from mmh_bids.training.look import FACTOR, PAIRS, LookRecipe, removed_pair
from mmh_bids.training.loop import Plan, fit
from mmh_bids.training.people import bright_fluid, site_tissues
from mmh_bids.training.request import check_numbers, check_output, last_validation, participant
from mmh_bids.training.stage_two import TargetRecipe, latent_of
from mmh_bids.training.standards import Sample, find_samples, measure
from mmh_bids.training.style_removed import StyleRemoved
from mmh_bids.training.target_bundle import short, weights_file, write_target

#: What is trained by which method: steps of the light one, epochs of the diffusion (the paper's), learning rates.
LIGHT_STEPS, EPOCHS = 300, 30
LIGHT_RATE, RATE = 2e-3, 5e-7
#: Files of stage 1's weights, of either method.
STAGE_ONE_FILES = (LIGHT_FILE, WEIGHTS_FILE)
#: Epochs of warm-up of the diffusion.
_WARMUP = 2


@dataclass(frozen=True)
class TargetRequest:
    """What ``mmh-train target`` was asked for.

    Attributes
    ----------
    images
        Output folders of ``mmh --method none``: images of the site, and of others for style transfer.
    target_site
        Label of the site, as the sidecars have it.
    bundle
        Stage 1: name or path.
    held_out
        Participants (``sub-03``) to validate on, never trained on.
    output, work
        Folder of the bundle; folder of checkpoint and log, which a second call goes on from.
    name, label, source, overwrite
        Of the bundle; of the target in it; where the images come from, for the card; see `write_bundle`.
    style_weights, allow_download
        See `load_style_encoder`.
    transfer
        Whether style transfer takes part; style reconstruction always does.
    sites
        Whether the average person of each site is learned (light), see `mmh_bids.harmonizers.people`.
    steps, learning_rate
        Optimizer steps and its rate at the top; None for what the method has by default.
    last
        Denoising steps that gradients flow through (diffusion).
    cache
        Folder of the images without style, which trainings for several sites may share; in `work` if None.
    validate_every, seed, device, precision
        As in `mmh_bids.training.stage_one.Request`.
    """

    images: tuple[Path, ...]
    target_site: str
    bundle: str
    held_out: tuple[str, ...]
    output: Path
    work: Path
    name: str
    label: str
    source: str
    overwrite: bool
    style_weights: Path | None = None
    allow_download: bool = False
    transfer: bool = True
    sites: bool = True
    steps: int | None = None
    learning_rate: float | None = None
    last: int = 10
    validate_every: int = 100
    cache: Path | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"


@dataclass(frozen=True)
class _Images:
    """Samples of the target to learn from, of the others, of the target to validate on, and all but the last."""

    target: list[Sample]
    sources: list[Sample]
    validation: list[Sample]
    train: list[Sample]

    @property
    def all(self) -> list[Sample]:
        return [*self.target, *self.sources, *self.validation]

    def files(self, which: str, known: dict[Sample, Path]) -> dict[str, list[Path]]:
        """Per sequence the files of ``target``, ``sources`` or ``validation``."""
        found: dict[str, list[Path]] = defaultdict(list)
        for sample in getattr(self, which):
            found[sample.sequence].append(known[sample])
        return dict(found)


def train_target(request: TargetRequest, say: Callable[[str], None] = print) -> Bundle:
    """Train and write the bundle.

    Raises
    ------
    UsageError
        Nothing of the site to train on, a stage 1 that cannot be gone on from, or a work folder of another training.
    Interrupted
        After SIGINT or SIGTERM; the same request goes on.
    """
    check_numbers(request, ("steps", "last", "validate_every"))
    check_output(request.output, request.overwrite)
    try:
        base = open_bundle(request.bundle)
    except BundleError as error:
        raise UsageError(str(error).replace("--model", "--bundle")) from None
    images = _images(request, base)
    encoder = _encoder(request, say)
    train = _train_look if "mmh-light" in base.methods else _train_network
    return train(request, base, images, encoder, say)


def _encoder(request: TargetRequest, say: Callable[[str], None]) -> TriPlanarEncoder | None:
    """The style encoder of style transfer; None without."""
    if not request.transfer:
        return None
    encoder = load_style_encoder(request.style_weights, request.allow_download)
    say(f"style encoder: {encoder.card['name']}")
    return encoder


def _images(request: TargetRequest, base: Bundle) -> _Images:
    if not {"mmh-light", "mmh-diffusion"} & set(base.methods):
        raise UsageError(f"--bundle {request.bundle}: no stage 1 of MMH; make one with mmh-train global")
    samples = [sample for sample in find_samples(request.images) if sample.sequence in base.sequences]
    sites = sorted({sample.site for sample in samples if sample.site})
    if request.target_site not in sites:
        there = ", ".join(sites) or "no site; give --site-from to mmh --method none"
        raise UsageError(f"--target-site {request.target_site}: no image of such a site; there is {there}")
    people = {participant(sample.path) for sample in samples}
    unknown = sorted(set(request.held_out) - people)
    if unknown:
        raise UsageError(f"--held-out {' '.join(unknown)}: unknown; there are {', '.join(sorted(people))}")
    train = [sample for sample in samples if participant(sample.path) not in request.held_out]
    target = [sample for sample in train if sample.site == request.target_site]
    if not target:
        raise UsageError(f"--held-out: leaves no image of {request.target_site} to train on")
    kept = [sample for sample in samples if sample not in train and sample.site == request.target_site]
    sources = [sample for sample in train if sample.site != request.target_site] if request.transfer else []
    return _Images(target, sources, kept, train)


def _train_look(
    request: TargetRequest, base: Bundle, images: _Images, encoder: TriPlanarEncoder | None, say: Callable[[str], None]
) -> Bundle:
    fabric = make_fabric(request.device, precision=request.precision)
    fabric.launch()
    harmonizer = MmhLight.load(base, str(fabric.device))
    cache = style_removed(request.cache or request.work / "style-removed", base, harmonizer, say)
    files = cache.prepare(images.all)
    target, sources, validation = (images.files(part, files) for part in ("target", "sources", "validation"))
    recipe = LookRecipe(target, sources, validation, encoder)
    plan = Plan(
        request.steps or LIGHT_STEPS, request.learning_rate or LIGHT_RATE, weight_decay=0.0, seed=request.seed,
        validate_every=request.validate_every,
    )  # fmt: skip
    facts = _facts(request, base, images, encoder)
    looks: Any = fit(recipe, plan, request.work, fabric, facts, say)
    look = f"site:{request.label}"
    arrays = {
        f"{sequence}/{look}/{name}": value.half().numpy()
        for sequence in recipe.sequences
        for name, value in looks[sequence].state_dict().items()
    }
    standards = _standards(images.target)
    card = {sequence: {"zscore": short(standard.zscore)} for sequence, standard in standards.items()}
    sites = _sites(cache, images, harmonizer, say) if request.sites else {}
    plan_facts = facts | {"plan": asdict(plan)}
    return _written(request, base, images, plan_facts, card, {LOOKS_FILE: arrays}, standards, sites)


def style_removed(folder: Path, base: Bundle, harmonizer: MmhLight, say: Callable[[str], None]) -> StyleRemoved:
    """Where images are kept as the light stage 1 leaves them; `base` is the harmonizer's bundle."""
    facts = _stage_one_key(base) | {"factor": FACTOR, "pairs": PAIRS}
    return StyleRemoved(folder, facts, partial(removed_pair, harmonizer=harmonizer), say)


def _sites(
    cache: StyleRemoved, images: _Images, harmonizer: MmhLight, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """The average person of every site that has enough people, and a line for each."""
    levels = {sequence: harmonizer.levels(sequence) for sequence in harmonizer.sequences}
    files = cache.prepare([sample for sample in images.train if bright_fluid(levels[sample.sequence])])
    sites = site_tissues(files, levels)
    for sequence, known in sites.items():
        for site, facts in known.items():
            say(f"site {site}, {sequence}: {facts['people']} people give the average one; what is a person's own stays")
    return sites


def _train_network(
    request: TargetRequest, base: Bundle, images: _Images, encoder: TriPlanarEncoder | None, say: Callable[[str], None]
) -> Bundle:
    fabric = make_fabric(request.device, precision=request.precision)
    fabric.launch()
    stage_one, factor = stage_one_of(base), int(base.card["training"]["recipe"]["factor"])
    sampler = make_sampler(base.card["sampler"])
    standards = _standards(images.target)
    moments = {sequence: (float(one.zscore[0]), float(one.zscore[1])) for sequence, one in standards.items()}
    stage_one.to(fabric.device)
    files: dict[Sample, Path] = {}
    for sequence, own in moments.items():
        cache = StyleRemoved(
            request.cache or request.work / "style-removed", _stage_one_key(base) | {"factor": factor, "moments": own},
            partial(latent_of, stage_one=stage_one, sampler=sampler, factor=factor, moments=own), say,
        )  # fmt: skip
        files |= cache.prepare([sample for sample in images.all if sample.sequence == sequence])
    parts = (images.target, images.sources, images.validation, images.train)
    images = _Images(*([sample for sample in part if sample in files] for part in parts))
    target, sources, validation = (images.files(part, files) for part in ("target", "sources", "validation"))
    recipe = TargetRecipe(
        stage_one, sampler, target, sources, validation, encoder, last=request.last, voxel_mm=float(factor)
    )
    plan = Plan(
        request.steps or EPOCHS * recipe.epoch, request.learning_rate or RATE, warmup=_WARMUP * recipe.epoch,
        weight_decay=0.0, average=0.0, seed=request.seed, validate_every=request.validate_every,
    )  # fmt: skip
    facts = _facts(request, base, images, encoder) | {"last": recipe.last}
    network: Any = fit(recipe, plan, request.work, fabric, facts, say)
    name = weights_file(f"site:{request.label}")
    card = {}
    for sequence, own in moments.items():
        label, statistics = SEQUENCE_CLASS[sequence], network.statistics
        style = {"mean": float(statistics.mean[label]), "std": float(statistics.std[label])}
        card[sequence] = {**style, "brain": list(own), "weights": name}
    arrays = {key: value.numpy() for key, value in network.unet.state_dict().items()}
    return _written(request, base, images, facts | {"plan": asdict(plan)}, card, {name: arrays}, standards)


def stage_one_of(base: Bundle) -> StageOne:
    """The network and the running statistics of a diffusion's bundle, in evaluation mode.

    Raises
    ------
    UsageError
        Weights and card do not go together.
    """
    import torch

    stage = StageOne(base.card["network"])
    try:
        stage.unet.load_state_dict({k: torch.from_numpy(v) for k, v in base.arrays(WEIGHTS_FILE).items()})
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"--bundle {base.name}: {WEIGHTS_FILE} does not fit the card's network ({first})") from None
    for sequence in base.sequences:
        facts, label = base.card["sequences"][sequence]["targets"]["unified"], SEQUENCE_CLASS[sequence]
        stage.statistics.mean[label], stage.statistics.std[label] = facts["mean"], facts["std"]
        stage.statistics.seen[label] = True
    return stage.eval().requires_grad_(False)


def _stage_one_key(base: Bundle) -> dict[str, Any]:
    """What images without style depend on: not the bundle's name, nor other sites that it may know."""
    weights = {name: facts["sha256"] for name, facts in base.card["files"].items() if name in STAGE_ONE_FILES}
    unified = {sequence: one["targets"]["unified"] for sequence, one in base.card["sequences"].items()}
    return {"weights": weights, "unified": unified, "network": base.card["network"], "sampler": base.card["sampler"]}


def _facts(request: TargetRequest, base: Bundle, images: _Images, encoder: TriPlanarEncoder | None) -> dict[str, Any]:
    """JSON-ready: what another training must share to go on from this one's checkpoint."""
    return {
        "recipe": "stage 2",
        "stage_1": {"name": base.name, "sha256": base.sha256},
        "site": request.target_site,
        "style_encoder": None if encoder is None else dict(encoder.card),
        "train": [sample.path.name for sample in images.target],
        "sources": [sample.path.name for sample in images.sources],
        "validation": [sample.path.name for sample in images.validation],
    }


def _standards(samples: Sequence[Sample]) -> dict[str, Standard]:
    """What the target's images look like, per sequence."""
    found: dict[str, list[Standard]] = defaultdict(list)
    for sample in samples:
        found[sample.sequence].append(measure(sample))
    return {sequence: Standard.average(some) for sequence, some in found.items()}


def _written(
    request: TargetRequest,
    base: Bundle,
    images: _Images,
    training: dict[str, Any],
    card: dict[str, dict[str, Any]],
    files: dict[str, dict[str, np.ndarray]],
    standards: dict[str, Standard],
    sites: dict[str, dict[str, Any]] | None = None,
) -> Bundle:
    for sequence, facts in card.items():
        facts |= {"stage": 2, "images": sum(sample.sequence == sequence for sample in images.target)}
    return write_target(
        base, request.output, request.name, f"site:{request.label}", card, files,
        standards if STANDARDS_FILE in base.card["files"] else {}, training | {"data": request.source},
        last_validation(request.work / "log.csv"), request.overwrite, sites,
    )  # fmt: skip
