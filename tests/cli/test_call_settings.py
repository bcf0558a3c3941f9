"""Each flag does what it says: methods, masks and transforms that are known, targets, spaces, plugins."""

import json

import nibabel as nib
import numpy as np
import pytest
from identity import TRANSFORM
from small_study import SOURCES, harmonized, rows, sidecar, sidecar_of
from tiny import describe, image, known_transforms, mmh, save

from mmh_bids.image.grid import load_template, open_nifti
from mmh_bids.image.registration import read_matrix


def _identity(tmp_path, brain, quick, kinds):
    data, affine = brain
    root, out = describe(tmp_path / "raw"), tmp_path / "out"
    for number, (axes, dtype, slope, top) in enumerate(kinds):
        save(image(data * top, affine, axes, dtype, slope), root / f"sub-{number}/anat/sub-{number}_T1w.nii.gz")
    words = ("--method", "none", "--bias-correction", "none", "--skull", "keep")
    known = known_transforms(root, tmp_path / "known")
    call = mmh(root, out, "participant", "-w", tmp_path / "work", "-d", known, *quick, *words)
    assert call.code == 0, call.err
    for number, kind in enumerate(kinds):
        name = f"sub-{number}/anat/sub-{number}_T1w.nii.gz"
        before = np.asanyarray(open_nifti(root / name).dataobj, dtype=np.float64)
        after = np.asanyarray(open_nifti(harmonized(out, name)).dataobj)
        assert np.abs(after - before).max() <= np.spacing(np.float32(np.abs(before).max())), kind


def test_identity_gives_the_input_back(tmp_path, brain, quick):
    """Also the test of integers with slope and intercept: their values, not the stored numbers, come back."""
    _identity(tmp_path, brain, quick, [("LPS", np.int16, 0.25, 1000), ("SAR", np.float64, None, 1e-3)])


@pytest.mark.slow
def test_identity_gives_the_input_back_in_any_orientation_and_type(tmp_path, brain, quick):
    kinds = [
        ("RAS", np.uint8, None, 255), ("LAS", np.int8, None, 120), ("ASL", np.uint16, 0.5, 30000),
        ("IPR", np.int32, None, 1e6), ("PIL", np.uint32, None, 1e5), ("RSP", np.float32, None, 1.0),
        ("LPI", np.int16, 3.7, 9e4), ("SRA", np.int64, None, 5000), ("IAL", np.float32, 2.0, 1e5),
    ]  # fmt: skip
    _identity(tmp_path, brain, quick, kinds)


def test_mask_and_transform_of_another_pipeline(tmp_path, brain, bundle, here):
    """No ``--skull-strip skip`` here: the network would run for an image whose mask is not taken over."""
    data, affine = brain
    root, out, other = describe(tmp_path / "raw"), tmp_path / "out", tmp_path / "fmriprep"
    source = "sub-01/ses-A/anat/sub-01_ses-A_run-1_T1w.nii.gz"
    save(image(np.where(data > 0, data, 0.1) * 800, affine, "LPS"), root / source)
    mask = data > 0.4
    # fMRIPrep merges runs and sessions: fewer entities, its own orientation
    save(image(mask.astype(float), affine, "RAS", np.uint8), other / "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    (other / "sub-01/anat/sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.txt").write_text(TRANSFORM)
    words = ("-d", f"fmriprep={other}", "--sloppy", "--device", "cpu", "--model", bundle, "-w", tmp_path / "work")
    call = mmh(root, out, "participant", *words)
    assert call.code == 0, call.err
    assert "brain mask reused" in call.err and "brain extracted" not in call.err
    assert not list(tmp_path.glob("work/mmh_wf/**/extract_brain"))
    facts = sidecar(out, source)["Harmonization"]
    assert facts["BrainExtraction"]["Method"] == "reused: sub-01_desc-brain_mask.nii.gz"
    assert facts["Registration"]["Method"].startswith("reused: sub-01_from-T1w_to-MNI152NLin2009cAsym")
    made = nib.as_closest_canonical(open_nifti(out / source.replace("T1w.nii", "desc-brain_mask.nii")))
    assert np.array_equal(np.asanyarray(made.dataobj) > 0, mask)
    assert (np.asanyarray(nib.as_closest_canonical(open_nifti(harmonized(out, source))).dataobj)[~mask] == 0).all()
    # another mask at the same place: done again
    save(image((data > 0.5) * 1.0, affine, "RAS", np.uint8), other / "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    assert [row["action"] for row in rows(here(root, out, "participant", *words, "--dry-run"))] == ["harmonize"]


def test_output_space_that_is_not_here(study, tmp_path, here, monkeypatch):
    root, _, words, *_ = study
    space = "MNI152NLin2009cAsym:res-2"
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "nowhere"))
    call = here(root, tmp_path / "out", *words, "-w", tmp_path / "work", "--output-spaces", space)
    assert call.code == 2
    line = call.err.splitlines()[0]
    assert f"--output-spaces {space}: " in line and f"is not under {tmp_path / 'nowhere'}" in line
    assert line.endswith("set TEMPLATEFLOW_HOME")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_output_space_and_reference_image(study, tmp_path):
    root, _, words, *_ = study
    out = tmp_path / "out"
    call = mmh(
        root, out, *words, "-w", tmp_path / "work", "--output-spaces", "MNI152NLin2009aSym",
        "--target", f"image:{SOURCES[3]}", "--participant-label", "01", "--session-label", "A", cwd=root,
    )  # fmt: skip
    assert call.code == 0, call.err
    # a T2w is no reference for a T1w
    assert "sub-01_ses-A_T1w: skipped: the reference of --target image: is a T2w image" in call.err
    facts = sidecar(out, SOURCES[1])["Harmonization"]
    assert facts["Target"] == f"image:{root / SOURCES[3]}"
    (moved,) = out.glob("sub-01/**/*_space-*_T2w.nii.gz")
    assert moved.name == "sub-01_ses-A_space-MNI152NLin2009aSym_res-1_desc-harmonized_T2w.nii.gz"
    template = load_template()
    assert open_nifti(moved).shape == template.shape
    assert np.allclose(open_nifti(moved).affine, template.affine)
    brain = np.asanyarray(template.dataobj) > 0
    covered = np.asanyarray(open_nifti(moved).dataobj) > 0
    assert 2 * (brain & covered).sum() / (brain.sum() + covered.sum()) > 0.93
    fields = json.loads(sidecar_of(moved))
    assert fields["Resolution"] and fields["SkullStripped"] is True


@pytest.mark.slow
def test_whole_chain_with_registration_at_full_model_grid(brain, tmp_path):
    """As users run it, but for the network: own registration, the shipped bundle, MultiProc."""
    data, affine = brain
    root, out = describe(tmp_path / "raw"), tmp_path / "out"
    turn = np.eye(4)
    turn[:3, :3] = [[0.98, -0.17, 0], [0.17, 0.98, 0], [0, 0, 1.05]]
    turn[:3, 3] = [8, -12, 15]
    save(image(data * 800, turn @ affine), root / "sub-1/anat/sub-1_T1w.nii.gz")
    words = ("--skull-strip", "skip", "--device", "auto", "--mem", "8G", "-w", tmp_path / "work")
    call = mmh(root, out, "participant", *words)
    assert call.code == 0, call.err
    facts = sidecar(out, "sub-1/anat/sub-1_T1w.nii.gz")["Harmonization"]
    assert facts["QC"]["TemplateDice"] > 0.95 and facts["QC"]["GridCoverage"] > 0.99
    found = read_matrix(str(out / "sub-1/anat/sub-1_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt"))
    corners = np.array([[60, 40, 60, 1], [-60, 40, 0, 1], [0, -90, 20, 1], [0, 30, -40, 1]]).T
    assert np.linalg.norm(((found - turn) @ corners)[:3], axis=0).max() < 5


@pytest.mark.slow
def test_plugin_file_resource_monitor_and_messages_of_nipype(study, tmp_path):
    root, _, words, *_ = study
    (tmp_path / "plugin.yml").write_text("plugin: MultiProc\nplugin_args: {n_procs: 1}\n")
    words = (*words, "--nipype-plugin-file", tmp_path / "plugin.yml", "--resource-monitor", "-vv", "--notrack")
    (tmp_path / "here").mkdir()
    call = mmh(
        root, tmp_path / "out", *words, "-w", tmp_path / "work", "--participant_label", "02", cwd=tmp_path / "here"
    )
    assert call.code == 0, call.err
    assert "[MultiProc] Running 1 tasks" in call.err and "Free processors: 0/1" in call.err
    times = json.loads((tmp_path / "work/mmh_wf/resource_monitor.json").read_text())
    assert {"rss_GiB", "cpus", "name"} <= set(times) and len(times["time"]) > 3
    assert list((tmp_path / "here").iterdir()) == []
