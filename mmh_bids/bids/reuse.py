"""Brain masks and transforms that other pipelines (fMRIPrep, sMRIPrep, or mmh itself) left in their derivatives.

fMRIPrep and sMRIPrep changed their names over the years; both spellings are found:

=============================  ======================================  ==================================
what                           since fMRIPrep 1.2 (BIDS Derivatives)   before
=============================  ======================================  ==================================
brain mask                     ``_desc-brain_mask.nii.gz``             ``_T1w_brainmask.nii.gz``
image to template              ``_from-T1w_to-<space>_mode-image_xfm`` ``_T1w_target-<space>_warp.h5``
original to reference T1w      ``_from-orig_to-T1w_mode-image_xfm``    ``_T1w_space-orig_target-T1w_affine``
=============================  ======================================  ==================================

Up to 20.2, or with ``--output-layout legacy``, the folders of the participants lie in ``fmriprep`` or ``smriprep``
below the folder that was given to the pipeline; either may be named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmh_bids.bids.names import split_name
from mmh_bids.bids.run import Run
from mmh_bids.errors import UsageError

#: Templates whose affine from the image differs little from the one to ours; the nearest first.
_SPACES = (
    "MNI152NLin2009aSym",
    "MNI152NLin2009cSym",
    "MNI152NLin2009cAsym",
    "MNI152NLin2009aAsym",
    "MNI152NLin6Asym",
    "MNI152NLin6Sym",
)
#: T2w images take nothing that names T1w: a T1w's mask reaches them through the T1w.
_MASKS = {"T1w": ("_desc-brain_mask", "_T1w_brainmask"), "T2w": ("_desc-brainT2w_mask",)}
#: fMRIPrep's reference T1w knows no original T2w.
_ORIGS = {"T1w": ("_from-orig_to-T1w_mode-image_xfm.txt", "_T1w_space-orig_target-T1w_affine.txt"), "T2w": ()}
_LEGACY_FOLDERS = ("fmriprep", "smriprep")
#: Entities whose labels are numbers: a pipeline may drop the zeros that fill them.
_NUMBERS = ("run", "echo", "flip", "inv", "split")


@dataclass(frozen=True)
class Reusable:
    """What was found for one image; None where there is nothing.

    Attributes
    ----------
    mask
        Brain mask in the space of the image or of the participant's reference T1w.
    mask_xfm
        ``from-orig_to-T1w`` transform of the same dataset, where that space is not the image's own.
    xfm
        Transform from the image, or from the participant's reference T1w, to an MNI152 template.
    xfm_orig
        ``from-orig_to-T1w`` transform that comes before `xfm`, of the same dataset.
    """

    mask: Path | None = None
    mask_xfm: Path | None = None
    xfm: Path | None = None
    xfm_orig: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All that was found."""
        return [path for path in (self.mask, self.mask_xfm, self.xfm, self.xfm_orig) if path is not None]


def check_derivatives(derivatives: Sequence[tuple[str, str]]) -> None:
    """Raise UsageError if one of the ``NAME=PATH`` folders is not there."""
    for name, folder in derivatives:
        if not Path(folder).is_dir():
            raise UsageError(f"--derivatives {name}={folder}: no such folder; give the derivative dataset's root")


def find_reusable(run: Run, derivatives: Sequence[tuple[str, str]]) -> Reusable:
    """Search the derivative datasets, in their order, for a mask and a transform that fit `run`.

    A file fits if its entities are those of the image, or a subset of them with the same participant and session
    (fMRIPrep drops ``run-`` and ``ses-`` where it merged runs and sessions).
    """
    found = Reusable()
    for _, folder in derivatives:
        files = _anat_files(Path(folder), run)
        # belongs to this dataset's mask and transform only
        orig = _first(files, run, _ORIGS[run.sequence])
        mask = _first(files, run, [name + ext for name in _MASKS[run.sequence] for ext in (".nii.gz", ".nii")])
        xfm = _first(files, run, _transform_endings(run.sequence))
        if mask and not found.mask:
            found = replace(found, mask=mask, mask_xfm=orig)
        if xfm and not found.xfm:
            found = replace(found, xfm=xfm, xfm_orig=orig)
    return found


def reuse_summary(runs: Sequence[Run], derivatives: Sequence[tuple[str, str]]) -> str:
    """How much of what ``--derivatives`` names is of use, in words."""
    found = [find_reusable(run, derivatives) for run in runs]
    masks, transforms = sum(one.mask is not None for one in found), sum(one.xfm is not None for one in found)
    return f"brain masks for {masks} of {len(runs)} image(s), transforms to a template for {transforms}"


def _transform_endings(sequence: str) -> list[str]:
    """Names of transforms to the nearest of `_SPACES` first; an affine rather than a composite with a warp."""
    return [
        ending
        for space in _SPACES
        for ending in (
            f"_from-{sequence}_to-{space}_mode-image_xfm.txt",
            f"_from-{sequence}_to-{space}_mode-image_xfm.h5",
            f"_{sequence}_target-{space}_warp.h5",
        )
    ]


def _anat_files(root: Path, run: Run) -> list[Path]:
    """Files of the participant's anat folders, the session's own before the merged ones."""
    roots = [root, *(root / name for name in _LEGACY_FOLDERS)]
    subject = next((path for place in roots if (path := place / f"sub-{run.participant}").is_dir()), None)
    if subject is None:
        return []
    folders = [subject / f"ses-{run.session}" / "anat"] if run.session else []
    folders.append(subject / "anat")
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]


def _first(files: Sequence[Path], run: Run, endings: Sequence[str]) -> Path | None:
    """The best file with the first of `endings` that any has."""
    return next((path for ending in endings if (path := _best(files, run, ending))), None)


def _best(files: Sequence[Path], run: Run, ending: str) -> Path | None:
    """The file with `ending` that shares most entities with `run` and contradicts none."""
    best: tuple[int, Path] | None = None
    for path in files:
        entities = _entities(path.name, ending)
        if entities is None or not all(_same(key, label, run.entities.get(key)) for key, label in entities.items()):
            continue
        if best is None or len(entities) > best[0]:
            best = len(entities), path
    return best[1] if best else None


def _entities(name: str, ending: str) -> dict[str, str] | None:
    """Entities before `ending`; None for another name, and for an image in the space of a template.

    >>> _entities("sub-01_run-1_space-T1w_desc-brain_mask.nii.gz", "_desc-brain_mask.nii.gz")
    {'sub': '01', 'run': '1'}
    >>> _entities("sub-01_space-MNI152NLin6Asym_desc-brain_mask.nii.gz", "_desc-brain_mask.nii.gz")
    """
    if not name.endswith(ending):
        return None
    try:
        entities, *_ = split_name(f"{name[: -len(ending)]}_mask")
    except ValueError:
        return None
    # the reference T1w is the space of files without the entity, too
    return entities if entities.pop("space", "T1w") == "T1w" else None


def _same(key: str, label: str, own: str | None) -> bool:
    """Whether two labels of an entity are the same.

    >>> _same("run", "1", "01"), _same("acq", "1", "01"), _same("run", "1", None)
    (True, False, False)
    """
    if own is not None and key in _NUMBERS and label.isdecimal() and own.isdecimal():
        return int(label) == int(own)
    return label == own
