"""Which files of other pipelines fit an image."""

from __future__ import annotations

from pathlib import Path

import pytest
from releases import MNI, RELEASES, placed

from mmh_bids.bids.reuse import Reusable, check_derivatives, find_reusable, reuse_summary
from mmh_bids.bids.run import Run
from mmh_bids.errors import UsageError


def run(name="sub-01_T1w"):
    """A run out of its name."""
    *pairs, sequence = name.split("_")
    return Run(Path(f"/raw/{name}.nii.gz"), sequence, dict(pair.split("-") for pair in pairs))


@pytest.fixture
def dataset(tmp_path):
    """``dataset(name, files)``: a derivative dataset; its (name, folder) pair."""

    def make(name, *files):
        for file in files:
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return name, str(tmp_path / name)

    return make


def names(found: Reusable):
    return {
        field: path.name
        for field in ("mask", "mask_xfm", "xfm", "xfm_orig")
        if (path := getattr(found, field)) is not None
    }


FMRIPREP = (
    "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
    "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
    f"sub-01/anat/sub-01_space-{MNI}_desc-brain_mask.nii.gz",
    f"sub-01/anat/sub-01_from-T1w_to-{MNI}_mode-image_xfm.h5",
    f"sub-01/anat/sub-01_from-{MNI}_to-T1w_mode-image_xfm.h5",
    "sub-01/anat/sub-01_from-T1w_to-fsnative_mode-image_xfm.txt",
    "sub-01/anat/sub-01_from-orig_to-T1w_mode-image_xfm.txt",
    "sub-02/anat/sub-02_desc-brain_mask.nii.gz",
)


def test_fmriprep(dataset):
    assert names(find_reusable(run(), [dataset("fmriprep", *FMRIPREP)])) == {
        "mask": "sub-01_desc-brain_mask.nii.gz",
        "mask_xfm": "sub-01_from-orig_to-T1w_mode-image_xfm.txt",
        "xfm": f"sub-01_from-T1w_to-{MNI}_mode-image_xfm.h5",
        "xfm_orig": "sub-01_from-orig_to-T1w_mode-image_xfm.txt",
    }


def test_nothing_is_nothing(dataset):
    assert find_reusable(run(), []) == Reusable()
    assert find_reusable(run("sub-03_T1w"), [dataset("fmriprep", *FMRIPREP)]) == Reusable()
    assert Reusable().files == []


def test_a_t2w_takes_nothing_that_names_t1w(dataset):
    assert find_reusable(run("sub-01_T2w"), [dataset("fmriprep", *FMRIPREP)]) == Reusable()


def test_our_own_derivatives(dataset):
    own = dataset(
        "mmh",
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_desc-brainT2w_mask.nii.gz",
        "sub-01/anat/sub-01_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt",
        "sub-01/anat/sub-01_from-T2w_to-MNI152NLin2009aSym_mode-image_xfm.txt",
    )
    assert names(find_reusable(run(), [own])) == {
        "mask": "sub-01_desc-brain_mask.nii.gz",
        "xfm": "sub-01_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt",
    }
    assert names(find_reusable(run("sub-01_T2w"), [own])) == {
        "mask": "sub-01_desc-brainT2w_mask.nii.gz",
        "xfm": "sub-01_from-T2w_to-MNI152NLin2009aSym_mode-image_xfm.txt",
    }


def test_from_orig_belongs_to_its_own_dataset(dataset):
    """A mask on the image's own grid must not be moved by another pipeline's transform."""
    own = dataset("mmh", "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    found = find_reusable(run(), [own, dataset("fmriprep", *FMRIPREP)])
    assert found.mask.parents[2].name == "mmh"
    assert found.mask_xfm is None
    assert found.xfm.parents[2].name == "fmriprep"
    assert found.xfm_orig.parents[2].name == "fmriprep"
    assert len(found.files) == 3


def test_the_first_dataset_wins(dataset):
    first = dataset("a", "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    second = dataset("b", "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    for order in ([first, second], [second, first]):
        assert find_reusable(run(), order).mask.parents[2].name == order[0][0]


def test_runs_and_sessions_are_told_apart(dataset):
    given = dataset(
        "fmriprep",
        "sub-01/ses-A/anat/sub-01_ses-A_run-1_desc-brain_mask.nii.gz",
        "sub-01/ses-A/anat/sub-01_ses-A_run-2_desc-brain_mask.nii.gz",
        "sub-01/ses-B/anat/sub-01_ses-B_desc-brain_mask.nii.gz",
        "sub-01/ses-A/anat/sub-01_ses-A_run-2_from-orig_to-T1w_mode-image_xfm.txt",
    )
    found = {
        name: names(find_reusable(run(name), [given]))
        for name in ("sub-01_ses-A_run-1_T1w", "sub-01_ses-A_run-2_T1w", "sub-01_ses-A_T1w", "sub-01_ses-B_run-1_T1w")
    }
    assert found["sub-01_ses-A_run-1_T1w"] == {"mask": "sub-01_ses-A_run-1_desc-brain_mask.nii.gz"}
    assert found["sub-01_ses-A_run-2_T1w"] == {
        "mask": "sub-01_ses-A_run-2_desc-brain_mask.nii.gz",
        "mask_xfm": "sub-01_ses-A_run-2_from-orig_to-T1w_mode-image_xfm.txt",
    }
    assert found["sub-01_ses-A_T1w"] == {}
    assert found["sub-01_ses-B_run-1_T1w"] == {"mask": "sub-01_ses-B_desc-brain_mask.nii.gz"}


def test_merged_sessions(dataset):
    """fMRIPrep's one reference T1w of all sessions, with a transform from each of them."""
    given = dataset(
        "fmriprep",
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        f"sub-01/anat/sub-01_from-T1w_to-{MNI}_mode-image_xfm.h5",
        "sub-01/ses-A/anat/sub-01_ses-A_from-orig_to-T1w_mode-image_xfm.txt",
        "sub-01/ses-B/anat/sub-01_ses-B_from-orig_to-T1w_mode-image_xfm.txt",
    )
    for session in "AB":
        found = find_reusable(run(f"sub-01_ses-{session}_T1w"), [given])
        assert found.mask.name == "sub-01_desc-brain_mask.nii.gz"
        assert found.mask_xfm == found.xfm_orig
        assert found.mask_xfm.name == f"sub-01_ses-{session}_from-orig_to-T1w_mode-image_xfm.txt"


def test_the_nearest_template_and_the_affine_first(dataset):
    given = [f"sub-01/anat/sub-01_from-T1w_to-{space}_mode-image_xfm{ext}" for space, ext in
             (("MNI152NLin6Asym", ".txt"), (MNI, ".h5"), (MNI, ".txt"), ("MNIInfant", ".txt"))]  # fmt: skip
    assert find_reusable(run(), [dataset("a", *given)]).xfm.name == Path(given[2]).name
    assert find_reusable(run(), [dataset("b", *given[:2])]).xfm.name == Path(given[1]).name
    assert find_reusable(run(), [dataset("c", given[3])]).xfm is None


def test_a_folder_that_is_not_there(tmp_path):
    check_derivatives([("here", str(tmp_path))])
    with pytest.raises(UsageError, match=r"--derivatives gone=.*root"):
        check_derivatives([("here", str(tmp_path)), ("gone", str(tmp_path / "gone"))])


# ---- the trees that releases of fMRIPrep and sMRIPrep leave -------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("session", [None, "A"])
def test_releases(dataset, release, session):
    """Mask, transform to the template and the one from the original are found under every release's names."""
    tree, expected = RELEASES[release]
    given = dataset("given", *placed(tree, session))
    name = f"sub-01_ses-{session}_run-01_T1w" if session else "sub-01_run-01_T1w"
    found = find_reusable(run(name), [given])
    prefix = f"sub-01_ses-{session}" if session else "sub-01"
    assert names(found) == {field: end.replace("PREFIX", prefix) for field, end in expected.items()}
    assert find_reusable(run("sub-01_acq-other_run-02_T1w"), [given]).mask_xfm is None


def test_one_reference_for_all_sessions_under_the_names_before_1_2(dataset):
    given = dataset(
        "fmriprep",
        "sub-01/anat/sub-01_T1w_brainmask.nii.gz",
        f"sub-01/anat/sub-01_T1w_target-{MNI}_warp.h5",
        "sub-01/ses-A/anat/sub-01_ses-A_T1w_space-orig_target-T1w_affine.txt",
    )
    found = find_reusable(run("sub-01_ses-A_T1w"), [given])
    assert found.mask.name == "sub-01_T1w_brainmask.nii.gz"
    assert found.mask_xfm.name == found.xfm_orig.name == "sub-01_ses-A_T1w_space-orig_target-T1w_affine.txt"
    assert find_reusable(run("sub-01_ses-B_T1w"), [given]).mask_xfm is None


def test_masks_in_the_space_of_a_template_or_of_another_series_are_left_alone(dataset):
    other = dataset(
        "fmriprep",
        f"sub-01/anat/sub-01_space-{MNI}_desc-brain_mask.nii.gz",
        f"sub-01/anat/sub-01_space-{MNI}_res-2_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_space-MNIInfant_cohort-1_desc-brain_mask.nii.gz",
        f"sub-01/anat/sub-01_T1w_space-{MNI}_brainmask.nii.gz",
        "sub-01/anat/sub-01_space-fsnative_desc-brain_mask.nii.gz",
        "sub-01/func/sub-01_task-rest_space-T1w_desc-brain_mask.nii.gz",
        f"sub-01/anat/sub-01_from-{MNI}_to-T1w_mode-image_xfm.h5",
        "sub-01/anat/sub-01_from-T1w_to-MNIInfant+1_mode-image_xfm.h5",
        "sub-01/anat/not a bids name_desc-brain_mask.nii.gz",
    )
    assert find_reusable(run(), [other]) == Reusable()


def test_the_reference_t1w_is_a_space_of_its_own_name(dataset):
    given = dataset("nibabies", "sub-01/anat/sub-01_space-T1w_desc-brain_mask.nii.gz")
    assert find_reusable(run(), [given]).mask.name == "sub-01_space-T1w_desc-brain_mask.nii.gz"


def test_zeros_that_fill_a_number_may_be_dropped(dataset):
    given = dataset("a", "sub-01/anat/sub-01_run-2_desc-brain_mask.nii.gz")
    assert find_reusable(run("sub-01_run-02_T1w"), [given]).mask
    assert not find_reusable(run("sub-01_run-20_T1w"), [given]).mask
    # a participant is named, not numbered
    assert not find_reusable(run("sub-1_run-2_T1w"), [given]).mask


def test_what_is_of_use_in_words(dataset):
    given = dataset("fmriprep", *FMRIPREP)
    runs = [run(), run("sub-02_T1w"), run("sub-02_T2w"), run("sub-03_T1w")]
    assert reuse_summary(runs, [given]) == "brain masks for 2 of 4 image(s), transforms to a template for 1"
