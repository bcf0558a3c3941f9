from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture(scope="module")
def bench():
    import sys

    path = Path(__file__).parents[2] / "benchmarks" / "compare_methods.py"
    spec = importlib.util.spec_from_file_location("compare_methods", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def brain(person):
    """A ball of three tissues whose sizes are the person's."""
    radius = np.linalg.norm(np.indices((36, 36, 36)) - 17.5, axis=0)
    image = np.select([radius < 8 + person, radius < 15, radius < 17], [0.8, 0.55, 0.3], 0)
    noise = np.random.default_rng(person).normal(0, 0.02, image.shape)
    return np.where(image > 0, np.clip(image + noise, 0.01, 1), 0).astype(np.float32)


def write(folder, method, person, session, image):
    path = folder / f"sub-{person}" / f"ses-{session}" / "anat"
    path.mkdir(parents=True)
    stem = f"sub-{person}_ses-{session}_space-MNI152NLin2009aSym_res-1_desc-harmonized_T1w"
    nib.Nifti1Image(image, np.eye(4)).to_filename(path / f"{stem}.nii.gz")
    (path / f"{stem}.json").write_text(json.dumps({"Harmonization": {"Method": method}}))


@pytest.fixture
def outputs(tmp_path):
    """Two persons, two scanners of other units and curve; a method that undoes the curve, one that blurs it all."""
    from scipy.ndimage import gaussian_filter

    for person in (1, 3):
        image = brain(person)
        for session, gain, gamma in (("A", 900, 1.0), ("B", 300, 1.7)):
            write(tmp_path / "o1", "none", person, session, (gain * image**gamma).astype(np.float32))
            write(tmp_path / "o2", "good", person, session, 1000 * image)
            write(tmp_path / "o3", "blur", person, session, np.where(image > 0, gaussian_filter(image, 3), 0))
    return [tmp_path / name for name in ("o1", "o2", "o3")]


def test_methods_are_ranked_as_they_deserve(bench, outputs):
    result = bench.compare(outputs)
    assert set(result) == {"T1w"}
    none, good, blur = (result["T1w"][name] for name in ("none", "good", "blur"))
    assert none["images"] == 4
    assert list(none["pairs"]) == ["sub-1_ses-A sub-1_ses-B", "sub-3_ses-A sub-3_ses-B"]
    assert good["within"] == pytest.approx(0, abs=1e-6)
    assert good["histogram"] == pytest.approx(0, abs=1e-6)
    assert good["gradient"] == pytest.approx(1)
    assert none["within"] > 0.2
    assert none["histogram"] > 0.2
    assert none["edges"] == pytest.approx(1)
    assert good["ratio"] < none["ratio"]
    assert blur["edges"] < good["edges"]
    assert "| good | 0.0000 |" in bench.table(result)


def test_block_means_leave_out_what_is_mostly_outside(bench):
    mask = np.zeros((24, 12, 13), bool)
    mask[:12] = True
    means = bench.block_means(np.where(mask, 2.0, 9.0), mask)
    assert means.shape == (2, 1, 2)
    assert means[0, 0, 0] == 2.0
    assert np.isnan(means).sum() == 3
