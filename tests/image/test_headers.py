import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmh_bids.image.headers import check_header, examine, form_distance

SHAPE = (9, 10, 11)


def save(path, shape=SHAPE, dtype=np.int16, affine=None, kind=nib.Nifti1Image, change=None):
    """Write an image; `change` gets the header as a structured array, so that it may be made wrong."""
    image = kind(np.zeros(shape, dtype), np.eye(4) if affine is None else affine, dtype=np.dtype(dtype))
    nib.save(image, path)
    if change is not None:
        opener = gzip.open if path.name.endswith(".gz") else open
        with opener(path, "rb") as stream:
            content = bytearray(stream.read())
        header = type(image.header)(bytes(content[: image.header.template_dtype.itemsize]), check=False)
        change(header.structarr)
        content[: len(header.binaryblock)] = header.binaryblock
        with opener(path, "wb") as stream:
            stream.write(content)
    return path


def put(field, value, index=None):
    def change(header):
        if index is None:
            header[field] = value
        else:
            header[field][index] = value

    return change


def flat(header):
    header["srow_x"] = header["srow_y"] = (1, 1, 0, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_good_images(tmp_path, name, dtype, kind):
    verdict = examine(save(tmp_path / name, dtype=dtype, kind=kind))
    assert (verdict.action, verdict.reason) == ("harmonize", "")


@pytest.mark.parametrize("affine", [np.diag([-0.7, 0.8, 4, 1]), np.eye(4)[[2, 0, 1, 3]]])
def test_any_axes(tmp_path, affine):
    assert check_header(save(tmp_path / "a.nii", affine=affine)) is None


@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (2, 2)])
def test_one_form_is_enough(tmp_path, codes):
    def change(header):
        header["qform_code"], header["sform_code"] = codes
        if not codes[0]:
            header["quatern_b"] = header["qoffset_x"] = 0.9  # a stale qform that nobody may look at
        if not codes[1]:
            header["srow_x"] = 0

    assert examine(save(tmp_path / "a.nii.gz", change=change)).reason == ""


def test_no_orientation_is_a_warning(tmp_path):
    def change(header):
        header["qform_code"] = header["sform_code"] = 0

    verdict = examine(save(tmp_path / "a.nii.gz", change=change))
    assert verdict.action == "harmonize"
    assert "no orientation" in verdict.reason


@pytest.mark.parametrize(
    ("shape", "action"),
    [
        ((8, 8, 8), "harmonize"),
        ((9, 9, 9, 1), "harmonize"),
        ((9, 9, 9, 1, 1), "harmonize"),
        ((9, 9, 9, 2), "skip"),
        ((9, 9, 9, 1, 3), "skip"),
        ((9, 9, 7), "fail"),
        ((9, 9, 1), "fail"),
        ((9, 9), "fail"),
    ],
)
def test_shapes(tmp_path, shape, action):
    verdict = examine(save(tmp_path / "a.nii.gz", shape))
    assert verdict.action == action
    assert bool(verdict.reason) == (action != "harmonize")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (put("pixdim", 0, 2), "voxel size"),
        (put("pixdim", -1, 1), "voxel size -1"),
        (put("pixdim", np.nan, 3), "voxel size"),
        (put("pixdim", np.inf, 3), "voxel size"),
        (put("pixdim", 0.05, 3), "voxel size"),
        (put("pixdim", 21, 3), "voxel size"),
        (put("srow_y", 0), "voxel size"),
        (put("srow_z", np.nan), "voxel size"),
        (flat, "singular"),
        (put("srow_x", np.nan, 3), "not finite"),
        (put("qoffset_y", 0.2), "disagree by up to 0.2 mm"),
        (put("srow_x", (-1, 0, 0, 8)), "disagree by up to 8.0 mm"),
        (put("datatype", 99), "unknown data type"),
        (put("scl_inter", np.nan), "corrupt"),
        (put("quatern_b", 3), "corrupt"),
        (put("dim", -9, 2), "slice(s)"),
    ],
)
def test_broken_headers(tmp_path, change, word):
    def with_forms(header):
        header["qform_code"] = 1
        header["scl_slope"] = 1
        header["scl_inter"] = 0
        change(header)

    reason = check_header(save(tmp_path / "a.nii.gz", change=with_forms))
    assert word in reason
    assert reason.startswith("a.nii.gz: ")
    assert "\n" not in reason


def test_forms_within_rounding_agree(tmp_path):
    def change(header):
        header["qform_code"] = 1
        header["qoffset_y"] = 0.05

    assert check_header(save(tmp_path / "a.nii", change=change)) is None


@pytest.mark.parametrize(
    ("dtype", "word"),
    [
        (np.complex64, "complex"),
        ([("R", "u1"), ("G", "u1"), ("B", "u1")], "RGB"),
        ([(c, "u1") for c in "RGBA"], "RGB"),
    ],
)
def test_types_that_are_no_intensities(tmp_path, dtype, word):
    assert word in check_header(save(tmp_path / "a.nii.gz", dtype=np.dtype(dtype)))


def test_slope_is_fine(tmp_path):
    def change(header):
        header["scl_slope"], header["scl_inter"] = 0.5, -3

    assert check_header(save(tmp_path / "a.nii.gz", change=change)) is None


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.nii.gz", b"a text file", "not a gzip file"),
        ("a.nii", b"a text file" * 100, "not a NIfTI image"),
        ("a.nii", b"\x00" * 1000, "not a NIfTI image"),
        ("a.nii.gz", gzip.compress(b"a text file" * 100, mtime=0), "not a NIfTI image"),
        ("a.nii.gz", b"", "empty file"),
        ("a.nii", b"", "empty file"),
        (
            "a.nii.gz",
            gzip.compress(bytes(np.random.default_rng(0).bytes(5000)), mtime=0)[:200],
            "truncated or damaged gzip",
        ),
        ("a.nii", b"\x1f\x8b" + b"x" * 400, "not a NIfTI image"),
        ("a.nii", None, "does not exist"),
    ],
)
def test_unreadable_files(tmp_path, name, content, word):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    reason = check_header(path)
    assert word in reason
    assert reason.startswith(f"{name}: ")


def test_folder_and_truncated_plain_file(tmp_path):
    (tmp_path / "b.nii").mkdir()
    assert "folder" in check_header(tmp_path / "b.nii")
    path = save(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated" in check_header(path)


def test_files_are_left_alone(tmp_path):
    path = save(tmp_path / "a.nii.gz", change=put("pixdim", -1, 1))
    before = path.read_bytes()
    examine(path)
    assert path.read_bytes() == before


affines = hnp.arrays(np.float64, (4, 4), elements=st.floats(-50, 50)).map(
    lambda matrix: np.vstack([matrix[:3], [0, 0, 0, 1]])
)
shapes = st.tuples(*[st.integers(1, 300)] * 3)


@given(affines, affines, shapes, st.tuples(*[st.floats(0, 1)] * 3))
def test_no_voxel_is_further_off_than_the_corners(first, second, shape, place):
    voxel = np.array([*(part * (size - 1) for part, size in zip(place, shape, strict=True)), 1])
    distance = np.linalg.norm(((first - second) @ voxel)[:3])
    assert distance <= form_distance(first, second, shape) * (1 + 1e-9) + 1e-9
    assert form_distance(first, second, shape) == form_distance(second, first, shape)


def test_distance_is_the_one_of_the_farthest_voxel():
    assert form_distance(np.eye(4), np.diag([1.03, 1.04, 1, 1]), (101, 101, 5)) == pytest.approx(5)


@given(affines, shapes)
def test_same_form_has_no_distance(affine, shape):
    assert form_distance(affine, affine, shape) == 0
