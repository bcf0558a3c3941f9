from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.evaluation.agreement import mean_over_pairs, ssim, voxel_mae, wasserstein1
from mmh_bids.evaluation.bootstrap import mean_interval, ratio_interval
from mmh_bids.evaluation.contrast import spread, white_grey_contrast
from mmh_bids.evaluation.fidelity import LinearSums, change, psnr
from mmh_bids.evaluation.regions import region_index, region_means, regional_difference
from mmh_bids.evaluation.smoothing import smooth_inside
from mmh_bids.image.qc import gradient_correlation
from mmh_bids.simulate.tissues import GREY, INDEX, WHITE

gains = st.floats(0.1, 50)
offsets = st.floats(-10, 10)
seeds = st.integers(0, 1000)


@pytest.fixture(scope="module")
def ball():
    """A ball of white matter in cortex in fluid: tissue, mask, image on a scale of 0 to 1."""
    radius = np.linalg.norm(np.indices((36, 36, 36)) - 17.5, axis=0)
    tissue = np.select([radius < 10, radius < 14, radius < 17], [WHITE, GREY, INDEX["fluid"]], 0).astype(np.uint8)
    image = np.select([radius < 10, radius < 14, radius < 17], [0.75, 0.5, 0.2], 0).astype(np.float32)
    return tissue, radius < 17, image


# --- regions ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(2, 8), st.integers(1, 40))
def test_every_voxel_is_in_the_region_of_its_label_and_block(seed, block, least):
    rng = np.random.default_rng(seed)
    labels, mask = rng.integers(0, 4, (9, 8, 7)), rng.random((9, 8, 7)) < 0.8
    zooms = rng.uniform(0.5, 2, 3)
    found = {}
    for place, label in zip(np.argwhere(mask), labels[mask], strict=True):
        found.setdefault((label, *np.floor(place * zooms / block)), []).append(tuple(place))
    large = {key for key, places in found.items() if len(places) >= least}
    if not large:
        with pytest.raises(ValueError, match="no region"):
            region_index(labels, mask, zooms, block, least)
        return
    index = region_index(labels, mask, zooms, block, least)
    assert index.shape == (mask.sum(),) and len(np.unique(index[index >= 0])) == len(large) == index.max() + 1
    for place, label, region in zip(np.argwhere(mask), labels[mask], index, strict=True):
        assert (region >= 0) == ((label, *np.floor(place * zooms / block)) in large)


def test_regional_means_are_the_means_of_their_voxels():
    rng = np.random.default_rng(0)
    index = rng.integers(-1, 5, 400).astype(np.int32)
    values = rng.random(400).astype(np.float32)
    means, sizes = region_means(values, index)
    for region in range(5):
        assert sizes[region] == (index == region).sum()
        assert means[region] == pytest.approx(values[index == region].mean(), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds, offsets)
def test_regional_difference_of_an_offset_is_the_offset_over_the_contrast(ball, seed, offset):
    tissue, mask, image = ball
    values = image[mask] + np.random.default_rng(seed).normal(0, 0.02, mask.sum())
    index = region_index(tissue, mask)
    contrast = white_grey_contrast(values, tissue[mask], "T1w")
    found = regional_difference(values, values + offset, index) / contrast
    assert found == pytest.approx(abs(offset) / contrast, rel=1e-6, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seeds, gains, offsets)
def test_standardised_copies_do_not_differ_and_units_cancel(ball, seed, gain, offset):
    tissue, mask, image = ball
    rng = np.random.default_rng(seed)
    values = image[mask] + rng.normal(0, 0.05, mask.sum())
    other = image[mask] + rng.normal(0, 0.05, mask.sum())
    index, true = region_index(tissue, mask), tissue[mask]
    copy = gain * values + offset

    def standard(one):
        return (one - one.mean()) / one.std()

    assert regional_difference(standard(values), standard(copy), index) == pytest.approx(0, abs=1e-9)
    assert wasserstein1(standard(values), standard(copy)) == pytest.approx(0, abs=1e-9)
    unit = white_grey_contrast(values, true, "T1w")
    for measure in (voxel_mae, wasserstein1, lambda a, b: regional_difference(a, b, index)):
        plain = measure(values, other) / unit
        scaled = measure(copy, gain * other + offset) / white_grey_contrast(copy, true, "T1w")
        assert scaled == pytest.approx(plain, rel=1e-6)


def test_squeezing_the_contrast_wins_nothing(ball):
    """Differences shrink with the contrast, and so does the unit."""
    tissue, mask, image = ball
    first, second = image[mask], image[mask] * 1.1
    index, true = region_index(tissue, mask), tissue[mask]

    def in_contrast(a, b):
        return regional_difference(a, b, index) / np.mean([white_grey_contrast(one, true, "T1w") for one in (a, b)])

    squeezed = [0.5 + 0.01 * (one - 0.5) for one in (first, second)]
    assert in_contrast(*squeezed) == pytest.approx(in_contrast(first, second), rel=1e-4)
    assert regional_difference(*squeezed, index) < 0.011 * regional_difference(first, second, index)


# --- voxels and histograms -------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(-3, 3))
def test_wasserstein_does_not_see_places_and_is_never_above_the_voxel_difference(seed, offset):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0, 1, 500), rng.gamma(2, 1, 500)
    assert wasserstein1(first, rng.permutation(first) + offset) == pytest.approx(abs(offset), abs=1e-9)
    assert wasserstein1(first, second) <= voxel_mae(first, second) + 1e-12
    assert wasserstein1(first, second) == pytest.approx(wasserstein1(second, first))


def test_wasserstein_needs_equally_many_values():
    with pytest.raises(ValueError, match="equally many"):
        wasserstein1(np.zeros(3), np.zeros(4))


def test_ssim_falls_with_noise_ignores_the_outside_and_common_units(ball):
    _, mask, image = ball
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, image.shape).astype(np.float32)
    little, much = image + 0.01 * noise, image + 0.1 * noise
    assert 1 > ssim(image, little, mask, 1.0) > ssim(image, much, mask, 1.0) > 0
    outside = np.where(mask, image, 100.0).astype(np.float32)
    assert ssim(outside, much, mask, 1.0) == pytest.approx(ssim(image, much, mask, 1.0), abs=1e-6)
    assert ssim(40 * image, 40 * much, mask, 40.0) == pytest.approx(ssim(image, much, mask, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="above 0"):
        ssim(image, image, mask, 0.0)


def test_ssim_is_the_formula_over_windows_of_seven_voxels():
    rng = np.random.default_rng(1)
    a, b = (rng.random((6, 7, 8)).astype(np.float32) for _ in range(2))
    windows = [np.lib.stride_tricks.sliding_window_view(np.pad(one, 3), (7, 7, 7)) for one in (a, b)]
    (x, y), axes = [one.astype(float) for one in windows], (3, 4, 5)
    mean_x, mean_y, c1, c2 = x.mean(axes), y.mean(axes), 0.01**2, 0.03**2
    covariance = (x * y).mean(axes) - mean_x * mean_y
    wanted = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    wanted *= (2 * covariance + c2) / (x.var(axes) + y.var(axes) + c2)
    assert ssim(a, b, np.ones(a.shape, bool), 1.0) == pytest.approx(wanted.mean(), abs=1e-4)


def test_pairs_of_one_image_are_refused():
    with pytest.raises(ValueError, match="two images"):
        mean_over_pairs([1.0], voxel_mae)


# --- contrast --------------------------------------------------------------------------------------------------------


def test_contrast_is_signed_and_robust(ball):
    tissue, mask, image = ball
    values, true = image[mask].copy(), tissue[mask]
    values[np.flatnonzero(true == WHITE)[:200]] = 90.0
    assert white_grey_contrast(values, true, "T1w") == pytest.approx(0.25)
    assert white_grey_contrast(values, true, "T2w") == pytest.approx(-0.25)
    with pytest.raises(ValueError, match="no white"):
        white_grey_contrast(values, np.zeros_like(true), "T1w")


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=8), gains)
def test_spread_has_no_units(values, gain):
    assert spread(np.multiply(values, gain)) == pytest.approx(spread(values), rel=1e-6, abs=1e-9)
    assert spread([values[0]] * 3) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("values", [[1.0], [-1.0, 0.5]])
def test_spread_needs_two_values_and_a_positive_mean(values):
    with pytest.raises(ValueError, match="spread needs"):
        spread(values)


# --- blur ------------------------------------------------------------------------------------------------------------


def test_blur_loses_edges_more_the_wider_it_is(ball):
    _, mask, image = ball
    noisy = image + np.random.default_rng(0).normal(0, 0.005, image.shape).astype(np.float32)
    found = [gradient_correlation(image, smooth_inside(noisy, mask, width), mask) for width in (1.5, 4.0, 8.0)]
    assert gradient_correlation(image, noisy, mask) > 0.95 > found[1] and found[0] > found[1] > found[2]


def test_smoothing_sees_nothing_of_the_outside_and_keeps_the_range(ball):
    _, mask, image = ball
    lit = np.where(mask, image, 1e6).astype(np.float32)
    smooth = smooth_inside(lit, mask, 4.0)
    assert not smooth[~mask].any()
    assert image[mask].min() - 1e-5 <= smooth[mask].min() and smooth[mask].max() <= image[mask].max() + 1e-5


def test_smoothing_is_in_millimetres():
    point = np.zeros((41, 41, 41), np.float32)
    point[20, 20, 20] = 1
    mask = np.ones(point.shape, bool)
    line = smooth_inside(point, mask, 8.0, (1.0, 1.0, 2.0))
    middle = line[20, 20, 20]
    # half the height at half the width: 4 mm are 4 voxels of 1 mm, 2 of 2 mm
    assert line[24, 20, 20] / middle == pytest.approx(0.5, abs=0.02)
    assert line[20, 20, 22] / middle == pytest.approx(0.5, abs=0.02)


def test_smoothing_refuses_nonsense():
    with pytest.raises(ValueError, match="above 0 mm"):
        smooth_inside(np.zeros((3, 3, 3)), np.ones((3, 3, 3), bool), 0.0)
    with pytest.raises(ValueError, match="one shape"):
        smooth_inside(np.zeros((3, 3, 3)), np.ones((3, 3, 2), bool), 1.0)


# --- truth and change ------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seeds, gains, offsets)
def test_psnr_does_not_see_the_units_of_a_method_but_sees_noise(seed, gain, offset):
    rng = np.random.default_rng(seed)
    truth = rng.random(4000)
    image = gain * (truth + rng.normal(0, 0.05, truth.size)) + offset
    sums = LinearSums.of(image[:1500], truth[:1500]) + LinearSums.of(image[1500:], truth[1500:])
    slope, intercept = sums.line()
    direct = np.mean((slope * image + intercept - truth) ** 2)
    assert sums.mean_square_error(slope, intercept) == pytest.approx(direct, rel=1e-5)
    assert np.polyfit(image, truth, 1) == pytest.approx([slope, intercept], rel=1e-5, abs=1e-7)
    assert psnr(direct) == pytest.approx(10 * np.log10(1 / 0.05**2), abs=1.5)


def test_one_line_for_all_images_keeps_what_differs_between_scanners():
    truth = np.linspace(0, 1, 100)
    alike = LinearSums.of(2 * truth, truth) + LinearSums.of(2 * truth, truth)
    unlike = LinearSums.of(2 * truth, truth) + LinearSums.of(3 * truth, truth)
    assert alike.mean_square_error(*alike.line()) < 1e-12 < 1e-3 < unlike.mean_square_error(*unlike.line())


def test_sums_of_a_constant_image_have_no_slope():
    gain, offset = LinearSums.of(np.full(50, 0.1), np.linspace(0, 1, 50)).line()
    assert (gain, offset) == (0.0, pytest.approx(0.5))


@settings(max_examples=30, deadline=None)
@given(seeds, gains, st.floats(0.01, 1))
def test_change_is_what_a_gain_does_not_explain(seed, gain, size):
    rng = np.random.default_rng(seed)
    before = rng.random(500) + 0.5
    noise = rng.normal(0, size, 500)
    noise -= before * (before @ noise) / (before @ before)
    assert change(before, gain * before) == pytest.approx(0, abs=1e-9)
    assert change(before, gain * before + noise) == pytest.approx(np.abs(noise).mean())


def test_change_of_an_empty_image_is_an_error():
    with pytest.raises(ValueError, match="zero all over"):
        change(np.zeros(3), np.ones(3))


# --- bootstrap -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6))
def test_intervals_hold_the_mean_and_do_not_leave_the_range(values):
    low, high = mean_interval(values)
    assert min(values) - 1e-9 <= low <= np.mean(values) + 1e-9 and np.mean(values) - 1e-9 <= high
    assert high <= max(values) + 1e-9
    assert mean_interval(values) == (low, high)


def test_intervals_are_about_as_wide_as_theory_has_it():
    values = np.random.default_rng(0).normal(10, 2, 400)
    low, high = mean_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_subjects_are_drawn_in_pairs_for_ratios():
    bottom = np.array([1.0, 10.0, 3.0, 0.5])
    assert ratio_interval(0.25 * bottom, bottom) == pytest.approx((0.25, 0.25))
    low, high = ratio_interval(bottom[::-1], bottom)
    assert low < 1 < high


@pytest.mark.parametrize("values", [[], [1.0, np.nan]])
def test_bootstrap_refuses_what_it_cannot_resample(values):
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)
    with pytest.raises(ValueError, match="above 0"):
        ratio_interval([1.0, 1.0], [1.0, 0.0])
