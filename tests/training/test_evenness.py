"""Which voxels count where only even surroundings teach something."""

from __future__ import annotations

import pytest
import torch

from mmh_bids.training.evenness import evenness

SHAPE = (1, 1, 12, 12, 12)


@pytest.fixture
def brain():
    mask = torch.zeros(SHAPE)
    mask[..., 1:-1, 1:-1, 1:-1] = 1
    return mask


def test_even_surroundings_count_edges_and_the_rim_do_not(brain):
    volume = torch.where(torch.arange(12) < 6, 0.3, 0.7).expand(SHAPE) * brain
    found = evenness(volume, brain)
    assert found[0, 0, 5, 5].tolist() == pytest.approx([0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0], abs=0.01)
    assert not found[0, 0, 1].any() and not found[0, 0, 10].any()


def test_it_is_of_the_formula(brain):
    volume = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) * 0.1 + torch.linspace(0, 1, 12)
    found = evenness(volume, brain)
    cube = volume[0, 0, 4:7, 5:8, 6:9].double()
    spread = volume[brain.bool()].double().std()
    local = ((cube - cube.mean()) ** 2).mean().sqrt()
    assert float(found[0, 0, 5, 6, 7]) == pytest.approx(float(torch.exp(-((local / (0.4 * spread)) ** 2))), rel=1e-3)


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (40.0, 0.0), (1.0, 3.0)])
def test_scale_and_zero_make_no_difference(brain, scale, shift):
    volume = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(evenness(volume * scale + shift, brain), evenness(volume, brain), atol=1e-2)


def test_in_noise_a_quarter_of_the_voxels_counts(brain):
    volume = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))
    found = evenness(volume, brain)[..., 2:-2, 2:-2, 2:-2]
    assert 0.2 < float((found >= torch.exp(torch.tensor(-1.0))).float().mean()) < 0.3


def test_a_mask_too_thin_for_cubes_counts_as_it_is():
    mask = torch.zeros(SHAPE)
    mask[..., 4:6] = 1
    assert torch.equal(evenness(torch.rand(SHAPE), mask), mask)


def test_an_image_of_one_value_counts_everywhere_inside(brain):
    found = evenness(torch.full(SHAPE, 0.5), brain)
    assert found[..., 2:-2, 2:-2, 2:-2].eq(1).all()
