"""NIfTI files in a node's working folder: plain, uncompressed, RAS+."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mmh_bids.image.grid import open_nifti


def load(path: str | Path, dtype: type = np.float32) -> tuple[NDArray, NDArray[np.float64]]:
    """Data (X, Y, Z) as `dtype` and the RAS+ affine; bool means "greater than zero"."""
    image = open_nifti(path)
    data = np.asanyarray(image.dataobj)
    return (data > 0 if dtype is bool else np.asarray(data, dtype=dtype)), image.affine


def save(data: NDArray, affine: NDArray, path: Path) -> str:
    """Write float32 (or uint8 for a bool array) and return the path as Nipype wants it."""
    dtype = np.uint8 if data.dtype == bool else np.float32
    nib.Nifti1Image(np.asarray(data, dtype=dtype), affine).to_filename(path)
    return str(path)


def save_json(values: Any, path: Path) -> str:
    """Write `values` as JSON and return the path."""
    path.write_text(json.dumps(values, indent=1, sort_keys=True))
    return str(path)


def load_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text())
