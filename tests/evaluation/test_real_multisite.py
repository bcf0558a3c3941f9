"""Lesion candidates and conditions of the benchmark on real heads, on images made here."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the library's own short name)
from scipy import ndimage

from mmh_bids.image.grid import load_template
from mmh_bids.image.priors import sure_tissues
from mmh_bids.image.registration import itk_affine


@pytest.fixture(scope="module")
def bench(benchmark_module):
    return benchmark_module("real_multisite")


#: Where the template would say white matter: a ball of 20 voxels.
DEEP = np.sqrt(((np.indices((72,) * 3) - 35.5) ** 2).sum(0)) < 20


@pytest.fixture(scope="module")
def patient():
    """A ball of white matter in grey matter in fluid with two lesions: T1w, T2w, the lesions."""
    size = 72
    radius = np.sqrt(((np.indices((size,) * 3) - (size - 1) / 2) ** 2).sum(0))
    rng = np.random.default_rng(0)
    t1w, t2w = (
        np.select([radius < 22, radius < 28, radius < 32], values, 0.0) for values in ([0.8, 0.6, 0.2], [0.2, 0.3, 0.9])
    )
    lesions = np.zeros(radius.shape, bool)
    lesions[30:35, 30:35, 30:35] = lesions[42:46, 30:34, 36:40] = True
    # fluid in the middle of nowhere is no lesion
    t1w[lesions], t2w[lesions] = 0.65, 0.4
    noise = rng.normal(0, 0.01, (2, *radius.shape)) * (radius < 32)
    return (t1w + noise[0]).astype(np.float32), (t2w + noise[1]).astype(np.float32), lesions


def test_lesions_are_found_and_nothing_else(bench, patient):
    t1w, t2w, lesions = patient
    parts, white = bench.lesion_candidates(t1w, t2w, DEEP)
    assert parts.max() == 2
    assert ((parts > 0) & lesions).sum() > 0.9 * lesions.sum()
    assert ((parts > 0) & ~lesions).sum() < 0.1 * lesions.sum()
    assert not bench.lesion_candidates(t1w, np.where(lesions, 0.2, t2w).astype(np.float32), DEEP)[0].any()
    assert white.sum() > 0.8 * 4 / 3 * np.pi * 20**3


def test_contrast_is_that_to_the_white_matter_around(bench, patient):
    t1w, t2w, _ = patient
    parts, white = bench.lesion_candidates(t1w, t2w, DEEP)
    assert bench.lesion_contrasts(parts, white, t2w) == pytest.approx([1.0, 1.0], abs=0.03)
    assert bench.lesion_contrasts(parts, white, t1w) == pytest.approx([-0.1875, -0.1875], abs=0.02)
    # a gain makes no difference
    assert bench.lesion_contrasts(parts, white, 7 * t2w) == pytest.approx([1.0, 1.0], abs=0.03)


def write_plain(bench, folder, values, mask, affine, moved, offset=0.0):
    """An image as preprocessing leaves it, `moved` (mm) from the template in its own space.

    Its mask's grid lies `offset` voxels further along each axis.
    """
    (folder / "sub-1").mkdir()
    shift, further = np.eye(4), np.eye(4)
    shift[:3, 3], further[:3, 3] = moved, offset
    own = nib.Nifti1Image(mask.astype(np.uint8), shift @ affine @ further)
    own.to_filename(folder / "sub-1" / "sub-1_desc-brain_mask.nii.gz")
    name = f"sub-1_{bench.SPACE}_desc-harmonized_T1w.nii.gz"
    nib.Nifti1Image(values, affine).to_filename(folder / "sub-1" / name)
    path = folder / "sub-1" / f"sub-1_from-T1w_to-{bench.TEMPLATE_SPACE}_mode-image_xfm.txt"
    sitk.WriteTransform(itk_affine(shift), str(path))
    return bench.Image(Path("sub-1"), "sub-1", "T1w", "a")


def test_the_rim_of_the_brain_is_not_counted(bench, tmp_path):
    """There interpolation mixes fluid with the zeros around it; the mask lies in the image's own space."""
    template = load_template()
    affine = template.affine @ np.diag([2.0, 2, 2, 1])
    brain = np.asanyarray(template.dataobj)[::2, ::2, ::2]
    values = np.where(brain > 0, 0.5 + 0.5 * brain / brain.max(), 0)
    image = write_plain(bench, tmp_path, values, brain > 0, affine, (9, -5, 3), offset=0.5)
    there, agreed = bench.placed_classes(image, tmp_path)
    # each voxel comes from the eight of the mask around it: its own and those one further down
    whole = ndimage.minimum_filter(brain > 0, size=2, mode="constant")
    assert np.array_equal(there != bench.NO_CLASS, np.any(sure_tissues(brain.shape, affine), axis=0) & whole)
    assert not ((agreed != bench.NO_CLASS) & ~whole).any()


def test_place_and_intensity_must_agree(bench, tmp_path):
    """White matter of the template that an image shows as dark as fluid is white matter by place only."""
    template = load_template()
    affine = template.affine @ np.diag([2.0, 2, 2, 1])
    brain = np.asanyarray(template.dataobj)[::2, ::2, ::2]
    fluid, grey, white = sure_tissues(brain.shape, affine)
    values = np.select([fluid, white, grey, brain > 0], [0.2, 0.8, 0.5, 0.35], 0.0).astype(np.float32)
    lost = white & (np.indices(brain.shape)[0] > 65)
    values[lost] = 0.2
    image = write_plain(bench, tmp_path, values, values > 0, affine, (0, 0, 0))
    there, agreed = bench.placed_classes(image, tmp_path)
    sure = [np.flatnonzero(one) for one in (fluid & (brain > 0), grey & (brain > 0), white)]
    for key, where in zip(("CSF", "GM", "WM"), sure, strict=True):
        assert (there.flat[where] == bench.CLASSES.index(key)).all()
    deep = ndimage.binary_erosion(lost, iterations=2)
    kept = ndimage.binary_erosion(white & ~lost, iterations=2)
    assert deep.any() and (agreed[deep] == bench.NO_CLASS).all()
    assert (agreed[kept] == bench.CLASSES.index("WM")).mean() > 0.99
    assert not (agreed[there == bench.NO_CLASS] != bench.NO_CLASS).any()


def test_a_site_is_the_mean_of_its_images(bench):
    images = [bench.Image(Path(), f"sub-{n}", "T1w", site) for n, site in enumerate(["a", "a", "b"])]
    rows = [{"m": {"GM": value}} for value in (1.0, 3.0, 4.0)]
    # sites at 2 and 4: mean 3, standard deviation sqrt(2)
    assert bench.spreads(images, rows, "m")["GM"] == pytest.approx(np.sqrt(2) / 3)


def test_conditions_can_fail(bench):
    table = {"T1w": {"none": {"GM": 0.2}, "mine": {"GM": 0.11}}}
    lesions = {"sub-1": {"T1w none": -0.2, "T1w mine": -0.1, "T2w none": 0.5, "T2w mine": 0.5}}
    found = {text.split(":")[0]: good for text, _, good in bench.conditions(table, lesions, "mine")}
    assert list(found.values()) == [False, False, True]
    table["T1w"]["mine"]["GM"] = 0.1
    assert bench.conditions(table, lesions, "mine")[0][2]
