"""A small ball of a head, so that unit tests take no time, and the shared label maps where there are any."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmh_bids.simulate.phantom import head_from_labels


def ball_labels(size: int = 44, spacing: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """White core, grey shell, fluid, bone, soft tissue, skin; a ventricle off the centre breaks the symmetry."""
    middle = (size - 1) / 2
    grid = np.indices((size, size, size)) - middle
    radius = np.sqrt((grid**2).sum(0))
    labels = np.zeros(radius.shape, np.int16)
    for outer, code in ((20, 511), (19, 507), (17, 515), (15, 24), (14, 3), (11, 2)):
        labels[radius <= outer] = code
    labels[np.sqrt(((grid - np.array([4, 3, 2])[:, None, None, None]) ** 2).sum(0)) <= 3] = 4
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [-80.0, -95.0, -70.0]
    return labels, affine


@pytest.fixture
def label_file(tmp_path):
    labels, affine = ball_labels()
    path = tmp_path / "ball_dseg.nii.gz"
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


@pytest.fixture
def head(label_file):
    return head_from_labels(label_file, seed=3)


@pytest.fixture(scope="session")
def label_map():
    root = Path(os.environ.get("MMH_SHARED") or Path(__file__).parents[2].parent / "shared")
    path = root / "data" / "labelmaps" / "head-03_dseg.nii.gz"
    if not path.is_file():
        pytest.skip("no shared label maps here (set MMH_SHARED)")
    return path
