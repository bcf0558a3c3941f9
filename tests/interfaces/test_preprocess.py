"""The preprocessing steps as files in, files out."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation

from mmh_bids.errors import ImageError
from mmh_bids.image.registration import itk_affine, read_matrix
from mmh_bids.interfaces import preprocess
from mmh_bids.interfaces.files import load, load_json, save, save_json

logging.getLogger("nipype.interface").setLevel(logging.CRITICAL)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Interfaces write where they are run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ball(shape=(40, 44, 36), centre=(19, 22, 17), radius=12.0, affine=None):
    """A brain of two tissues in the dark: data, mask, affine."""
    distance = np.linalg.norm((np.indices(shape).T - np.array(centre)).T, axis=0)
    mask = distance < radius
    data = np.where(mask, np.where(distance < 0.7 * radius, 800.0, 500.0), 20.0)
    data += np.random.default_rng(0).normal(0, 5, shape)
    return data.astype(np.float32), mask, np.diag([3.0, 3.0, 3.0, 1.0]) if affine is None else affine


def written(folder, **values):
    """Files by name: images are (data, affine), matrices become ITK files."""
    out = {}
    for name, value in values.items():
        if isinstance(value, tuple):
            out[name] = save(value[0], value[1], Path(folder) / f"{name}.nii")
        else:
            out[name] = str(Path(folder) / f"{name}.txt")
            sitk.WriteTransform(itk_affine(value), out[name])
    return out


def test_files_there_and_back(tmp_path):
    data, mask, affine = ball()
    got, where = load(save(data, affine, tmp_path / "a.nii"))
    np.testing.assert_array_equal(got, data)
    np.testing.assert_array_equal(where, affine)
    assert got.dtype == np.float32
    got, _ = load(save(mask, affine, tmp_path / "m.nii"), bool)
    np.testing.assert_array_equal(got, mask)
    assert nib.load(tmp_path / "m.nii").get_data_dtype() == np.uint8
    assert load_json(save_json({"b": 1, "a": [True, None]}, tmp_path / "a.json")) == {"a": [True, None], "b": 1}


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PIR", "SAL"])
def test_check_image_turns_to_ras(tmp_path, codes):
    data, _, affine = ball()
    back = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    turned = nib.orientations.apply_orientation(data, back)[..., np.newaxis]
    image = nib.Nifti1Image(turned, affine @ nib.orientations.inv_ornt_aff(back, data.shape))
    image.to_filename(tmp_path / "sub-01_T1w.nii.gz")
    result = preprocess.CheckImage(in_file=str(tmp_path / "sub-01_T1w.nii.gz")).run()
    got, where = load(result.outputs.out_file)
    np.testing.assert_array_equal(got, data)
    np.testing.assert_allclose(where, affine, atol=1e-5)


def test_check_image_refuses_what_cannot_be_read(tmp_path):
    path = tmp_path / "sub-01_T1w.nii.gz"
    nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4)).to_filename(path)
    with pytest.raises(ImageError, match="every voxel is 0"):
        preprocess.CheckImage(in_file=str(path)).run()
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"sub-01_T1w\.nii\.gz"):
        preprocess.CheckImage(in_file=str(path)).run()


def test_a_new_version_runs_everything_again(tmp_path):
    path = tmp_path / "a.nii"
    nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4)).to_filename(path)
    marks = {
        preprocess.CheckImage(in_file=str(path), version=version).inputs.get_hashval("timestamp")[1]
        for version in ("1", "2")
    }
    assert len(marks) == 2


#: The head lay 12 mm to the right, 9 mm to the front and turned in the first scan; the merged T1w is upright.
ORIG_FROM_T1W = nib.affines.from_matvec(Rotation.from_euler("z", 20, degrees=True).as_matrix(), [12.0, 9.0, 0.0])


def test_from_orig_to_t1w_brings_the_mask_home(tmp_path):
    """ITK itself resamples the original to the T1w with this file; the mask must go the other way."""
    data, mask, affine = ball()
    files = written(tmp_path, orig=(data, affine), xfm=ORIG_FROM_T1W)
    sitk_orig = sitk.ReadImage(files["orig"], sitk.sitkFloat32)
    grid = sitk.Image([60, 60, 40], sitk.sitkFloat32)
    grid.SetSpacing([3.0] * 3)
    grid.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    grid.SetOrigin([60.0, 60.0, -6.0])
    # what antsApplyTransforms -i orig -r grid -t from-orig_to-T1w does
    t1w = sitk.Resample(sitk_orig, grid, sitk.ReadTransform(files["xfm"]), sitk.sitkLinear)
    sitk.WriteImage(t1w > 300, str(tmp_path / "given.nii"))
    result = preprocess.ReuseMask(
        in_file=files["orig"], mask_file=str(tmp_path / "given.nii"), xfm_file=files["xfm"]
    ).run()
    got, where = load(result.outputs.mask_file, bool)
    assert got.shape == data.shape
    np.testing.assert_array_equal(where, affine)
    assert 2 * (got & mask).sum() / (got.sum() + mask.sum()) > 0.95
    assert result.outputs.facts["Method"] == "reused: given.nii"
    without = preprocess.ReuseMask(in_file=files["orig"], mask_file=str(tmp_path / "given.nii")).run()
    astray, _ = load(without.outputs.mask_file, bool)
    assert 2 * (astray & mask).sum() / (astray.sum() + mask.sum()) < 0.8


def test_a_mask_on_the_images_own_grid_stays_as_it_is(tmp_path):
    """Also in the outermost slices and on an oblique grid."""
    data, mask, _ = ball()
    mask[0], mask[-1], mask[:, :, -1] = True, True, True
    affine = nib.affines.from_matvec(Rotation.from_rotvec([0.2, -0.3, 0.1]).as_matrix() * 1.3, [5, -7, 2])
    files = written(tmp_path, image=(data, affine), mask=(mask, affine))
    result = preprocess.ReuseMask(in_file=files["image"], mask_file=files["mask"]).run()
    np.testing.assert_array_equal(load(result.outputs.mask_file, bool)[0], mask)


def test_a_mask_of_somebody_else_is_refused(tmp_path):
    data, mask, affine = ball()
    far = affine.copy()
    far[:3, 3] = 900
    files = written(tmp_path, image=(data, affine), mask=(mask, far))
    with pytest.raises(ImageError, match=r"mask\.nii: does not overlap.*--derivatives"):
        preprocess.ReuseMask(in_file=files["image"], mask_file=files["mask"]).run()


def test_a_reused_transform_is_taken_as_it_is(tmp_path):
    data, mask, affine = ball()
    to_mni = nib.affines.from_matvec(np.eye(3) * 1.1, [3, 4, 5])
    files = written(tmp_path, image=(data, affine), mask=(mask, affine), xfm=to_mni, orig=ORIG_FROM_T1W)
    step = {"in_file": files["image"], "mask_file": files["mask"], "reused_xfm": files["xfm"]}
    alone = preprocess.ReuseTransform(**step).run().outputs
    np.testing.assert_allclose(read_matrix(alone.xfm_file), to_mni, atol=1e-9)
    assert alone.facts == {"Method": "reused: xfm.txt"}
    both = preprocess.ReuseTransform(**step, reused_orig=files["orig"]).run().outputs
    point = np.array([10.0, -20.0, 30.0])
    in_t1w = nib.affines.apply_affine(to_mni, point)
    np.testing.assert_allclose(
        nib.affines.apply_affine(read_matrix(both.xfm_file), point), nib.affines.apply_affine(ORIG_FROM_T1W, in_t1w)
    )


def composite(path, *parts):
    """An ITK composite of matrices and displacement fields, which are given as one displacement (mm) of everything."""
    whole = sitk.CompositeTransform(3)
    for part in parts:
        if np.ndim(part) == 2:
            whole.AddTransform(itk_affine(part))
            continue
        field = sitk.GetImageFromArray(np.zeros((20, 20, 20, 3)) + np.asarray(part, float), isVector=True)
        field.SetSpacing([12.0] * 3)
        field.SetOrigin([-114.0] * 3)
        whole.AddTransform(sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64)))
    sitk.WriteTransform(whole, str(path))
    return str(path)


def test_of_a_composite_only_the_affine_is_taken(tmp_path):
    """Its affine stage to the digit, not what fits affine and warp together."""
    data, mask, affine = ball()
    to_mni = nib.affines.from_matvec(np.diag([1.1, 1.05, 0.95]), [3, 4, 5])
    files = written(tmp_path, image=(data, affine), mask=(mask, affine), orig=ORIG_FROM_T1W)
    file = composite(tmp_path / "xfm.h5", to_mni, (2.0, -3.0, 1.0))
    step = {"in_file": files["image"], "mask_file": files["mask"], "reused_xfm": file}
    alone = preprocess.ReuseTransform(**step).run().outputs
    np.testing.assert_allclose(read_matrix(alone.xfm_file), to_mni, atol=1e-9)
    assert alone.facts == {"Method": "reused: xfm.h5 (its affine)"}
    both = preprocess.ReuseTransform(**step, reused_orig=files["orig"]).run().outputs
    np.testing.assert_allclose(read_matrix(both.xfm_file), ORIG_FROM_T1W @ to_mni, atol=1e-6)


@pytest.mark.parametrize("parts", [[(1.0, 1.0, 1.0)], [np.eye(4), (9.0, 8.0, 7.0)]])
def test_a_warp_without_its_affine_is_registered_anew(tmp_path, parts):
    """The second: an affine is there, but all the alignment is the warp's."""
    data, mask, affine = ball()
    moved = affine.copy()
    moved[:3, 3] += [6.0, -4.0, 3.0]
    files = written(tmp_path, template=(np.where(mask, data, 0), affine), image=(data, moved), mask=(mask, moved))
    file = composite(tmp_path / "from-T1w_xfm.h5", *parts)
    step = {"in_file": files["image"], "mask_file": files["mask"], "template_file": files["template"], "sloppy": True}
    made = preprocess.ReuseTransform(**step, reused_xfm=file).run().outputs
    assert made.facts["NotReused"] == "from-T1w_xfm.h5: holds a warp without the affine that comes before it"
    assert made.facts["Method"] == "affine, own registration"
    centre = nib.affines.apply_affine(affine, [19, 22, 17])
    there = nib.affines.apply_affine(read_matrix(made.xfm_file), centre)
    np.testing.assert_allclose(there, centre + [6.0, -4.0, 3.0], atol=1.0)


def test_no_bias_correction_passes_the_file_on(tmp_path):
    data, mask, affine = ball()
    files = written(tmp_path, image=(data, affine), mask=(mask, affine))
    result = preprocess.CorrectBias(in_file=files["image"], mask_file=files["mask"], method="none").run()
    assert result.outputs.out_file == files["image"]
    result = preprocess.CorrectBias(in_file=files["image"], mask_file=files["mask"], sloppy=True).run()
    corrected, where = load(result.outputs.out_file)
    np.testing.assert_array_equal(where, affine)
    assert corrected[mask].mean() == pytest.approx(data[mask].mean(), rel=0.05)


GRID = {
    "shape": (30, 32, 28),
    "affine": [[4.0, 0, 0, -60.0], [0, 4.0, 0, -64.0], [0, 0, 4.0, -56.0], [0, 0, 0, 1.0]],
}


def on_grid(tmp_path, shift=0.0, **kwargs):
    data, mask, affine = ball(**kwargs)
    affine = affine.copy()
    affine[:3, 3] = [-57, -66, -51]
    files = written(
        tmp_path, image=(data, affine), mask=(mask, affine), xfm=nib.affines.from_matvec(np.eye(3), [shift, 0, 0])
    )
    step = preprocess.ModelGrid(in_file=files["image"], mask_file=files["mask"], xfm_file=files["xfm"], **GRID)
    return step.run().outputs, data, mask, affine


def test_model_grid(tmp_path):
    out, data, mask, affine = on_grid(tmp_path)
    volume, where = load(out.out_file)
    model_mask, _ = load(out.mask_file, bool)
    facts = json.loads(Path(out.facts_file).read_text())
    assert volume.shape == GRID["shape"]
    np.testing.assert_array_equal(where, GRID["affine"])
    assert 0 <= volume.min() <= volume.max() <= 1
    assert not volume[~model_mask].any()
    assert model_mask.sum() * 64 == pytest.approx(mask.sum() * 27, rel=0.05)
    assert (facts["low"], facts["high"]) == (0, pytest.approx(np.percentile(data[mask], 99.9)))
    assert facts["GridCoverage"] > 0.98
    np.testing.assert_allclose(
        np.argwhere(model_mask).mean(0) * 4 + where[:3, 3], np.argwhere(mask).mean(0) * 3 + affine[:3, 3], atol=0.3
    )
    # 500 and 800 of at most about 810
    assert np.median(volume[model_mask & (volume > 0.8)]) == pytest.approx(800 / facts["high"], abs=0.02)


def test_coverage_tells_how_much_of_the_brain_the_grid_holds(tmp_path):
    out, _, mask, affine = on_grid(tmp_path, shift=66.0)
    covered = json.loads(Path(out.facts_file).read_text())["GridCoverage"]
    # the map carries the template's x to x + 66 in the image: the grid sees what lies right of 66 - 60 - 2 mm
    places = nib.affines.apply_affine(affine, np.argwhere(mask))
    assert covered == pytest.approx((places[:, 0] > 66 - 62).mean(), abs=0.05)


def test_a_brain_outside_the_grid_is_explained(tmp_path):
    with pytest.raises(ImageError, match="out of the model's grid.*--derivatives"):
        on_grid(tmp_path, shift=500.0)


def template_pair():
    """T1w and T2w of one brain: the template at 3 mm; the T2w moved, inverted and on thick slices."""
    from mmh_bids.image.grid import antialias, load_template, resample

    template = load_template()
    brain = np.asanyarray(template.dataobj)
    affine = nib.affines.from_matvec(np.diag([3.0, 3.0, 3.0]), [-90.0, -126.0, -72.0])
    shape = (60, 74, 60)
    soft = antialias(brain, template.affine, affine)
    moved = nib.affines.from_matvec(Rotation.from_euler("x", 4, degrees=True).as_matrix(), [3.0, -2.0, 4.0])

    def view(to_template):
        data = resample(soft, template.affine, shape, affine, to_template)
        mask = resample((brain > 0).astype(np.float32), template.affine, shape, affine, to_template) > 0.5
        return data, mask

    (t1w, t1w_mask), (t2w, t2w_mask) = view(None), view(np.linalg.inv(moved))
    t2w = np.where(t2w_mask, 1.1 * brain.max() - t2w, 0)
    return (t1w, t1w_mask), (t2w.astype(np.float32), t2w_mask), affine, moved


@pytest.fixture(scope="module")
def pair():
    return template_pair()


def coregistered(folder, pair, facts, t1w_mask=None):
    (t1w, mask), (t2w, own), affine, _ = pair
    files = written(
        folder, t1w=(t1w, affine), t1w_mask=(mask if t1w_mask is None else t1w_mask, affine), t2w=(t2w, affine),
        own=(own, affine), t1w_xfm=nib.affines.from_matvec(np.eye(3) * 1.02, [1, 2, 3]),
    )  # fmt: skip
    return preprocess.CoregisterT2w(
        in_file=files["t2w"], mask_file=files["own"], t1w_file=files["t1w"], t1w_mask=files["t1w_mask"],
        t1w_xfm=files["t1w_xfm"], facts=facts,
    ).run().outputs, files  # fmt: skip


FACTS = {"Method": "deepbet", "Volume": 1.0, "InputSkullStripped": False}


def test_a_t2w_borrows_mask_and_transform(tmp_path, pair):
    out, _ = coregistered(tmp_path, pair, FACTS)
    mask, _ = load(out.mask_file, bool)
    own = pair[1][1]
    assert 2 * (mask & own).sum() / (mask.sum() + own.sum()) > 0.97
    assert out.facts["Method"] == "T1w mask through a rigid registration"
    assert out.facts["Volume"] == pytest.approx(mask.sum() * 0.027, abs=0.1)
    # template -> T1w -> T2w
    expected = pair[3] @ nib.affines.from_matvec(np.eye(3) * 1.02, [1, 2, 3])
    points = np.array([[60.0, 0, 0], [-60, 0, 0], [0, 60, 20], [0, -90, 0], [0, 0, 70]])
    got = nib.affines.apply_affine(read_matrix(out.candidate_xfm), points)
    assert np.linalg.norm(got - nib.affines.apply_affine(expected, points), axis=1).max() < 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [
        {"Method": "support", "InputSkullStripped": True},
        {"Method": "reused: a.nii.gz", "InputSkullStripped": False},
    ],
)
def test_a_stripped_t2w_and_one_whose_mask_was_given_keep_theirs(tmp_path, pair, own):
    out, files = coregistered(tmp_path, pair, FACTS | own)
    assert out.mask_file == files["own"]
    assert out.facts["Method"] == own["Method"]
    assert out.candidate_xfm


def test_a_registration_that_measures_badly_is_not_believed(tmp_path, pair):
    """Half of the T1w's brain is missing from its mask."""
    half = pair[0][1].copy()
    half[:30] = False
    out, files = coregistered(tmp_path, pair, FACTS, t1w_mask=half)
    assert out.facts["DiceWithT1w"] < 0.9
    assert out.mask_file == files["own"]
    assert not out.candidate_xfm
    assert out.facts["Method"] == "deepbet"
