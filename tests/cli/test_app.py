"""The app end to end on tiny brains: what one call writes."""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_study import SOURCES, files, harmonized, sidecar
from tiny import leftovers

from mmh_bids.image.grid import open_nifti

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
FIGURES = ("beforeafter", "difference", "histogram", "mask", "registration")


def test_list_of_files(study):
    _, out, _, _, _ = study
    expected = GOLDEN.split()
    for source in SOURCES:
        folder, name = source.rsplit("/", 1)
        stem, sequence = name.removesuffix(".nii.gz").rsplit("_", 1)
        mask = "brain" if sequence == "T1w" else "brainT2w"
        expected += [f"{folder}/{stem}_{end}" for end in DERIVED.replace("SEQ", sequence).replace("MASK", mask).split()]
        expected += [f"{folder[:6]}/figures/{stem}_desc-{figure}_{sequence}.svg" for figure in FIGURES]
        expected.append(f"{folder[:6]}/features/{stem}_desc-features_{sequence}.npz")
    assert [re.sub(r"\d{8}-\d{6}-\d{4}", "RUN", name) for name in files(out)] == sorted(expected)
    assert leftovers(out) == []


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("desc", ["harmonized", "preproc"])
def test_image_has_the_grid_of_its_input(study, source, desc):
    root, out, *_ = study
    before = open_nifti(root / source).header
    after = open_nifti(str(harmonized(out, source)).replace("harmonized", desc)).header
    assert after.get_data_shape() == before.get_data_shape()
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d",
                  "qoffset_x", "qoffset_y", "qoffset_z", "pixdim"):  # fmt: skip
        assert after[field].tobytes() == before[field].tobytes(), field
    assert after.get_data_dtype() == np.float32
    assert after.get_slope_inter() in ((1.0, 0.0), (None, None))


@pytest.mark.parametrize("source", SOURCES)
def test_harmonized_image_has_the_brain_in_its_place(study, source):
    root, out, *_ = study
    before, after = (np.asanyarray(open_nifti(path).dataobj) for path in (root / source, harmonized(out, source)))
    assert np.isfinite(after).all() and after.min() >= 0
    assert ((after > 0) == (before > 0.01 * before.max())).mean() > 0.99
    inside = (after > 0) & (before > 0)
    ranks = [np.argsort(np.argsort(values[inside][::7])) for values in (before, after)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9


@pytest.mark.parametrize("source", SOURCES)
def test_sidecar(study, source):
    root, out, *_ = study
    fields = sidecar(out, source)
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
    assert "DiceWithT1w" in sidecar(out, SOURCES[1])["Harmonization"]["BrainExtraction"]
    assert "DiceWithT1w" not in sidecar(out, SOURCES[3])["Harmonization"]["BrainExtraction"]


def test_records_of_the_call(study):
    _, out, _, _, call = study
    with (out / "participants.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [(row["participant_id"], row["site"], row["status"], row["n_images"]) for row in rows] == [
        ("sub-01", "A", "done", "3"), ("sub-02", "B", "done", "1"),
    ]  # fmt: skip
    (provenance,) = out.glob("logs/provenance-*.json")
    text = provenance.read_text()
    for name in files(out):
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

    return os.path.dirname(sys.executable)
