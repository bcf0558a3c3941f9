"""The change travels, not the image: what a harmonizer does on the model grid happens on the image's own grid."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.transform import Rotation

from mmh_bids.image.grid import antialias, load_template, resample
from mmh_bids.image.intensity import MonotoneMap, robust_scale
from mmh_bids.image.qc import gradient_correlation
from mmh_bids.image.transport import ModelVolumes, Scale, through_zero, transport

#: The model grid at a third of its resolution: the same field of view.
SHAPE = (48, 62, 62)
AFFINE = nib.affines.from_matvec(np.diag([3.0, 3.0, 3.0]), [-70.5, -108.0, -84.0])
#: World of the image to the world of the template.
TO_MNI = nib.affines.from_matvec(Rotation.from_rotvec([0.08, -0.06, 0.1]).as_matrix() * 1.04, [4, -6, 3])
GRIDS = {"fine": [1.7, 1.7, 1.7], "thick": [1.5, 1.5, 5.0], "coarse": [4.0, 4.0, 4.0]}


def scan(zooms, low=0.0, high=900.0, skull=False):
    """A noisy brain on an oblique grid of its own: image, affine, mask."""
    template = load_template()
    brain = np.asanyarray(template.dataobj)
    affine = nib.affines.from_matvec(Rotation.from_rotvec([0.1, 0.2, -0.1]).as_matrix() @ np.diag(zooms))
    shape = tuple(int(n) for n in np.ceil(np.array([185, 225, 185]) / zooms))
    affine[:3, 3] = np.array([0.0, -14.0, 2.0]) - affine[:3, :3] @ (np.array(shape) / 2)
    image = resample(antialias(brain, template.affine, affine), template.affine, shape, affine, TO_MNI)
    mask = resample((brain > 0).astype(np.float32), template.affine, shape, affine, TO_MNI) > 0.5
    rng = np.random.default_rng(0)
    image = np.abs(image / brain.max() + rng.normal(0, 0.02, shape))
    if skull:
        image = np.where(mask, image, np.abs(rng.normal(0, 0.6, shape)))
    return (low + (high - low) * image).astype(np.float32), affine, mask


@pytest.fixture(scope="module", params=GRIDS)
def case(request):
    return scan(GRIDS[request.param])


def on_model_grid(image, affine, mask):
    """The model's input and its scale."""
    low, high = robust_scale(image[mask])
    there = resample(antialias(image, affine, AFFINE), affine, SHAPE, AFFINE, np.linalg.inv(TO_MNI))
    model_mask = resample(mask.astype(np.float32), affine, SHAPE, AFFINE, np.linalg.inv(TO_MNI)) > 0.5
    before = np.where(model_mask, np.clip((there - low) / (high - low), 0, 1), 0).astype(np.float32)
    return before, model_mask, Scale(low, high)


def carried(case, change, skull="strip", scale_out=None):
    """Transport `change` (model volume -> model volume); returns the output in model units, and the input."""
    image, affine, mask = case
    before, model_mask, scale = on_model_grid(image, affine, mask)
    after = np.where(model_mask, change(before), 0).astype(np.float32)
    model = ModelVolumes(before, after, model_mask, AFFINE, TO_MNI)
    target = scale_out or scale
    out, curve = transport(image, affine, mask, model, scale, target, skull)
    assert np.isfinite(out).all()
    assert out.dtype == np.float32
    assert curve.is_monotone
    return target.to_unit(out.astype(np.float64)), scale.to_unit(image.astype(np.float64)), curve


CURVES = {
    "gamma": lambda x: np.where(x < 1, np.maximum(x, 0) ** 0.7, 1 + 0.7 * (x - 1)),
    "contrast": lambda x: 0.5 + 0.6 * (x - 0.5),
    "bent": lambda x: np.interp(x, [0, 0.3, 0.6, 1, 3], [0, 0.2, 0.7, 1, 3]),
}


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_on_the_model_grid_is_the_same_curve_on_the_own_grid(case, name):
    out, image, _ = carried(case, CURVES[name])
    mask = case[2]
    expected = CURVES[name](image)
    usual = mask & (image > np.percentile(image[mask], 1)) & (image < 1)
    error = np.abs(out - expected)
    assert error[usual].max() < 0.02
    assert np.sqrt((error[mask] ** 2).mean()) < 0.005
    assert not out[~mask].any()


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_leaves_every_edge_where_it_is(case, name):
    """No blur: the gradients are those of the curve applied to the image itself."""
    out, image, _ = carried(case, CURVES[name])
    mask = case[2]
    direct = np.where(mask, CURVES[name](image), 0)
    assert gradient_correlation(direct.astype(np.float32), out.astype(np.float32), mask) > 0.999


def test_new_units(case):
    """The target's scale is that of the file, whatever the input's was."""
    out, image, _ = carried(case, CURVES["gamma"], scale_out=Scale(0.0, 1000.0))
    usual = case[2] & (image > 0.05) & (image < 1)
    assert np.abs(out - CURVES["gamma"](image))[usual].max() < 0.02


def field(affine, shape, world=None):
    """A smooth change over space with mean 0.15, at the voxels of a grid, in the template's world."""
    places = nib.affines.apply_affine(affine if world is None else world @ affine, np.indices(shape).reshape(3, -1).T)
    return (0.15 + 0.1 * np.cos(places / 30).prod(axis=1)).reshape(shape)


def test_a_change_over_space_arrives_whole_also_at_the_edge(case):
    image, affine, mask = case
    out, before, _ = carried(case, lambda model: 0.6 * model + field(AFFINE, SHAPE))
    change = out - before
    expected = 0.6 * before + field(affine, mask.shape, TO_MNI) - before
    inner = binary_erosion(mask, iterations=2)
    usual = (before > 0.05) & (before < 1)
    edge = mask & ~binary_erosion(mask) & usual
    inner &= usual
    parts = {"inner": inner, "edge": edge}
    errors = {name: np.abs(change - expected)[where] for name, where in parts.items()}
    assert errors["inner"].mean() < 0.02
    assert errors["edge"].mean() < 0.02
    assert errors["edge"].max() < 0.13
    # it does not fade: what no curve explains arrives with its full strength
    there, got = (values + 0.4 * before for values in (expected, change))
    there, got = (values - np.median(values[inner]) for values in (there, got))
    strength = {name: (got * there)[where].sum() / (there**2)[where].sum() for name, where in parts.items()}
    assert strength["edge"] == pytest.approx(1, abs=0.1)
    assert strength["inner"] == pytest.approx(1, abs=0.1)


def test_noise_that_was_taken_off_does_not_come_back():
    """The model grid averages noise; what it never saw is shrunk as what it saw."""
    image, affine, mask = scan([3.0, 3.0, 3.0])
    noisy = image + np.random.default_rng(1).normal(0, 60, image.shape).astype(np.float32) * mask
    clean, model_mask, scale = on_model_grid(image, affine, mask)
    there = resample(antialias(noisy, affine, AFFINE), affine, SHAPE, AFFINE, np.linalg.inv(TO_MNI))
    before = np.where(model_mask, (there - scale.low) / (scale.high - scale.low), 0).astype(np.float32)
    model = ModelVolumes(before, clean, model_mask, AFFINE, TO_MNI)
    out, _ = transport(noisy, affine, mask, model, scale, scale)
    inner = binary_erosion(mask, iterations=3)
    assert (out - image)[inner].std() < 0.5 * (noisy - image)[inner].std()
    # and edges stay, so that it is no blur
    kept = gradient_correlation(image, out, inner)
    assert kept > gradient_correlation(image, noisy, inner) + 0.05
    blurred = np.where(mask, gaussian_filter(noisy, 1.0), 0).astype(np.float32)
    assert kept > gradient_correlation(image, blurred, inner)


def test_noise_between_two_tissues_is_no_speckle():
    """A curve fitted to noisy intensities is a staircase; noise that goes through it has two values, none between."""
    image, affine, mask = scan([1.7, 1.7, 1.7])
    tissues = np.where(image > np.median(image[mask]), 500.0, 440.0)
    tissues = np.where(mask, gaussian_filter(tissues, 1.5), 0)
    noisy = np.where(mask, tissues + np.random.default_rng(1).normal(0, 40, image.shape), 0).astype(np.float32)
    before, model_mask, scale = on_model_grid(noisy, affine, mask)
    clean = on_model_grid(tissues.astype(np.float32), affine, mask)[0]
    # tissues three times as far apart, all noise of the model grid gone, a field that no curve explains
    after = 0.5 + 3 * (clean - np.median(clean[model_mask])) + 0.2 * (field(AFFINE, SHAPE) - 0.15)
    model = ModelVolumes(before, np.where(model_mask, after, 0).astype(np.float32), model_mask, AFFINE, TO_MNI)
    out, curve = transport(noisy, affine, mask, model, scale, Scale(0.0, 1000.0))
    inner = binary_erosion(mask, iterations=3)
    through = 1000 * curve(scale.to_unit(noisy.astype(np.float64)))
    truth = 1000 * (0.5 + 3 * (scale.to_unit(tissues) - np.median(clean[model_mask])))
    off = {name: (values - truth)[inner].std() for name, values in (("out", out), ("curve", through))}
    assert off["out"] < 0.7 * off["curve"]


def test_the_change_goes_on_beyond_the_model_grid():
    """Brain that the model grid cuts off gets the change of the nearest brain it holds, not none."""
    image, affine, mask = scan(GRIDS["coarse"])
    before, model_mask, scale = on_model_grid(image, affine, mask)
    half = (slice(24, 48), slice(None), slice(None))
    grid = AFFINE.copy()
    grid[0, 3] += 24 * 3.0
    # a step that no curve explains
    shift = np.where(np.indices(SHAPE)[2] < 30, 0.2, 0.0)[half]
    model_mask, before = model_mask[half], before[half]
    after = np.where(model_mask, before + shift, 0).astype(np.float32)
    model = ModelVolumes(before, after, model_mask, grid, TO_MNI)
    out, _ = transport(image, affine, mask, model, scale, scale)
    places = nib.affines.apply_affine(np.linalg.inv(AFFINE) @ TO_MNI @ affine, np.argwhere(mask))
    change = scale.to_unit(out[mask].astype(float)) - scale.to_unit(image[mask].astype(float))
    for beyond in (places[:, 0] < 22, places[:, 0] > 26):
        low, high = beyond & (places[:, 2] < 26), beyond & (places[:, 2] > 34)
        assert np.median(change[low]) - np.median(change[high]) == pytest.approx(0.2, abs=0.05)


@settings(max_examples=25, deadline=None)
@given(
    knots=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    skull=st.sampled_from(["strip", "keep"]),
    noise=st.sampled_from([0.0, 0.1]),
)
def test_magnitudes_stay_magnitudes(knots, skull, noise):
    """Whatever a harmonizer returns, falling curves and noise included: no hole, no NaN, nothing below zero."""
    wild = np.random.default_rng(1).normal(0, noise, SHAPE)
    out, _, _ = carried(SMALL, lambda x: np.interp(x, [0, 0.3, 0.7, 1], knots) + wild, skull, Scale(0.0, 1000.0))
    assert (out >= 0).all()
    if skull == "strip":
        assert not out[~SMALL[2]].any()


SMALL = scan(GRIDS["coarse"], skull=True)


def test_negative_values_of_the_input_are_no_error():
    image, affine, mask = scan(GRIDS["coarse"], low=-300.0, high=500.0)
    out, before, _ = carried((image, affine, mask), CURVES["contrast"])
    usual = mask & (before > 0.05) & (before < 1)
    assert np.abs(out - CURVES["contrast"](before))[usual].max() < 0.02


def test_outside_the_brain_the_curve_applies_and_air_stays_dark():
    image, affine, mask = SMALL
    image = image.copy()
    image[:4] = 0
    out, before, curve = carried((image, affine, mask), lambda x: 0.3 + 0.7 * x, "keep", Scale(0.0, 1000.0))
    assert not out[:4].any()
    bright = ~mask & (before > 0.5) & (before < 1)
    np.testing.assert_allclose(out[bright], 0.3 + 0.7 * before[bright], atol=0.02)
    ascending = np.argsort(before[~mask])
    assert (np.diff(out[~mask][ascending]) > -1e-6).all()


def test_identity_outside_the_brain_as_well():
    out, before, _ = carried(SMALL, lambda x: x, "keep")
    np.testing.assert_allclose(out, before, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    y=st.lists(st.floats(0, 1), min_size=5, max_size=5),
    darkest=st.floats(0.01, 0.6),
    zero_out=st.floats(-0.3, 0.3),
)
def test_through_zero_is_monotone_continuous_and_ends_at_no_signal(y, darkest, zero_out):
    curve = MonotoneMap(np.linspace(0.05, 1, 5), np.sort(y), 0.5, 0.5)
    out = through_zero(curve, darkest, 0.0, zero_out)
    assert out.is_monotone
    above = np.linspace(darkest, 2, 50)
    np.testing.assert_allclose(out(above), curve(above), atol=1e-12)
    if float(curve(np.array([darkest]))[0]) > zero_out:
        assert out(np.array([0.0]))[0] == pytest.approx(zero_out, abs=1e-9)


def test_transport_needs_little_more_than_the_image(case):
    """Not a stopwatch: a head of 256 voxels a side must not need ten copies of itself."""
    import tracemalloc

    image, affine, mask = case
    before, model_mask, scale = on_model_grid(image, affine, mask)
    model = ModelVolumes(before, gaussian_filter(before, 1), model_mask, AFFINE, TO_MNI)
    tracemalloc.start()
    transport(image, affine, mask, model, scale, scale, "keep")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * image.nbytes + 25 * before.nbytes
