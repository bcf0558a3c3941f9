"""Features of an image: on one grid, blind to what must not count, and safe on disk."""

import zipfile

import nibabel as nib
import numpy as np
import pytest

from mmh_bids.errors import ImageError
from mmh_bids.evaluation.features import (
    OWN_SCALE,
    features_of,
    features_of_file,
    load_features,
    output_scale,
    save_features,
    template_regions,
)
from mmh_bids.evaluation.placement import AFFINE, SHAPE, on_grid
from mmh_bids.image.grid import MODEL_AFFINE, load_template, resample

TURNED = np.array([[0, 1.0, 0, 4], [-0.95, 0, 0, -3], [0, 0, 1.15, 2], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def head():
    """The template on 3 mm voxels of a turned world: data, affine, mask, and the map from the template's world."""
    template = load_template()
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -130, -110, -80
    data = resample(np.asanyarray(template.dataobj), template.affine, (80, 75, 70), affine, np.linalg.inv(TURNED))
    data = data.astype(np.float64)
    return data, affine, data > 40, TURNED


def test_a_voxel_of_the_grid_is_a_box_of_the_model_grid():
    centre = MODEL_AFFINE @ [0.5, 0.5, 0.5, 1]
    assert SHAPE == (72, 92, 92)
    np.testing.assert_allclose(AFFINE @ [0, 0, 0, 1], centre)
    assert template_regions().shape == SHAPE
    assert 300 < template_regions().max() < 700


def test_a_turned_head_comes_back_to_the_template(head):
    data, affine, mask, xfm = head
    values, inside = on_grid((data, affine), mask, xfm)
    template = load_template()
    truth = resample(np.asanyarray(template.dataobj), template.affine, SHAPE, AFFINE)
    assert np.corrcoef(values[inside], truth[inside])[0, 1] > 0.9
    assert np.all(values[~inside] == 0)


def test_what_lies_outside_the_brain_has_no_weight(head):
    data, affine, mask, xfm = head
    loud = np.where(mask, data, 9000.0)
    np.testing.assert_array_equal(on_grid((data, affine), mask, xfm)[0], on_grid((loud, affine), mask, xfm)[0])
    flat, inside = on_grid((np.where(mask, 7.0, 0), affine), mask, xfm)
    np.testing.assert_allclose(flat[inside], 7, rtol=1e-5)


def test_gain_is_gone_with_the_own_scale_and_stays_with_a_given_one(head):
    data, affine, mask, xfm = head
    once, twice = (features_of_file((data * gain, affine), mask, xfm, "T1w") for gain in (1, 2))
    np.testing.assert_allclose(once.quantiles, twice.quantiles, rtol=1e-5)
    assert once.note == OWN_SCALE
    given = features_of_file((data * 2, affine), mask, xfm, "T1w", upper=100.0)
    assert given.note == ""
    np.testing.assert_allclose(given.quantiles[128] * 100, np.median(data[mask]) * 2, rtol=0.05)


def test_volumes_are_those_of_the_own_space(head):
    data, affine, mask, xfm = head
    found = features_of_file((data, affine), mask, xfm, "T1w")
    assert found.volumes_ml.sum() == pytest.approx(mask.sum() * 0.027, rel=0.03)
    assert found.levels[0] < found.levels[1] < found.levels[2]


def test_blur_lowers_sharpness_and_contrast_does_not(head):
    from scipy.ndimage import gaussian_filter

    data, affine, mask, xfm = head
    sharp, blurred, weak = (
        features_of_file((image, affine), mask, xfm, "T1w").sharpness
        for image in (data, gaussian_filter(data, 1.2), 50 + 0.5 * data)
    )
    assert blurred < 0.9 * sharp
    assert weak == pytest.approx(float(sharp), rel=1e-3)


def test_a_region_without_enough_brain_is_nan(head):
    data, affine, mask, xfm = head
    values, inside = on_grid((data, affine), mask, xfm)
    cut = inside.copy()
    cut[:30] = False
    found = features_of(values, cut, "T1w")
    assert np.isnan(found.regions).any()
    np.testing.assert_array_equal(np.isnan(found.regions), found.brain_share < np.float32(1 / 3))


def test_features_survive_the_disk_with_the_same_bytes(head, tmp_path):
    data, affine, mask, xfm = head
    made = features_of_file((data, affine), mask, xfm, "T1w", with_style=True)
    paths = [save_features(tmp_path / name, {"before": made, "after": made}) for name in ("a.npz", "b.npz")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    # else Python 3.11.2 and 3.11.7 write different bytes
    assert {entry.create_version for entry in zipfile.ZipFile(paths[0]).infolist()} == {zipfile.DEFAULT_VERSION}
    back = load_features(paths[0])
    assert list(back) == ["before", "after"]
    np.testing.assert_array_equal(back["after"].regions, made.regions)
    np.testing.assert_array_equal(back["after"].style, made.style)
    assert back["after"].note == OWN_SCALE


def test_damaged_foreign_and_newer_files_are_refused_by_name(head, tmp_path):
    data, affine, mask, xfm = head
    good = save_features(tmp_path / "good.npz", {"after": features_of_file((data, affine), mask, xfm, "T1w")})
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:700])
    (tmp_path / "text.npz").write_text("no features")
    np.savez(tmp_path / "newer.npz", format_version=np.int64(99))
    np.savez(tmp_path / "pickle.npz", format_version=np.array([{}], dtype=object))
    for name in ("cut", "text", "newer", "pickle", "missing"):
        with pytest.raises(ImageError, match=f"{name}.npz: "):
            load_features(tmp_path / f"{name}.npz")


def test_bad_images_are_named(head, tmp_path):
    data, affine, mask, xfm = head
    flat = tmp_path / "flat.nii.gz"
    nib.Nifti1Image(np.where(mask, 5.0, 0), affine).to_filename(flat)
    with pytest.raises(ImageError, match="flat.nii.gz: .*one and the same value"):
        features_of_file(flat, mask, xfm, "T1w")
    with pytest.raises(ImageError, match="empty"):
        on_grid((data, affine), np.zeros(mask.shape, bool), xfm)
    far = np.eye(4)
    far[:3, 3] = 900
    with pytest.raises(ImageError, match="template"):
        on_grid((data, affine), mask, far)


@pytest.mark.parametrize("ends", [None, 3, [], [0], [0, 0], [0, "x"], [0, float("inf")], [0, None]])
def test_a_scale_that_is_none_is_not_taken(ends):
    assert output_scale({"Harmonization": {"OutputScale": ends}}) is None
