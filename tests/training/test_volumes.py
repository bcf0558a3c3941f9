from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from mmh_bids.errors import ImageError
from mmh_bids.models.gradient import gradient_condition
from mmh_bids.models.shrink import shrink, shrink_brain
from mmh_bids.training.standards import Sample
from mmh_bids.training.volumes import Volume, prepare, read_volume


@pytest.fixture
def brain(make_nifti):
    """A brain of 0.25 with a spot of 1, off centre in 12 x 10 x 14."""
    data = np.zeros((12, 10, 14), np.float32)
    data[4:10, 2:8, 2:12] = 0.25
    data[6, 4, 6] = 1
    return Sample(make_nifti("sub-1_T2w.nii.gz", dtype=np.float32, data=data), "T2w", None), data


def test_a_volume_is_scaled_once_and_knows_its_brain(brain):
    sample, data = brain
    volume = prepare(sample)
    np.testing.assert_allclose(volume.image[0, 0].numpy(), 2 * data - 1, atol=1e-6)
    np.testing.assert_array_equal(volume.mask[0, 0].numpy(), data > 0)
    torch.testing.assert_close(volume.condition, gradient_condition(volume.image))
    assert volume.label.tolist() == [1]


def test_shrinking_averages_the_brain_only():
    data = torch.zeros(1, 1, 4, 4, 4)
    data[..., :2, :2, :2] = torch.arange(1, 9).reshape(2, 2, 2) / 10
    data[..., 2:, 2:, 2] = 0.8  # half a cube
    data[..., 2, 0, 0] = 0.9  # an eighth of one
    small, mask = shrink(data, 2)
    expected = torch.zeros(2, 2, 2)
    expected[0, 0, 0], expected[1, 1, 1] = 0.45, 0.8
    torch.testing.assert_close(small[0, 0], expected)
    assert torch.equal(mask[0, 0], expected > 0)


def test_planes_that_fill_no_cube_are_dropped(brain):
    assert prepare(brain[0], 4).image.shape == (1, 1, 3, 2, 3)


def test_a_crop_holds_brain_and_keeps_the_condition_of_the_whole(brain):
    whole = prepare(brain[0])
    for seed in range(10):
        part = whole.cropped(5, np.random.default_rng(seed))
        assert part.image.shape == part.condition.shape == part.mask.shape == (1, 1, 5, 5, 5)
        assert part.mask.any()
        places = [
            (i, j, k)
            for i, j, k in np.ndindex(8, 6, 10)
            if torch.equal(part.image, whole.image[..., i : i + 5, j : j + 5, k : k + 5])
        ]
        assert any(
            torch.equal(part.condition, whole.condition[..., i : i + 5, j : j + 5, k : k + 5]) for i, j, k in places
        )
    assert whole.cropped(None, np.random.default_rng(0)) is whole
    assert whole.cropped(13, np.random.default_rng(0)).image.shape == (1, 1, 12, 10, 13)


def test_a_batch_is_joined(brain):
    volume = prepare(brain[0])
    both = Volume.stack([volume, volume])
    assert both.image.shape == (2, 1, 12, 10, 14)
    assert both.label.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.full((4, 4, 4), -0.1), "no model-grid image"),
        (np.full((4, 4, 4), 700.0), "no model-grid image"),
        (np.full((4, 4, 4), np.nan), "no model-grid image"),
        (np.ones((4, 4, 4, 2)), "no model-grid image"),
        (np.zeros((4, 4, 4)), "no brain in it"),
    ],
)
def test_other_images_are_refused_by_name(make_nifti, data, words):
    path = make_nifti("odd.nii.gz", dtype=np.float32, data=data)
    with pytest.raises(ImageError, match=f"odd.nii.gz: .*{words}"):
        read_volume(path)


def test_a_damaged_file_is_refused_by_name(tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"not an image")
    with pytest.raises(ImageError, match="bad.nii.gz: cannot be read"):
        read_volume(tmp_path / "bad.nii.gz")


def test_a_brain_that_is_too_small_for_the_factor_is_refused(make_nifti):
    data = np.zeros((8, 8, 8), np.float32)
    data[0, 0, 0] = 1
    path = make_nifti("speck.nii.gz", dtype=np.float32, data=data)
    assert isinstance(nib.load(path), nib.Nifti1Image)
    with pytest.raises(ImageError, match="speck.nii.gz: its brain vanishes"):
        prepare(Sample(path, "T1w", None), 4)


def test_zeros_within_a_mask_count_as_brain():
    brain = np.zeros((4, 4, 4), bool)
    brain[:2, :2, :2] = brain[2, 2, 2] = True
    values = np.zeros((4, 4, 4), np.float32)
    values[0] = 0.6
    small, mask = shrink_brain(values, brain, 2)
    assert mask.sum() == 1 and mask[0, 0, 0, 0, 0]
    # one cube holds something, half of it zeros
    assert float(small[0, 0, 0, 0, 0]) == float(small.sum()) == pytest.approx(0.3, abs=1e-5)
