"""Judge an image by its header and file name alone: no voxel is read, nothing is repaired."""

from __future__ import annotations

import gzip
import itertools
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

#: Fewer voxels along an axis are a slice, a localizer or a slab, not a head.
MIN_VOXELS = 8
#: Edge lengths of a voxel, in mm, outside of which the header is wrong (often another unit).
MIN_VOXEL_MM, MAX_VOXEL_MM = 0.1, 20.0
#: Largest distance, in mm, at which qform and sform still agree (rounding of quaternions stays below).
MAX_FORM_DISTANCE_MM = 0.1

_HEADER_BYTES = 540  # NIfTI-2; NIfTI-1 has 348
_READ_ERRORS = (OSError, EOFError, zlib.error, ValueError, OverflowError, HeaderDataError, WrapStructError)


@dataclass(frozen=True)
class Verdict:
    """What a header says about the use of its image.

    Attributes
    ----------
    action
        ``"harmonize"``, ``"skip"`` (a fine image, but not one for us) or ``"fail"`` (unusable).
    reason
        One line for people that names the file; may also be a warning with ``"harmonize"``; else empty.
    """

    action: Literal["harmonize", "skip", "fail"] = "harmonize"
    reason: str = ""


def entity_skip_reason(entities: Mapping[str, str]) -> str | None:
    """Why an image with these BIDS entities (short keys) is not for us; None if it is.

    >>> entity_skip_reason({"sub": "01", "part": "phase"})
    'part-phase is not a magnitude image'
    >>> entity_skip_reason({"sub": "01", "echo": "2"})
    'echo-2 is one echo of several; give the combined image'
    >>> entity_skip_reason({"sub": "01", "part": "mag", "rec": "norm", "acq": "mprage"}) is None
    True
    """
    if entities.get("part", "mag") != "mag":
        return f"part-{entities['part']} is not a magnitude image"
    if "echo" in entities:
        return f"echo-{entities['echo']} is one echo of several; give the combined image"
    if "inv" in entities:
        return f"inv-{entities['inv']} is one inversion of several; give the combined image"
    for key in ("space", "res", "desc", "label"):
        if key in entities:
            return f"{key}-{entities[key]} says this is a derivative, not a raw image"
    return None


def check_header(path: str | os.PathLike[str]) -> str | None:
    """Return one line that says why the image cannot be used, or None if its header is fine.

    Never raises for a bad file. Images that are sound but not for us (4D) pass here; see `examine`.
    """
    verdict = examine(path)
    return verdict.reason if verdict.action == "fail" else None


def examine(path: str | os.PathLike[str]) -> Verdict:
    """Judge the header of the NIfTI file `path` (``.nii`` or ``.nii.gz``).

    Returns
    -------
    Verdict
        ``skip`` for real 4D images; ``fail`` for everything that would give a wrong or no result:
        unreadable, truncated, not NIfTI, too few slices, impossible voxel size, RGB or complex numbers, a
        singular affine, or a qform and sform that place the volume differently. ``harmonize`` with a warning
        if the header has no orientation at all. (X, Y, Z, 1) images are fine.
    """
    path = Path(path)
    try:
        header = _read_header(path)
    except _READ_ERRORS as error:
        return Verdict("fail", f"{path.name}: {_why_unreadable(path, error)}")
    try:
        return _judge(path, header)
    except (HeaderDataError, ValueError, OverflowError) as error:
        return Verdict(
            "fail", f"{path.name}: the NIfTI header is corrupt ({_one_line(error)}); convert the image again"
        )


def _judge(path: Path, header: nib.Nifti1Header) -> Verdict:
    shape = _squeezed(header.get_data_shape())
    if len(shape) > 3:
        size = " x ".join(map(str, shape))
        return Verdict("skip", f"{path.name}: {len(shape)}D image ({size}); only 3D images are harmonized")
    failure = (
        _shape_failure(shape)
        or _dtype_failure(header)
        or _voxel_failure(header)
        or _form_failure(header, shape)
        or _offset_failure(header)
        or _length_failure(path, header)
    )
    if failure:
        return Verdict("fail", f"{path.name}: {failure}")
    if not (header["qform_code"] > 0 or header["sform_code"] > 0):
        return Verdict(
            "harmonize",
            f"{path.name}: no orientation in the header (qform and sform code 0), left and right are "
            "guessed; convert again from DICOM if you can",
        )
    return Verdict()


def form_distance(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance between the places that two affines give to the corners of a volume.

    Both maps are affine, so that the distance is convex and the corners hold its maximum.

    Parameters
    ----------
    first, second
        (4, 4) voxel-to-world matrices, mm.
    shape
        Voxels along the three axes.

    Returns
    -------
    float
        mm, at least 0.

    Examples
    --------
    >>> moved = np.diag([1.0, 1.0, 1.0, 1.0]); moved[0, 3] = 3.0
    >>> form_distance(np.eye(4), moved, (10, 10, 10))
    3.0
    """
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shape))])
    difference = corners @ (np.asarray(first) - np.asarray(second)).T
    return float(np.linalg.norm(difference[:, :3], axis=1).max())


def _read_header(path: Path) -> nib.Nifti1Header:
    """The header as it is in the file: `nibabel.load` would silently mend zero or negative voxel sizes."""
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as stream:
        block = stream.read(_HEADER_BYTES)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        size = kind.template_dtype.itemsize
        if len(block) >= size and kind.may_contain_header(block):
            return kind(block[:size], check=False)
    raise HeaderDataError("no NIfTI header")


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read; change the file's permissions"
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return "link to content that is not here; fetch it (datalad get, git annex get)"
        return "does not exist; if a --bids-database-dir is used, it is out of date: delete it"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if _size(path) == 0:
        return "empty file; copy or convert the image again"
    if isinstance(error, gzip.BadGzipFile):
        return "not a gzip file in spite of its name; name a plain NIfTI file .nii, else convert it again"
    if isinstance(error, (EOFError, zlib.error)):
        return "truncated or damaged gzip file; copy the image again"
    if isinstance(error, HeaderDataError):
        return "not a NIfTI image; convert it again from DICOM (dcm2niix)"
    return f"cannot be read ({_one_line(error)}); copy the image again"


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` without trailing axes of length 1 beyond the third: (x, y, z, 1) is a 3D image."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _shape_failure(shape: tuple[int, ...]) -> str | None:
    size = " x ".join(map(str, shape))
    if len(shape) < 3:
        return f"{len(shape)}D image ({size}); give a 3D image or leave it out (--bids-filter-file)"
    if min(shape) < MIN_VOXELS:
        return (
            f"only {min(shape)} slice(s) along an axis ({size}, at least {MIN_VOXELS} needed); "
            "give a whole-head image or leave it out (--bids-filter-file)"
        )
    return None


def _dtype_failure(header: nib.Nifti1Header) -> str | None:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        return f"unknown data type code {int(header['datatype'])}; convert the image again"
    if dtype.fields is not None:
        return "RGB colour image, not intensities; convert the image again from DICOM"
    if dtype.kind == "c":
        return "complex numbers; give the magnitude image"
    if dtype.kind not in "iuf":
        return f"data type {dtype} is not a number; convert the image again"
    header.get_slope_inter()  # raises HeaderDataError for a slope without a finite intercept
    return None


def _voxel_failure(header: nib.Nifti1Header) -> str | None:
    stored = [float(size) for size in header["pixdim"][1:4]]
    with np.errstate(invalid="ignore", over="ignore"):
        of_sform = np.sqrt((header.get_sform().astype(float)[:3, :3] ** 2).sum(axis=0)).tolist()
    for sizes in (stored, of_sform if header["sform_code"] > 0 else []):
        if any(not np.isfinite(size) or not MIN_VOXEL_MM <= size <= MAX_VOXEL_MM for size in sizes):
            listed = " x ".join(f"{size:g}" for size in sizes)
            return (
                f"voxel size {listed} mm is outside {MIN_VOXEL_MM:g} to {MAX_VOXEL_MM:g} mm; "
                "convert the image again from DICOM"
            )
    return None


def _form_failure(header: nib.Nifti1Header, shape: tuple[int, ...]) -> str | None:
    forms = {"qform": header.get_qform(coded=True)[0], "sform": header.get_sform(coded=True)[0]}
    for name, form in forms.items():
        if form is None:
            continue
        if not np.isfinite(form).all():
            return f"{name} holds numbers that are not finite; convert the image again from DICOM"
        edges = np.linalg.norm(form[:3, :3], axis=0)
        # Volume of the voxel relative to a box with its edges: 1 for right angles, 0 for a flat one.
        if abs(np.linalg.det(form[:3, :3])) < 1e-3 * edges.prod() or edges.prod() == 0:
            return f"{name} is singular (its axes lie in one plane); convert the image again from DICOM"
    if forms["qform"] is None or forms["sform"] is None:
        return None
    distance = form_distance(forms["qform"], forms["sform"], shape)
    if distance > MAX_FORM_DISTANCE_MM:
        return (
            f"qform and sform disagree by up to {distance:.1f} mm; find out which is right, then copy it "
            "over the other (FSL: fslorient -copysform2qform or -copyqform2sform)"
        )
    return None


def _offset_failure(header: nib.Nifti1Header) -> str | None:
    """Voxels that are said to begin within the header: nibabel refuses such a file."""
    if int(header["vox_offset"]) < header.single_vox_offset:
        return f"voxels are said to begin at byte {int(header['vox_offset'])}, within the header; convert it again"
    return None


def _length_failure(path: Path, header: nib.Nifti1Header) -> str | None:
    """A plain file shorter than its header promises; a compressed one shows that only when it is read."""
    if path.name.endswith(".gz"):
        return None
    needed = int(header["vox_offset"]) + header.get_data_dtype().itemsize * int(np.prod(header.get_data_shape()))
    size = _size(path)
    if size < needed:
        return f"truncated: {size} bytes, {needed} expected; copy the image again"
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
