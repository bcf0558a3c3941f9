from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.models.gradient import gradient_condition, gradient_map


def analytic():
    """x^2 + 2y - 3z on a 4 x 4 x 4 grid: its forward differences are 2x + 1, 2 and -3."""
    x, y, z = np.indices((4, 4, 4))
    return torch.from_numpy((x**2 + 2 * y - 3 * z).astype(np.float32))[None, None]


def independent(volume):
    """The map of one (X, Y, Z), voxel by voxel, in float64."""
    out = np.zeros(volume.shape)
    for i, j, k in np.ndindex(*(size - 1 for size in volume.shape)):
        here = volume[i, j, k]
        ahead = volume[i + 1, j, k], volume[i, j + 1, k], volume[i, j, k + 1]
        out[i + 1, j + 1, k + 1] = sum(value - here for value in ahead) / 3
    return out


def test_the_map_of_an_analytic_volume():
    gradient = gradient_map(analytic())[0, 0].numpy()
    expected = np.zeros((4, 4, 4))
    expected[1:, 1:, 1:] = np.array([0, 2 / 3, 4 / 3])[:, None, None]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_the_condition_of_an_analytic_volume():
    # 9 of 64 voxels have |g| = 4/3, so that is the 99th percentile
    condition = gradient_condition(analytic())[0, 0].numpy()
    np.testing.assert_allclose(condition[3, 1:, 1:], 0.5 * np.tanh(1.0), atol=1e-6)
    np.testing.assert_allclose(condition[2, 1:, 1:], 0.5 * np.tanh(0.5), atol=1e-6)
    assert not condition[:2].any()
    assert not condition[:, 0].any()
    assert not condition[:, :, 0].any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(2, 7)] * 3))
def test_the_condition_is_that_of_an_independent_implementation(seed, shape):
    volume = np.random.default_rng(seed).normal(size=shape)
    gradient = independent(volume)
    scaled = np.clip(gradient / (np.percentile(np.abs(gradient), 99) + 1e-8), -5, 5)
    found = gradient_condition(torch.from_numpy(volume.astype(np.float32))[None, None])
    np.testing.assert_allclose(found[0, 0].numpy(), 0.5 * np.tanh(scaled), atol=2e-5)


def test_rare_edges_are_cut_at_five():
    volume = torch.zeros(1, 1, 12, 12, 12)
    volume[0, 0, 5, 5, 5] = 1  # fewer than one voxel in a hundred: the percentile is zero
    condition = gradient_condition(volume)
    limit = 0.5 * np.tanh(5.0)
    assert (condition.min().item(), condition.max().item()) == pytest.approx((-limit, limit), abs=1e-6)


def test_every_volume_of_a_batch_has_its_own_scale():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 1, 1, 6, 7, 8, generator=generator)
    both = gradient_condition(torch.cat([first, 1000 * second]))
    torch.testing.assert_close(both[:1], gradient_condition(first))
    torch.testing.assert_close(both[1:], gradient_condition(1000 * second))


def test_a_constant_volume_has_no_gradient():
    assert not gradient_condition(torch.full((1, 1, 5, 5, 5), 0.1)).any()


def test_it_depends_on_the_orientation():
    x, y, _ = torch.meshgrid(*[torch.arange(5.0)] * 3, indexing="ij")
    assert not gradient_map((x - y)[None, None]).any()  # the differences cancel
    assert gradient_map((x - y).flip(1)[None, None]).any()
