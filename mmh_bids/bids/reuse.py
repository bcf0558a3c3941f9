"""Brain masks and transforms that other pipelines (fMRIPrep, sMRIPrep, or mmh itself) left in their derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
    (fMRIPrep drops ``run-`` where it merged runs). T2w images only take files that name T2w: a T1w's mask
    reaches them through the T1w.
    """
    mask_ending = "_desc-brain_mask.nii.gz" if run.sequence == "T1w" else f"_desc-brain{run.sequence}_mask.nii.gz"
    found = Reusable()
    for _, folder in derivatives:
        files = _anat_files(Path(folder), run)
        # belongs to this dataset's mask and transform only, and fMRIPrep's T1w space knows no original T2w
        orig = _best(files, run, "_from-orig_to-T1w_mode-image_xfm.txt") if run.sequence == "T1w" else None
        mask, xfm = _best(files, run, mask_ending), _to_template(files, run)
        if mask and not found.mask:
            found = replace(found, mask=mask, mask_xfm=orig)
        if xfm and not found.xfm:
            found = replace(found, xfm=xfm, xfm_orig=orig)
    return found


def _to_template(files: Sequence[Path], run: Run) -> Path | None:
    """The transform to the nearest of `_SPACES`; an affine rather than a warp, which is only reduced to one."""
    endings = (f"_from-{run.sequence}_to-{space}_mode-image_xfm{ext}" for space in _SPACES for ext in (".txt", ".h5"))
    return next((path for path in (_best(files, run, ending) for ending in endings) if path), None)


def _anat_files(root: Path, run: Run) -> list[Path]:
    """Files of the participant's anat folders, the session's own before the merged ones."""
    subject = root / f"sub-{run.participant}"
    folders = [subject / f"ses-{run.session}" / "anat"] if run.session else []
    folders.append(subject / "anat")
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]


def _best(files: Sequence[Path], run: Run, ending: str) -> Path | None:
    """The file with `ending` that shares most entities with `run` and contradicts none."""
    best: tuple[int, Path] | None = None
    for path in files:
        if not path.name.endswith(ending) or "_space-" in path.name:
            continue
        entities = dict(part.split("-", 1) for part in path.name[: -len(ending)].split("_") if "-" in part)
        if all(run.entities.get(key) == value for key, value in entities.items()) and (
            best is None or len(entities) > best[0]
        ):
            best = len(entities), path
    return best[1] if best else None
