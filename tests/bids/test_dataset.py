import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmh_bids.bids.dataset import (
    ImageStatus,
    check_output_dir,
    dataset_links,
    record_images,
    write_dataset_files,
)
from mmh_bids.bids.derivatives import (
    TEMPLATE,
    OutputPaths,
    bids_uri,
    mask_sidecar,
    sidecar,
    split_space,
    write_sidecar,
)
from mmh_bids.bids.discovery import discover
from mmh_bids.bids.run import Run
from mmh_bids.bids.tsv import read_tsv
from mmh_bids.errors import UsageError
from mmh_bids.files import atomic_path

IMAGES = [
    "sub-01_ses-A_T1w.nii.gz",
    "sub-01_ses-A_T2w.nii.gz",
    "sub-01_ses-B_acq-x_run-01_T1w.nii.gz",
    "sub-02_T2w.nii.gz",
    "sub-02_part-phase_T2w.nii.gz",
]
SIDECAR = {"EchoTime": 0.003, "FlipAngle": 9, "PhaseEncodingDirection": "j", "Secret": "x"}


@pytest.fixture
def asked(make_dataset, settings):
    root = make_dataset(IMAGES, {"T1w.json": SIDECAR, "participants.tsv": "participant_id\tsite\nsub-01\tGenève\n"})
    return settings(root)


def all_paths(run):
    paths = OutputPaths(Path("/out"), run)
    return [
        paths.harmonized(), paths.harmonized(TEMPLATE), paths.harmonized(TEMPLATE, "1"), paths.preproc,
        paths.model_grid, paths.brain_mask, paths.transform(), paths.transform(ext=".h5"),
        paths.figure("mask"), paths.features,
    ]  # fmt: skip


def test_no_two_outputs_share_a_name_and_none_is_a_raw_name(asked):
    runs = discover(asked)
    paths = [path for run in runs for path in all_paths(run)]
    assert len(set(paths)) == len(runs) * 10
    assert not {path.name for path in paths} & {run.path.name for run in runs}
    for run in runs:
        for path in all_paths(run):
            assert path.name.startswith(run.stem + "_")
            assert path.is_relative_to(f"/out/sub-{run.participant}")


def test_names_of_one_image(asked):
    run = discover(asked)[2]
    paths = OutputPaths(Path("/out"), run)
    stem = "sub-01_ses-B_acq-x_run-01"
    anat = f"/out/sub-01/ses-B/anat/{stem}"
    assert [str(path) for path in all_paths(run)] == [
        f"{anat}_desc-harmonized_T1w.nii.gz",
        f"{anat}_space-MNI152NLin2009aSym_desc-harmonized_T1w.nii.gz",
        f"{anat}_space-MNI152NLin2009aSym_res-1_desc-harmonized_T1w.nii.gz",
        f"{anat}_desc-preproc_T1w.nii.gz",
        f"{anat}_space-MNI152NLin2009aSym_desc-model_T1w.nii.gz",
        f"{anat}_desc-brain_mask.nii.gz",
        f"{anat}_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt",
        f"{anat}_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5",
        f"/out/sub-01/figures/{stem}_desc-mask_T1w.svg",
        f"/out/sub-01/features/{stem}_desc-features_T1w.npz",
    ]
    assert str(paths.report) == "/out/sub-01.html"
    assert str(paths.log_dir("r1")) == "/out/sub-01/log/r1"


@pytest.mark.parametrize("text", ["", "MNI:", "MNI:1", "MNI:res-1:res-2", "MNI:res-", "a b", "MNI:cohort-1"])
def test_unknown_output_spaces(text):
    with pytest.raises(UsageError, match="--output-spaces"):
        split_space(text)


def test_sidecar_carries_the_acquisition_and_is_the_same_each_time(asked, tmp_path):
    run = discover(asked)[0]
    links = dataset_links(asked)
    source = bids_uri(run.path, asked.output_dir, links)
    fields = sidecar(
        run,
        [source],
        skull_stripped=False,
        harmonization={"Method": "é", "Score": np.float64("nan"), "Map": np.arange(2.0)},
        resolution="1 mm",
    )
    path = OutputPaths(asked.output_dir, run).harmonized(TEMPLATE, "1")
    written = write_sidecar(path, fields)
    assert written.name == path.name.replace(".nii.gz", ".json")
    first = written.read_bytes()
    assert first.endswith(b"}\n")
    assert "é".encode() in first
    content = json.loads(first)
    assert content["Sources"] == ["bids:raw:sub-01/ses-A/anat/sub-01_ses-A_T1w.nii.gz"]
    assert (content["EchoTime"], content["FlipAngle"], content["SkullStripped"]) == (0.003, 9, False)
    assert content["Harmonization"] == {"Method": "é", "Score": None, "Map": [0.0, 1.0]}
    assert content["Resolution"] == "1 mm"
    assert not {"PhaseEncodingDirection", "Secret", "Description"} & set(content)
    assert write_sidecar(path, fields).read_bytes() == first


def test_file_outside_of_all_datasets_gets_a_file_uri(tmp_path):
    assert bids_uri(tmp_path / "a b.nii", tmp_path / "out", {"raw": tmp_path / "raw"}).startswith("file:///")


def test_another_programs_folder_is_refused(asked):
    asked.output_dir.mkdir()
    path = asked.output_dir / "dataset_description.json"
    path.write_text('{"Name": "x", "GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(UsageError, match="holds the dataset of fMRIPrep"):
        write_dataset_files(asked)
    path.write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        check_output_dir(asked.output_dir)


def test_dataset_files_stay_untouched_when_nothing_changes(asked, monkeypatch):
    monkeypatch.delenv("CONTAINER", raising=False)
    write_dataset_files(asked)
    files = {path: (path.stat().st_ino, path.read_bytes()) for path in asked.output_dir.iterdir() if path.is_file()}
    assert len(files) == 5
    write_dataset_files(asked)
    assert files == {path: (path.stat().st_ino, path.read_bytes()) for path in files}
    description = json.loads((asked.output_dir / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"raw": "../raw"}
    assert "Container" not in description["GeneratedBy"][0]
    monkeypatch.setenv("CONTAINER", "mmh:1")
    write_dataset_files(asked)
    description = json.loads((asked.output_dir / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Container"] == {"Type": "docker", "Tag": "mmh:1"}


def test_sloppy_is_stamped_and_sticks(asked, settings):
    write_dataset_files(settings(asked.bids_dir, sloppy=True))
    write_dataset_files(asked)
    for name in ("dataset_description.json", "descriptions.tsv"):
        assert "--sloppy" in (asked.output_dir / name).read_text()


def participants(asked):
    return {row["participant_id"]: row for row in read_tsv(asked.output_dir / "participants.tsv", "participant_id")[1]}


def test_statuses_are_merged_over_calls(asked):
    runs = discover(asked)
    record_images(asked, [ImageStatus(run, "failed", "bad\tthing\nhappened") for run in runs[:1]])
    assert participants(asked) == {
        "sub-01": {
            "participant_id": "sub-01",
            "site": "Genève",
            "status": "failed",
            "n_images": "0",
            "message": "bad thing happened",
        }
    }
    record_images(asked, [ImageStatus(run, "done") for run in runs[1:4]] + [ImageStatus(runs[4], "skipped")])
    rows = participants(asked)
    assert {name: (row["status"], row["n_images"]) for name, row in rows.items()} == {
        "sub-01": ("partial", "2"),
        "sub-02": ("done", "1"),
    }
    assert rows["sub-02"]["message"].startswith("part-phase")
    record_images(asked, [ImageStatus(runs[0], "done")])
    assert participants(asked)["sub-01"]["status"] == "done"
    assert len(read_tsv(asked.output_dir / "logs" / "images.tsv", "image")[1]) == 5
    runs[1].path.unlink()
    record_images(asked, [ImageStatus(runs[0], "done")])
    assert participants(asked)["sub-01"]["n_images"] == "2"


def test_several_sites(asked, settings):
    runs = discover(settings(asked.bids_dir, site_from="session", participant_label=("01",)))
    record_images(asked, [ImageStatus(run, "done") for run in runs])
    assert participants(asked)["sub-01"]["site"] == "multiple"


JOB = """
import sys
from pathlib import Path
from mmh_bids.bids.dataset import ImageStatus, record_images, write_dataset_files
from mmh_bids.bids.run import Run
from mmh_bids.settings import Settings
raw, out, job = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
settings = Settings(raw, out)
for number in range(10):
    label = f"{job}x{number}"
    write_dataset_files(settings)
    run = Run(raw / f"sub-{label}_T1w.nii.gz", "T1w", {"sub": label})
    record_images(settings, [ImageStatus(run, "done")])
"""


def test_parallel_jobs_lose_nothing(asked):
    command = [sys.executable, "-c", JOB, asked.bids_dir, asked.output_dir]
    jobs = [subprocess.Popen([*command, str(job)]) for job in range(4)]
    assert [job.wait(60) for job in jobs] == [0] * 4
    assert set(participants(asked)) == {f"sub-{job}x{number}" for job in range(4) for number in range(10)}
    assert not list(asked.output_dir.rglob(".tmp-*"))


def validate(folder):
    program = shutil.which("bids-validator-deno", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("bids-validator-deno is not installed")
    result = subprocess.run([program, "--json", folder], capture_output=True, text=True, check=False)
    issues = json.loads(result.stdout)["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]


def write_outputs(asked, runs):
    links = dataset_links(asked)
    for run in runs:
        paths = OutputPaths(asked.output_dir, run)
        source = [bids_uri(run.path, asked.output_dir, links)]
        for path, res in [
            (paths.harmonized(), None),
            (paths.harmonized(TEMPLATE, "1"), "1 mm, isotropic"),
            (paths.preproc, None),
            (paths.model_grid, None),
            (paths.brain_mask, None),
        ]:
            with atomic_path(path) as temporary:
                nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.float32), np.eye(4)), temporary)
            fields = sidecar(run, source, skull_stripped=True, resolution=res, harmonization={"Method": "none"})
            write_sidecar(path, mask_sidecar(source) if path == paths.brain_mask else fields)
        others = [paths.transform(), paths.report, paths.figure("mask"), paths.features]
        for path in [*others, paths.log_dir("run") / "crash-1.txt"]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")


def test_output_tree_is_valid_bids(asked):
    runs = [run for run in discover(asked) if run.action == "harmonize"]
    write_dataset_files(asked)
    write_outputs(asked, runs)
    failed = Run(asked.bids_dir / "sub-03/anat/sub-03_T1w.nii.gz", "T1w", {"sub": "03"})
    record_images(asked, [*(ImageStatus(run, "done") for run in runs), ImageStatus(failed, "failed", "bad")])
    for name in ("group_T1w.tsv", "group_T1w.json", "group_T1w.html", "logs/CITATION.md"):
        (asked.output_dir / name).write_text("a\tb\n")
    assert validate(asked.output_dir) == []

    (asked.output_dir / "sub-01" / "ses-A" / "anat" / "sub-01_ses-A_odd.nii.gz").write_text("x")
    assert validate(asked.output_dir) != []  # the validator did look
