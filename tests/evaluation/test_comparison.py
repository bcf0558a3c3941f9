"""What the benchmarks on simulated people compare, by hand."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the library's own short name)

from mmh_bids.image.registration import itk_affine
from mmh_bids.simulate.phantom import random_affine
from mmh_bids.simulate.tissues import INDEX

SHAPE = (48, 48, 48)
LOOK = {"white_matter": 0.8, "cortex": 0.5, "fluid": 0.2}


@pytest.fixture(scope="module")
def measure(benchmark_module):
    return benchmark_module("travelling_measure")


@pytest.fixture(scope="module")
def light_parts(benchmark_module):
    pytest.importorskip("torch")
    return benchmark_module("light_parts")


@pytest.fixture(scope="module")
def grid(measure):
    """White matter in cortex in fluid in nothing."""
    radius = np.sqrt(((np.indices(SHAPE) - 23.5) ** 2).sum(0))
    tissue = np.select([radius < 12, radius < 17, radius < 21], [INDEX[name] for name in LOOK], INDEX["air"])
    labels = np.select([radius < 12, radius < 17, radius < 21], [2, 3, 4], 0)
    return measure.Anatomy(np.eye(4), labels.astype(np.int16), tissue.astype(np.uint8), radius < 21)


@pytest.fixture(scope="module")
def image(grid):
    values = np.zeros(SHAPE, np.float32)
    for name, value in LOOK.items():
        values[grid.tissue == INDEX[name]] = value
    return values + np.random.default_rng(0).normal(0, 0.01, SHAPE).astype(np.float32) * grid.mask


@pytest.fixture(scope="module")
def common(measure, grid):
    return measure.common_voxels([np.ones(SHAPE, np.float32)], grid)


def test_only_true_brain_that_all_brains_cover_is_compared(measure, grid):
    first, second = np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    first[:20], second[:, :20] = 0.9, 0
    common = measure.common_voxels([first, second], grid)
    wanted = grid.mask.copy()
    wanted[:20] = wanted[:, :20] = False
    assert np.array_equal(common.mask, wanted) and common.coverage == wanted.sum() / grid.mask.sum()
    assert np.array_equal(common.tissue, grid.tissue[wanted]) and common.regions.shape == common.tissue.shape


def test_differences_are_in_units_of_the_contrast(measure, grid, image, common):
    """An offset is the same everywhere; a squeeze changes the contrast of one image."""
    images = {"a": image, "b": np.where(grid.mask, image + 0.03, 0), "u": image}
    one = measure.Comparison(images, ("a", "b"), "T1w", grid, common, "x")
    assert one.unit == pytest.approx(0.3, abs=0.003)
    assert one.regional("a", "b") == pytest.approx(0.1, rel=0.02) and one.mae("a", "b") == pytest.approx(0.1, rel=0.02)
    assert one.wasserstein("a", "b") == pytest.approx(0.1, rel=0.02) and one.ssim("a", "a") == pytest.approx(1)
    assert one.contrasts[0] == pytest.approx(one.contrasts[1], rel=1e-4)
    tissue = one.tissue()
    assert tissue["dice"] > 0.95 and tissue["volume_spread"] < 1e-3
    squeezed = measure.Comparison({**images, "b": 0.5 * image + 0.2}, ("a", "b"), "T1w", grid, common, "x")
    assert squeezed.contrasts[1] == pytest.approx(0.5 * squeezed.contrasts[0], rel=1e-4)
    with pytest.raises(SystemExit, match="head 1, T2w, m: white and grey matter are inverted"):
        measure.Comparison(images, ("a", "b"), "T2w", grid, common, "head 1, T2w, m")


def test_dice_is_that_of_the_image_with_the_truth(measure, grid, image, common):
    """A shell of the cortex, a third of it, that shows as white matter: Dice by hand."""
    radius = np.sqrt(((np.indices(SHAPE) - 23.5) ** 2).sum(0))
    shell = (radius >= 12) & (radius < 14)
    wrong = np.where(shell, image + 0.3, image).astype(np.float32)
    one = measure.Comparison({"a": wrong, "b": wrong, "u": image}, ("a", "b"), "T1w", grid, common, "x")
    cortex, white, fluid = ((grid.tissue == INDEX[name]).sum() for name in ("cortex", "white_matter", "fluid"))
    lost = shell.sum()
    dice = [1.0, 2 * (cortex - lost) / (2 * cortex - lost), 2 * white / (2 * white + lost)]
    assert min(cortex - lost, fluid) > 1000 and np.mean(dice) < 0.9
    assert one.tissue()["dice"] == pytest.approx(np.mean(dice), abs=0.03)


def test_change_is_that_of_visits_and_of_the_unified_image(measure, light_parts, grid, image, common):
    def compare(*some):
        images = dict(zip("abu", some, strict=True))
        return measure.Comparison(images, ("a", "b"), "T1w", grid, common, "x")

    foreign = np.where(grid.tissue == INDEX["fluid"], image + 0.2, image).astype(np.float32)
    plain, one = compare(foreign, foreign, image), compare(image, image, 3 * image)
    moved = one.changes(plain, "u")
    assert moved["change_unified"] == pytest.approx(0, abs=1e-5) and moved["change_foreign"] > 0.1
    found = dict(zip(light_parts.COLUMNS, light_parts.figures(one, plain, "u"), strict=True))
    assert found["regional"] == found["mae"] == found["contrast_spread"] == found["volume_spread"] == 0
    assert found["dice"] == one.tissue()["dice"] and found["unified"] == pytest.approx(0, abs=1e-4)
    half = compare(image, image, foreign)
    ratio = half.changes(plain, "u")
    assert light_parts.figures(half, plain, "u")[-1] == ratio["change_unified"] / ratio["change_foreign"] > 0.5
    assert np.isnan(light_parts.figures(plain, plain, "u")[-1])


def test_an_image_on_the_model_grid_comes_back_to_its_head(measure, light_parts, benchmark_module, tmp_path):
    """Through the registration to the scan and the pose of the session, neither of which is left out."""
    data, stem = benchmark_module("travelling_data"), "sub-01_ses-P_run-1"
    study = data.Study(tmp_path, (4,), ("P", "Q"), ("T1w", "T2w"), ("none",))
    centre, rng = np.array([23.5, 23.5, 23.5]), np.random.default_rng(5)

    def field(points):
        return np.exp(-(((points - centre) / np.array([8.0, 11.0, 6.0])) ** 2).sum(-1))

    to_head, to_scan = random_affine(rng, centre, 6.0, 8.0, 0.0), random_affine(rng, centre, 6.0, 8.0, 0.0)
    affine = np.diag([0.9, 1.1, 1.0, 1.0])
    affine[:3, 3] = -12, -14, -10
    whole = to_head @ to_scan @ affine
    voxels = np.moveaxis(np.indices((80, 72, 76)), 0, -1) @ whole[:3, :3].T + whole[:3, 3]
    folder = data.anat(study, 4, "none", stem)
    folder.mkdir(parents=True)
    space = light_parts.TEMPLATE_SPACE
    model = nib.Nifti1Image(field(voxels).astype(np.float32), affine)
    model.to_filename(folder / f"{stem}_space-{space}_desc-model_T1w.nii.gz")
    transform = folder / f"{stem}_from-T1w_to-{space}_mode-image_xfm.txt"
    sitk.WriteTransform(itk_affine(to_scan), str(transform))
    truth = tmp_path / "head-04/raw/derivatives/truth/sub-01/ses-P/anat"
    truth.mkdir(parents=True)
    pose = truth / "sub-01_ses-P_from-scanner_to-head_mode-image_desc-pose_xfm.json"
    pose.write_text(json.dumps({"Matrix": to_head.tolist()}))
    grid = measure.Anatomy(np.eye(4), np.ones(SHAPE, np.int16), np.ones(SHAPE, np.uint8), np.ones(SHAPE, bool))
    image = light_parts.read(study, 4, stem, "T1w")
    wanted = field(np.moveaxis(np.indices(SHAPE), 0, -1).astype(float))
    assert np.abs(image.in_head(image.volume, grid) - wanted).max() < 0.02
    assert image.mask.all()
