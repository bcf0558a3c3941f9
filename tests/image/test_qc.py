from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mmh_bids.image.intensity import MonotoneMap, quantile_function
from mmh_bids.image.qc import gradient_correlation, image_qc

SHAPE = (36, 40, 32)
KEYS = {
    "GradientCorrelation",
    "MappedGradientCorrelation",
    "RangeMin",
    "RangeMax",
    "Finite",
    "NonNegative",
    "IntensityMapMonotone",
    "BrainMaskVolume",
    "ParenchymaVolumeBefore",
    "ParenchymaVolumeAfter",
    "WhiteGreyContrastBefore",
    "WhiteGreyContrastAfter",
    "ReferenceDistanceBefore",
    "ReferenceDistanceAfter",
}


@pytest.fixture(scope="module")
def scan():
    """A ball of three tissues in an own scale of 0 to 800, and its mask."""
    rng = np.random.default_rng(0)
    radius = np.linalg.norm(np.indices(SHAPE) - np.array([17.5, 19.5, 15.5]).reshape(3, 1, 1, 1), axis=0)
    mask = radius < 14
    image = np.select([radius < 9, radius < 12.5, radius < 14], [700.0, 450.0, 200.0], 50.0)
    return np.abs(image + rng.normal(0, 15, SHAPE)).astype(np.float32), mask


def measure(before, after, mask, curve=None, **scales):
    scales = {"before_scale": (0, 800), "after_scale": (0, 800)} | scales
    reference = quantile_function(before[mask & (before > 0)] / 800)
    curve = curve or MonotoneMap.identity()
    return image_qc(before, after, mask, 0.002, "T1w", curve, **scales, reference_quantiles=reference)


def test_an_unchanged_image_is_perfect(scan):
    image, mask = scan
    qc = measure(image, image, mask)
    assert set(qc) == KEYS
    assert qc["GradientCorrelation"] == qc["MappedGradientCorrelation"] == 1.0
    assert qc["ReferenceDistanceBefore"] == qc["ReferenceDistanceAfter"] == pytest.approx(0, abs=1e-6)
    assert qc["ParenchymaVolumeBefore"] == qc["ParenchymaVolumeAfter"]
    assert qc["BrainMaskVolume"] == pytest.approx(mask.sum() * 0.002)
    assert qc["ParenchymaVolumeAfter"] == pytest.approx((12.5 / 14) ** 3 * qc["BrainMaskVolume"], rel=0.03)
    assert qc["WhiteGreyContrastBefore"] == pytest.approx(250 / 575, rel=0.03)
    assert qc["RangeMin"] == pytest.approx(image[mask].min(), rel=1e-5)
    assert all(qc[name] is True for name in ("Finite", "NonNegative", "IntensityMapMonotone"))


def test_all_values_are_plain_and_short(scan):
    image, mask = scan
    qc = measure(image, image * np.float32(1.2345678), mask)
    assert all(type(value) in (float, bool) for value in qc.values())
    assert json.loads(json.dumps(qc, allow_nan=False)) == qc
    assert all(value == float(f"{value:.6g}") for value in qc.values())


def test_a_rescaled_image_differs_by_its_units_only(scan):
    image, mask = scan
    qc = measure(image, 1.25 * image, mask, after_scale=(0, 1000))
    assert qc["GradientCorrelation"] == pytest.approx(1, abs=1e-5)
    assert qc["ReferenceDistanceAfter"] == pytest.approx(0, abs=1e-5)
    assert qc["RangeMax"] == pytest.approx(1.25 * image[mask].max(), rel=1e-5)


def test_a_shift_is_the_distance_in_model_units(scan):
    image, mask = scan
    assert measure(image, image + 80, mask)["ReferenceDistanceAfter"] == pytest.approx(0.1, abs=1e-4)
    assert measure(image + 80, image, mask, before_scale=(80, 880))["ReferenceDistanceBefore"] < 0.2


def test_blur_and_noise_lower_the_gradient_correlation(scan):
    image, mask = scan
    blurred = measure(image, gaussian_filter(image, 2), mask)["GradientCorrelation"]
    noisy = measure(image, image + np.random.default_rng(1).normal(0, 200, SHAPE).astype(np.float32), mask)
    assert blurred < 0.8
    assert noisy["GradientCorrelation"] < 0.8


def test_the_outline_of_the_mask_does_not_count(scan):
    image, mask = scan
    assert measure(image, np.where(mask, image, 0), mask)["GradientCorrelation"] == 1.0


def test_broken_output_is_reported_not_raised(scan):
    image, mask = scan
    broken = image.copy()
    broken[17, 19, 15] = np.nan
    qc = measure(image, broken, mask)
    assert qc["Finite"] is False
    assert np.isfinite(qc["GradientCorrelation"])
    assert measure(image, image - 300, mask)["NonNegative"] is False
    falling = MonotoneMap(np.array([0.0, 1.0]), np.array([1.0, 0.0]), 0, 0)
    assert measure(image, image, mask, falling)["IntensityMapMonotone"] is False
    constant = measure(image, np.full_like(image, 5), mask)
    assert constant["GradientCorrelation"] == 0.0
    assert constant["ParenchymaVolumeAfter"] == 0.0


def test_voxels_without_signal_are_no_tissue(scan):
    image, mask = scan
    radius = np.linalg.norm(np.indices(SHAPE) - np.array([17.5, 19.5, 15.5]).reshape(3, 1, 1, 1), axis=0)
    brain = np.where(mask, image, 0)
    wide = measure(brain, 1.25 * brain, radius < 15.5, after_scale=(0, 1000))
    tight = measure(brain, 1.25 * brain, mask, after_scale=(0, 1000))
    assert wide["BrainMaskVolume"] > 1.2 * tight["BrainMaskVolume"]
    for name in ("ParenchymaVolumeBefore", "ParenchymaVolumeAfter", "WhiteGreyContrastAfter"):
        assert wide[name] == tight[name]
    assert wide["ReferenceDistanceAfter"] < 0.01


def test_without_a_reference_there_is_no_distance(scan):
    image, mask = scan
    qc = image_qc(image, image, mask, 0.001, "T1w", MonotoneMap.identity())
    assert set(qc) == KEYS - {"ReferenceDistanceBefore", "ReferenceDistanceAfter"}


def test_a_single_slice_and_a_thin_mask_can_be_measured():
    image = np.random.default_rng(0).random((1, 20, 20)).astype(np.float32)
    assert gradient_correlation(image, 2 * image, np.ones(image.shape, bool)) == pytest.approx(1, abs=1e-6)
    assert gradient_correlation(np.ones((3, 3, 3)), np.ones((3, 3, 3)), np.ones((3, 3, 3), bool)) == 1.0


def test_a_curve_moves_no_edge_and_blur_does(scan):
    image, mask = scan
    curve = MonotoneMap(np.array([0.0, 0.5, 0.6, 1.0]), np.array([0.0, 0.3, 0.8, 1.0]), 1.0, 1.0)
    curved = (800 * curve(image / 800)).astype(np.float32)
    stretched = measure(image, curved, mask, curve)
    assert stretched["GradientCorrelation"] < 0.95
    assert stretched["MappedGradientCorrelation"] > 0.999
    assert measure(image, gaussian_filter(curved, 1), mask, curve)["MappedGradientCorrelation"] < 0.9
