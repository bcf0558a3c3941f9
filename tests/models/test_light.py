"""Tests of mmh_bids.models.light."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from mmh_bids.models.light import (  # noqa: E402
    LightNetwork,
    bounded_curve,
    gradient,
    intensity_axis,
    join_styles,
    measure_style,
    place_in_grid,
    slice_curves,
)

LOOK = {"T1w": (0.5, 0.2), "T2w": (0.3, 0.1)}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return LightNetwork(filters=4, knots=6, unified=LOOK)


def stirred(network):
    """The network with weights as after some training: no layer is zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def case(sequence="T1w", size=16, seed=0):
    image = torch.rand(1, 1, size, size, size, generator=torch.Generator().manual_seed(seed)) * 100 + 20
    brain = torch.ones_like(image)
    return image, brain, place_in_grid((size, size, size))[None], measure_style(image.flatten(), sequence)


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_untrained_it_z_scores_to_the_unified_look(network, sequence):
    image, brain, place, style = case(sequence)
    out = network(image, brain, place, style)
    mean, std = LOOK[sequence]
    expected = mean + std * (image - image.mean()) / image.std()
    assert torch.allclose(out, expected, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(gain=st.floats(0.01, 1000), offset=st.floats(-50, 50))
def test_gain_and_offset_make_no_difference(gain, offset):
    torch.manual_seed(1)
    trained = stirred(LightNetwork(filters=4, knots=6, unified=LOOK))
    image, brain, place, style = case()
    other = image * gain + offset
    with torch.no_grad():
        first = trained(image, brain, place, style)
        second = trained(other, brain, place, measure_style(other.flatten(), "T1w"))
    assert torch.allclose(first, second, atol=5e-3)


def test_it_sees_the_sequence_the_place_and_the_image(network):
    trained = stirred(network)
    image, brain, place, style = case()
    with torch.no_grad():
        out = trained(image, brain, place, style)
        z = (out - 0.5) / 0.2
        as_t2w = (trained(image, brain, place, measure_style(image.flatten(), "T2w")) - 0.3) / 0.1
        elsewhere = trained(image, brain, -place, style)
    assert not torch.allclose(z, as_t2w, atol=1e-3)
    assert not torch.allclose(out, elsewhere, atol=1e-5)


def test_a_part_far_from_the_edge_is_like_the_whole(network):
    """Nothing is normalised over the volume at hand: a patch gives what the whole gives, given the same style."""
    trained = stirred(network)
    image, brain, place, style = case(size=112)
    with torch.no_grad():
        whole = trained(image, brain, place, style)
        part = trained(image[..., :96], brain[..., :96], place[..., :48], style)
    assert torch.allclose(whole[..., :8], part[..., :8], atol=1e-5)
    assert not torch.allclose(whole[..., 88:96], part[..., 88:96], atol=1e-5)


def test_outside_the_brain_it_is_zero(network):
    image, brain, place, style = case()
    brain[..., :4] = 0
    out = network(image, brain, place, style)
    assert float(out[..., :4].detach().abs().max()) == 0


@given(values=st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=40), seed=st.integers(0, 99))
def test_the_axis_ascends_with_the_intensity(values, seed):
    quantiles = np.sort(np.random.default_rng(seed).normal(0, 1, 32)).astype(np.float32)
    z = torch.tensor(sorted(values))[None]
    axis = intensity_axis(z, torch.from_numpy(quantiles)[None])
    assert float(axis.min()) >= 0 and float(axis.max()) <= 1
    assert bool((torch.diff(axis) >= -1e-6).all())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.floats(0.01, 100))
def test_no_weights_make_a_staircase_of_the_curve(seed, size):
    """Slope 1/3 to 3, whatever a training does: also beyond the brain's darkest and brightest."""
    made = torch.Generator().manual_seed(seed)
    quantiles = torch.randn(1, 32, generator=made).sort().values
    shape = size * torch.randn(1, 17, generator=made)
    z = torch.linspace(-6, 12, 400, dtype=torch.float64)[None]
    curve = bounded_curve(z, shape.double(), quantiles.double())
    slopes = torch.diff(curve) / torch.diff(z)
    assert float(slopes.min()) >= 1 / 3 - 1e-9 and float(slopes.max()) <= 3 + 1e-9
    at_zero = bounded_curve(torch.zeros(1, 1, dtype=torch.float64), shape.double(), quantiles.double())
    assert float(at_zero) == pytest.approx(float(shape[0, 0]))


def test_curves_vary_over_the_volume():
    curves = torch.zeros(1, 2, 2, 2, 2)
    curves[0, 1, 0], curves[0, 1, 1] = 1.0, 3.0
    axis = torch.full((1, 1, 8, 8, 8), 0.5)
    out = slice_curves(curves, axis)[0, 0]
    assert torch.allclose(out[0], torch.tensor(0.5)) and torch.allclose(out[-1], torch.tensor(1.5))
    assert torch.allclose(out[3] + out[4], torch.tensor(2.0))


def test_gradient_of_a_ramp():
    ramp = torch.arange(5.0).reshape(1, 1, 5, 1, 1).expand(1, 1, 5, 4, 4)
    out = gradient(ramp)
    assert float(out[0, 0, 0].abs().max()) == 0
    assert torch.allclose(out[0, 0, 1:], 0.5 * torch.tanh(torch.tensor(1 / 3)))


def test_style_holds_mean_spread_and_ranks():
    values = torch.arange(3201.0)
    style = measure_style(values[torch.randperm(3201)], "T2w")
    assert float(style.mean) == pytest.approx(1600) and int(style.sequence) == 1
    assert style.quantiles[0, 0] == pytest.approx((50 - 1600) / float(style.std), abs=1e-4)
    both = join_styles([style, measure_style(values, "T1w")])
    assert both.quantiles.shape == (2, 32) and both.sequence.tolist() == [1, 0]
