"""The model grid in MNI space, and resampling between it and an image's own grid.

All affines are 4x4, voxel index -> world in RAS+ mm. `mni_to_native` maps a world point of the template to the
world point of the image that shows the same anatomy.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

#: Shape and affine of the published method's grid: 1 mm, RAS, centred on the template's brain.
MODEL_SHAPE = (144, 184, 184)
MODEL_AFFINE = np.array([[1.0, 0, 0, -71.5], [0, 1.0, 0, -109.0], [0, 0, 1.0, -85.0], [0, 0, 0, 1.0]])
TEMPLATE_SPACE = "MNI152NLin2009aSym"


def template_path() -> Path:
    """Path of the ICBM152 2009a symmetric brain (1 mm, brain only) that nilearn's package carries."""
    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    with as_file(files("nilearn") / "datasets" / "data" / name) as path:
        return Path(path)


def open_nifti(path: str | Path) -> nib.Nifti1Image:
    """`nibabel.load` for files known to be NIfTI: lazy, and with the type that says so."""
    return cast(nib.Nifti1Image, nib.load(path))


def load_template() -> nib.Nifti1Image:
    """Return the template brain: float32, zero outside the brain, shape (197, 233, 189)."""
    image = open_nifti(template_path())
    data = np.asarray(image.dataobj, dtype=np.float32)
    return nib.Nifti1Image(data, image.affine)


def voxel_map(source_affine: NDArray, target_affine: NDArray, target_to_source: NDArray | None = None) -> NDArray:
    """4x4 map from a target voxel to the source voxel that lies at the same place.

    >>> voxel_map(np.diag([2.0, 2, 2, 1]), np.eye(4))[:3, :3].diagonal()
    array([0.5, 0.5, 0.5])
    """
    world = np.eye(4) if target_to_source is None else target_to_source
    return np.linalg.inv(source_affine) @ world @ target_affine


def resample(
    data: NDArray,
    source_affine: NDArray,
    target_shape: tuple[int, ...],
    target_affine: NDArray,
    target_to_source: NDArray | None = None,
    order: int = 1,
    beyond: Literal["constant", "nearest"] = "constant",
) -> NDArray[np.float32]:
    """Resample `data` (X, Y, Z) to another grid.

    Parameters
    ----------
    target_to_source
        World map from the target's space to the source's (identity if None).
    order
        0 nearest, 1 linear, 3 cubic spline.
    beyond
        Outside the source's field of view: ``"constant"`` zero, ``"nearest"`` the value at its edge.
    """
    from scipy.ndimage import affine_transform

    # rounded, or the first and last slice of a grid onto itself would lie 1e-16 voxels outside and become zero
    matrix = np.round(voxel_map(source_affine, target_affine, target_to_source), 9)
    return affine_transform(
        np.asarray(data, dtype=np.float32),
        matrix[:3, :3],
        matrix[:3, 3],
        tuple(target_shape),
        order=order,
        mode=beyond,
        cval=0.0,
    )


def antialias(data: NDArray, source_affine: NDArray, target_affine: NDArray) -> NDArray[np.float32]:
    """Smooth `data` along the axes whose voxels are finer than the target's, so that resampling does not alias.

    The Gaussian widens a source voxel to a target voxel: sigma^2 = (t^2 - s^2) / (8 ln 2), s and t the voxel sizes.
    """
    from scipy.ndimage import gaussian_filter

    source = np.linalg.norm(source_affine[:3, :3], axis=0)
    target = np.linalg.norm(target_affine[:3, :3], axis=0).mean()
    sigma = np.sqrt(np.maximum(target**2 - source**2, 0) / (8 * np.log(2))) / source
    sigma[sigma < 0.25] = 0.0
    data = np.asarray(data, dtype=np.float32)
    return gaussian_filter(data, sigma) if sigma.any() else data


def bounding_box(mask: NDArray[np.bool_], margin: int = 0) -> tuple[slice, slice, slice]:
    """Smallest box around the true voxels of `mask` (X, Y, Z), `margin` voxels wider where the grid allows.

    >>> bounding_box(np.pad(np.ones((1, 2, 3), bool), 2))
    (slice(2, 3, None), slice(2, 4, None), slice(2, 5, None))
    """
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if hit.size == 0:
            raise ValueError("the mask is empty")
        box.append(slice(max(0, int(hit[0]) - margin), min(mask.shape[axis], int(hit[-1]) + 1 + margin)))
    return box[0], box[1], box[2]


def box_affine(affine: NDArray, box: tuple[slice, slice, slice]) -> NDArray:
    """Affine of the sub-grid that `box` cuts out."""
    shift = np.eye(4)
    shift[:3, 3] = [side.start for side in box]
    return affine @ shift
