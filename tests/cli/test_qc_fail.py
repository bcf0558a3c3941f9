"""``--qc-fail``: the decision on files, fast; and calls of the app on a brain too small to be one, slow."""

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_study import harmonized, times
from tiny import describe, image, known_transforms, mmh, save

from mmh_bids.bids.dataset import ImageStatus, record_images
from mmh_bids.bids.derivatives import OutputPaths, harmonization_on_disk, sidecar_path, write_json
from mmh_bids.bids.run import Run
from mmh_bids.bids.tsv import read_tsv
from mmh_bids.cli.qc_fail import is_set_aside, set_aside_unusable, why_unusable
from mmh_bids.cli.records import fingerprint_on_disk, image_record
from mmh_bids.reports.figures import TITLES
from mmh_bids.settings import Settings

GOOD, BAD = {"MappedGradientCorrelation": 0.99}, {"MappedGradientCorrelation": 0.5, "GridCoverage": 0.97}
SPACE = "MNI152NLin2009aSym:res-1"


@pytest.fixture
def outputs(tmp_path):
    """Make the outputs of a T1w with some quality values: (settings for a --qc-fail, run, its paths)."""
    run = Run(tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz", "T1w", {"sub": "01"})
    paths = OutputPaths(tmp_path / "out", run)

    def asked(qc_fail):
        return Settings(tmp_path / "raw", tmp_path / "out", output_spaces=(SPACE,), qc_fail=qc_fail)

    def make(qc):
        images = [paths.harmonized(), paths.harmonized("MNI152NLin2009aSym", "1"), paths.preproc]
        others = [paths.brain_mask, paths.transform(), paths.features, *(paths.figure(name) for name in TITLES)]
        for path in [*images, *others]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        for path in images:
            write_json(sidecar_path(path), {"Harmonization": {"Fingerprint": "f", "QC": qc}})
        return run, paths

    return asked, make


def left(paths):
    return sorted(path.name for path in paths.anat.iterdir())


@pytest.mark.parametrize("qc_fail", ["exclude", "error"])
def test_an_unusable_image_loses_its_harmonized_files_and_nothing_else(outputs, qc_fail):
    asked, make = outputs
    run, paths = make(BAD)
    reasons = set_aside_unusable(asked(qc_fail), [run])
    assert list(reasons) == ["sub-01_T1w"]
    assert reasons["sub-01_T1w"].startswith("sub-01_T1w.nii.gz: not kept, as a quality value is beyond use: Edges kept")
    assert "0.500 (usable: at least 0.90); see sub-01.html" in reasons["sub-01_T1w"]
    assert "Share of the brain mask" not in reasons["sub-01_T1w"]  # to look at, not beyond use
    assert left(paths) == [
        "sub-01_desc-brain_mask.nii.gz", "sub-01_desc-preproc_T1w.json", "sub-01_desc-preproc_T1w.nii.gz",
        "sub-01_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt",
    ]  # fmt: skip
    assert harmonization_on_disk(paths)["QC"] == BAD


def test_a_later_call_takes_it_for_done_unless_it_wants_the_image(outputs):
    asked, make = outputs
    run, paths = make(BAD)
    set_aside_unusable(asked("exclude"), [run])
    found = [fingerprint_on_disk(paths, [SPACE], qc_fail) for qc_fail in ("exclude", "error", "warn")]
    assert found == ["f", "f", None]
    again = set_aside_unusable(asked("error"), [run])
    assert list(again) == ["sub-01_T1w"]
    paths.preproc.unlink()
    assert fingerprint_on_disk(paths, [SPACE], "exclude") is None


def test_what_is_no_longer_beyond_use_is_made_again(outputs):
    asked, make = outputs
    run, paths = make(BAD)
    set_aside_unusable(asked("exclude"), [run])
    assert is_set_aside(paths, "exclude")
    note = json.loads(paths.excluded.read_text())
    note["Harmonization"]["QC"] = GOOD  # as if the thresholds were others
    paths.excluded.write_text(json.dumps(note))
    assert not is_set_aside(paths, "exclude") and fingerprint_on_disk(paths, [SPACE], "exclude") is None
    paths.excluded.write_text("{")
    assert fingerprint_on_disk(paths, [SPACE], "exclude") is None
    run, paths = make(GOOD)
    assert set_aside_unusable(asked("exclude"), [run]) == {} and not paths.excluded.exists()
    assert fingerprint_on_disk(paths, [SPACE], "exclude") == "f"


def test_warn_keeps_all_and_says_so(outputs, caplog):
    asked, make = outputs
    run, paths = make(BAD)
    before = left(paths)
    with caplog.at_level(logging.WARNING, "mmh"):
        assert set_aside_unusable(asked("warn"), [run]) == {}
    assert left(paths) == before and not paths.excluded.exists()
    assert "sub-01_T1w: look at it before you use it: Edges kept" in caplog.text


def test_the_report_tells_of_an_image_that_was_set_aside(outputs):
    asked, make = outputs
    run, paths = make(BAD)
    set_aside_unusable(asked("exclude"), [run])
    record = image_record(run, asked("exclude"), {})
    assert (record.status, record.qc) == ("excluded", BAD)
    assert record.reason.startswith("sub-01_T1w.nii.gz: not kept")
    assert len(record.figures) == len(TITLES) and paths.harmonized() not in record.outputs
    failed = image_record(run, asked("error"), {run.key: "why"})
    assert (failed.status, failed.reason, failed.qc) == ("failed", "why", BAD)


def test_tables_say_excluded_with_the_reason(tmp_path):
    settings = Settings(tmp_path / "raw", tmp_path / "out")
    statuses = []
    for name, status in (("01_T1w", "done"), ("01_T2w", "excluded"), ("02_T1w", "excluded"), ("03_T1w", "failed")):
        label, sequence = name.split("_")
        path = settings.bids_dir / f"sub-{label}/anat/sub-{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        run = Run(path, sequence, {"sub": label})
        statuses.append(ImageStatus(run, status, "" if status == "done" else f"why {name}"))
    record_images(settings, statuses)
    rows = read_tsv(tmp_path / "out/participants.tsv", "participant_id")[1]
    assert [(row["status"], row["n_images"], row["message"]) for row in rows] == [
        ("partial", "1", "why 01_T2w"), ("excluded", "0", "why 02_T1w"), ("failed", "0", "why 03_T1w"),
    ]  # fmt: skip


def test_reasons_name_only_what_is_beyond_use():
    assert why_unusable({"GradientCorrelation": 0.1, "ReferenceDistanceBefore": 0.1, "ReferenceDistanceAfter": 9}) == ""
    assert why_unusable({"BrainMaskVolume": float("nan")}) == (
        "Volume of the brain mask: not measurable (usable: 600 to 2200 mL)"
    )


def statuses(out):
    rows = read_tsv(out / "logs/images.tsv", "image")[1]
    people = {row["participant_id"]: row["status"] for row in read_tsv(out / "participants.tsv", "participant_id")[1]}
    return [row["status"] for row in rows], people


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_calls_of_the_app_with_one_brain_far_too_small(tmp_path, brain, quick):
    data, affine = brain
    root, out = describe(tmp_path / "raw"), tmp_path / "out"
    good, bad = "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"
    save(image(data * 800, affine), root / good)
    save(image(data * 800, affine @ np.diag([0.6, 0.6, 0.6, 1])), root / bad)  # a fifth of the volume
    words = (
        "participant",
        "-d",
        f"known={known_transforms(root, tmp_path / 'known')}",
        *quick,
        "-w",
        tmp_path / "work",
    )

    def call(qc_fail, *more):
        return mmh(root, out, *words, "--qc-fail", qc_fail, *more)

    first = call("exclude")
    assert first.code == 0, first.err
    assert "sub-02_T1w: EXCLUDED: sub-02_T1w.nii.gz: not kept" in first.err
    assert "1 image(s) harmonized, 1 excluded, 0 failed, 0 skipped" in first.err
    assert harmonized(out, good).is_file() and not harmonized(out, bad).exists()
    assert (out / "sub-02/anat/sub-02_desc-preproc_T1w.nii.gz").is_file()
    assert statuses(out) == (["done", "excluded"], {"sub-01": "done", "sub-02": "excluded"})
    assert "excluded" in json.loads((out / "participants.json").read_text())["status"]["Levels"]
    page = (out / "sub-02.html").read_text()
    assert "1 excluded" in page and "not kept, as a quality value is beyond use" in page and "data:image/svg" in page
    (provenance,) = out.glob("logs/provenance-*.json")
    assert "desc-preproc_T1w" in provenance.read_text() and "sub-02_desc-harmonized" not in provenance.read_text()

    before = times(out)
    second = call("exclude")
    assert second.code == 0 and "0 image(s) to harmonize, 2 done before" in second.err
    changed = {name for name, time in times(out).items() if before.get(name) != time}
    assert changed <= {"sub-01.html", "sub-02.html", "sub-02/log/sub-02_desc-excluded_T1w.json"}
    assert statuses(out)[0] == ["done", "excluded"]

    third = call("error")
    assert third.code == 1 and "0 image(s) to harmonize" in third.err
    assert "sub-02_T1w: FAILED: sub-02_T1w.nii.gz: not kept" in third.err
    assert statuses(out) == (["done", "failed"], {"sub-01": "done", "sub-02": "failed"})
    assert call("error", "--reports-only").code in (0, 1)
    assert "not kept, as a quality value" in (out / "sub-02.html").read_text()

    fourth = call("warn")
    assert fourth.code == 0 and "1 image(s) to harmonize, 1 done before" in fourth.err
    assert "sub-02_T1w: look at it before you use it: Volume of the brain mask" in fourth.err
    assert np.asanyarray(nib.load(harmonized(out, bad)).dataobj).any()
    assert statuses(out)[0] == ["done", "done"]
    assert not Path(out / "sub-02/log/sub-02_desc-excluded_T1w.json").exists()

    fifth = call("exclude")
    assert fifth.code == 0 and "0 image(s) to harmonize, 2 done before" in fifth.err
    assert not harmonized(out, bad).exists() and statuses(out)[0] == ["done", "excluded"]
