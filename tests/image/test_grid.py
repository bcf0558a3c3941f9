"""Resampling between grids, against nibabel, scipy and pencil and paper."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.processing import resample_from_to
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from mmh_bids.image.grid import (
    MODEL_AFFINE,
    MODEL_SHAPE,
    antialias,
    bounding_box,
    box_affine,
    load_template,
    resample,
    voxel_map,
)


def affines(most_mm=4.0):
    """Affines of oblique grids with unequal voxels, flips among them."""

    def make(zooms, flips, turn, shift):
        linear = Rotation.from_rotvec(np.deg2rad(turn)).as_matrix() @ np.diag(np.array(zooms) * flips)
        return nib.affines.from_matvec(linear, shift)

    three = {"min_size": 3, "max_size": 3}
    return st.builds(
        make,
        st.lists(st.floats(0.5, most_mm), **three),
        st.lists(st.sampled_from([-1.0, 1.0]), **three),
        st.lists(st.floats(-40, 40), **three),
        st.lists(st.floats(-20, 20), **three),
    )


def noise(shape, seed=0):
    return gaussian_filter(np.random.default_rng(seed).normal(100, 30, shape), 1.0).astype(np.float32)


def clear_of_edges(source, target, shape, size):
    """Target voxels that rounding cannot move over the edge of the source or of one of its voxels."""
    places = nib.affines.apply_affine(np.linalg.inv(source) @ target, np.indices(shape).reshape(3, -1).T)
    near = np.abs(2 * places - np.rint(2 * places)) < 1e-6
    halves, edges = np.rint(2 * places) % 2 == 1, (places < 0.5) | (places > np.array(size) - 1.5)
    return ~(near & (halves | edges)).any(axis=1).reshape(shape)


@settings(max_examples=40, deadline=None)
@given(source=affines(), target=affines(), order=st.sampled_from([0, 1, 3]))
def test_resample_agrees_with_nibabel(source, target, order):
    data = noise((14, 15, 16))
    expected = resample_from_to(nib.Nifti1Image(data, source), ((12, 11, 13), target), order=order, cval=0.0)
    got = resample(data, source, (12, 11, 13), target, order=order)
    assert got.dtype == np.float32
    clear = clear_of_edges(source, target, got.shape, data.shape)
    np.testing.assert_allclose(got[clear], expected.get_fdata()[clear], atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(source=affines(), target=affines(), world=affines(most_mm=1.2))
def test_a_world_map_leads_from_the_target_to_the_source(source, target, world):
    data = noise((14, 15, 16))
    voxels = np.indices((6, 7, 8)).reshape(3, -1).T
    places = nib.affines.apply_affine(np.linalg.inv(source), nib.affines.apply_affine(world @ target, voxels))
    expected = map_coordinates(data, places.T, order=1, cval=0.0).reshape(6, 7, 8)
    got = resample(data, source, (6, 7, 8), target, world)
    clear = clear_of_edges(source, world @ target, got.shape, data.shape)
    np.testing.assert_allclose(got[clear], expected[clear], atol=2e-3)


def test_the_same_grid_changes_nothing():
    data = noise((9, 10, 11))
    affine = nib.affines.from_matvec(Rotation.from_rotvec([0.2, -0.3, 0.1]).as_matrix() * 1.3, [5, -7, 2])
    for order in (0, 1, 3):
        np.testing.assert_allclose(resample(data, affine, data.shape, affine, order=order), data, rtol=2e-5)


def test_beyond_the_field_of_view_is_zero():
    data = np.full((10, 10, 10), 7.0, np.float32)
    moved = resample(data, np.eye(4), (20, 10, 10), nib.affines.from_matvec(np.eye(3), [-5, 0, 0]))
    assert not moved[:5].any()
    assert (moved[5:15] == 7).all()
    assert not moved[15:].any()


def test_there_and_back_through_a_transform_brings_a_point_home():
    """A bright spot lands where the inverse map says, and comes back to where it was."""
    native = nib.affines.from_matvec(np.diag([-1.0, 1.0, 1.0]), [70.0, -100.0, -60.0])
    data = np.zeros((120, 150, 130), np.float32)
    data[60:63, 80:83, 50:53] = 1
    to_native = nib.affines.from_matvec(
        Rotation.from_rotvec([0.1, 0.2, -0.15]).as_matrix() @ np.diag([1.1, 0.95, 1.0]), [3.0, -4.0, 6.0]
    )
    there = resample(data, native, MODEL_SHAPE, MODEL_AFFINE, to_native)
    world = native @ [61, 81, 51, 1]
    expected = np.linalg.inv(to_native @ MODEL_AFFINE) @ world
    centre = np.average(np.indices(MODEL_SHAPE).reshape(3, -1), axis=1, weights=there.ravel())
    np.testing.assert_allclose(centre, expected[:3], atol=0.1)
    back = resample(there, MODEL_AFFINE, data.shape, native, np.linalg.inv(to_native))
    centre = np.average(np.indices(data.shape).reshape(3, -1), axis=1, weights=back.ravel())
    np.testing.assert_allclose(centre, [61, 81, 51], atol=0.1)


@settings(max_examples=30, deadline=None)
@given(affine=affines(), starts=st.tuples(*[st.integers(0, 6)] * 3), sizes=st.tuples(*[st.integers(1, 5)] * 3))
def test_a_box_keeps_its_place_in_the_world(affine, starts, sizes):
    box = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    inner = np.array([size - 1 for size in sizes])
    np.testing.assert_allclose(
        nib.affines.apply_affine(box_affine(affine, box), inner),
        nib.affines.apply_affine(affine, inner + starts),
        atol=1e-9,
    )
    image = nib.Nifti1Image(noise((12, 12, 12)), affine).slicer[box]
    np.testing.assert_allclose(box_affine(affine, box), image.affine, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(corner=st.tuples(*[st.integers(0, 8)] * 3), size=st.tuples(*[st.integers(1, 4)] * 3), margin=st.integers(0, 20))
def test_a_bounding_box_holds_the_mask_and_no_more(corner, size, margin):
    mask = np.zeros((12, 13, 14), bool)
    mask[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = True
    box = bounding_box(mask, margin)
    assert mask[box].sum() == mask.sum()
    for side, c, s, n in zip(box, corner, size, mask.shape, strict=True):
        assert (side.start, side.stop) == (max(0, c - margin), min(n, c + s + margin))


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="empty"):
        bounding_box(np.zeros((3, 3, 3), bool))


def test_voxel_map_of_a_grid_to_itself_is_the_identity():
    affine = nib.affines.from_matvec(np.diag([2.0, -3.0, 4.0]), [1, 2, 3])
    np.testing.assert_allclose(voxel_map(affine, affine), np.eye(4), atol=1e-12)


def test_antialias_widens_a_point_to_the_target_voxel():
    """The full width at half maximum of what a fine voxel becomes is sqrt(target^2 - source^2)."""
    data = np.zeros((61, 61, 61), np.float32)
    data[30, 30, 30] = 1
    smooth = antialias(data, np.diag([0.5, 1.0, 2.0, 1.0]), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert smooth.sum() == pytest.approx(1, abs=1e-4)
    spread = [
        np.sqrt((smooth.sum(axis=tuple({0, 1, 2} - {axis})) * (np.arange(61) - 30) ** 2).sum()) for axis in range(3)
    ]
    fwhm = np.array(spread) * np.sqrt(8 * np.log(2)) * [0.5, 1.0, 2.0]
    np.testing.assert_allclose(fwhm, [np.sqrt(4 - 0.25), np.sqrt(3), 0], atol=0.03)


def test_antialias_leaves_coarse_images_alone():
    data = noise((8, 8, 8))
    assert antialias(data, np.diag([1.0, 1.0, 3.0, 1.0]), np.eye(4)) is data


def test_antialias_prevents_aliasing():
    """A pattern finer than the target's voxels becomes its mean and not a coarse pattern."""
    fine = np.tile(np.array([0.0, 2.0], np.float32), 64)[:, None, None] * np.ones((128, 16, 16), np.float32)
    source, target = np.diag([0.4, 1.0, 1.0, 1.0]), np.diag([1.2, 1.0, 1.0, 1.0])
    raw = resample(fine, source, (40, 16, 16), target)
    smooth = resample(antialias(fine, source, target), source, (40, 16, 16), target)
    assert raw[4:-4].std() > 0.5
    assert smooth[4:-4].std() < 0.05
    assert smooth[4:-4].mean() == pytest.approx(1, abs=0.01)


def test_the_template_is_a_brain_that_the_model_grid_holds():
    template = load_template()
    brain = np.asanyarray(template.dataobj) > 0
    corners = np.argwhere(brain)
    world = nib.affines.apply_affine(template.affine, np.array([corners.min(0), corners.max(0)]))
    low, high = nib.affines.apply_affine(np.linalg.inv(MODEL_AFFINE), world)
    # half a voxel of the widest slice sticks out on either side: the published grid is that tight
    assert (low >= -0.5).all()
    assert (high <= np.array(MODEL_SHAPE) - 0.5).all()
    assert 1000 < brain.sum() / 1000 < 2200
