"""Tests of mmh_bids.image.brainmask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.image.brainmask import fluid_is_dark, is_stripped, looks_stripped, support, volume_ml


def ellipsoid(shape=(40, 48, 20), share=0.8):
    """Radius (1 at the surface) from the middle of a grid whose voxels need not be cubes."""
    axes = [np.linspace(-1, 1, n) / share for n in shape]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))


def brain_of(radius, fluid, grey, white, outside=0.0):
    """Shells of tissue, with a ventricle of fluid in the middle."""
    return np.select([radius < 0.2, radius < 0.75, radius < 0.93, radius < 1], [fluid, white, grey, fluid], outside)


T1W, T2W = {"fluid": 60, "grey": 200, "white": 300}, {"fluid": 900, "grey": 350, "white": 250}


@pytest.mark.parametrize("shape", [(40, 48, 40), (80, 96, 20), (24, 24, 60)])
@pytest.mark.parametrize("outside", [0.0, 5000.0])
def test_contrast_is_told_on_any_voxel_shape_and_background(shape, outside):
    radius = ellipsoid(shape)
    assert fluid_is_dark(brain_of(radius, **T1W, outside=outside), radius < 1)
    assert not fluid_is_dark(brain_of(radius, **T2W, outside=outside), radius < 1)


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(1e-3, 1e3), offset=st.floats(-100, 100), seed=st.integers(0, 99))
def test_contrast_does_not_depend_on_units_or_moderate_noise(gain, offset, seed):
    radius = ellipsoid()
    noise = np.random.default_rng(seed).normal(0, 20, radius.shape)
    for tissues, dark in ((T1W, True), (T2W, False)):
        assert fluid_is_dark(gain * (brain_of(radius, **tissues) + noise) + offset, radius < 1) is dark


def test_contrast_of_a_brain_cut_by_the_field_of_view():
    radius = ellipsoid()[:, :30]
    assert fluid_is_dark(brain_of(radius, **T1W), radius < 1)
    assert not fluid_is_dark(brain_of(radius, **T2W), radius < 1)


def test_the_border_of_the_image_is_a_surface():
    side = np.abs(np.mgrid[-10:10, -10:10, -10:10] + 0.5).max(axis=0)
    full = np.ones(side.shape, bool)
    assert fluid_is_dark(np.where(side > 9, 200, 300), full)
    assert not fluid_is_dark(np.where(side > 9, 350, 250), full)


@pytest.mark.filterwarnings("error")
def test_contrast_without_a_deep_part_counts_as_not_dark():
    assert not fluid_is_dark(np.ones((4, 4, 4)), np.zeros((4, 4, 4), bool))
    assert not fluid_is_dark(np.ones((4, 4, 4)), np.ones((4, 4, 4), bool))


def test_support_takes_the_background_of_the_corners_and_the_largest_part():
    data = np.full((20, 20, 20), -3.0)
    data[5:15, 5:15, 5:15] = 7
    data[8, 8, 8] = -3
    data[1, 1, 1] = 7
    found = support(data)
    assert found.sum() == 1000
    assert not found[1, 1, 1]
    assert not support(np.zeros((5, 5, 5))).any()


def test_stripped_needs_size_background_and_agreement():
    inside = ellipsoid((40, 40, 40)) < 1
    affine = np.diag([4.0, 4, 4, 1])
    assert 500 < volume_ml(inside, affine) < 2200
    assert looks_stripped(inside, affine)
    assert is_stripped(inside, inside, affine)
    assert is_stripped(inside, None, affine)
    smaller = ellipsoid((40, 40, 40)) < 0.7
    assert not is_stripped(inside, smaller, affine)
    assert not looks_stripped(inside, np.diag([8.0, 8, 8, 1]))
    assert not looks_stripped(np.ones((40, 40, 40), bool), np.diag([2.5, 2.5, 2.5, 1]))
