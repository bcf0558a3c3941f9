"""Tests of mmh_bids.harmonizers.light, with the shipped bundle."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")

from mmh_bids.errors import BundleError, ImageError, UsageError  # noqa: E402
from mmh_bids.harmonizers.light import MmhLight  # noqa: E402
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


def test_tissues_come_nearer_to_the_unified_look_than_by_z_scoring(method, ball):
    volume, mask, radius = ball
    out = method.harmonize(volume, mask, "T1w", "unified", 0).volume[0]
    look = unified_tissues("T1w")
    mean, std = method.bundle.card["network"]["unified"]["T1w"]
    scored = mean + std * (volume[0] - volume[0][mask].mean()) / volume[0][mask].std()
    truth = np.select(
        [radius < 13, radius < 17], [look[tissues.WHITE], look[tissues.GREY]], look[tissues.INDEX["fluid"]]
    )
    assert np.abs(out - truth)[mask].mean() < 0.7 * np.abs(scored - truth)[mask].mean()
    assert not out[~mask].any() and out.min() >= 0 and out.max() <= 1.25


def test_gain_makes_no_difference_and_the_sequence_does(method, ball):
    volume, mask, _ = ball
    first = method.harmonize(volume, mask, "T1w", "unified", 0)
    again = method.harmonize(volume * np.float32(0.5), mask, "T1w", "unified", 1)
    assert np.allclose(first.volume, again.volume, atol=1e-3)
    assert first.details["BrainMean"] == pytest.approx(2 * again.details["BrainMean"], rel=1e-3)
    assert not np.allclose(first.volume, method.harmonize(volume, mask, "T2w", "unified", 0).volume, atol=0.05)


def test_what_it_cannot_do_is_said(method, ball):
    volume, mask, _ = ball
    with pytest.raises(UsageError, match="--target site:A: .*unified only"):
        method.harmonize(volume, mask, "T1w", "site:A", 0)
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
