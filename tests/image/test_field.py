"""A field found together with the tissues."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from template_brain import AFFINE, SHAPE

from mmh_bids.errors import ImageError
from mmh_bids.image.bias import n4
from mmh_bids.image.field import tissue_field

LOOKS = {"T1w": [0.15, 0.5, 0.75], "T2w": [0.9, 0.35, 0.22]}


def scan(tissues, look: str, logarithm: np.ndarray | float = 0.0, blur: float = 0.5) -> np.ndarray:
    classes, inside = tissues
    ideal = gaussian_filter(np.array(LOOKS[look])[classes], blur) * np.exp(logarithm)
    return (inside * (ideal + np.random.default_rng(0).normal(0, 0.01, SHAPE))).clip(0).astype(np.float32)


def waves() -> np.ndarray:
    x, y, z = ((np.indices(SHAPE).T - np.array(SHAPE) / 2) / np.array(SHAPE)).T
    return 0.25 * np.sin(3 * x + 1) * np.cos(4 * y) + 0.3 * z


@pytest.mark.parametrize(("look", "share"), [("T1w", 0.2), ("T2w", 0.35)])
def test_a_smooth_field_is_found(tissues, look, share):
    """In T2w voxels of bright fluid and grey matter are more in the way."""
    classes, inside = tissues
    asked = waves()
    found = np.log(tissue_field(scan(tissues, look, asked), inside, AFFINE))
    where = inside & (classes > 0)
    rest = (found - asked)[where]
    assert rest.std() < share * asked[where].std()
    assert found.shape == SHAPE and found.dtype == np.float32


@pytest.mark.parametrize("look", LOOKS)
def test_tissue_is_no_field(tissues, look):
    _, inside = tissues
    assert np.log(tissue_field(scan(tissues, look), inside, AFFINE))[inside].std() < 0.03


@pytest.mark.parametrize("look", LOOKS)
def test_fluid_of_uneven_brightness_is_no_field(tissues, look):
    """Flow and noise make fluid brighter on one side than on the other."""
    classes, inside = tissues
    side = np.tanh((np.indices(SHAPE)[0] - SHAPE[0] / 2) / 10)
    volume = scan(tissues, look, 0.4 * side * (classes == 0))
    assert np.log(tissue_field(volume, inside, AFFINE))[inside & (classes > 0)].std() < 0.03


def test_voxels_that_bright_fluid_and_grey_matter_share_are_no_field(tissues):
    """Thin sheets of fluid where the template has grey matter, on one side only."""
    classes, inside = tissues
    place = np.indices(SHAPE)
    sheets = (place.sum(axis=0) % 8 < 3) & (place[0] < SHAPE[0] / 2)
    volume = scan((np.where((classes == 1) & sheets, 0, classes), inside), "T2w", blur=0.8)
    assert np.log(tissue_field(volume, inside, AFFINE))[inside].std() < 0.045


@pytest.mark.parametrize("strength", [0.45, 0.6])
def test_a_brain_stem_in_a_strong_field_does_not_pass_for_grey_matter(tissues, strength):
    """Shrunken brain: the stem is an island in dark fluid, and N4 leaves it as dark as grey matter."""
    classes, inside = tissues
    low = np.indices(SHAPE)[2] < 34  # below z = -16 mm
    x, y, _ = np.indices(SHAPE)
    stem = low & inside & (np.hypot(x - 35.5, y - 40) < 6)
    island = low & inside & ~stem
    classes = np.where(stem, 2, np.where(island & (np.indices(SHAPE).sum(axis=0) % 8 < 5), 0, classes))
    fall = -strength / (1 + np.exp((np.indices(SHAPE)[2] - 34) / 2.0))
    volume = scan((classes, inside), "T1w", fall)
    deep = inside & (classes == 2) & ~low

    def ratio(values: np.ndarray) -> float:
        return float(np.median(values[stem]) / np.median(values[deep]))

    assert ratio(volume / tissue_field(volume, inside, AFFINE)) > 0.88
    assert ratio(n4(volume, inside, AFFINE)) < 0.85


def test_gain_makes_no_difference(tissues):
    _, inside = tissues
    volume = scan(tissues, "T1w", waves())
    fields = [tissue_field(np.float32(gain) * volume, inside, AFFINE) for gain in (1, 700)]
    assert fields[1] == pytest.approx(fields[0], abs=1e-4)
    thin = fields[0][::3, ::3, ::3][inside[::3, ::3, ::3] & (volume[::3, ::3, ::3] > 0)]
    assert np.log(thin).mean() == pytest.approx(0, abs=1e-3)


def test_what_holds_no_tissue_is_refused(tissues):
    _, inside = tissues
    with pytest.raises(ImageError, match="no contrast"):
        tissue_field(inside.astype(np.float32), inside, AFFINE)
    few = np.zeros(SHAPE, bool)
    few[30:40, 30:40, 30:40] = True
    with pytest.raises(ImageError, match="too little brain"):
        tissue_field(np.random.default_rng(0).random(SHAPE, np.float32), few, AFFINE)
