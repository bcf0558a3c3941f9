from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.errors import BundleError, ImageError, UsageError
from mmh_bids.harmonizers.base import Harmonizer, Reference, find_method, method_names
from mmh_bids.harmonizers.classic import CEILING, HistogramMatch, Nyul, WhiteStripe, ZScore, with_soft_ends
from mmh_bids.harmonizers.identity import Identity
from mmh_bids.harmonizers.standard import Standard, bundle_standards
from mmh_bids.image.intensity import quantile_function, wasserstein
from mmh_bids.models.bundle import open_bundle, write_bundle
from mmh_bids.training.standards import Sample, learn, write_standards

SHAPE = (40, 40, 40)
METHODS = [ZScore, WhiteStripe, Nyul, HistogramMatch]
MEANS = {"T1w": (0.25, 0.55, 0.8), "T2w": (0.85, 0.45, 0.33)}


def head(sequence="T1w", seed=0, curve=lambda x: x, sd=0.03):
    """A ball of three tissues, its intensities bent by `curve`: volume (1, X, Y, Z) in [0, 1], and mask."""
    rng = np.random.default_rng(seed)
    radius = np.linalg.norm(np.indices(SHAPE) - 19.5, axis=0)
    mask = radius < 19
    csf, grey, white = MEANS[sequence]
    volume = np.select([radius < 13, radius < 17.2], [white, grey], csf) + rng.normal(0, sd, SHAPE)
    volume = curve(np.clip(volume, 0.01, 1))
    volume = np.clip(volume / np.percentile(volume[mask], 99.9), 0, 1) * mask
    return volume[np.newaxis].astype(np.float32), mask


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Standards of two sites per sequence."""
    measured = {}
    for sequence in ("T1w", "T2w"):
        for site, curve in (("plain", lambda x: x), ("bent", lambda x: x**1.6)):
            for seed in (1, 2):
                volume, mask = head(sequence, seed, curve)
                sample = Sample(Path(f"{sequence}{site}{seed}"), sequence, site)
                measured[sample] = Standard.measure(volume[0], mask, sequence)
    folder = tmp_path_factory.mktemp("bundles") / "two"
    return write_standards(folder, "two", learn(measured), measured, "simulated")


def run(method, bundle, volume, mask, sequence="T1w", target="unified", reference=None):
    return method.load(bundle, "cpu").harmonize(volume, mask, sequence, target, 0, reference)


def test_all_methods_are_found_by_name_and_fit_the_protocol(bundle):
    for name in ("none", "zscore", "whitestripe", "nyul", "histmatch"):
        assert name in method_names()
        method = find_method(name)
        assert method.name == name
        assert isinstance(method.load(bundle, "cpu"), Harmonizer)


@pytest.mark.parametrize("name", ["zscore", "whitestripe", "nyul", "histmatch"])
@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_the_shipped_bundle_serves_every_method(name, sequence):
    volume, mask = head(sequence)
    harmonizer = find_method(name).load(open_bundle("classic"), "cpu")
    harmonizer.check_target("unified", sequence)
    check_contract(harmonizer.harmonize(volume, mask, sequence, "unified", 0), volume, mask)


def check_contract(result, volume, mask):
    out = result.volume
    assert out.shape == volume.shape
    assert out.dtype == np.float32
    assert not result.keeps_input_scale
    assert np.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= CEILING + 1e-6
    assert (out[0][~mask] == 0).all()
    order = np.argsort(volume[0][mask], kind="stable")
    assert (np.diff(out[0][mask][order]) >= -1e-6).all()
    json.dumps(result.details, allow_nan=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
@pytest.mark.parametrize("target", ["unified", "site:plain", "site:bent"])
def test_output_keeps_the_contract_and_comes_nearer_to_the_target(bundle, method, sequence, target):
    volume, mask = head(sequence, 7, lambda x: x**0.6)
    result = run(method, bundle, volume, mask, sequence, target)
    check_contract(result, volume, mask)
    goal = bundle_standards(bundle)[sequence][target].quantiles
    before, after = (wasserstein(image[0][mask], goal) for image in (volume, result.volume))
    assert after < 0.75 * before


@pytest.mark.parametrize(("method", "limit"), [(Nyul, 0.012), (HistogramMatch, 0.012)])
def test_the_nonlinear_methods_meet_the_target_histogram(bundle, method, limit):
    volume, mask = head("T1w", 7, lambda x: x**0.6)
    result = run(method, bundle, volume, mask, target="site:bent")
    assert wasserstein(result.volume[0][mask], bundle_standards(bundle)["T1w"]["site:bent"].quantiles) < limit


def test_zscore_meets_mean_and_standard_deviation(bundle):
    volume, mask = head("T1w", 7, lambda x: 0.2 + 0.7 * x)
    out = run(ZScore, bundle, volume, mask, target="site:plain").volume[0][mask]
    mean, sd = bundle_standards(bundle)["T1w"]["site:plain"].zscore
    assert out.mean() == pytest.approx(mean, abs=0.005)
    assert out.std() == pytest.approx(sd, rel=0.05)


def test_whitestripe_meets_the_white_matter(bundle):
    volume, mask = head("T1w", 7, lambda x: 0.2 + 0.7 * x)
    out = run(WhiteStripe, bundle, volume, mask, target="site:plain").volume[0]
    plain, _ = head("T1w", 8)
    centre = np.s_[16:24, 16:24, 16:24]
    assert np.median(out[centre]) == pytest.approx(np.median(plain[0][centre]), abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_target_brings_the_reference_scale(bundle, method):
    volume, mask = head("T1w", 7)
    reference, reference_mask = head("T1w", 9, lambda x: x**1.6)
    result = run(method, bundle, volume, mask, target="image:/a.nii.gz", reference=Reference(reference, reference_mask))
    check_contract(result, volume, mask)
    goal = quantile_function(reference[0][reference_mask])
    assert wasserstein(result.volume[0][mask], goal) < 0.6 * wasserstein(volume[0][mask], goal)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_that_is_its_own_target_hardly_changes(bundle, method):
    volume, mask = head("T2w", 7)
    result = run(method, bundle, volume, mask, "T2w", "image:/a.nii.gz", Reference(volume, mask))
    assert np.abs(result.volume - volume)[0][mask].mean() < 0.003


@pytest.mark.parametrize("method", METHODS)
def test_the_same_input_gives_the_same_bytes(bundle, method):
    volume, mask = head("T1w", 3)
    first, second = (run(method, bundle, volume, mask) for _ in range(2))
    assert first.volume.tobytes() == second.volume.tobytes()
    assert first.details == second.details


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_site_names_the_known_ones(bundle, method):
    harmonizer = method.load(bundle, "cpu")
    with pytest.raises(UsageError, match=r"--target site:x.*unified.*site:bent, site:plain"):
        harmonizer.check_target("site:x", "T1w")
    with pytest.raises(UsageError, match="image:<path> only"):
        harmonizer.check_target("unified", "PDw")
    with pytest.raises(UsageError, match="--target image:"):
        harmonizer.check_target("image:", "T1w")
    harmonizer.check_target("image:/x.nii.gz", "T1w")


def empty_mask(volume, mask):
    return volume, np.zeros_like(mask)


def tiny_mask(volume, mask):
    tiny = np.zeros_like(mask)
    tiny[20, 20, 20:25] = True
    return volume, tiny


def constant(volume, mask):
    return np.where(mask, np.float32(0.5), np.float32(0))[np.newaxis], mask


def all_zero(volume, mask):
    return np.zeros_like(volume), mask


def not_a_number(volume, mask):
    volume = volume.copy()
    volume[0, 20, 20, 20] = np.nan
    return volume, mask


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty_mask, "only 0 voxels"),
        (tiny_mask, "only 5 voxels"),
        (constant, "same intensity"),
        (all_zero, "only 0 voxels"),
        (not_a_number, "NaN"),
    ],
)
def test_odd_images_fail_with_a_plain_message(bundle, method, spoil, message):
    with pytest.raises(ImageError, match=message) as caught:
        run(method, bundle, *spoil(*head()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_bad_reference_is_named(bundle, method):
    volume, mask = head()
    with pytest.raises(ImageError, match=r"image:/a.nii.gz.*voxels"):
        run(
            method,
            bundle,
            volume,
            mask,
            target="image:/a.nii.gz",
            reference=Reference(*empty_mask(volume, mask)),
        )


@pytest.mark.parametrize("method", METHODS)
def test_few_grey_levels_and_inverted_contrast_stay_within_the_contract(bundle, method):
    volume, mask = head("T1w", 5)
    levels = np.round(volume * 12) / 12
    check_contract(run(method, bundle, levels, mask), levels, mask)
    inverted = ((1.02 - volume) * mask).astype(np.float32)
    check_contract(run(method, bundle, inverted, mask), inverted, mask)


@pytest.mark.parametrize("method", METHODS)
def test_an_extreme_image_keeps_detail_at_both_ends(bundle, method):
    volume, mask = head("T1w", 5, lambda x: x**3)
    out = run(method, bundle, volume, mask).volume[0][mask]
    assert (out == 0).mean() < 0.001
    assert (out == out.max()).mean() < 0.01


@given(st.floats(-3, 0.5), st.floats(0.1, 8), st.integers(0, 100))
@settings(deadline=None, max_examples=100)
def test_soft_ends_of_any_ascending_curve(offset, gain, seed):
    rng = np.random.default_rng(seed)
    x = np.unique(rng.uniform(0, 1, rng.integers(2, 40)))
    y = offset + gain * np.sort(rng.uniform(0, 1, x.size))
    try:
        curve, _ = with_soft_ends(x, y)
    except ImageError:
        assert y[-1] < 0.06
        return
    probe = curve(np.linspace(0, 1, 200))
    assert curve.is_monotone
    assert probe.min() >= 0
    assert probe.max() <= CEILING + 1e-9
    middle = (y > 0.06) & (y < 0.99) & (x > 0)
    np.testing.assert_allclose(curve(x[middle]), y[middle], atol=1e-9)


def test_the_identity_hands_back_the_volume(bundle):
    volume, mask = head()
    result = Identity.load(bundle, "cpu").harmonize(volume, mask, "T1w", "unified", 0)
    assert result.volume is volume
    assert result.keeps_input_scale
    with pytest.raises(UsageError, match="--method none"):
        Identity.load(bundle, "cpu").check_target("site:plain", "T1w")


def test_a_bundle_without_standards_is_refused(tmp_path, bundle):
    card = {key: value for key, value in bundle.card.items() if key not in ("files", "format_version")}
    bare = write_bundle(tmp_path / "bare", card, {"other.safetensors": {"a": np.ones(1)}})
    with pytest.raises(BundleError, match="no standards"):
        Nyul.load(bare, "cpu")
    only = write_bundle(tmp_path / "only", card | {"methods": ["nyul"]}, {"other.safetensors": {"a": np.ones(1)}})
    with pytest.raises(BundleError, match="--method zscore"):
        ZScore.load(only, "cpu")
    lacking = write_bundle(tmp_path / "lacking", card, {"standards.safetensors": {"a": np.ones(1)}})
    with pytest.raises(BundleError, match="lacks T1w/unified/zscore"):
        Nyul.load(lacking, "cpu")
