"""Reading, turning and writing back: nothing of an image's place, header or values may change on the way."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.nifti1 import Nifti1Extension
from scipy.spatial.transform import Rotation

from mmh_bids.errors import ImageError
from mmh_bids.image.grid import resample
from mmh_bids.image.intensity import robust_scale
from mmh_bids.image.transport import ModelVolumes, Scale, transport
from mmh_bids.image.volume import canonical, image_like, read_image, to_own_axes

AXIS_CODES = [
    "".join(codes) for order in itertools.permutations(["RL", "AP", "SI"]) for codes in itertools.product(*order)
]
#: Header fields that an output takes over from its input as they are.
KEPT = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units", "descrip", "aux_file", "intent_code", "intent_name", "dim_info",
)  # fmt: skip
MODEL_SHAPE = (22, 24, 20)
MODEL_AFFINE = nib.affines.from_matvec(np.diag([2.0, 2.0, 2.0]), [-21.0, -23.0, -19.0])


@st.composite
def scans(draw):
    """A stored image: axes, obliqueness, voxel sizes, number type, scaling, fourth axis, negative values, codes."""
    shape = tuple(draw(st.lists(st.integers(8, 13), min_size=3, max_size=3)))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    codes = draw(st.sampled_from(AXIS_CODES))
    zooms = [draw(st.floats(1.0, 6.0)) for _ in range(3)]
    turn = draw(st.sampled_from([0.0, 5.0, 25.0, 44.0]))
    dtype = np.dtype(draw(st.sampled_from(["int16", "uint16", "uint8", "float32", "float64", "int32", ">i2", ">f4"])))
    slope = draw(st.sampled_from([None, 0.037, 2.5])) if dtype.kind in "iu" else None
    negative = draw(st.booleans()) and (dtype.kind in "if" or slope is not None)
    data = rng.gamma(3.0, 25.0, shape)
    raw = np.clip(data, 0, 255)
    if negative and dtype.kind in "if":
        raw = raw - 40
    raw = np.rint(raw) if dtype.kind in "iu" else raw
    ornt = nib.orientations.axcodes2ornt(tuple(codes))
    axes = nib.orientations.inv_ornt_aff(ornt, (1, 1, 1))[:3, :3].T
    rotation = Rotation.from_rotvec(np.deg2rad(turn) * rng.dirichlet([1, 1, 1])).as_matrix()
    linear = rotation @ np.linalg.inv(axes).T @ np.diag(zooms)
    affine = nib.affines.from_matvec(linear, rng.uniform(-90, 90, 3))
    affine[:3, 3] -= affine[:3] @ np.append(np.array(shape) / 2, 1) - rng.uniform(-4, 4, 3)
    return {
        "raw": raw.astype(dtype), "affine": affine, "slope": slope, "inter": -30.0 if negative else 12.0,
        "fourth": draw(st.booleans()), "q": draw(st.sampled_from([0, 1, 3])), "s": draw(st.sampled_from([0, 1, 4])),
        "kind": draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image])), "codes": codes,
    }  # fmt: skip


def stored(scan, path):
    """Write a scan with an extension, units and a display range; return the image as a reader finds it."""
    raw = scan["raw"][..., np.newaxis] if scan["fourth"] else scan["raw"]
    image = scan["kind"](raw, scan["affine"])
    image.set_qform(scan["affine"], scan["q"])
    image.set_sform(scan["affine"], scan["s"])
    header = image.header
    header.set_xyzt_units("mm", "sec")
    header["descrip"], header["aux_file"], header["cal_max"] = b"TE=2.3;sec=1", b"none", 99.0
    header["dim_info"] = 54
    header.extensions.append(Nifti1Extension("comment", b"kept as it is"))
    if scan["slope"]:
        header.set_slope_inter(scan["slope"], scan["inter"])
    image.to_filename(path)
    return nib.load(path)


def through_the_model_grid(image, mask, skull, change=lambda before: before):
    """What the pipeline does between the source and the derivative, with `change` as the harmonizer."""
    turned = canonical(image)
    native = np.asanyarray(turned.dataobj)
    low, high = robust_scale(native[mask])
    there = resample(native, turned.affine, MODEL_SHAPE, MODEL_AFFINE)
    model_mask = resample(mask.astype(np.float32), turned.affine, MODEL_SHAPE, MODEL_AFFINE) > 0.5
    before = np.where(model_mask, np.clip((there - low) / (high - low), 0, 1), 0).astype(np.float32)
    model = ModelVolumes(before, change(before), model_mask, MODEL_AFFINE, np.eye(4))
    scale = Scale(low, high)
    return transport(native, turned.affine, mask, model, scale, scale, skull)[0]


@settings(max_examples=120, deadline=None)
@given(scan=scans(), skull=st.sampled_from(["strip", "keep"]), ending=st.sampled_from([".nii", ".nii.gz"]))
def test_identity_in_identity_out(scan, skull, ending):
    with tempfile.TemporaryDirectory() as folder:
        source = stored(scan, Path(folder) / f"in{ending}")
        image = read_image(Path(folder) / f"in{ending}")
        assert image.shape == scan["raw"].shape
        mask = np.zeros(canonical(image).shape, bool)
        mask[2:-2, 1:-2, 2:-1] = True
        out = through_the_model_grid(image, mask, skull)
        written = image_like(to_own_axes(out, source), source)
        written.to_filename(Path(folder) / f"out{ending}")
        result = nib.load(Path(folder) / f"out{ending}")
        got = np.asanyarray(result.dataobj)

    expected = scan["raw"].astype(np.float64) * (scan["slope"] or 1) + (scan["inter"] if scan["slope"] else 0)
    own_mask = to_own_axes(mask, source)
    if skull == "strip":
        assert not got[~own_mask].any()
        got, expected = got[own_mask], expected[own_mask]
    size = np.abs(scan["raw"].astype(np.float64)).max() * (scan["slope"] or 1) + abs(scan["inter"])
    np.testing.assert_allclose(got, expected, rtol=0, atol=4 * np.finfo(np.float32).eps * size)
    same_place(result, source)


def same_place(result, source):
    """Everything that is not about values is as in the source."""
    assert result.affine.tobytes() == source.affine.tobytes()
    assert result.shape == source.shape[:3]
    assert type(result) is type(source)
    assert result.get_data_dtype() == np.float32
    assert (result.dataobj.slope, result.dataobj.inter) == (1, 0)
    for name in KEPT:
        assert result.header[name].tobytes() == source.header[name].tobytes(), name
    assert result.header["pixdim"][:4].tobytes() == source.header["pixdim"][:4].tobytes()
    assert result.header["cal_max"] == 0
    assert [(e.get_code(), e.get_content()) for e in result.header.extensions] == [
        (e.get_code(), e.get_content()) for e in source.header.extensions
    ]


@pytest.mark.parametrize("codes", AXIS_CODES)
def test_canonical_and_back_on_every_orientation(codes):
    data = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    ornt = nib.orientations.axcodes2ornt(tuple(codes))
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), ornt)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) @ nib.orientations.inv_ornt_aff(back, (4, 5, 6))
    turned = nib.Nifti1Image(nib.orientations.apply_orientation(data, back), affine)
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    np.testing.assert_array_equal(np.asanyarray(canonical(turned).dataobj), data)
    np.testing.assert_array_equal(to_own_axes(data, turned), np.asanyarray(turned.dataobj))


def saved(tmp_path, data, name="a.nii.gz"):
    nib.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "3 voxels are NaN"), (np.inf, "3 voxels are NaN"), (5.0, "every voxel is 5")]
)
def test_images_without_numbers_are_refused(tmp_path, value, says):
    data = np.full((9, 9, 9), 5.0, np.float32)
    data[0, 0, :3] = value
    path = saved(tmp_path, data)
    with pytest.raises(ImageError, match=says) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_truncated_files_are_refused(tmp_path, ending, share):
    path = saved(tmp_path, np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32), f"a{ending}")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError, match="truncated, damaged or not a NIfTI") as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_bytes_in_the_middle_are_refused(tmp_path):
    path = saved(tmp_path, np.random.default_rng(0).normal(size=(30, 30, 30)).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(bytes(content))
    with pytest.raises(ImageError, match="truncated, damaged or not a NIfTI"):
        read_image(path)


def test_text_called_nifti_and_a_missing_file(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_text("not an image")
    with pytest.raises(ImageError, match="not a NIfTI"):
        read_image(path)
    with pytest.raises(ImageError, match=r"b\.nii\.gz"):
        read_image(tmp_path / "b.nii.gz")


def test_an_image_of_several_volumes_is_refused(tmp_path):
    path = saved(tmp_path, np.random.default_rng(0).normal(size=(9, 9, 9, 2)).astype(np.float32))
    with pytest.raises(ImageError, match="4D|4-D|volumes"):
        read_image(path)


def test_integers_beyond_float32_stay_finite(tmp_path):
    data = np.random.default_rng(0).integers(0, 2**31 - 1, (9, 9, 9)).astype(np.int32)
    got = np.asanyarray(read_image(saved(tmp_path, data)).dataobj)
    np.testing.assert_allclose(got, data, rtol=1e-7)


def test_a_mask_is_written_as_bytes(tmp_path):
    source = nib.load(saved(tmp_path, np.random.default_rng(0).normal(size=(9, 8, 7))))
    mask = np.random.default_rng(1).random((9, 8, 7)) > 0.5
    image_like(mask, source, np.uint8).to_filename(tmp_path / "mask.nii.gz")
    back = nib.load(tmp_path / "mask.nii.gz")
    assert back.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), mask)
