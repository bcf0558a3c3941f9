"""The app end to end on tiny brains: what it writes, that it resumes, and that each flag does what it says."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import psutil
import pytest
from tiny import TRANSFORM, describe, image, known_transforms, leftovers, mmh, save

from mmh_bids.image.grid import load_template, open_nifti
from mmh_bids.image.registration import read_matrix

SOURCES = (
    "sub-01/ses-A/anat/sub-01_ses-A_T1w.nii.gz",
    "sub-01/ses-A/anat/sub-01_ses-A_T2w.nii.gz",
    "sub-01/ses-B/anat/sub-01_ses-B_acq-fast_run-02_T1w.nii.gz",
    "sub-02/anat/sub-02_T2w.nii.gz",
)
GOLDEN = """
.bidsignore README.md dataset_description.json descriptions.tsv participants.json participants.tsv
sub-01.html sub-02.html
logs/.dataset.lock logs/CITATION.bib logs/CITATION.md logs/config-RUN.toml logs/images.tsv logs/mmh-RUN.log
logs/provenance-RUN.json
"""
DERIVED = """
desc-harmonized_SEQ.json desc-harmonized_SEQ.nii.gz desc-preproc_SEQ.json desc-preproc_SEQ.nii.gz desc-MASK_mask.json
desc-MASK_mask.nii.gz from-SEQ_to-MNI152NLin2009aSym_mode-image_xfm.txt
"""
FIGURES = ("beforeafter", "histogram", "mask", "registration")


def _write_dataset(root, brain):
    data, affine = brain
    describe(root)
    t2w = np.where(data > 0, 1.2 - data, 0)
    save(image(data * 800, affine, "LPS", np.int16, slope=0.5), root / SOURCES[0])
    save(image(t2w * 250, affine, "RAS", np.uint8), root / SOURCES[1])
    save(image(data * 3000, affine, "PIR", np.uint16), root / SOURCES[2])
    save(image(t2w * 1.5, affine, "ASL", np.float64), root / SOURCES[3])
    (root / "participants.tsv").write_text("participant_id\tsite\nsub-01\tA\nsub-02\tB\n")
    (root / "T1w.json").write_text(json.dumps({"MagneticFieldStrength": 3, "EchoTime": 0.003, "SliceTiming": [0]}))
    return root


@pytest.fixture(scope="module")
def study(tmp_path_factory, brain, quick):
    """Dataset, known transforms, the words of a quick call, and its output: (root, known, words, out, call)."""
    base = tmp_path_factory.mktemp("app")
    root = _write_dataset(base / "raw", brain)
    words = ("participant", "-d", f"known={known_transforms(root, base / 'known')}", *quick)
    out = base / "out"
    call = mmh(root, out, *words, "-w", base / "work")
    assert call.code == 0, call.err
    return root, out, words, base / "work", call


def _files(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def _hashes(out, under=""):
    """Hash by name of all derivatives; the logs of each call differ."""
    return {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest()
        for name in _files(out)
        if not name.startswith("logs/") and "/log/" not in name and name.startswith(under)
    }


def _times(out):
    return {name: (out / name).stat().st_mtime_ns for name in _files(out) if not name.startswith("logs/")}


def _harmonized(out, source):
    return out / re.sub(r"_(T[12]w)\.nii\.gz$", r"_desc-harmonized_\1.nii.gz", source)


def _sidecar(out, source):
    return json.loads(str_of(_harmonized(out, source)))


def str_of(path):
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json").read_text()


# ---- what one call writes -----------------------------------------------------------------------------------


def test_list_of_files(study):
    _, out, _, _, _ = study
    expected = GOLDEN.split()
    for source in SOURCES:
        folder, name = source.rsplit("/", 1)
        stem, sequence = name.removesuffix(".nii.gz").rsplit("_", 1)
        mask = "brain" if sequence == "T1w" else "brainT2w"
        expected += [f"{folder}/{stem}_{end}" for end in DERIVED.replace("SEQ", sequence).replace("MASK", mask).split()]
        expected += [f"{folder[:6]}/figures/{stem}_desc-{figure}_{sequence}.svg" for figure in FIGURES]
    assert [re.sub(r"\d{8}-\d{6}-\d{4}", "RUN", name) for name in _files(out)] == sorted(expected)
    assert leftovers(out) == []


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("desc", ["harmonized", "preproc"])
def test_image_has_the_grid_of_its_input(study, source, desc):
    root, out, *_ = study
    before = open_nifti(root / source).header
    after = open_nifti(str(_harmonized(out, source)).replace("harmonized", desc)).header
    assert after.get_data_shape() == before.get_data_shape()
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d",
                  "qoffset_x", "qoffset_y", "qoffset_z", "pixdim"):  # fmt: skip
        assert after[field].tobytes() == before[field].tobytes(), field
    assert after.get_data_dtype() == np.float32
    assert after.get_slope_inter() in ((1.0, 0.0), (None, None))


@pytest.mark.parametrize("source", SOURCES)
def test_harmonized_image_has_the_brain_in_its_place(study, source):
    root, out, *_ = study
    before, after = (np.asanyarray(open_nifti(path).dataobj) for path in (root / source, _harmonized(out, source)))
    assert np.isfinite(after).all() and after.min() >= 0
    assert ((after > 0) == (before > 0.01 * before.max())).mean() > 0.99
    inside = (after > 0) & (before > 0)
    ranks = [np.argsort(np.argsort(values[inside][::7])) for values in (before, after)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9


@pytest.mark.parametrize("source", SOURCES)
def test_sidecar(study, source):
    root, out, *_ = study
    fields = _sidecar(out, source)
    assert fields["SkullStripped"] is True
    assert fields["Sources"] == [f"bids:raw:{source}"]
    assert fields["GeneratedBy"][0]["Name"] == "mmh"
    assert ("MagneticFieldStrength" in fields) == source.endswith("T1w.nii.gz")
    assert "SliceTiming" not in fields
    facts = fields["Harmonization"]
    assert facts["SourceSHA256"] == hashlib.sha256((root / source).read_bytes()).hexdigest()
    assert (facts["Method"], facts["Model"], facts["Target"], facts["Seed"]) == ("zscore", "tiny", "unified", 0)
    assert (facts["Site"], facts["SiteSource"]) == ({"01": "A", "02": "B"}[source[4:6]], "participants.tsv:site")
    assert facts["Sloppy"] is True and facts["Device"] == "cpu" and facts["DType"] == "float32"
    assert {"Finite", "NonNegative", "IntensityMapMonotone", "GradientCorrelation"} <= set(facts["QC"])
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert (out / links["raw"]).resolve() == root.resolve()


def test_t2w_borrows_from_the_t1w_of_its_session_only(study):
    _, out, *_ = study
    assert "DiceWithT1w" in _sidecar(out, SOURCES[1])["Harmonization"]["BrainExtraction"]
    assert "DiceWithT1w" not in _sidecar(out, SOURCES[3])["Harmonization"]["BrainExtraction"]


def test_records_of_the_call(study):
    _, out, _, _, call = study
    with (out / "participants.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [(row["participant_id"], row["site"], row["status"], row["n_images"]) for row in rows] == [
        ("sub-01", "A", "done", "3"), ("sub-02", "B", "done", "1"),
    ]  # fmt: skip
    (provenance,) = out.glob("logs/provenance-*.json")
    text = provenance.read_text()
    for name in _files(out):
        if name.endswith(("harmonized_T1w.nii.gz", "harmonized_T2w.nii.gz", "mask.nii.gz", "xfm.txt")):
            assert hashlib.sha256((out / name).read_bytes()).hexdigest() in text, name
    (log,) = out.glob("logs/mmh-*.log")
    lines = log.read_text().splitlines()
    assert "4 image(s) to harmonize" in lines[0]
    assert lines[-1].endswith("mmh: ends with exit code 0 (all done)")
    assert [line.split(" ", 3)[3] for line in lines] == call.err.splitlines()


def test_progress_is_one_line_a_step(study):
    call = study[-1]
    for source in SOURCES:
        key = source.rsplit("/", 1)[1].removesuffix(".nii.gz")
        steps = [line.split(": ", 1)[1] for line in call.err.splitlines() if f"] {key}: " in line]
        assert len(steps) == (9 if key == "sub-01_ses-A_T2w" else 8), steps
        assert all(re.search(r" \(\d+\.\d s\)$", step) for step in steps)
    assert call.out == ""


def test_bids_validator_finds_no_error(study):
    root, out, *_ = study
    validator = shutil.which("bids-validator-deno") or shutil.which("bids-validator-deno", path=_beside_python())
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    done = subprocess.run([validator, "--json", str(out)], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue.get("severity") == "error"] == []
    assert done.returncode == 0


def _beside_python():
    import sys

    return os.path.dirname(sys.executable)


# ---- resume and repeat --------------------------------------------------------------------------------------


def test_second_call_does_nothing(study):
    root, out, words, work, _ = study
    before = _times(out)
    call = mmh(root, out, *words, "-w", work)
    assert call.code == 0, call.err
    assert "0 image(s) to harmonize, 4 done before" in call.err
    assert "]" not in call.err.replace("[Errno", "")
    changed = {name for name, time in _times(out).items() if before.get(name) != time}
    assert changed <= {"sub-01.html", "sub-02.html"}


@pytest.mark.slow
def test_calls_with_empty_folders_give_the_same_bytes(study, tmp_path):
    root, out, words, *_ = study
    again = tmp_path / "out"  # the same name: reports and dataset_description.json tell the folders by name
    assert mmh(root, again, *words, "-w", tmp_path / "work").code == 0
    first, second = _hashes(out), _hashes(again)
    first.pop("dataset_description.json"), second.pop("dataset_description.json")
    assert first == second


@pytest.fixture(scope="module")
def life(study, tmp_path_factory):
    """The one T2w of participant 02, alone, in folders that tests may change: (call, out, work)."""
    root, _, words, *_ = study
    out = tmp_path_factory.mktemp("life") / "out"
    work = out.parent / "work"

    def call(*more):
        return mmh(root, out, *words, "-w", work, "--participant-label", "sub-02", *more)

    first = call()
    assert first.code == 0, first.err
    return call, out, work


def test_one_participant_alone_gives_the_same_bytes(study, life):
    _, out, *_ = study
    assert _hashes(life[1], under="sub-02") == _hashes(out, under="sub-02")
    assert not (life[1] / "sub-01").exists()


@pytest.mark.slow
def test_a_t2w_left_over_borrows_from_its_finished_t1w_as_before(study, tmp_path):
    """A call that died between T1w and T2w: the next one must not mask the T2w in another way."""
    root, out, words, *_ = study
    again = tmp_path / "out"
    shutil.copytree(out, again)
    for path in again.glob("sub-01/ses-A/**/*T2w*"):
        path.unlink()
    call = mmh(root, again, *words, "-w", tmp_path / "work", "--participant-label", "01", "--session-label", "A")
    assert call.code == 0, call.err
    assert "2 image(s) to harmonize, 0 done before" in call.err
    assert _hashes(again, "sub-01/") == _hashes(out, "sub-01/")


@pytest.mark.slow
def test_lost_figure_and_lost_image_are_made_again(life):
    call, out, _ = life
    before = _hashes(out)
    (out / "sub-02/figures/sub-02_desc-mask_T2w.svg").unlink()
    (out / "sub-02/anat/sub-02_desc-harmonized_T2w.nii.gz").unlink()
    again = call()
    assert "1 image(s) to harmonize, 0 done before" in again.err
    # from the work directory: only what writes is run again
    steps = [line.split(": ", 1)[1].split(" (")[0] for line in again.err.splitlines() if line.startswith("[")]
    assert sorted(steps) == ["derivatives written", "figures drawn"]
    assert _hashes(out) == before


def test_report_is_written_again_from_derivatives(life):
    call, out, _ = life
    before, page = _times(out), (out / "sub-02.html").read_bytes()
    (out / "sub-02.html").unlink()
    again = call("--reports-only")
    assert again.code == 0, again.err
    assert (out / "sub-02.html").read_bytes() == page
    assert {name for name, time in _times(out).items() if before[name] != time} == {"sub-02.html"}
    assert "]" not in again.err


def test_report_only_needs_derivatives(study, tmp_path, here):
    root, _, words, *_ = study
    call = here(root, tmp_path / "out", *words, "-w", tmp_path / "work", "--reports-only")
    assert call.code == 2 and "holds no derivatives of mmh; leave the flag out" in call.err
    assert not (tmp_path / "out").exists()


def test_configuration_file_of_an_earlier_call(study, life, here):
    root, _, _, work, _ = study
    config = min(life[1].glob("logs/config-*.toml"))
    same = here(root, life[1], "participant", "-w", work, "--config-file", config, "--dry-run")
    assert same.code == 0, same.err
    (row,) = _rows(same)
    assert (row["file"], row["action"]) == ("sub-02_T2w.nii.gz", "done")
    other = here(root, life[1], "participant", "-w", work, "--config-file", config, "--dry-run", "--method", "nyul")
    assert [row["action"] for row in _rows(other)] == ["harmonize"]


def _rows(call):
    return [
        {name.strip(): cell.strip() for name, cell in row.items()}
        for row in csv.DictReader(call.out.splitlines(), delimiter="\t")
    ]


def test_dry_run_writes_nothing(study, tmp_path, here):
    root, _, words, *_ = study
    call = here(root, tmp_path / "out", *words, "-w", tmp_path / "work", "--dry-run", "--session-label", "ses-A")
    assert call.code == 0
    assert [tuple(row.values())[:6] for row in _rows(call)] == [
        ("sub-01_ses-A_T1w.nii.gz", "T1w", "A", "A", "participants.tsv:site", "harmonize"),
        ("sub-01_ses-A_T2w.nii.gz", "T2w", "A", "A", "participants.tsv:site", "harmonize"),
    ]
    assert not (tmp_path / "out").exists()


def test_changed_setting_is_done_again(life):
    call, out, _ = life
    path = out / "sub-02/anat/sub-02_desc-harmonized_T2w.nii.gz"
    before = np.asanyarray(open_nifti(path).dataobj)
    again = call("--method", "nyul", "--clean-workdir", "--write-graph")
    assert again.code == 0, again.err
    steps = [line.split(": ", 1)[1].split(" (")[0] for line in again.err.splitlines() if line.startswith("[")]
    assert steps[0] == "harmonized"
    assert _sidecar(out, SOURCES[3])["Harmonization"]["Method"] == "nyul"
    assert not np.array_equal(np.asanyarray(open_nifti(path).dataobj), before)
    assert not list(life[2].glob("mmh_wf/sub_02*"))
    (graph,) = out.glob("logs/graph-*.dot")
    assert "write_derivatives" in graph.read_text()


# ---- images that fail, masks that are known, methods, targets and spaces ------------------------------------


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
        after = np.asanyarray(open_nifti(_harmonized(out, name)).dataobj)
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
    facts = _sidecar(out, source)["Harmonization"]
    assert facts["BrainExtraction"]["Method"] == "reused: sub-01_desc-brain_mask.nii.gz"
    assert facts["Registration"]["Method"].startswith("reused: sub-01_from-T1w_to-MNI152NLin2009cAsym")
    made = nib.as_closest_canonical(open_nifti(out / source.replace("T1w.nii", "desc-brain_mask.nii")))
    assert np.array_equal(np.asanyarray(made.dataobj) > 0, mask)
    assert (np.asanyarray(nib.as_closest_canonical(open_nifti(_harmonized(out, source))).dataobj)[~mask] == 0).all()
    # another mask at the same place: done again
    save(image((data > 0.5) * 1.0, affine, "RAS", np.uint8), other / "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    assert [row["action"] for row in _rows(here(root, out, "participant", *words, "--dry-run"))] == ["harmonize"]


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
    facts = _sidecar(out, SOURCES[1])["Harmonization"]
    assert facts["Target"] == f"image:{root / SOURCES[3]}"
    (moved,) = out.glob("sub-01/**/*_space-*_T2w.nii.gz")
    assert moved.name == "sub-01_ses-A_space-MNI152NLin2009aSym_res-1_desc-harmonized_T2w.nii.gz"
    template = load_template()
    assert open_nifti(moved).shape == template.shape
    assert np.allclose(open_nifti(moved).affine, template.affine)
    brain = np.asanyarray(template.dataobj) > 0
    covered = np.asanyarray(open_nifti(moved).dataobj) > 0
    assert 2 * (brain & covered).sum() / (brain.sum() + covered.sum()) > 0.93
    fields = json.loads(str_of(moved))
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
    facts = _sidecar(out, "sub-1/anat/sub-1_T1w.nii.gz")["Harmonization"]
    assert facts["QC"]["TemplateDice"] > 0.95 and facts["QC"]["GridCoverage"] > 0.99
    found = read_matrix(str(out / "sub-1/anat/sub-1_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt"))
    corners = np.array([[60, 40, 60, 1], [-60, 40, 0, 1], [0, -90, 20, 1], [0, 30, -40, 1]]).T
    assert np.linalg.norm(((found - turn) @ corners)[:3], axis=0).max() < 5


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["MultiProc", "Linear"])
def test_stop_on_first_crash(brain, tmp_path, quick, plugin):
    data, affine = brain
    root, out = describe(tmp_path / "raw"), tmp_path / "out"
    for label in ("1", "2"):
        save(image(data * (label == "2"), affine), root / f"sub-{label}/anat/sub-{label}_T1w.nii.gz")
    words = ("--stop-on-first-crash", "--nprocs", 1, "--use-plugin", plugin, "-w", tmp_path / "work")
    call = mmh(root, out, "participant", *quick, *words)
    assert call.code == 1
    lines = [line for line in call.err.splitlines() if ": FAILED: " in line]
    assert len(lines) == 2
    assert "sub-1_T1w.nii.gz: every voxel is 0" in lines[0]
    assert "sub-2_T1w.nii.gz: was not processed, as the call stopped at the first error" in lines[1]


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


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupted_call_leaves_nothing_behind_and_resumes(study, tmp_path, name):
    root, _, words, *_ = study
    command = [sys.executable, "-m", "mmh_bids.cli.run", root, tmp_path / "out", *words, "-w", tmp_path / "work"]

    # a shell that starts the tests in the background makes its children ignore SIGINT, and they hand that down
    def heed():
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, preexec_fn=heed) as running:
        while "bias field corrected" not in running.stderr.readline():
            pass
        workers = psutil.Process(running.pid).children(recursive=True)
        assert workers
        running.send_signal(getattr(signal, name))
        rest = running.stderr.read()
        assert running.wait(timeout=60) == 128 + getattr(signal, name)
    assert "mmh: interrupted; run the same command again to resume" in rest and "Traceback" not in rest
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    assert leftovers(tmp_path / "out") == []
    call = mmh(root, tmp_path / "out", *words, "-w", tmp_path / "work", "--participant-label", "02")
    assert call.code == 0, call.err
