"""Read an input image defensively, bring it to canonical orientation, and write results back on its own grid."""

from __future__ import annotations

import errno
import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.image.grid import open_nifti

CORRUPT = (EOFError, OSError, zlib.error, ImageFileError, HeaderDataError, ValueError)


def read_image(path: Path) -> nib.Nifti1Image:
    """Open a 3-D image and read all of it: float32 data (scaled by slope and intercept), its header and affine.

    A trailing axis of length one is dropped.

    Raises
    ------
    ImageError
        The file is truncated or no NIfTI, may not be read, has several volumes, NaN or infinite voxels, or holds
        one value only.
    """
    try:
        image = open_nifti(path)
        data = np.asanyarray(image.dataobj, dtype=np.float32)
        _check_sum(path)
    except PermissionError:
        raise ImageError(f"{path}: no permission to read it; change its mode or ask its owner") from None
    except MemoryError:
        raise ImageError(f"{path}: does not fit into memory; check its dimensions") from None
    except CORRUPT as error:
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ENOENT):
            raise ImageError(f"{path}: {error.strerror}; check the disk") from None
        raise ImageError(
            f"{path}: truncated, damaged or not a NIfTI file ({_brief(error)}); fetch or convert it again"
        ) from None
    if data.size != np.prod(data.shape[:3]):
        size = " x ".join(map(str, data.shape))
        raise ImageError(f"{path}: {data.ndim}D image ({size}) of several volumes; give a 3D image")
    data = data.reshape(data.shape[:3])
    if not np.isfinite(data).all():
        count = int((~np.isfinite(data)).sum())
        raise ImageError(f"{path}: {count} voxels are NaN or infinite; replace them (0 outside the head) and rerun")
    if data.min() == data.max():
        raise ImageError(f"{path}: every voxel is {data.min():g}; the image is empty, fetch or convert it again")
    return type(image)(data, image.affine, image.header)


def _check_sum(path: Path) -> None:
    """Read a compressed file to its very end, where gzip compares the check sum; nibabel stops at the last voxel."""
    if path.name.endswith(".gz"):
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:120] or type(error).__name__


def canonical(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The image with axes flipped and swapped to closest RAS+; no interpolation."""
    return nib.as_closest_canonical(image)


def to_own_axes(data: NDArray, like: nib.Nifti1Image) -> NDArray:
    """Bring a canonical (RAS+) array back to the axes of `like`; the exact inverse of `canonical`."""
    there = nib.io_orientation(like.affine)
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), there)
    return nib.orientations.apply_orientation(data, back)


def image_like(data: NDArray, source: nib.Nifti1Image, dtype: type = np.float32) -> nib.Nifti1Image:
    """An image on the grid of `source`: its affine, codes and header, but for data type, scaling and display range.

    Parameters
    ----------
    data
        (X, Y, Z) in the axes of `source`.
    """
    header = source.header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1.0, 0.0)
    header["cal_min"], header["cal_max"] = 0, 0
    # NIfTI-2 stays NIfTI-2, whose affine has double precision
    return type(source)(np.asarray(data, dtype=dtype), source.affine, header)
