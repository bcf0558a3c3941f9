import filecmp
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from mmh_bids.cli.simulate import main
from mmh_bids.simulate.scanner import load_scanners

SAMPLE = Path(__file__).parents[2] / "data" / "ds-sample"


@pytest.fixture
def labels(tmp_path):
    grid = np.indices((36, 36, 36)) - 17.5
    radius = np.sqrt((grid**2).sum(0))
    data = np.zeros(radius.shape, np.int16)
    for outer, code in ((17, 511), (16, 507), (14, 515), (12, 24), (11, 3), (8, 2)):
        data[radius <= outer] = code
    path = tmp_path / "ball_dseg.nii.gz"
    nib.save(nib.Nifti1Image(data, np.diag([5.0, 5.0, 5.0, 1.0])), path)
    return path


@pytest.fixture
def scanner_file(tmp_path):
    """The package's scanners with voxels of 5 mm, for speed."""
    raw = yaml.safe_load((resources.files("mmh_bids.data") / "scanners.yaml").read_text())
    for entry in raw.values():
        for sequence in ("T1w", "T2w"):
            entry[sequence]["voxel"] = [5.0, 5.0, 6.0]
    path = tmp_path / "coarse.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def heads(out, labels, scanner_file, *more):
    return main(["heads", str(out), "--labels", str(labels), "--scanner-file", str(scanner_file), *more])


def validate(folder):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    out = subprocess.run([validator, "--json", str(folder)], capture_output=True, text=True, check=False)
    return [issue for issue in json.loads(out.stdout)["issues"]["issues"] if issue["severity"] == "error"]


def test_heads_writes_a_valid_dataset_with_the_truth_beside_it(tmp_path, labels, scanner_file):
    out = tmp_path / "ds"
    assert heads(out, labels, scanner_file, "--scanners", "A", "C", "--rescan") == 0
    images = sorted(path.relative_to(out).as_posix() for path in out.glob("sub-*/**/*w.nii.gz"))
    stems = [
        f"sub-01/ses-{s}/anat/sub-01_ses-{s}_run-{r}_{q}.nii.gz" for s in "AC" for r in "12" for q in ("T1w", "T2w")
    ]
    assert images == sorted(stems)
    for name in images:
        image = nib.load(out / name)
        stem, sequence = name.replace(".nii.gz", "").rsplit("_", 1)
        mask = nib.load(out / "derivatives" / "truth" / f"{stem}_desc-brain{sequence}_mask.nii.gz")
        assert mask.shape == image.shape and np.array_equal(mask.affine, image.affine)
        assert 0 < np.asarray(mask.dataobj).mean() < 0.5
    assert (out / "sub-01" / "sub-01_sessions.tsv").read_text().split() == [
        "session_id",
        "site",
        "ses-A",
        "A",
        "ses-C",
        "C",
    ]
    assert validate(out) == [] and validate(out / "derivatives" / "truth") == []
    truth = sorted(path.name for path in (out / "derivatives/truth/sub-01/ses-C/anat").glob("*_run-1_*T1w*.nii.gz"))
    kinds = ("brainT1w_mask", "noisefree_T1w", "regionsT1w_dseg", "tissueT1w_dseg", "unified_T1w")
    assert truth == [f"sub-01_ses-C_run-1_desc-{kind}.nii.gz" for kind in kinds]
    poses = sorted(path.name for path in (out / "derivatives" / "truth").rglob("*_xfm.json"))
    assert poses == [f"sub-01_ses-{s}_from-scanner_to-head_mode-image_desc-pose_xfm.json" for s in "AC"]


@pytest.mark.parametrize("use", ["training", "testing"])
def test_scanners_are_chosen_by_their_use(tmp_path, labels, scanner_file, use):
    out = tmp_path / "ds"
    assert heads(out, labels, scanner_file, "--use", use, "--modalities", "T1w") == 0
    expected = [f"ses-{scanner.name}" for scanner in load_scanners().values() if scanner.use == use]
    assert sorted(path.name for path in (out / "sub-01").glob("ses-*")) == expected


def test_all_scanners_are_the_default(tmp_path, labels, scanner_file):
    assert heads(tmp_path / "ds", labels, scanner_file, "--modalities", "T2w") == 0
    sessions = sorted(path.name for path in (tmp_path / "ds" / "sub-01").glob("ses-*"))
    assert sessions == [f"ses-{name}" for name in load_scanners()]


def test_a_use_that_no_scanner_has_and_a_use_beside_names(tmp_path, labels, scanner_file, capsys):
    raw = yaml.safe_load(scanner_file.read_text())
    scanner_file.write_text(yaml.safe_dump({"A": raw["A"]}))
    assert heads(tmp_path / "ds", labels, scanner_file, "--use", "testing") == 2
    err = capsys.readouterr().err
    assert "--use testing: no scanner of the file" in err and err.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        heads(tmp_path / "ds", labels, scanner_file, "--use", "training", "--scanners", "A")
    assert ended.value.code == 2 and not (tmp_path / "ds").exists()


def test_bytes_depend_on_the_seed_only(tmp_path, labels, scanner_file):
    for name, more in (("a", ["A", "B"]), ("b", ["B", "A"])):
        assert heads(tmp_path / name, labels, scanner_file, "--modalities", "T1w", "--scanners", *more) == 0
    assert heads(tmp_path / "c", labels, scanner_file, "--modalities", "T1w", "--scanners", "A", "--seed", "1") == 0
    scan = "sub-01/ses-A/anat/sub-01_ses-A_T1w.nii.gz"
    assert filecmp.cmp(tmp_path / "a" / scan, tmp_path / "b" / scan, shallow=False)
    assert not filecmp.cmp(tmp_path / "a" / scan, tmp_path / "c" / scan, shallow=False)


def test_existing_output_is_kept_unless_overwrite(tmp_path, labels, scanner_file, capsys):
    out = tmp_path / "ds"
    args = ("--scanners", "A", "--modalities", "T1w")
    assert heads(out, labels, scanner_file, *args) == 0
    (out / "note.txt").write_text("mine")
    assert heads(out, labels, scanner_file, *args) == 2
    assert "--overwrite" in capsys.readouterr().err and (out / "note.txt").exists()
    assert heads(out, labels, scanner_file, *args, "--overwrite") == 0
    assert not (out / "note.txt").exists()


def test_overwrite_does_not_empty_a_folder_that_is_no_dataset(tmp_path, labels, scanner_file, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    assert heads(home, labels, scanner_file, "--overwrite") == 2
    assert "dataset_description.json" in capsys.readouterr().err and (home / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--scanners", "Z"], 2, "known are A, B, C"),
        (["--seed", "-1"], 2, "--seed"),
        (["--scanner-file", "none.yaml"], 2, "none.yaml"),
    ],
)
def test_wrong_flags_end_with_a_line_and_a_code(tmp_path, labels, scanner_file, capsys, more, code, words):
    assert heads(tmp_path / "ds", labels, scanner_file, *more) == code
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not (tmp_path / "ds").exists()


def test_missing_and_faulty_label_maps(tmp_path, scanner_file, capsys):
    assert heads(tmp_path / "ds", tmp_path / "none.nii.gz", scanner_file) == 2
    faulty = tmp_path / "faulty.nii.gz"
    faulty.write_text("text")
    assert heads(tmp_path / "ds", faulty, scanner_file) == 1
    assert "faulty.nii.gz" in capsys.readouterr().err


def test_scanners_are_listed(capsys):
    assert main(["scanners"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[s.name, s.use] for s in load_scanners().values()]


def test_sample_is_small_valid_and_as_varied_as_promised():
    files = [path for path in SAMPLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert validate(SAMPLE) == []
    images = [nib.load(path) for path in sorted(SAMPLE.glob("sub-*/**/*w.nii.gz"))]
    assert len(images) == 10
    assert {str(image.get_data_dtype()) for image in images} == {"int16", "uint16", "uint8"}
    assert len({nib.aff2axcodes(image.affine) for image in images}) >= 4
    assert sum(float(image.dataobj.slope) != 1 for image in images) == 1
    assert any(np.count_nonzero(np.abs(image.affine[:3, :3]) > 1e-4) == 9 for image in images)
    assert all(np.isfinite(image.get_fdata()).all() for image in images)


@pytest.mark.slow
def test_sample_is_what_the_command_makes(tmp_path):
    out = tmp_path / "sample"
    assert main(["sample", str(out), "--seed", "0"]) == 0
    names = sorted(path.relative_to(SAMPLE) for path in SAMPLE.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    for name in names:
        if name.suffix != ".gz":
            assert (out / name).read_bytes() == (SAMPLE / name).read_bytes()
            continue
        made, kept = nib.load(out / name), nib.load(SAMPLE / name)
        assert np.array_equal(made.affine, kept.affine)
        # Other library versions may round a few voxels otherwise; with the same ones the bytes are equal.
        differing = np.asarray(made.dataobj.get_unscaled()) != np.asarray(kept.dataobj.get_unscaled())
        assert differing.mean() < 1e-3, name
