from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmh_bids.errors import ImageError
from mmh_bids.image.intensity import (
    MonotoneMap,
    fit_monotone_map,
    histogram,
    quantile_function,
    robust_scale,
    wasserstein,
)

samples = arrays(np.float32, st.integers(1, 400), elements=st.floats(-1e4, 1e4, width=32))


@settings(deadline=None, max_examples=60)
@given(samples)
def test_identity_is_kept_to_rounding_inside_and_outside(x):
    curve = fit_monotone_map(x, x)
    probe = np.concatenate([x.astype(np.float64), [-3e4, 3e4]])
    np.testing.assert_allclose(curve(probe), probe, rtol=1e-13, atol=1e-13 * np.abs(probe).max())
    assert curve.is_monotone


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50))
def test_straight_relations_are_exact_also_beyond_the_samples(seed, slope, offset):
    x = np.random.default_rng(seed).gamma(2, 0.2, size=3000)
    curve = fit_monotone_map(x, slope * x + offset)
    probe = np.linspace(-2, 8, 50)
    np.testing.assert_allclose(curve(probe), slope * probe + offset, rtol=1e-8, atol=1e-8)


@settings(deadline=None, max_examples=60)
@given(samples, st.integers(0, 1000), st.integers(2, 300))
def test_any_relation_gives_a_monotone_finite_map(x, seed, n_knots):
    y = np.random.default_rng(seed).normal(size=x.size)
    curve = fit_monotone_map(x, y, n_knots)
    assert curve.is_monotone
    assert curve.x.size <= n_knots + 1
    mapped = curve(np.linspace(-2e4, 2e4, 500))
    assert np.isfinite(mapped).all()
    assert (np.diff(mapped) >= -1e-9 * np.abs(mapped).max()).all()


def test_a_curved_relation_is_followed_under_noise():
    rng = np.random.default_rng(0)
    x = rng.beta(2, 2, size=200_000)
    y = x**0.5 + rng.normal(0, 0.05, x.size)
    curve = fit_monotone_map(x, y)
    probe = np.linspace(0.02, 0.98, 100)
    assert np.abs(curve(probe) - probe**0.5).max() < 0.02


def test_the_bright_tail_has_knots_of_its_own():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0.5, 0.02, 100_000), rng.uniform(0.7, 1.0, 200)])
    curve = fit_monotone_map(x, np.where(x < 0.6, x, 0.6 + 3 * (x - 0.6)))
    assert (curve.x > 0.7).sum() > 20
    assert curve(0.95) == pytest.approx(0.6 + 3 * 0.35, abs=0.01)


def test_inverted_contrast_gives_the_constant_mean():
    x = np.linspace(0, 1, 4096)
    curve = fit_monotone_map(x, 1 - x)
    np.testing.assert_allclose(curve([-1, 0.2, 0.9, 3]), 0.5, atol=1e-9)


def test_float32_stays_and_integers_become_float64():
    curve = MonotoneMap.identity()
    assert curve(np.ones((2, 3, 4), np.float32)).dtype == np.float32
    assert curve(np.ones((2, 3, 4), np.float32)).shape == (2, 3, 4)
    assert curve(np.array([3], np.int16)).dtype == np.float64


def test_chunks_join_without_a_seam():
    values = np.linspace(0, 2, (1 << 20) * 2 + 7, dtype=np.float32)
    np.testing.assert_array_equal(MonotoneMap.identity()(values), values)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1], [1, 2]), ([np.nan], [1]), ([1], [np.inf])])
def test_unusable_samples_are_refused(x, y):
    with pytest.raises(ValueError, match="sample"):
        fit_monotone_map(x, y)


def test_json_has_few_knots_and_stays_near_and_monotone():
    x = np.random.default_rng(0).uniform(0, 1, 50_000)
    curve = fit_monotone_map(x, np.tanh(2 * x))
    stored = json.loads(json.dumps(curve.to_json()))
    assert len(stored["Input"]) <= 33
    back = MonotoneMap.from_json(stored)
    assert back.is_monotone
    probe = np.linspace(-0.2, 1.2, 300)
    np.testing.assert_allclose(back(probe), curve(probe), atol=2e-3)
    assert len(fit_monotone_map(x, 3 * x).to_json()["Input"]) == 2


def test_scale_is_zero_to_the_upper_percentile():
    values = np.random.default_rng(0).uniform(0, 500, 10_000)
    values[0] = 1e9
    low, high = robust_scale(values)
    assert low == 0
    assert 495 < high < 500.1


def test_a_little_ringing_is_no_shift_but_many_negatives_are():
    values = np.linspace(0, 100, 10_001)
    values[:5] = -30
    assert robust_scale(values)[0] == 0
    assert robust_scale(values - 50)[0] < -45


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "mask is empty"),
        ([1, np.nan], "NaN"),
        ([3.0] * 50, "contrast"),
        ([-3.0] * 50, "contrast"),
    ],
)
def test_unusable_intensities_are_named(values, message):
    with pytest.raises(ImageError, match=message):
        robust_scale(values)


@given(st.integers(0, 1000), st.floats(-2, 2))
@settings(deadline=None, max_examples=30)
def test_wasserstein_measures_a_shift_and_agrees_with_scipy(seed, shift):
    from scipy.stats import wasserstein_distance

    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=4000), rng.normal(shift, 1, size=4000)
    assert wasserstein(a + shift, quantile_function(a)) == pytest.approx(abs(shift), abs=1e-9)
    assert wasserstein(a, quantile_function(b)) == pytest.approx(wasserstein_distance(a, b), abs=0.02)


@pytest.mark.parametrize("size", [1, 2, 300, 5001])
def test_quantiles_are_those_of_numpy(size):
    values = np.random.default_rng(size).gamma(2, size=size).astype(np.float32)
    np.testing.assert_allclose(
        quantile_function(values, 64), np.quantile(values, (np.arange(64) + 0.5) / 64), rtol=1e-6
    )


def test_histogram_sums_to_one_and_keeps_the_ends():
    shares = histogram(np.array([-1, 0.005, 0.5, 2.0]))
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == 0.5
    assert shares[-1] == 0.25
