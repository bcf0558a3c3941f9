"""What a person's own tissues add to the look of a site."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from mmh_bids.harmonizers.light import MmhLight  # noqa: E402
from mmh_bids.harmonizers.people import CUBE, MOST, SHARE, deviation, tissue_logs  # noqa: E402
from mmh_bids.image.grid import load_template, resample  # noqa: E402
from mmh_bids.models.bundle import open_bundle  # noqa: E402
from mmh_bids.models.shrink import shrink_brain  # noqa: E402

LEVELS = np.array([0.65, 0.33, 0.22])


def knowing(site, tissues):
    """The shipped method, which knows the average person of a site."""
    bundle = open_bundle("mmh-light")
    sequences = {name: dict(one) for name, one in bundle.card["sequences"].items()}
    sequences["T2w"]["sites"] = {site: {"tissues": tissues, "people": 9}}
    return MmhLight.load(replace(bundle, card={**bundle.card, "sequences": sequences}), "cpu")


@pytest.fixture(scope="module")
def brain():
    """The template's brain with fluid bright: the unified look, mask, and the same as a scanner shows it."""
    shipped = open_bundle("mmh-light")
    template = load_template()
    data = resample(np.asanyarray(template.dataobj), template.affine, shipped.shape, shipped.affine)
    mask = data > 0
    unified = np.where(mask, 0.8 - 0.6 * data / data.max(), 0).astype(np.float32)
    return unified, mask, np.where(mask, unified**1.3, 0).astype(np.float32)


@pytest.fixture
def known(brain, monkeypatch):
    """A method whose stage 1 gives the true unified look of whatever it is shown, and that takes no field off."""
    unified, mask, scan = brain
    (small, inside), (before, _) = (shrink_brain(one, mask, CUBE) for one in (scan, unified))
    average = tissue_logs(*(one[0, 0].numpy() for one in (small, before, inside)), LEVELS)
    method = knowing("Utrecht", average.tolist())
    monkeypatch.setattr(method, "unify", lambda volume, mask, sequence: (unified, {"Stage": 1}))
    monkeypatch.setattr(method, "settled", lambda volume, mask, sequence: (volume, None))
    monkeypatch.setattr(method, "levels", lambda sequence: LEVELS.tolist())
    monkeypatch.setattr("mmh_bids.harmonizers.light.evened", lambda volume, mask, affine: (volume, None))
    return method


def darker(scan, unified, amount):
    """A scan whose white matter is darker by a logarithm, and grey matter by half of that."""
    return (scan * np.exp(-np.interp(unified, LEVELS[::-1], [amount, amount / 2, 0]))).astype(np.float32)


def test_a_persons_white_matter_stays_darker_at_the_target(known, brain):
    unified, mask, scan = brain
    plain, own = (
        known.harmonize(one[None], mask, "T2w", "site:sim-A", 0, site="Utrecht")
        for one in (scan, darker(scan, unified, 0.1))
    )
    assert plain.details["OwnTissues"] == pytest.approx([0, 0], abs=1e-6)
    assert own.details["OwnTissues"] == pytest.approx([-0.05 * SHARE, -0.1 * SHARE], abs=0.004)
    change = np.log(own.volume[0][mask] / plain.volume[0][mask])
    white, fluid = unified[mask] <= LEVELS[2], unified[mask] >= LEVELS[0]
    assert change[white] == pytest.approx(own.details["OwnTissues"][1], abs=1e-3)
    assert not change[fluid].any() and fluid.any()
    assert not own.volume[0][~mask].any()


@pytest.mark.parametrize("site", [None, "Boston"])
def test_without_the_sites_average_person_everybody_gets_the_average(known, brain, site):
    unified, mask, scan = brain
    first, second = (
        known.harmonize(one[None], mask, "T2w", "site:sim-A", 0, site=site)
        for one in (scan, darker(scan, unified, 0.1))
    )
    assert first.details["OwnTissues"] is None and np.array_equal(first.volume, second.volume)


def test_a_t1w_and_the_unified_look_have_no_use_for_it(known, brain):
    unified, mask, scan = brain
    t1w = known.harmonize(scan[None], mask, "T1w", "site:sim-A", 0, site="Utrecht")
    assert t1w.details["OwnTissues"] is None
    first, second = (
        known.harmonize(darker(scan, unified, 0.1)[None], mask, "T2w", "unified", 0, site=site).volume
        for site in ("Utrecht", None)
    )
    assert np.array_equal(first, second)


def test_what_is_no_persons_is_left_out(known, brain):
    unified, mask, scan = brain
    result = known.harmonize(darker(scan, unified, 2 * MOST)[None], mask, "T2w", "site:sim-A", 0, site="Utrecht")
    assert result.details["OwnTissues"] is None
    assert deviation(np.array([0.0, MOST + 0.01]), [0, 0]) is None
