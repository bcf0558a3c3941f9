"""What the benchmarks share: label maps, and one simulated head through the app's own preprocessing steps."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np

#: Share of an interpolated voxel that must come from inside a brain mask: all, but for rounding.
WHOLE = 0.999


def shared_folder() -> Path:
    """Folder of the development data: MMH_SHARED, or ``shared`` beside the repository."""
    return Path(os.environ.get("MMH_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def label_maps() -> list[Path]:
    """The whole-head label maps, sorted."""
    found = sorted((shared_folder() / "data" / "labelmaps").glob("*_dseg.nii.gz"))
    if not found:
        raise SystemExit(f"no label maps under {shared_folder()}: set MMH_SHARED")
    return found


def canonical_arrays(image: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Data (float32) and affine with RAS+ axes."""
    image = nib.as_closest_canonical(image)
    return np.asarray(image.get_fdata(dtype=np.float32)), image.affine


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two masks."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))
