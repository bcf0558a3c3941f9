"""Tests of how mmh_bids.training.light teaches the curve that is the same everywhere."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mmh_bids.harmonizers.light import WEIGHTS_FILE  # noqa: E402
from mmh_bids.models.bundle import open_bundle  # noqa: E402
from mmh_bids.models.light import LightNetwork, measure_style  # noqa: E402
from mmh_bids.simulate import tissues  # noqa: E402
from mmh_bids.simulate.batch import draw_scan  # noqa: E402
from mmh_bids.simulate.unified import unified_tissues  # noqa: E402
from mmh_bids.training.light import _stretch  # noqa: E402
from mmh_bids.training.light_pairs import ideal  # noqa: E402


def brain(sequence, grey, noise, seed=0):
    """(N,) intensities: white matter 1, cortex `grey`, fluid, a sixth partial volume, and noise."""
    rng = np.random.default_rng(seed)
    fluid = 0.35 if sequence == "T1w" else 2.5
    pure = rng.choice([1.0, grey, fluid], 30_000, p=[0.38, 0.5, 0.12])
    share = rng.random(6_000)
    mixed = np.concatenate([share[:4000] + (1 - share[:4000]) * grey, share[4000:] * grey + (1 - share[4000:]) * fluid])
    values = np.concatenate([pure * rng.normal(1, 0.02, pure.size), mixed])
    return torch.from_numpy(np.hypot(values + noise * rng.standard_normal(values.size), noise)).float()


def slopes(network, values, sequence, low, high):
    """Slopes of the curve between two intensities, over the straight line's that would join grey to white matter."""
    style = measure_style(values, sequence)
    x = torch.linspace(low, high, 41)
    with torch.no_grad():
        return (torch.diff(network.one_curve(x[None], style)[0]) / torch.diff(x)).numpy()


@pytest.mark.parametrize("noise", [0.02, 0.05])
@pytest.mark.parametrize("sequence, grey", [("T1w", 0.87), ("T1w", 0.8), ("T1w", 0.65), ("T2w", 1.2), ("T2w", 1.6)])
def test_the_shipped_curve_is_no_staircase(sequence, grey, noise):
    """Where grey and white matter lie close the first bundle made noise into speckle: slopes of 0 and of 6."""
    bundle = open_bundle("mmh-light")
    network = LightNetwork(**bundle.card["network"])
    network.load_state_dict({key: torch.from_numpy(v).float() for key, v in bundle.arrays(WEIGHTS_FILE).items()})
    unified = unified_tissues(sequence)
    natural = float(unified[tissues.WHITE] - unified[tissues.GREY]) / (1 - grey)
    found = slopes(network, brain(sequence, grey, noise), sequence, min(1, grey), max(1, grey)) / natural
    assert found.min() > 0.2
    assert found.max() < 2.5


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_noise_is_stretched_as_the_contrast_is(sequence):
    """From the tissues' own values: 1 where the scan has the unified look, half where it has twice the contrast."""
    scan = draw_scan(sequence, np.random.default_rng(3))
    unified = ideal(scan)
    assert _stretch(unified) == pytest.approx(1)
    assert _stretch(dataclasses.replace(unified, tables=2 * unified.tables)) == pytest.approx(0.5)
    white, grey = tissues.INDEX["white_matter"], tissues.INDEX["cortex"]
    seen, wanted = (float(table[0, white] - table[0, grey]) for table in (scan.tables, scan.target))
    assert seen * _stretch(scan) == pytest.approx(wanted)
