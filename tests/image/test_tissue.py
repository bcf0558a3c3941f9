from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.errors import ImageError
from mmh_bids.image.tissue import CLASSES, segment

MEANS = {"T1w": {"CSF": 0.2, "GM": 0.55, "WM": 0.85}, "T2w": {"CSF": 0.95, "GM": 0.5, "WM": 0.3}}
COUNTS = {"CSF": 3000, "GM": 12000, "WM": 9000}


def brain(sequence, sd=0.03, seed=0):
    """Intensities and true class names, shuffled together."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.repeat(CLASSES, [COUNTS[name] for name in CLASSES]))
    return np.array([MEANS[sequence][name] for name in names]) + rng.normal(0, sd, names.size), names


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_classes_are_found_and_named_by_sequence(sequence):
    values, names = brain(sequence)
    tissue = segment(values, sequence)
    assert (np.array(CLASSES)[tissue.labels] == names).mean() > 0.97
    for name, mean in MEANS[sequence].items():
        assert tissue.means[name] == pytest.approx(mean, abs=0.02)
        assert tissue.share(name) == pytest.approx(COUNTS[name] / values.size, abs=0.02)
    white, grey = MEANS[sequence]["WM"], MEANS[sequence]["GM"]
    assert tissue.white_grey_contrast == pytest.approx(abs(white - grey) / ((white + grey) / 2), rel=0.05)


@given(st.floats(0.01, 5000), st.floats(-100, 100), st.sampled_from(["T1w", "T2w"]))
@settings(deadline=None, max_examples=25)
def test_units_do_not_matter(gain, offset, sequence):
    values, _ = brain(sequence, 0.05)
    first, second = segment(values, sequence), segment(gain * values + offset, sequence)
    assert (first.labels == second.labels).mean() > 0.999


def test_a_few_very_bright_voxels_do_not_matter():
    values, _ = brain("T1w")
    bright = np.concatenate([values, np.full(100, 30.0)])
    assert segment(bright, "T1w").thresholds == pytest.approx(segment(values, "T1w").thresholds, abs=0.02)


@pytest.mark.parametrize("values", [[], [1.0], [2.0] * 100, [1.0, 2.0] * 50])
def test_what_has_no_three_classes_is_refused(values):
    with pytest.raises(ImageError, match="no tissue"):
        segment(np.array(values), "T1w")
