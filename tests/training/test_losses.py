from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.models.gradient import gradient_map
from mmh_bids.training.losses import (
    KERNEL_WIDTHS,
    RunningStatistics,
    bin_centres,
    gradient_loss,
    measure,
    soft_histogram,
    soft_peak,
    style_losses,
    wasserstein,
)


def values(seed=0, low=0.2, high=0.7, size=400):
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, size).astype(np.float32))


def independent(sample, width):
    """The soft histogram in float64: normalised over all bins, then without the lowest two."""
    centres = np.linspace(0, 1, 100)
    total = np.exp(-0.5 * ((np.asarray(sample, np.float64)[:, None] - centres) / width) ** 2).sum(axis=0)
    return (total / total.sum())[2:]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KERNEL_WIDTHS), st.integers(1, 300))
def test_the_histogram_is_that_of_an_independent_implementation(seed, width, size):
    sample = values(seed, 0, 1, size)
    np.testing.assert_allclose(soft_histogram(sample, width).numpy(), independent(sample, width), atol=1e-6)


def test_the_histogram_of_many_values_is_summed_in_pieces():
    sample = values(size=(1 << 16) * 2 + 5)
    np.testing.assert_allclose(soft_histogram(sample, 0.01).numpy(), independent(sample, 0.01), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-0.2, 0.2), st.sampled_from(KERNEL_WIDTHS))
def test_the_distance_of_a_shifted_distribution_is_the_shift(seed, shift, width):
    sample = values(seed, 0.3, 0.7)
    distance = wasserstein(soft_histogram(sample, width), soft_histogram(sample + shift, width))
    assert float(distance) == pytest.approx(abs(shift), abs=1e-3)


def test_the_distance_is_scipys():
    from scipy.stats import wasserstein_distance

    first, second = values(1, 0.1, 0.4), values(2, 0.2, 0.9)
    found = wasserstein(soft_histogram(first, 0.01), soft_histogram(second, 0.01))
    assert float(found) == pytest.approx(wasserstein_distance(first.numpy(), second.numpy()), abs=2e-3)


def test_the_histograms_gradient_is_its_slope():
    sample = values(size=5).requires_grad_()
    aim = soft_histogram(values(9), 0.015)

    def loss(sample):
        return wasserstein(soft_histogram(sample, 0.015), aim)

    loss(sample).backward()
    for index in range(5):
        step = torch.zeros(5)
        step[index] = 1e-3
        slope = (loss(sample.detach() + step) - loss(sample.detach() - step)) / 2e-3
        assert float(sample.grad[index]) == pytest.approx(float(slope), abs=2e-3)
    assert sample.grad.abs().max() > 0.01


@given(st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_the_peak_is_where_most_values_are(where):
    sample = torch.cat([values(size=300), torch.full((2000,), where)])
    assert float(soft_peak(soft_histogram(sample, 0.01))) == pytest.approx(where, abs=0.006)


def test_the_first_bins_do_not_count():
    assert bin_centres()[0].item() == pytest.approx(2 / 99)
    dark = torch.zeros(1000)
    assert soft_histogram(dark, 0.01).sum() < 0.1


def test_the_gradient_loss_does_not_mind_brightness():
    image = torch.rand(1, 1, 5, 5, 5)
    assert gradient_loss(image + 0.3, image) < 1e-12
    expected = (gradient_map(2 * image) - gradient_map(image)).square().mean()
    torch.testing.assert_close(gradient_loss(2 * image, image), expected)


def test_statistics_start_from_the_first_image_of_each_sequence():
    statistics, t1w, t2w = RunningStatistics(), 2 * values(1) - 1, 2 * values(2, 0.4, 0.5) - 1
    statistics.start(0, t1w)
    assert statistics.seen.tolist() == [True, False]
    statistics.start(1, t2w)
    statistics.start(0, t2w)  # too late
    for label, sample in ((0, t1w), (1, t2w)):
        assert statistics.mean[label].item() == pytest.approx(sample.mean().item(), abs=1e-6)
        assert statistics.std[label].item() == pytest.approx(sample.std().item(), abs=1e-6)
        expected = independent((sample.numpy() + 1) / 2, KERNEL_WIDTHS[label])
        np.testing.assert_allclose(statistics.histogram[label].numpy(), expected, atol=1e-6)
    torch.testing.assert_close(
        statistics.style(torch.tensor([1, 0, 1])),
        torch.stack([torch.stack([one.mean(), one.std()]) for one in (t2w, t1w, t2w)]),
    )


@pytest.mark.parametrize(("timestep", "moves"), [(0, True), (99, True), (100, False), (950, False)])
def test_only_nearly_clean_estimates_move_the_statistics(timestep, moves):
    statistics = RunningStatistics()
    statistics.start(0, 2 * values(1) - 1)
    before = {name: buffer.clone() for name, buffer in statistics.named_buffers()}
    estimate = 2 * values(2, 0.1, 0.9) - 1
    losses = style_losses([estimate], [0], [timestep], statistics)
    if not moves:
        assert all(float(value) == 0 for value in losses.values())
        assert all(torch.equal(before[name], buffer) for name, buffer in statistics.named_buffers())
        return
    assert statistics.mean[0].item() == pytest.approx(0.95 * before["mean"][0].item() + 0.05 * estimate.mean().item())
    assert statistics.std[0].item() == pytest.approx(0.95 * before["std"][0].item() + 0.05 * estimate.std().item())
    aim = 0.95 * before["histogram"][0].numpy() + 0.05 * independent((estimate.numpy() + 1) / 2, 0.01)
    np.testing.assert_allclose(statistics.histogram[0].numpy(), aim, atol=1e-6)
    assert torch.equal(statistics.mean[1], before["mean"][1])


def test_the_losses_are_the_distances_to_the_moved_statistics_times_the_time_weight():
    statistics = RunningStatistics()
    statistics.start(1, 2 * values(1) - 1)
    estimate = 2 * values(2, 0.1, 0.9) - 1
    losses = style_losses([estimate], [1], [25], statistics)
    histogram = independent((estimate.numpy() + 1) / 2, KERNEL_WIDTHS[1])
    difference = np.cumsum(histogram) - np.cumsum(statistics.histogram[1].numpy())
    assert float(losses["histogram"]) == pytest.approx(0.75 * np.abs(difference).sum() / 99, rel=1e-3)
    moments = (estimate.mean() - statistics.mean[1]) ** 2 + (estimate.std() - statistics.std[1]) ** 2
    assert float(losses["moments"]) == pytest.approx(0.75 * float(moments), rel=1e-4)
    apart = soft_peak(torch.from_numpy(histogram).float()) - soft_peak(statistics.histogram[1])
    assert float(losses["peak"]) == pytest.approx(0.75 * float(apart) ** 2, rel=1e-3)


def test_two_images_of_a_batch_can_be_learned_from_together():
    statistics = RunningStatistics()
    estimates = [(2 * values(seed) - 1).requires_grad_() for seed in (1, 2)]
    statistics.start(0, 2 * values(3, 0.1, 0.9) - 1)
    losses = style_losses(estimates, [0, 0], [10, 10], statistics)
    sum(losses.values()).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in estimates)
    assert not any(buffer.requires_grad for buffer in statistics.buffers())


def test_all_state_travels_with_the_module():
    first, second = RunningStatistics(), RunningStatistics()
    first.start(1, 2 * values(3) - 1)
    first.images += 7
    second.load_state_dict(first.state_dict())
    assert int(second.images) == 7
    torch.testing.assert_close(second.style(torch.tensor([1])), first.style(torch.tensor([1])))
    assert second.seen.tolist() == [False, True]
    assert not list(first.parameters())


def test_measures_are_in_the_units_they_are_said_to_be():
    mean, std, histogram = measure(2 * values(4) - 1, 0)
    assert -1 < float(mean) < 1
    assert float(std) == pytest.approx(2 * float(values(4).std()), rel=1e-4)
    assert float(histogram @ bin_centres()) == pytest.approx(float(values(4).mean()), abs=2e-3)
