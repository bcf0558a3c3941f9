"""The look of a site: curves of intensity, one for all and some that vary over the brain."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.models.look import BRIGHTEST, Look, Looks


def test_the_one_curve_is_linear_between_its_knots():
    look = Look(knots=6)
    levels = torch.tensor([0.0, 0.3, 0.35, 0.7, 0.7, 1.1])
    look.start(levels)
    volume = torch.rand(1, 1, 9, 12, 12, generator=torch.Generator().manual_seed(0)) * BRIGHTEST
    expected = np.interp(volume.numpy(), np.linspace(0, BRIGHTEST, 6), levels.numpy())
    assert np.allclose(look(volume).detach().numpy(), expected, atol=1e-6)


def test_beyond_its_ends_the_curve_stays_level():
    look = Look(knots=3)
    look.start(torch.tensor([0.0, 0.5, 0.9]))
    ends = torch.tensor([-0.2, 0.0, BRIGHTEST, 2.0]).reshape(1, 1, 4, 1, 1).expand(1, 1, 4, 4, 4)
    assert look(ends)[0, 0, :, 0, 0].tolist() == [0.0, 0.0, 0.8999999761581421, 0.8999999761581421]


@given(st.lists(st.floats(-1, 2), min_size=5, max_size=5))
@settings(max_examples=30, deadline=None)
def test_the_one_curve_never_falls(rises):
    look = Look(knots=6)
    look.rises.data = torch.tensor(rises)
    out = look(torch.linspace(0, BRIGHTEST, 64).reshape(1, 1, 4, 4, 4)).flatten()
    assert (torch.diff(out) >= -1e-6).all()


def test_local_curves_are_added_at_their_place_and_intensity():
    look = Look(local_knots=5, cells=(2, 2, 2))
    look.local.data[0, 2, 0, 0, 0] = 0.1  # the middle of the intensities, in one corner
    volume = torch.full((1, 1, 8, 8, 8), BRIGHTEST / 2)
    change = (look(volume) - volume).detach()[0, 0]
    assert torch.isclose(change[0, 0, 0], torch.tensor(0.1)) and torch.isclose(change[7, 7, 7], torch.tensor(0.0))
    assert change[0, 0, 0] > change[3, 0, 0] > change[7, 0, 0]
    assert (look(volume / 2) - volume / 2).abs().max() < 1e-6  # a knot away nothing is added


def test_roughness_counts_steps_over_place_and_intensity():
    look = Look(local_knots=2, cells=(2, 2, 2))
    look.local.data.zero_()
    look.local.data[0, 1, 1] = 2.0
    square, knots, cells = 4 * 4 / 16, 4 * 4 / 8, 4 * 4 / 8
    assert torch.isclose(look.roughness, torch.tensor(square + knots + cells))


def test_gradients_reach_curves_and_volume():
    looks = Looks(["T1w", "T2w"])
    volume = (torch.rand(1, 1, 9, 12, 12) * BRIGHTEST).requires_grad_()
    looks(volume, "T1w").square().mean().backward()
    assert looks["T1w"].rises.grad.abs().min() > 0 and looks["T1w"].local.grad.abs().max() > 0
    assert volume.grad.abs().max() > 0
    assert looks["T2w"].rises.grad is None
