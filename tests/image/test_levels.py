"""Tissue levels by the template's maps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from template_brain import AFFINE, SHAPE

from mmh_bids.errors import ImageError
from mmh_bids.image.levels import tissue_levels
from mmh_bids.image.priors import sure_tissues

LOOKS = {"T1w": [0.2, 0.5, 0.75], "T2w": [0.9, 0.35, 0.22], "flat": [0.1, 0.6, 0.65]}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("noise", [0.01, 0.04])
def test_levels_are_found_whatever_the_contrast(tissues, look, noise):
    classes, inside = tissues
    volume = np.array(LOOKS[look])[classes] + np.random.default_rng(0).normal(0, noise, SHAPE)
    found = tissue_levels((volume * inside).astype(np.float32), inside, AFFINE)
    assert found[1:] == pytest.approx(LOOKS[look][1:], abs=0.03)
    assert found[0] == pytest.approx(LOOKS[look][0], abs=0.12)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("width", [5, 9])
def test_fluid_between_folds_is_not_taken_for_grey_matter(tissues, look, width):
    """As in a shrunken brain: sheets of fluid where the template has grey matter, and many voxels that hold both."""
    classes, inside = tissues
    sheets = np.indices(SHAPE).sum(axis=0) % 16 < width
    classes = np.where((classes == 1) & sheets, 0, classes)
    volume = gaussian_filter(np.array(LOOKS[look])[classes], 0.5) + np.random.default_rng(0).normal(0, 0.01, SHAPE)
    found = tissue_levels((volume * inside).astype(np.float32), inside, AFFINE)
    assert found[1] == pytest.approx(np.median(volume[inside & (classes == 1)]), abs=0.02)
    assert found[2] == pytest.approx(LOOKS[look][2], abs=0.02)


def test_a_gain_and_an_offset_pass_through(tissues):
    classes, inside = tissues
    volume = gaussian_filter(np.array(LOOKS["T1w"])[classes], 0.5) + np.random.default_rng(0).normal(0, 0.02, SHAPE)
    first = tissue_levels((volume * inside).astype(np.float32), inside, AFFINE)
    other = tissue_levels(((300 * volume + 50) * inside).astype(np.float32), inside, AFFINE)
    assert other == pytest.approx(300 * first + 50, rel=1e-3)


@pytest.mark.parametrize("look", LOOKS)
def test_fluid_is_read_off_where_the_template_is_sure_of_it(tissues, look):
    """Another brain's ventricles are smaller, and many of its other fluid voxels are shared."""
    classes, inside = tissues
    fluid = sure_tissues(SHAPE, AFFINE)[0] & inside
    slices, checks = np.indices(SHAPE)[2] % 3 < 2, np.indices(SHAPE).sum(0) % 2 == 0
    classes = np.where(fluid, np.where(slices, 0, 1), np.where((classes == 0) & checks, 1, classes))
    volume = np.array(LOOKS[look])[classes]
    volume[(classes == 0) & ~fluid] = np.mean(LOOKS[look][:2])
    found = tissue_levels((volume * inside).astype(np.float32), inside, AFFINE)
    assert found[0] == pytest.approx(LOOKS[look][0], abs=0.02)


def test_what_holds_no_tissue_is_refused(tissues):
    _, inside = tissues
    with pytest.raises(ImageError, match="no contrast"):
        tissue_levels(inside.astype(np.float32), inside, AFFINE)
    few = np.zeros(SHAPE, bool)
    few[30:40, 30:40, 30:40] = True
    with pytest.raises(ImageError, match="too little brain"):
        tissue_levels(np.random.default_rng(0).random(SHAPE, np.float32), few, AFFINE)
