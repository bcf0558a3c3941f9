"""Small BIDS datasets out of a list of file names."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmh_bids.settings import Settings

DESCRIPTION = {"Name": "Study", "BIDSVersion": "1.10.0"}


def _write_image(path, shape=(9, 9, 9), dtype=np.int16, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones(shape, dtype), np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def write_image():
    """``write(path, shape, dtype, affine)``: an image of ones."""
    return _write_image


@pytest.fixture
def make_dataset(tmp_path):
    """``make(images, {name: text or object})``: a dataset; images go where their entities say."""

    def make(images=("sub-01_T1w.nii.gz",), files=None, folder="raw"):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        for name in images:
            parts = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
            _write_image(root.joinpath(*parts, "anat", name) if "/" not in name else root / name)
        for name, content in {"dataset_description.json": DESCRIPTION, **(files or {})}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return root

    return make


@pytest.fixture
def settings(tmp_path):
    """``settings(root, **fields)``"""
    return lambda root, **fields: Settings(root, tmp_path / "out", **fields)


@pytest.fixture(scope="session")
def real_multisite():
    shared = os.environ.get("MMH_SHARED") or Path(__file__).parents[3] / "shared"
    folder = Path(shared) / "data" / "real-multisite"
    if not folder.is_dir():
        pytest.skip("the shared real-multisite dataset is not here (MMH_SHARED)")
    return folder
