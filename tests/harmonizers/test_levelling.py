"""Levels that are to be exact, for stage 2; the rest of `levelling` is tested with the method."""

import numpy as np
import pytest

pytest.importorskip("torch")

from mmh_bids.harmonizers.levelling import RIM_MM, _inner, _level_curve, levelled  # noqa: E402
from mmh_bids.harmonizers.light import MmhLight  # noqa: E402
from mmh_bids.image import levels as module  # noqa: E402
from mmh_bids.image.grid import load_template, resample  # noqa: E402
from mmh_bids.image.levels import tissue_levels  # noqa: E402
from mmh_bids.models.bundle import open_bundle  # noqa: E402

LOOK = np.array([0.65, 0.33, 0.22])


@pytest.fixture(scope="module")
def method():
    return MmhLight.load(open_bundle("mmh-light"), "cpu")


@pytest.fixture(scope="module")
def inverted(method):
    """The template's brain on the model grid with fluid bright, and its mask."""
    template = load_template()
    brain = resample(np.asanyarray(template.dataobj), template.affine, method.bundle.shape, method.bundle.affine)
    mask = brain > 0
    return np.where(mask, 0.8 - 0.6 * brain / brain.max(), 0).astype(np.float32), mask


@pytest.fixture(scope="module")
def unified(inverted, method):
    """As it may come from stage 1: grey matter a little off, fluid within its room."""
    volume, mask = inverted
    asked = np.array(method.levels("T2w"))
    found = tissue_levels(volume, _inner(mask, method.bundle.affine, RIM_MM), method.bundle.affine)
    x, y = [0, *found[::-1], 1.0], [0, asked[2], asked[1] + 0.01, asked[0] - 0.02, 1.0]
    return np.where(mask, np.interp(volume, x, y), 0).astype(np.float32), mask


@pytest.mark.parametrize("off", [0.02, -0.02, 0.1, -0.1])
def test_without_room_bright_fluid_gets_its_level(off):
    found = LOOK + np.array([off, 0.01, -0.01])
    x, y = _level_curve(found, LOOK, room=0.0)
    assert np.interp(found, x, y) == pytest.approx(LOOK, abs=1e-9)


def test_the_rim_is_left_out_where_levels_are_measured(inverted, method, monkeypatch):
    volume, mask = inverted
    seen = []
    monkeypatch.setattr(module, "tissue_levels", lambda v, where, a: seen.append(where) or tissue_levels(v, where, a))
    out, _ = levelled(volume, mask, method.bundle.affine, method.levels("T2w"), rim_mm=RIM_MM)
    assert np.array_equal(seen[0], _inner(mask, method.bundle.affine, 2.0))
    assert 0.7 * mask.sum() < seen[0].sum() < 0.95 * mask.sum()
    # the curve itself is for the whole brain
    assert (out[mask] > 0).all() and not out[~mask].any()


def test_a_t2w_is_settled_at_its_levels_and_a_t1w_stays(unified, method):
    volume, mask = unified
    asked = np.array(method.levels("T2w"))
    settled, levels = method.settled(volume, mask, "T2w")
    assert levels == pytest.approx([asked[0] - 0.02, asked[1] + 0.01, asked[2]], abs=0.004)
    after = tissue_levels(settled, _inner(mask, method.bundle.affine, RIM_MM), method.bundle.affine)
    assert after == pytest.approx(asked, abs=0.004)
    same, none = method.settled(volume, mask, "T1w")
    assert same is volume and none is None


def test_a_site_gets_the_settled_image_and_the_sidecar_says_what_was_found(unified, method, monkeypatch):
    volume, mask = unified
    monkeypatch.setattr(method, "unify", lambda volume, mask, sequence: (volume, {"Stage": 1}))
    settled, levels = method.settled(volume, mask, "T2w")
    assert levels is not None and not np.allclose(settled, volume)
    result = method.harmonize(volume[None], mask, "T2w", "site:sim-A", 0)
    assert result.details["Stage"] == 2 and result.details["TissueLevelsUnified"] == levels
    # the look of what is settled already is the same
    monkeypatch.setattr(method, "settled", lambda volume, mask, sequence: (volume, None))
    again = method.harmonize(settled[None], mask, "T2w", "site:sim-A", 0)
    assert np.array_equal(again.volume, result.volume)
    assert not np.allclose(method.harmonize(volume[None], mask, "T2w", "site:sim-A", 0).volume, result.volume)
