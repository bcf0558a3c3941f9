import json

import nibabel as nib
import numpy as np
import pytest

from mmh_bids.simulate.dataset import pose, write_heads
from mmh_bids.simulate.phantom import LABEL_TISSUES
from mmh_bids.simulate.scanner import load_scanners
from mmh_bids.simulate.tissues import INDEX, NAMES
from mmh_bids.simulate.truth import scanner_to_head
from mmh_bids.simulate.unified import unified_tissues


@pytest.fixture
def dataset(tmp_path, label_file):
    """One head on a plumb scanner and on a tilted one with ghosts, in voxels of 4 and 5 mm."""
    tilted = {"voxel": (4.0, 4.0, 5.0), "oblique": (8.0, -3.0, 4.0), "ghosting": 0.5}
    known = load_scanners()
    scanners = [known["A"].changed({"T1w": {"voxel": (4.0, 4.0, 4.0)}}), known["Q"].changed({"T1w": tilted})]
    write_heads(tmp_path / "ds", [label_file], scanners, sequences=["T1w"], say=lambda line: None)
    return tmp_path / "ds"


def truth(dataset, session, suffix):
    return dataset / f"derivatives/truth/sub-01/ses-{session}/anat/sub-01_ses-{session}_{suffix}"


def load(dataset, session, suffix):
    image = nib.load(truth(dataset, session, suffix + ".nii.gz"))
    assert json.loads(truth(dataset, session, suffix + ".json").read_text())["Description"]
    return image


@pytest.mark.parametrize("session", ["A", "Q"])
def test_everything_lies_on_the_grid_of_the_image(dataset, session):
    image = nib.load(dataset / f"sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz")
    kinds = {
        "desc-brainT1w_mask": np.uint8,
        "desc-tissueT1w_dseg": np.uint8,
        "desc-regionsT1w_dseg": np.int16,
        "desc-noisefree_T1w": np.float32,
        "desc-unified_T1w": np.float32,
    }
    for suffix, kind in kinds.items():
        one = load(dataset, session, suffix)
        assert one.shape == image.shape and np.array_equal(one.affine, image.affine), suffix
        assert one.get_data_dtype() == kind, suffix
        assert np.array_equal(one.get_qform(coded=True)[0], image.get_qform()) and int(one.header["sform_code"]) == 1


@pytest.mark.parametrize("session", ["A", "Q"])
def test_noise_free_image_is_the_image_less_its_noise(dataset, session):
    image = nib.load(dataset / f"sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz").get_fdata()
    clean = load(dataset, session, "desc-noisefree_T1w").get_fdata()
    inside = load(dataset, session, "desc-brainT1w_mask").get_fdata() > 0
    protocol = load_scanners()[session].protocol("T1w")
    bright = inside & (clean > 5 * protocol.level / protocol.snr)
    assert (image - clean)[bright].std() == pytest.approx(protocol.level / protocol.snr, rel=0.1)


def test_unified_look_is_the_same_where_the_tissue_is(dataset):
    """Not so the images: their grey matter, relative to white, differs between the scanners."""
    ratios = {"unified": [], "noisefree": []}
    for session in "AQ":
        tissue = np.asarray(load(dataset, session, "desc-tissueT1w_dseg").dataobj)
        unified = load(dataset, session, "desc-unified_T1w").get_fdata()
        # Partial volumes keep the correlation below 1; a head that lies elsewhere would have far less.
        assert np.corrcoef(unified.ravel(), unified_tissues("T1w")[tissue].ravel())[0, 1] > 0.85
        for kind, found in ratios.items():
            values = load(dataset, session, f"desc-{kind}_T1w").get_fdata()
            found.append(values[tissue == INDEX["cortex"]].mean() / values[tissue == INDEX["white_matter"]].mean())
    assert ratios["unified"][0] == pytest.approx(ratios["unified"][1], rel=0.02)
    assert abs(ratios["noisefree"][0] / ratios["noisefree"][1] - 1) > 0.03


@pytest.mark.parametrize("session", ["A", "Q"])
def test_regions_hold_the_codes_of_the_map_and_agree_with_the_tissues(dataset, label_file, session):
    regions = np.asarray(load(dataset, session, "desc-regionsT1w_dseg").dataobj)
    tissue = np.asarray(load(dataset, session, "desc-tissueT1w_dseg").dataobj)
    codes = np.unique(np.asarray(nib.load(label_file).dataobj))
    assert np.array_equal(np.unique(regions), codes)
    for name in ("white_matter", "cortex", "fluid", "cortical_bone", "skin"):
        assert np.array_equal(np.isin(regions, LABEL_TISSUES[name]), tissue == INDEX[name]), name
    levels = json.loads(truth(dataset, session, "desc-tissueT1w_dseg.json").read_text())["Levels"]
    assert levels[str(INDEX["cortex"])] == "cortex" and len(levels) == len(NAMES)


def matrix(dataset, session):
    name = "from-scanner_to-head_mode-image_desc-pose_xfm.json"
    return np.array(json.loads(truth(dataset, session, name).read_text())["Matrix"])


def brain(dataset, session):
    """World coordinates (4, N) of the brain's voxels and their region codes (N,)."""
    regions, mask = (load(dataset, session, suffix) for suffix in ("desc-regionsT1w_dseg", "desc-brainT1w_mask"))
    voxels = np.argwhere(np.asarray(mask.dataobj) > 0)
    points = regions.affine @ np.c_[voxels, np.ones(len(voxels))].T
    return points, np.asarray(regions.dataobj)[tuple(voxels.T)]


def read_at(image, points):
    voxels = np.rint(np.linalg.inv(image.affine) @ points)[:3].astype(int)
    return np.asarray(image.dataobj)[tuple(voxels)]


@pytest.mark.parametrize("session", ["A", "Q"])
def test_the_pose_leads_every_voxel_to_its_place_in_the_label_map(dataset, label_file, session):
    points, codes = brain(dataset, session)
    source = nib.load(label_file)
    move = matrix(dataset, session)
    assert (read_at(source, move @ points) == codes).mean() > 0.999
    for wrong in (np.eye(4), np.linalg.inv(move)):
        assert (read_at(source, wrong @ points) == codes).mean() < 0.95
    linear = matrix(dataset, session)[:3, :3]
    assert np.allclose(linear @ linear.T, np.eye(3), atol=1e-6)


def test_two_poses_lead_from_session_to_session(dataset):
    points, codes = brain(dataset, "A")
    there = load(dataset, "Q", "desc-regionsT1w_dseg")
    between = np.linalg.inv(matrix(dataset, "Q")) @ matrix(dataset, "A")
    right, unmoved, back = (
        (read_at(there, move @ points) == codes).mean() for move in (between, np.eye(4), np.linalg.inv(between))
    )
    # Both grids are nearly as coarse as the structures, so nearest voxels may differ even where they should not.
    assert right > 0.85 and right > max(unmoved, back) + 0.04


def test_the_pose_is_exact(head):
    placed = pose(head, 11)
    voxel = np.array([7.0, 20.0, 31.0, 1.0])
    assert np.allclose(scanner_to_head(head, placed) @ placed.affine @ voxel, head.affine @ voxel, atol=1e-9)
    assert not np.allclose(placed.affine, head.affine)
