import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.errors import ImageError
from mmh_bids.simulate.icbm import head_from_template
from mmh_bids.simulate.phantom import head_from_labels, random_affine, transform_head
from mmh_bids.simulate.tissues import INDEX


def test_labels_become_tissues_and_the_mask_is_brain_and_fluid(label_file, head):
    labels = np.asarray(nib.load(label_file).dataobj)
    assert head.mask.sum() == ((labels > 0) & (labels < 500)).sum()
    assert (head.first == INDEX["white_matter"]).sum() == (labels == 2).sum()
    assert (head.first == INDEX["cortex"]).sum() == (labels == 3).sum()
    soft = np.isin(head.first, [INDEX["fat"], INDEX["muscle"]]).sum()
    assert soft == (labels == 507).sum() and (head.first == INDEX["fat"]).any()


def test_cropping_keeps_world_coordinates(label_file, head):
    image = nib.load(label_file)
    labels = np.asarray(image.dataobj)
    expected = image.affine @ [*np.argwhere(labels == 4).mean(0), 1]
    # The off-centre ventricle is the only fluid inside the white matter.
    inner = np.linalg.norm(np.argwhere(head.first == INDEX["fluid"]) - 20, axis=1) < 10
    got = head.affine @ [*np.argwhere(head.first == INDEX["fluid"])[inner].mean(0), 1]
    assert np.allclose(got, expected)


def test_any_orientation_of_the_file_gives_the_same_head(tmp_path, label_file, head):
    flipped = nib.load(label_file).as_reoriented(nib.orientations.axcodes2ornt("PIL"))
    path = tmp_path / "turned.nii.gz"
    nib.save(flipped, path)
    again = head_from_labels(path, seed=3)
    assert np.array_equal(again.first, head.first) and np.allclose(again.affine, head.affine)


def test_a_speck_of_brain_outside_the_head_is_dropped(tmp_path, label_file, head):
    image = nib.load(label_file)
    labels = np.array(image.dataobj)
    labels[0, 0, 0] = 24
    path = tmp_path / "speck.nii.gz"
    nib.save(nib.Nifti1Image(labels, image.affine), path)
    assert np.array_equal(head_from_labels(path, seed=3).mask, head.mask)


@pytest.mark.parametrize(("code", "words"), [(999, "999"), (-1, "label map"), (None, "cannot be read")])
def test_files_that_are_no_label_map_are_named(tmp_path, label_file, code, words):
    path = tmp_path / "wrong.nii.gz"
    image = nib.load(label_file)
    labels = np.array(image.dataobj)
    if code is None:
        path.write_text("no image")
    else:
        labels[22, 22, 22] = code
        nib.save(nib.Nifti1Image(labels, image.affine), path)
    with pytest.raises(ImageError, match=words) as caught:
        head_from_labels(path)
    assert "wrong.nii.gz" in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_affines_stay_within_their_limits(seed):
    centre = np.array([3.0, -20.0, 10.0])
    move = random_affine(np.random.default_rng(seed), centre, rotation=25, translation=30, scale=0.1)
    rotation, stretch = np.linalg.qr(move[:3, :3])
    stretch = np.abs(np.diag(stretch))
    assert (stretch > 0.9 - 1e-9).all() and (stretch < 1.1 + 1e-9).all()
    rotation = rotation * np.sign(np.diag(np.linalg.qr(move[:3, :3])[1]))
    angle = np.rad2deg(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    moved = move[:3, :3] @ centre + move[:3, 3]
    assert angle <= 25 + 1e-6 and np.linalg.norm(moved - centre) <= 30 + 1e-6


def test_placing_a_head_moves_its_affine_only(head):
    move = random_affine(np.random.default_rng(1), head.brain_centre)
    placed = transform_head(head, move)
    assert placed.first is head.first
    assert np.allclose(placed.affine, move @ head.affine)


@pytest.mark.slow
def test_template_heads_have_a_closed_skull_and_a_human_size():
    head = head_from_template(seed=5)
    volume = head.mask.sum() * abs(np.linalg.det(head.affine)) / 1000
    assert 1200 < volume < 1850
    # Going up, left and back from the centre of the brain every tissue of the wall is met.
    wall = {INDEX[name] for name in ("fluid", "cortical_bone", "marrow", "fat", "skin", "air")}
    x, y, z = np.rint(np.argwhere(head.mask).mean(0)).astype(int)
    for line in (head.first[x, y, z:], head.first[x:, y, z], head.first[x, :y, z]):
        assert wall <= set(np.unique(line).tolist())
    other = head_from_template(seed=6)
    assert (other.first != head.first).mean() > 0.02
