"""The template's brain in three tissues."""

from __future__ import annotations

import numpy as np
import pytest
from template_brain import AFFINE, SHAPE

from mmh_bids.image.grid import load_template, resample


@pytest.fixture(scope="session")
def tissues():
    """The template's brain cut in three by its own brightness (fluid 0, grey 1, white 2), and the brain."""
    template = load_template()
    brain = resample(np.asanyarray(template.dataobj), template.affine, SHAPE, AFFINE)
    inside = brain > 0
    low, high = np.percentile(brain[inside], [18, 62])
    return (brain > low).astype(int) + (brain > high), inside
