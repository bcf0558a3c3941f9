"""What all images of one call share: settings, model, templates."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from mmh_bids import __version__
from mmh_bids.bids.derivatives import split_space
from mmh_bids.bids.reuse import find_reusable
from mmh_bids.bids.run import Run
from mmh_bids.errors import ImageError, UsageError
from mmh_bids.files import sha256_file
from mmh_bids.harmonizers.base import find_method
from mmh_bids.harmonizers.standard import bundle_standards
from mmh_bids.image.grid import TEMPLATE_SPACE, template_path
from mmh_bids.models.bundle import Bundle, bundle_of, open_bundle
from mmh_bids.settings import Settings


@dataclass(frozen=True)
class Space:
    """An output space: its name as asked (``MNI152NLin6Asym:res-2``) and the file that defines its grid.

    `brain` is the brain-only image to register to; None for the template every image is registered to anyway.
    """

    name: str
    grid: Path
    brain: Path | None


@dataclass(frozen=True)
class MethodFacts:
    """What a method and its bundle say to the graph of one sequence.

    Attributes
    ----------
    model, bundle_sha256
        Bundle by name or folder, and its hash.
    shape, affine
        Voxels of the model grid, and its (4, 4) voxel -> RAS mm, as plain lists.
    output_max
        Value written for 1 of the target's scale.
    reference_quantiles
        Of the target's intensities in model units, if the bundle has them.
    method_gb
        Memory the method needs.
    """

    model: str
    bundle_sha256: str
    shape: tuple[int, int, int]
    affine: list[list[float]]
    output_max: float
    reference_quantiles: list[float] | None
    method_gb: float


def method_facts(method: str, model: str, target: str, sequence: str) -> MethodFacts:
    """Open the bundle `model` (empty: the one shipped for `method`) and check that it serves what is asked.

    Raises
    ------
    UsageError
        Unknown method, unusable bundle or target, or a sequence the method does not harmonize.
    """
    bundle = open_bundle(model or bundle_of(method))
    bundle.require(method)
    harmonizer = find_method(method).load(bundle, "cpu")
    if sequence not in harmonizer.sequences:
        raise UsageError(f"--method {method}: does not harmonize {sequence} images; choose another")
    harmonizer.check_target(target, sequence)
    quantiles = reference_quantiles(bundle, target, sequence)
    return _facts(model or bundle_of(method), bundle, quantiles, harmonizer.mem_gb)


def _facts(model: str, bundle: Bundle, quantiles: list[float] | None, method_gb: float) -> MethodFacts:
    return MethodFacts(
        model, bundle.sha256, bundle.shape, bundle.affine.tolist(), bundle.output_max, quantiles, method_gb
    )


def gpu_lock_dir() -> Path:
    """Where processes queue for a GPU; on a node's own disk, as the GPU is the node's."""
    # a folder for each user: nobody may write into another's
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"mmh-locks-{os.getuid()}"


@dataclass(frozen=True)
class Study:
    """Settings, opened bundle and templates of a call; all that needs no image is checked in `prepare`."""

    settings: Settings
    bundle: Bundle
    method_gb: float
    spaces: tuple[Space, ...] = ()
    quantiles: dict[str, list[float]] = field(default_factory=dict)
    reference_sha256: str = ""

    @classmethod
    def prepare(cls, settings: Settings) -> Study:
        """Open the bundle, check the target, find the templates.

        Raises
        ------
        UsageError
            Unknown method, unusable bundle, target or output space.
        """
        method = find_method(settings.method)
        bundle = open_bundle(settings.model or bundle_of(settings.method))
        bundle.require(settings.method)
        harmonizer = method.load(bundle, "cpu")
        sequences = [sequence for sequence in settings.modalities if sequence in harmonizer.sequences]
        for sequence in sequences:
            harmonizer.check_target(settings.target, sequence)
        reference = check_reference(settings.target) if settings.target.startswith("image:") else None
        quantiles = {sequence: reference_quantiles(bundle, settings.target, sequence) for sequence in sequences}
        return cls(
            settings=settings,
            bundle=bundle,
            method_gb=harmonizer.mem_gb,
            spaces=tuple(find_space(name, settings.work_dir) for name in settings.output_spaces),
            quantiles={sequence: values for sequence, values in quantiles.items() if values},
            reference_sha256=sha256_file(reference) if reference else "",
        )

    @property
    def model(self) -> str:
        """Name or path of the bundle."""
        return self.settings.model or bundle_of(self.settings.method)

    @property
    def lock_dir(self) -> Path:
        """Where processes queue for a GPU."""
        return gpu_lock_dir()

    def facts(self, sequence: str) -> MethodFacts:
        """What the graph of an image of `sequence` needs to know."""
        return _facts(self.model, self.bundle, self.quantiles.get(sequence), self.method_gb)

    def fingerprint(self, run: Run, source_sha256: str, partner: str) -> str:
        """Hash of all that decides the outputs of `run`; `partner` stands for the T1w it may borrow from."""
        files = find_reusable(run, self.settings.derivatives).files
        return self.settings.fingerprint(
            version=__version__,
            bundle=self.bundle.sha256,
            source=source_sha256,
            partner=partner,
            site=str(run.site),
            others=" ".join([self.reference_sha256, *map(sha256_file, files)]),
        )


def check_reference(target: str) -> Path:
    """Path of the reference image of an ``image:`` target; UsageError if it is no readable NIfTI."""
    from mmh_bids.image.headers import examine

    path = Path(target.removeprefix("image:")).expanduser()
    if not path.is_file():
        raise UsageError(f"--target image:{path}: no such file; give a T1w or T2w image in NIfTI format")
    verdict = examine(path)
    if verdict.action != "harmonize":
        raise UsageError(f"--target image:{path}: {verdict.reason}")
    return path


def reference_quantiles(bundle: Bundle, target: str, sequence: str) -> list[float] | None:
    """Quantiles of the target's intensities in model units, if the bundle has them.

    An ``image:`` target is measured against the unified look: its own quantiles are not known before it is read.
    """
    known = bundle_standards(bundle).get(sequence, {})
    standard = known.get(target, known.get("unified"))
    return None if standard is None else [float(value) for value in standard.quantiles]


def find_space(name: str, work_dir: Path) -> Space:
    """Find the template of an output space; nilearn's own is always there, others come from TEMPLATEFLOW_HOME.

    Raises
    ------
    UsageError
        The name is none, or the template is not on this machine.
    """
    label, resolution = split_space(name)
    resolution = resolution or "1"
    if label == TEMPLATE_SPACE and resolution == "1":
        return Space(f"{label}:res-1", template_path(), None)
    home = Path(os.environ.get("TEMPLATEFLOW_HOME") or work_dir / "caches" / "templateflow")
    stem = f"tpl-{label}_res-{int(resolution):02d}" if resolution.isdigit() else f"tpl-{label}_res-{resolution}"
    brain, head, mask = (
        home / f"tpl-{label}" / f"{stem}_{ending}"
        for ending in ("desc-brain_T1w.nii.gz", "T1w.nii.gz", "desc-brain_mask.nii.gz")
    )
    place = f"{label}:res-{resolution}"
    if _usable(brain, name):
        return Space(place, brain, brain)
    if _usable(head, name) and _usable(mask, name):
        return Space(place, head, _brain_only(head, mask, name, work_dir))
    raise UsageError(
        f"--output-spaces {name}: {brain.name} is not under {home}; fetch it once "
        f"where there is a network (python -c \"import templateflow.api as t; t.get('{label}', "
        f'resolution={resolution})") and set TEMPLATEFLOW_HOME'
    )


def _usable(file: Path, name: str) -> bool:
    """Whether a template's file is there; an empty one (a lazy TemplateFlow's placeholder) is as good as none."""
    from mmh_bids.image.headers import examine

    if not file.is_file() or file.stat().st_size == 0:
        return False
    verdict = examine(file)
    if verdict.action != "harmonize":
        raise UsageError(f"--output-spaces {name}: {file.parent}: {verdict.reason}")
    return True


def _brain_only(head: Path, mask: Path, name: str, work_dir: Path) -> Path:
    """The template's head within its mask, written to the work directory when it is not there yet or is outdated."""
    import nibabel as nib
    import numpy as np

    from mmh_bids.files import atomic_path
    from mmh_bids.image.volume import read_image

    path = work_dir / "templates" / head.name.replace("_T1w", "_desc-brain_T1w")
    newest = max(head.stat().st_mtime, mask.stat().st_mtime)
    if path.exists() and path.stat().st_mtime >= newest:
        return path
    try:
        image, inside = read_image(head), np.asanyarray(read_image(mask).dataobj) > 0
    except ImageError as error:
        raise UsageError(f"--output-spaces {name}: {error}") from None
    brain = np.where(inside, np.asanyarray(image.dataobj), 0).astype(np.float32)
    with atomic_path(path) as temporary:
        nib.Nifti1Image(brain, image.affine).to_filename(temporary)
    return path
