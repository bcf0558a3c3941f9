"""Tests of mmh_bids.harmonizers.light, with the shipped bundle."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter

pytest.importorskip("torch")

from mmh_bids.errors import BundleError, ImageError, UsageError  # noqa: E402
from mmh_bids.harmonizers.base import Reference  # noqa: E402
from mmh_bids.harmonizers.levelling import _level_curve, levelled  # noqa: E402
from mmh_bids.harmonizers.light import MmhLight, evened, without_habit  # noqa: E402
from mmh_bids.image.grid import load_template, resample  # noqa: E402
from mmh_bids.image.levels import tissue_levels  # noqa: E402
from mmh_bids.models.bundle import open_bundle  # noqa: E402
from mmh_bids.simulate import tissues  # noqa: E402
from mmh_bids.simulate.unified import unified_tissues  # noqa: E402

SHAPE = (48, 48, 48)


@pytest.fixture(scope="module")
def method():
    return MmhLight.load(open_bundle("mmh-light"), "cpu")


@pytest.fixture(scope="module")
def ball():
    """White matter in grey matter in fluid, like a T1w of some scanner: volume, mask, radius."""
    radius = np.sqrt(((np.indices(SHAPE) - 23.5) ** 2).sum(0))
    values = np.select([radius < 13, radius < 17, radius < 19], [0.8, 0.65, 0.35], 0.0)
    noise = np.random.default_rng(0).normal(0, 0.01, SHAPE)
    mask = radius < 19
    return (np.where(mask, values + noise, 0)[None]).astype(np.float32), mask, radius


@pytest.mark.slow  # on the whole model grid
@pytest.mark.parametrize(("sequence", "seen"), [("T1w", [0.35, 0.65, 0.8]), ("T2w", [0.9, 0.5, 0.4])])
def test_tissues_come_nearer_to_the_unified_look_than_by_z_scoring(method, sequence, seen):
    """The template's brain cut in fluid, grey and white matter, as some scanner may show it."""
    template = load_template()
    brain = resample(np.asanyarray(template.dataobj), template.affine, method.bundle.shape, method.bundle.affine)
    mask = brain > 0
    low, high = np.percentile(brain[mask], [18, 62])
    classes = (brain > low).astype(int) + (brain > high)
    noise = np.random.default_rng(0).normal(0, 0.02, mask.shape)
    volume = np.where(mask, gaussian_filter(np.array(seen)[classes], 0.6) + noise, 0).astype(np.float32)
    result = method.harmonize(volume[None], mask, sequence, "unified", 0)
    look = unified_tissues(sequence)
    truth = gaussian_filter(look[[tissues.INDEX["fluid"], tissues.GREY, tissues.WHITE]][classes], 0.6)
    mean, std = method.bundle.card["network"]["unified"][sequence]
    scored = mean + std * (volume - volume[mask].mean()) / volume[mask].std()
    out = result.volume[0]
    assert np.abs(out - truth)[mask].mean() < 0.7 * np.abs(scored - truth)[mask].mean()
    middles = [float(np.median(out[mask & (classes == number)])) for number in (1, 2)]
    assert middles == pytest.approx(look[[tissues.GREY, tissues.WHITE]].tolist(), abs=0.05)
    assert result.details["TissueLevels"] is not None
    assert not out[~mask].any() and out.min() >= 0 and out.max() <= 1.25


def test_gain_makes_no_difference_and_the_sequence_does(method, ball):
    volume, mask, _ = ball
    first = method.harmonize(volume, mask, "T1w", "unified", 0)
    again = method.harmonize(volume * np.float32(0.5), mask, "T1w", "unified", 1)
    assert np.allclose(first.volume, again.volume, atol=1e-3)
    assert first.details["BrainMean"] == pytest.approx(2 * again.details["BrainMean"], rel=1e-3)
    assert not np.allclose(first.volume, method.harmonize(volume, mask, "T2w", "unified", 0).volume, atol=0.05)


@pytest.mark.slow  # on the whole model grid
def test_a_field_that_is_left_is_taken_off_before_and_after(method):
    """What is seen of it in the result, and what the sidecar says of it."""
    template = load_template()
    brain = resample(np.asanyarray(template.dataobj), template.affine, method.bundle.shape, method.bundle.affine)
    mask = brain > 0
    volume = np.where(mask, 0.2 + 0.8 * brain / brain.max(), 0).astype(np.float32)
    axis = (np.arange(mask.shape[2]) - mask.shape[2] / 2) / 100
    shaded = volume * np.exp(0.3 * axis).astype(np.float32)
    plain, result = (method.harmonize(one[None], mask, "T1w", "unified", 0) for one in (volume, shaded))
    seen = np.abs(shaded / shaded[mask].mean() - volume / volume[mask].mean())[mask].mean() / volume[mask].std()
    left = np.abs(result.volume - plain.volume)[0][mask].mean() / plain.volume[0][mask].std()
    assert left < 0.15 * seen
    before, after = result.details["EvenedField"]
    assert before > plain.details["EvenedField"][0] + 0.03 and after < 0.5 * before


def test_a_reference_image_lends_its_mean_and_spread(method, ball):
    volume, mask, radius = ball
    other = np.where(mask, 0.35 + 0.1 * np.cos(radius / 3), 0).astype(np.float32)[None]
    result = method.harmonize(volume, mask, "T1w", "image:/ref_T1w.nii.gz", 0, Reference(other, mask))
    brain = other[0][mask]
    assert result.volume[0][mask].mean() == pytest.approx(brain.mean(), abs=1e-3)
    assert result.volume[0][mask].std() == pytest.approx(brain.std(), rel=0.02)
    assert result.details["Stage"] == 1
    assert result.details["StatisticsMatching"]["Mean"] == pytest.approx(brain.mean(), abs=1e-5)


def test_a_habit_of_the_network_is_taken_back_and_one_curve_is_not():
    """Of a network that always squeezes the contrast and smooths."""
    rng = np.random.default_rng(0)
    mask = np.ones((32, 32, 32), bool)
    mask[:4] = False
    image = np.where(mask, gaussian_filter(rng.normal(0.5, 1.0, mask.shape), 1.5), 0).astype(np.float32)

    def network(volume):
        return np.where(mask, 0.5 + 0.8 * (gaussian_filter(volume, 0.6) - 0.5), 0).astype(np.float32)

    first = network(image)
    out = without_habit(first, network(first), mask)
    inner = binary_erosion(mask, iterations=4)
    ideal = 0.5 + 0.8 * (image - 0.5)
    assert np.abs(out - ideal)[inner].mean() < 0.8 * np.abs(first - ideal)[inner].mean()
    assert not out[~mask].any() and out.dtype == np.float32
    # one and the same intensity all over: one curve is all there is
    flat = mask.astype(np.float32)
    assert np.allclose(without_habit(flat, 0.9 * flat, mask), flat)


def test_no_field_is_taken_off_what_has_no_tissue(ball):
    volume, mask, _ = ball
    few = np.zeros(mask.shape, bool)
    few[20:26, 20:26, 20:26] = True
    assert evened(volume[0], few, np.eye(4)) == (pytest.approx(volume[0]), None)
    flat = mask.astype(np.float32)
    assert evened(flat, mask, np.eye(4)) == (pytest.approx(flat), None)


def test_tissues_come_to_the_levels_of_the_unified_look():
    """One monotone curve; what is no brain stays zero; the same again changes nothing."""
    template = load_template()
    brain = np.asanyarray(template.dataobj)[::2, ::2, ::2]
    affine = template.affine @ np.diag([2.0, 2, 2, 1])
    mask = brain > 0
    volume = (brain / brain.max()).astype(np.float32)
    first = tissue_levels(volume, mask, affine)
    asked = first + np.array([0.0, 0.015, -0.005]) * (first[2] - first[1]) / 0.1
    out, found = levelled(volume, mask, affine, asked.tolist())
    assert found == pytest.approx(first.tolist(), abs=1e-5)
    after = tissue_levels(out, mask, affine)
    assert np.abs(after - asked)[1:].max() < 0.3 * np.abs(first - asked)[1:].max()
    order = np.argsort(volume[mask])
    assert np.diff(out[mask][order]).min() >= -1e-6 and not out[~mask].any()
    # a T1w is not turned into a T2w, and nothing is moved far
    for levels in ([0.9, 0.35, 0.22], (first + 0.6 * (first[2] - first[1])).tolist()):
        assert levelled(volume, mask, affine, levels) == (pytest.approx(volume), None)


@pytest.mark.parametrize(
    ("inverted", "more", "slope"),
    [(False, 0.45, 1.3), (False, -0.28, 1 / 1.3), (True, 0.5, 1.5), (True, 0.75, 1.6), (True, -0.28, 1 / 1.39)],
)
def test_what_lies_between_two_tissues_is_stretched_and_squeezed_a_little_only(inverted, more, slope):
    template = load_template()
    brain = np.asanyarray(template.dataobj)[::2, ::2, ::2]
    affine = template.affine @ np.diag([2.0, 2, 2, 1])
    mask = brain > 0
    volume = np.where(mask, 1.1 - brain / brain.max() if inverted else brain / brain.max(), 0).astype(np.float32)
    _, grey, white = found = tissue_levels(volume, mask, affine)
    asked = found + np.array([0, 0.0, more]) * (white - grey)
    out, _ = levelled(volume, mask, affine, asked.tolist())
    order = np.argsort(volume[mask])
    x, y = volume[mask][order], out[mask][order]
    between = [(min(white, grey), max(white, grey))]
    if not inverted:
        # noise in the brightest tissue must not be stretched below and squeezed above
        between.append((white, min(2 * white - grey, x[-1])))
    for start, end in between:
        inside = (x > start) & (x < end)
        assert np.polyfit(x[inside], y[inside], 1)[0] == pytest.approx(slope, abs=0.02)
    assert np.interp(white, x, y) == pytest.approx(asked[2], abs=0.005)


@pytest.mark.parametrize(("fluid", "reached"), [(0.1, True), (0.4, False)])
def test_tissues_reach_their_levels_as_far_as_a_stretch_allows(fluid, reached):
    look = np.array([0.15, 0.51, 0.74])
    found = look + np.array([fluid * (look[1] - look[0]), 0.01, -0.01])
    x, y = _level_curve(found, look)
    after = np.interp(found, x, y)
    assert after[1:] == pytest.approx(look[1:], abs=1e-9)
    assert after[0] == pytest.approx(look[0] if reached else look[1] + 1.3 * (found[0] - found[1]), abs=1e-9)


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_the_shipped_levels_are_those_of_the_unified_truth(method, sequence):
    """As the mixture finds them: whole tissues' medians are not what it reads off a cortex."""
    look = unified_tissues(sequence)
    levels = method.levels(sequence)
    assert levels == pytest.approx(look[[tissues.INDEX["fluid"], tissues.GREY, tissues.WHITE]].tolist(), abs=0.03)
    assert list(np.argsort(levels)) == ([0, 1, 2] if sequence == "T1w" else [2, 1, 0])


@pytest.mark.parametrize(
    ("off", "after", "above"),
    [
        # within a tenth of 0.32 it goes along with grey matter's shift; beyond, it is brought there
        (0.02, 0.66, 1 / 3),
        (-0.02, 0.62, 1 / 3),
        (0.1, 0.682, 1 / 3),
        (-0.1, 0.618, 1 / 3),
        # this is no fluid
        (0.2, 0.84, 1),
        (-0.2, 0.44, 1),
    ],
)
def test_bright_fluid_goes_along_with_grey_matter_or_comes_near_its_level(off, after, above):
    look = np.array([0.65, 0.33, 0.22])
    found = look + np.array([off, 0.01, -0.01])
    x, y = _level_curve(found, look)

    def curve(values):
        return np.interp(values, x, y) + np.maximum(values - x[-1], 0)

    assert curve(found) == pytest.approx([after, *look[1:]], abs=1e-9)
    assert curve(found[0] + 0.1) == pytest.approx(after + 0.1 * above, abs=1e-9)


def test_bright_fluid_is_stretched_by_so_much_at_most():
    x, y = _level_curve(np.array([0.57, 0.5, 0.22]), np.array([0.63, 0.5, 0.22]))
    assert np.interp([0.22, 0.5, 0.57], x, y) == pytest.approx([0.22, 0.5, 0.5 + 1.6 * 0.07], abs=1e-9)


def test_what_it_cannot_do_is_said(method, ball):
    volume, mask, _ = ball
    with pytest.raises(UsageError, match="--target site:nowhere: unknown to model mmh-light"):
        method.harmonize(volume, mask, "T1w", "site:nowhere", 0)
    with pytest.raises(ImageError, match="same intensity"):
        method.harmonize(mask[None].astype(np.float32), mask, "T1w", "unified", 0)
    with pytest.raises(ImageError, match="divide by 8"):
        method.harmonize(volume[:, :-1], mask[:-1], "T1w", "unified", 0)
    with pytest.raises(ValueError, match="mask's shape"):
        method.harmonize(volume[0], mask, "T1w", "unified", 0)


def test_weights_of_another_network_are_refused(method, ball):
    volume, mask, _ = ball
    network = dict(method.bundle.card["network"]) | {"filters": 8}
    other = dataclasses.replace(method.bundle, card={**method.bundle.card, "network": network})
    with pytest.raises(BundleError, match="weights and network differ"):
        MmhLight.load(other, "cpu").harmonize(volume, mask, "T1w", "unified", 0)
    bare = {key: value for key, value in method.bundle.card.items() if key != "network"}
    with pytest.raises(BundleError, match="no network"):
        MmhLight.load(dataclasses.replace(method.bundle, card=bare), "cpu")
