"""A field that is known is found again, and nothing outside the brain suffers."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.ndimage import gaussian_filter

from mmh_bids.image.bias import n4


@pytest.fixture(scope="module")
def head():
    """Three tissues in folds, a skull around them, 4 mm voxels: image without bias, mask, affine, field (mean 1)."""
    shape = (42, 52, 40)
    rng = np.random.default_rng(0)
    radius = np.linalg.norm((np.indices(shape).T - np.array(shape) / 2 + 0.5) / [17, 21, 16], axis=-1).T
    folds = gaussian_filter(rng.normal(size=shape), 1.6)
    folds /= folds.std()
    mask = radius < 1
    tissue = np.select([folds + 1.5 - 2 * radius > 0.3, folds > -1.0], [800.0, 550.0], 200.0)
    clean = np.where(mask, tissue, np.where((radius > 1.1) & (radius < 1.25), 1000.0, 0.0))
    clean = np.abs(clean + rng.normal(0, 12, shape)).astype(np.float32)
    places = (np.indices(shape).T - np.array(shape) / 2).T / 22
    field = np.exp(0.35 * places[0] - 0.3 * places[1] + 0.25 * places[2] ** 2)
    field /= field[mask].mean()
    affine = nib.affines.from_matvec(np.diag([-4.0, 4.0, 4.0]), [84, -100, -80])
    return clean, mask, affine, field


@pytest.fixture(scope="module")
def corrected(head):
    clean, mask, affine, field = head
    return n4((clean * field).astype(np.float32), mask, affine)


def test_a_known_field_is_recovered(head, corrected):
    clean, mask, _, field = head
    bright = mask & (clean > 100)
    ratio = (corrected / clean)[bright]
    ratio /= ratio.mean()
    assert field[bright].std() > 0.15
    assert ratio.std() < 0.03
    assert np.percentile(np.abs(ratio - 1), 99) < 0.08


def test_units_are_kept(head, corrected):
    clean, mask, _, field = head
    estimated = (clean * field)[mask & (clean > 0)] / corrected[mask & (clean > 0)]
    assert estimated.mean() == pytest.approx(1, abs=0.005)
    assert corrected.dtype == np.float32


def test_outside_the_brain_the_field_stays_in_the_range_seen_inside(head, corrected):
    clean, mask, _, field = head
    used = (clean * field) / np.where(corrected > 0, corrected, np.inf)
    inside, outside = used[mask & (clean > 50)], used[~mask & (clean > 50)]
    assert outside.min() >= inside.min() * 0.999
    assert outside.max() <= inside.max() * 1.001
    assert np.isfinite(corrected).all()
    assert (corrected >= 0).all()


def test_an_image_without_bias_stays_as_it_is(head):
    clean, mask, affine, _ = head
    bright = mask & (clean > 100)
    ratio = n4(clean, mask, affine)[bright] / clean[bright]
    assert ratio.std() < 0.02


def test_the_same_bytes_whatever_itk_was_told(head):
    clean, mask, affine, field = head
    biased = (clean * field).astype(np.float32)
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    results = []
    try:
        for threads in (1, 4):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            results.append(n4(biased, mask, affine, sloppy=True).tobytes())
            assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert results[0] == results[1]


def test_axes_do_not_matter(head):
    """A grid that is turned and flipped gives the same brain."""
    clean, mask, affine, field = head
    turned = nib.as_closest_canonical(nib.Nifti1Image((clean * field).astype(np.float32), affine))
    turned_mask = np.asanyarray(nib.as_closest_canonical(nib.Nifti1Image(mask.astype(np.uint8), affine)).dataobj) > 0
    assert nib.aff2axcodes(turned.affine) != nib.aff2axcodes(affine)
    again = n4(np.asanyarray(turned.dataobj), turned_mask, turned.affine, sloppy=True)[::-1]
    first = n4((clean * field).astype(np.float32), mask, affine, sloppy=True)
    bright = mask & (clean > 100)
    assert np.abs(again[bright] / first[bright] - 1).max() < 0.02


def test_negative_and_empty_voxels_in_the_mask_do_no_harm(head):
    clean, mask, affine, field = head
    image = (clean * field).astype(np.float32)
    rng = np.random.default_rng(3)
    image[rng.random(image.shape) < 0.02] = 0
    image[rng.random(image.shape) < 0.01] = -20
    out = n4(image, mask, affine)
    assert np.isfinite(out).all()
    bright = mask & (image > 100)
    ratio = (out / clean)[bright]
    assert ratio.std() / ratio.mean() < 0.04
    np.testing.assert_array_equal(out < 0, image < 0)
    np.testing.assert_array_equal(out == 0, image == 0)


@pytest.mark.parametrize("shape", [(42, 52, 8), (8, 8, 8)])
def test_thin_slabs_and_small_masks_do_no_harm(head, shape):
    clean, mask, affine, _ = head
    part = tuple(slice(20 - n // 2, 20 - n // 2 + n) if n < 40 else slice(None) for n in shape)
    image, inside = clean[part], mask[part].copy()
    out = n4(image, inside, affine, sloppy=True)
    assert np.isfinite(out).all()
    assert 0.5 < np.median(out[inside] / np.maximum(image[inside], 1)) < 2


def test_a_mask_of_single_voxels_does_no_harm(head):
    clean, mask, affine, _ = head
    tiny = np.zeros_like(mask)
    tiny[21, 26, 20] = True
    out = n4(clean, tiny, affine, sloppy=True)
    assert np.isfinite(out).all()
