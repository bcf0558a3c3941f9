import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from mmh_bids.reports.difference import FULL, change_of, difference_sheet
from mmh_bids.reports.slices import Volume

MAP = {"Input": [0.0, 0.5, 1.0], "Output": [0.0, 0.7, 0.8], "InputScale": [0.0, 1000.0], "OutputScale": [0.0, 100.0]}


def ball(shape=(40, 48, 44)):
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    return (grid**2).sum(0) < 0.7


def rasters(svg):
    """The slices of a sheet as RGB arrays, the scale of colours left out."""
    found = [base64.b64decode(text) for text in re.findall(r"base64,([^\"]+)\"", svg)]
    return [np.asarray(Image.open(io.BytesIO(each)).convert("RGB")).astype(int) for each in found][1:]


def sheet(change, inside):
    volume = Volume(inside.astype(np.float32), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
    return difference_sheet(volume, Volume(inside, volume.zooms, volume.origin), change, "T1w")


def test_what_the_map_explains_is_in_the_whole_change_only():
    inside = ball()
    before = np.where(inside, np.linspace(200, 900, inside.shape[0])[:, None, None], 0)
    after = 100 * np.interp(before / 1000, MAP["Input"], MAP["Output"])
    change = change_of(before, after, inside, MAP, [(0, 1), (0, 1)])
    assert change.gain == pytest.approx(np.median(after[inside] / before[inside]) * 10)
    expected = after[inside] / 100 - change.gain * before[inside] / 1000
    np.testing.assert_allclose(change.whole[inside], expected, atol=1e-6)
    np.testing.assert_allclose(change.rest, 0, atol=1e-6)
    text = sheet(change, inside)
    mean = 100 * np.abs(expected).mean()
    assert mean > 1
    assert f"sagittal, change apart from brightness (+29 %): mean {mean:.1f} %" in text
    assert "axial, beyond the intensity map<" in text
    pictures = rasters(text)
    assert len(pictures) == 18
    for whole, rest in zip((6, 7, 8), (9, 10, 11), strict=True):  # coronal: a row of each
        assert pictures[whole].max() > 200 and pictures[rest].max() < 8


@pytest.mark.parametrize(("sign", "strong", "weak"), [(1, 0, 2), (-1, 2, 0)])
def test_brighter_is_orange_and_darker_is_blue_where_it_happened(sign, strong, weak):
    inside = ball()
    before = np.where(inside, 0.5, 0.0)
    after = before.copy()
    third = 2 * inside.shape[0] // 3
    after[third:] += np.where(inside, sign * FULL, 0)[third:]  # the right third
    change = change_of(before, after, inside, None, [(0, 1), (0, 1)])
    assert change.rest is None
    middle = rasters(sheet(change, inside))[4]  # coronal, the middle slice: the participant's right is right
    row = middle[middle.shape[0] // 2]
    left, right = row[row.shape[0] // 4], row[3 * row.shape[0] // 4]
    assert left.max() < 8
    assert right[strong] > 200 and right[weak] < 100


def test_outside_the_brain_and_without_numbers_nothing_is_drawn():
    inside = ball()
    before = np.full(inside.shape, 0.5)
    after = before + 1
    after[inside] = np.nan
    change = change_of(before, after, inside, MAP, [(0, 1), (0, 1)])
    assert not change.whole.any() and not change.rest.any()
    assert all(picture.max() == 0 for picture in rasters(sheet(change, inside)))
