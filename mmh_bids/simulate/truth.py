"""The truth beside a simulated image, on the image's grid, and the pose of each session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mmh_bids.simulate import tissues
from mmh_bids.simulate.acquire import Acquisition
from mmh_bids.simulate.files import save_image, write_json
from mmh_bids.simulate.phantom import Head
from mmh_bids.simulate.sampling import nearest
from mmh_bids.simulate.unified import WHITE_LEVEL, unified_on_grid

#: Transforms are not in BIDS 1.10.
BIDSIGNORE = "*_xfm.json\n"
#: Float images hardly shrink further, but take several times as long, at higher levels of gzip.
_FLOAT_LEVEL = 4
#: Digits after the point of a pose: a millionth of a millimetre all over the head, and no noise of the last bits.
_DIGITS = 9


def write_truth(folder: Path, stem: str, sequence: str, placed: Head, scan: Acquisition) -> None:
    """Write what is known of an image: brain mask, tissues, regions, noise-free image, unified look.

    T1w and T2w lie on different grids, so each has its own.

    Parameters
    ----------
    folder
        Where to; made if missing.
    stem
        Entities of the image, such as ``sub-01_ses-A``.
    sequence
        ``"T1w"`` or ``"T2w"``.
    placed
        The head as it lay in the scanner.
    scan
        What `acquire` made of it.
    """
    affine, shape = scan.image.affine, scan.image.shape
    about = {"Description": f"Truth of {placed.name} on the grid of the {sequence} image"}
    levels = {str(index): name for index, name in enumerate(tissues.NAMES)}
    _write(scan.mask, folder / f"{stem}_desc-brain{sequence}_mask", {"Type": "Brain", **about})
    _write(scan.tissue, folder / f"{stem}_desc-tissue{sequence}_dseg", {**about, "Levels": levels})
    if placed.labels is not None:
        regions = nearest(placed.labels, placed.affine, shape, affine)
        text = f"Codes of the label map {placed.name} on the grid of the {sequence} image"
        _write(_like(scan.mask, regions), folder / f"{stem}_desc-regions{sequence}_dseg", {"Description": text})
    text = f"{sequence} image before noise and rounding, in its units"
    _write(
        _like(scan.mask, scan.noise_free),
        folder / f"{stem}_desc-noisefree_{sequence}",
        {"Description": text, "SkullStripped": False},
        _FLOAT_LEVEL,
    )
    text = f"Unified look of {placed.name} on the grid of the {sequence} image; no fields, no ghosts, no noise"
    _write(
        _like(scan.mask, unified_on_grid(placed, sequence, shape, affine)),
        folder / f"{stem}_desc-unified_{sequence}",
        {"Description": text, "SkullStripped": False, "Units": "arbitrary", "WhiteMatter": WHITE_LEVEL[sequence]},
        _FLOAT_LEVEL,
    )


def write_pose(folder: Path, stem: str, head: Head, placed: Head) -> None:
    """Write how to get from a session's world coordinates to the label map's.

    Parameters
    ----------
    folder
        Where to; made if missing.
    stem
        Participant and session, such as ``sub-01_ses-A``.
    head, placed
        The head as its label map has it, and as it lay in the scanner.
    """
    values = {
        "Description": "Matrix takes world coordinates (RAS+, millimetres) of this session's images to those of "
        f"{head.name}; the same head for all sessions of the participant",
        "From": "scanner",
        "To": "head",
        "Units": "mm",
        "Matrix": scanner_to_head(head, placed).round(_DIGITS).tolist(),
    }
    write_json(folder / f"{stem}_from-scanner_to-head_mode-image_desc-pose_xfm.json", values)


def scanner_to_head(head: Head, placed: Head) -> NDArray[np.float64]:
    """Map from world coordinates of a placed head to those of the head itself, (4, 4), millimetres.

    Examples
    --------
    >>> from mmh_bids.simulate.phantom import transform_head
    >>> data = np.ones((2, 2, 2), np.uint8)
    >>> head = Head(data, np.eye(4), data > 0, data.astype(np.float32))
    >>> move = np.diag([1.0, 1.0, 1.0, 1.0])
    >>> move[:3, 3] = 5, 0, -2
    >>> scanner_to_head(head, transform_head(head, move))[:3, 3].tolist()
    [-5.0, 0.0, 2.0]
    """
    return head.affine @ np.linalg.inv(placed.affine)


def _like(image: nib.Nifti1Image, data: NDArray[Any]) -> nib.Nifti1Image:
    """`data` as an image with the header of another on the same grid."""
    header = image.header.copy()
    header.set_data_dtype(data.dtype)
    return nib.Nifti1Image(data, None, header)


def _write(image: nib.Nifti1Image, stem: Path, sidecar: dict[str, Any], level: int = 9) -> None:
    save_image(image, stem.with_name(stem.name + ".nii.gz"), level)
    write_json(stem.with_name(stem.name + ".json"), sidecar)
