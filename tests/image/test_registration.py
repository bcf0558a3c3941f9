"""Known transforms are found again, files say what ITK says, and every run gives the same bytes."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mmh_bids.errors import ImageError
from mmh_bids.image.grid import antialias, load_template, resample
from mmh_bids.image.itk import LPS
from mmh_bids.image.registration import (
    Volume,
    itk_affine,
    matrix_of,
    overlap,
    read_affine_part,
    read_matrix,
    register_affine,
    register_rigid,
    similarity,
)

CENTRE = np.array([0.0, -17.0, 5.0])


def about_the_centre(turn, shift=(0, 0, 0), scale=1.0):
    """World map (RAS) that turns by Euler angles in degrees about the brain's centre, scales and shifts."""
    linear = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * scale
    return nib.affines.from_matvec(linear, CENTRE - linear @ CENTRE + shift)


@pytest.fixture(scope="module")
def fixed():
    """The template's brain on 2 mm voxels."""
    template = load_template()
    data = antialias(np.asanyarray(template.dataobj), template.affine, np.diag([2.0, 2.0, 2.0, 1.0]))[::2, ::2, ::2]
    affine = template.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    mask = np.asanyarray(template.dataobj)[::2, ::2, ::2] > 0
    return Volume(np.where(mask, data, 0), mask, affine)


def moved(fixed, truth, zooms=(2.0, 2.0, 2.0), contrast=lambda x: x, seed=0):
    """The brain as a scanner would see it if `truth` maps the template's world to the scanner's."""
    shape = tuple(int(n) for n in np.ceil(np.array([240, 260, 240]) / zooms))
    affine = nib.affines.from_matvec(np.diag(zooms))
    affine[:3, 3] = (truth @ [*CENTRE, 1])[:3] - affine[:3, :3] @ (np.array(shape) / 2)
    way = np.linalg.inv(truth)
    mask = resample(fixed.mask.astype(np.float32), fixed.affine, shape, affine, way) > 0.5
    data = resample(fixed.data, fixed.affine, shape, affine, way)
    noise = np.random.default_rng(seed).normal(0, 0.03 * fixed.data.max(), shape)
    return Volume(np.where(mask, contrast(data) + noise, 0).astype(np.float32), mask, affine)


def surface_error(fixed, matrix, truth):
    """Mean distance (mm) between where two maps take the brain's surface."""
    from scipy.ndimage import binary_erosion

    surface = np.argwhere(fixed.mask & ~binary_erosion(fixed.mask))[::7]
    world = nib.affines.apply_affine(fixed.affine, surface)
    difference = nib.affines.apply_affine(matrix, world) - nib.affines.apply_affine(truth, world)
    return np.linalg.norm(difference, axis=1).mean()


def affine_case(fixed):
    truth = about_the_centre((6, -4, 5), (8, -12, 15), 1.05)
    truth[:3, :3] = truth[:3, :3] @ np.diag([1.02, 0.97, 1.03])
    return truth, register_affine(fixed, moved(fixed, truth, (1.6, 2.4, 2.0)))


def rigid_case(fixed):
    """A T2w whose head moved a little after the T1w, on thick slices: what is bright becomes dark."""
    truth = about_the_centre((2, -3, 1), (3, -2, 4))
    t2w = moved(fixed, truth, (1.2, 1.2, 4.0), contrast=lambda x: 1.1 * fixed.data.max() - x)
    return truth, register_rigid(fixed, t2w)


@pytest.fixture(scope="module")
def known_affine(fixed):
    return affine_case(fixed)


@pytest.fixture(scope="module")
def known_rigid(fixed):
    return rigid_case(fixed)


def test_a_known_affine_is_recovered(fixed, known_affine):
    truth, (matrix, quality) = known_affine
    assert surface_error(fixed, matrix, truth) < 1.0
    assert quality["Dice"] > 0.96
    assert quality["Starts"] == 1


def test_a_head_turned_far_is_found_by_more_starts(fixed):
    truth = about_the_centre((-25, 18, 20), (20, 25, -30), 0.95)
    matrix, quality = register_affine(fixed, moved(fixed, truth))
    assert surface_error(fixed, matrix, truth) < 1.5
    assert quality["Dice"] > 0.95


@pytest.mark.slow
def test_another_contrast(fixed):
    """T2w: what is bright becomes dark."""
    truth = about_the_centre((4, 3, -6), (-5, 10, 4))
    t2w = moved(fixed, truth, contrast=lambda x: 1.1 * fixed.data.max() - x)
    matrix, _ = register_affine(fixed, t2w)
    assert surface_error(fixed, matrix, truth) < 1.5


def test_a_known_rigid_is_recovered(fixed, known_rigid):
    truth, (matrix, quality) = known_rigid
    assert surface_error(fixed, matrix, truth) < 1.0
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-9)
    assert quality["Dice"] > 0.93


@pytest.mark.slow
def test_a_rigid_that_the_header_does_not_know(fixed):
    """Headers of two scanners: the identity is no start, the brains' centres are."""
    truth = about_the_centre((5, -3, 6), (70, -60, 50))
    matrix, _ = register_rigid(fixed, moved(fixed, truth))
    assert surface_error(fixed, matrix, truth) < 1.0


def test_the_same_bytes_again_and_whatever_itk_was_told(fixed, known_affine, known_rigid):
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before + 3)
        for first, again in ((known_affine, affine_case(fixed)), (known_rigid, rigid_case(fixed))):
            assert first[1][0].tobytes() == again[1][0].tobytes()
            assert first[1][1] == again[1][1]
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before + 3
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def test_reduced_keeps_the_brain_in_its_place(fixed):
    truth = about_the_centre((10, -20, 30), (5, 6, 7))
    oblique = Volume(fixed.data, fixed.mask, truth @ fixed.affine)
    small = oblique.reduced(4.0)
    np.testing.assert_allclose(np.linalg.norm(small.affine[:3, :3], axis=0), 4.0)
    np.testing.assert_allclose(small.affine[:3, :3].T @ small.affine[:3, :3], 16 * np.eye(3), atol=1e-9)
    places = [
        nib.affines.apply_affine(volume.affine, np.argwhere(volume.mask)).mean(axis=0) for volume in (oblique, small)
    ]
    np.testing.assert_allclose(places[0], places[1], atol=0.2)
    assert small.mask.sum() * 64 == pytest.approx(oblique.mask.sum() * 8, rel=0.02)
    assert not small.data[~small.mask].any()
    inside = small.mask & (small.data > 0)
    assert small.data[inside].mean() == pytest.approx(oblique.data[oblique.mask].mean(), rel=0.05)


def cube(corner, side=10, shape=(40, 40, 40), affine=None):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(c, c + side) for c in corner)] = True
    return Volume(mask.astype(np.float32), mask, np.eye(4) if affine is None else affine)


@pytest.mark.parametrize(("shift", "dice"), [(0, 1.0), (5, 0.5), (10, 0.0)])
def test_overlap_of_two_cubes(shift, dice):
    one, other = cube((10, 10, 10)), cube((10 + shift, 10, 10))
    assert overlap(one, other, np.eye(4)) == pytest.approx(dice)
    back = nib.affines.from_matvec(np.eye(3), [shift, 0, 0])
    assert overlap(one, other, back) == pytest.approx(1.0)


def test_overlap_counts_in_millimetres():
    """The moving cube has half the voxel size, and is twice as large as the map says."""
    one = cube((10, 10, 10))
    fine = cube((20, 20, 20), side=20, shape=(80, 80, 80), affine=np.diag([0.5, 0.5, 0.5, 1.0]))
    assert overlap(one, fine, nib.affines.from_matvec(np.eye(3), [0.25] * 3)) == pytest.approx(1.0)
    double = cube((20, 20, 20), side=20, shape=(80, 80, 80))
    grown = nib.affines.from_matvec(2 * np.eye(3), [0.5, 0.5, 0.5])
    assert overlap(one, double, grown) == pytest.approx(1.0, abs=0.01)


def test_overlap_counts_what_lies_beyond_the_fixed_grid():
    one = cube((10, 10, 10))
    far = cube((10, 10, 10), affine=nib.affines.from_matvec(np.eye(3), [100, 0, 0]))
    assert overlap(one, far, np.eye(4)) == 0
    half = cube((35, 10, 10), shape=(60, 40, 40))
    assert overlap(cube((35, 10, 10), side=5), half, np.eye(4)) == pytest.approx(2 * 125 / (125 + 1000))


def test_similarity_is_highest_where_two_images_match(fixed):
    small = fixed.reduced(4.0)
    inverted = Volume(np.where(small.mask, 1.2 * small.data.max() - small.data, 0), small.mask, small.affine)
    for other in (small, inverted):
        values = [similarity(small, other, about_the_centre((turn, 0, 0), (shift, 0, 0))) for turn, shift in
                  ((0, 0), (0, 4), (4, 0), (0, 12), (12, 0))]  # fmt: skip
        assert values[0] == max(values)
        assert values[1] > values[3]
        assert values[2] > values[4]


def test_similarity_of_an_image_with_itself_is_its_entropy():
    """Mutual information of two equally frequent values is ln 2; ITK's smoothed histogram stays near it."""
    data = np.zeros((24, 24, 24), np.float32)
    data[12:] = 100
    volume = Volume(data, np.ones(data.shape, bool), np.eye(4))
    assert similarity(volume, volume, np.eye(4)) == pytest.approx(np.log(2), abs=0.03)


matrices = st.builds(
    lambda turn, scale, shift: nib.affines.from_matvec(
        Rotation.from_rotvec(np.deg2rad(turn)).as_matrix() @ np.diag(scale), shift
    ),
    st.lists(st.floats(-90, 90), min_size=3, max_size=3),
    st.lists(st.floats(0.7, 1.4), min_size=3, max_size=3),
    st.lists(st.floats(-150, 150), min_size=3, max_size=3),
)


@settings(max_examples=50, deadline=None)
@given(matrix=matrices)
def test_matrices_survive_itk(matrix):
    np.testing.assert_allclose(matrix_of(itk_affine(matrix)), matrix, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(matrix=matrices)
def test_matrices_survive_a_file(matrix, tmp_path_factory):
    path = tmp_path_factory.mktemp("xfm") / "a_xfm.txt"
    sitk.WriteTransform(itk_affine(matrix), str(path))
    np.testing.assert_allclose(read_matrix(str(path)), matrix, atol=1e-9)


def test_a_point_in_ras_and_in_lps():
    """ITK's world has x and y the other way round."""
    matrix = nib.affines.from_matvec(np.eye(3), [1, 2, 3])
    assert itk_affine(matrix).TransformPoint((10.0, 20.0, 30.0)) == (9.0, 18.0, 33.0)
    assert LPS.tolist() == np.linalg.inv(LPS).tolist()


def test_a_transform_with_a_centre():
    rotated = sitk.Euler3DTransform((10.0, -5.0, 3.0), 0.1, 0.2, 0.3, (1.0, 2.0, 3.0))
    point = np.array([7.0, 8.0, 9.0])
    expected = LPS[:3, :3] @ rotated.TransformPoint((LPS[:3, :3] @ point).tolist())
    np.testing.assert_allclose(nib.affines.apply_affine(matrix_of(rotated), point), expected, atol=1e-9)


@pytest.fixture
def warp_file(tmp_path):
    """A composite as fMRIPrep writes it: affine, then a displacement field over the template's grid."""
    affine = about_the_centre((5, -3, 4), (10, -6, 8), 1.07)
    grid = np.stack(np.meshgrid(*[np.arange(-95.0, 96.0, 5.0)] * 3, indexing="ij"), -1)
    bump = 3.0 * np.sin(grid / 6.0)
    field = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(bump, (2, 1, 0, 3))), isVector=True)
    field.SetSpacing([5.0] * 3)
    field.SetOrigin([-95.0] * 3)
    composite = sitk.CompositeTransform(3)
    composite.AddTransform(itk_affine(affine))
    composite.AddTransform(sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64)))
    path = tmp_path / "from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5"
    sitk.WriteTransform(composite, str(path))
    return path, affine


def test_a_warp_is_reduced_to_its_affine(warp_file, fixed):
    path, affine = warp_file
    assert not sitk.ReadTransform(str(path)).IsLinear()
    assert surface_error(fixed, read_matrix(str(path)), affine) < 1.0


def test_the_affine_stage_of_a_composite(warp_file, tmp_path):
    path, affine = warp_file
    np.testing.assert_allclose(read_affine_part(str(path)), affine, atol=1e-9)
    warp = sitk.CompositeTransform(sitk.ReadTransform(str(path))).GetNthTransform(1)
    sitk.WriteTransform(warp, str(tmp_path / "warp.h5"))
    assert read_affine_part(str(tmp_path / "warp.h5")) is None


def test_rigid_and_affine_stage_of_a_composite(warp_file, tmp_path):
    path, affine = warp_file
    rigid = about_the_centre((0, 7, 0), (4, 5, 6))
    stages = sitk.CompositeTransform(sitk.ReadTransform(str(path)))
    whole = sitk.CompositeTransform([itk_affine(rigid), *(stages.GetNthTransform(index) for index in range(2))])
    sitk.WriteTransform(whole, str(tmp_path / "a.h5"))
    np.testing.assert_allclose(read_affine_part(str(tmp_path / "a.h5")), rigid @ affine, atol=1e-9)


def test_a_composite_of_linear_parts(tmp_path):
    first, second = about_the_centre((5, 0, 0), (1, 2, 3)), about_the_centre((0, 7, 0), (4, 5, 6), 1.1)
    composite = sitk.CompositeTransform(3)
    composite.AddTransform(itk_affine(first))
    composite.AddTransform(itk_affine(second))
    sitk.WriteTransform(composite, str(tmp_path / "a.h5"))
    # ITK applies what was added last first
    np.testing.assert_allclose(read_matrix(str(tmp_path / "a.h5")), first @ second, atol=1e-9)


@pytest.mark.parametrize("content", ["", "not a transform", "#Insight Transform File V1.0\n#Transform 0\n"])
def test_a_file_that_is_no_transform(tmp_path, content):
    path = tmp_path / "sub-01_from-T1w_to-MNI152NLin6Asym_mode-image_xfm.txt"
    path.write_text(content)
    with pytest.raises(ImageError, match="transform") as error:
        read_matrix(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_transform_file(tmp_path):
    with pytest.raises(ImageError, match=r"none_xfm\.txt"):
        read_matrix(str(tmp_path / "none_xfm.txt"))


def test_a_singular_transform_is_refused(tmp_path):
    sitk.WriteTransform(itk_affine(np.diag([1.0, 1.0, 0.0, 1.0])), str(tmp_path / "flat_xfm.txt"))
    with pytest.raises(ImageError, match=r"flat_xfm\.txt"):
        read_matrix(str(tmp_path / "flat_xfm.txt"))


def test_empty_masks_are_refused(fixed):
    nothing = Volume(np.zeros_like(fixed.data), np.zeros_like(fixed.mask), fixed.affine)
    speck = Volume(fixed.data, np.zeros_like(fixed.mask), fixed.affine)
    speck.mask[40, 50, 40] = True
    for moving in (nothing, speck):
        for register in (register_affine, register_rigid):
            with pytest.raises(ImageError, match="mask"):
                register(fixed, moving)
