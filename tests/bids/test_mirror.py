"""The raw dataset once more with harmonized images: which file is which, links and copies, dataset-level files."""

import gzip
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from mmh_bids.bids.dataset import ImageStatus, check_output_dir, record_images, write_dataset_files
from mmh_bids.bids.derivatives import OutputPaths, sidecar, write_sidecar
from mmh_bids.bids.mirror import mirror_participant
from mmh_bids.bids.mirror_dataset import TABLE, check_mirror, start_mirror
from mmh_bids.bids.run import Run
from mmh_bids.bids.tsv import read_tsv
from mmh_bids.cli.mirror import write_mirror
from mmh_bids.errors import UsageError
from mmh_bids.files import sha256_file
from mmh_bids.settings import Settings

ANAT = "sub-01/ses-A/anat/sub-01_ses-A"
IMAGES = ("sub-01_ses-A_T1w.nii.gz", "sub-01_ses-A_run-2_T1w.nii.gz", "sub-01_ses-A_T2w.nii", "sub-02_T1w.nii.gz")
FILES = {
    "dataset_description.json": {
        "Name": "Study", "BIDSVersion": "1.8.0", "License": "CC0", "Authors": ["A"], "DatasetDOI": "doi:10.0/x",
        "GeneratedBy": [{"Name": "dcm2bids"}], "DatasetLinks": {"atlas": "derivatives/atlas", "far": "https://a.b/c"},
    },
    "README.rst": "A study of two people.\n",
    "CHANGES": "1.0.0 2020-01-01\n - all of it\n",
    ".bidsignore": "notes.doc\n",
    "notes.doc": "for us only",
    "participants.tsv": "participant_id\tsite\nsub-01\tA\nsub-02\tB\n",
    "participants.json": {"site": {"Description": "Site"}},
    "T1w.json": {"MagneticFieldStrength": 3},
    "task-rest_bold.json": {"TaskName": "rest", "RepetitionTime": 2},
    "phenotype/mood.tsv": "participant_id\tmood\nsub-01\t3\n",
    "stimuli/face.png": b"\x89PNG",
    "code/convert.py": "pass",
    "derivatives/other/a.txt": "no",
    "sourcedata/a.dcm": b"no",
    ".git/config": "no",
    "sub-01/sub-01_sessions.tsv": "session_id\nses-A\n",
    "sub-01/ses-A/sub-01_ses-A_scans.tsv": "filename\tacq_time\nanat/sub-01_ses-A_T2w.nii\tn/a\n",
    f"{ANAT}_T1w.json": {"EchoTime": 0.003, "Manufacturer": "Philips"},
    f"{ANAT}_T2w.json": {"EchoTime": 0.1},
    "sub-01/ses-A/dwi/sub-01_ses-A_dwi.bval": "0 1000\n",
    "sub-01/ses-A/func/sub-01_ses-A_task-rest_bold.nii.gz": b"bold",
    "sub-01/.DS_Store": b"no",
}  # fmt: skip


@pytest.fixture
def raw(make_dataset):
    """Two people: T1w (twice) and T2w in a session, and a T1w without any."""
    return make_dataset(IMAGES, FILES)


@pytest.fixture
def mirrored(raw, tmp_path):
    """Settings of a call with a mirror."""
    fields = {"bids_mirror": tmp_path / "mirror", "skull": "keep", "work_dir": tmp_path / "work"}
    return Settings(raw, tmp_path / "out", **fields)


def run_of(settings, relative):
    name = relative.rsplit("/", 1)[1]
    *pairs, suffix = name.split(".")[0].split("_")
    return Run(settings.bids_dir / relative, suffix, dict(pair.split("-") for pair in pairs))


def harmonize(settings, relative, value=7.0, status="done", message="", **changes):
    """Leave what the participant level leaves of an image."""
    run = run_of(settings, relative)
    paths = OutputPaths(settings.output_dir, run)
    paths.anat.mkdir(parents=True, exist_ok=True)
    source = nib.load(run.path)
    nib.Nifti1Image(np.full(source.shape, value, np.float32), source.affine).to_filename(paths.harmonized())
    facts = {
        "Method": "zscore", "Skull": "keep", "BrainExtraction": {"InputSkullStripped": False},
        "SourceSHA256": sha256_file(run.path), "Fingerprint": "f", "QC": {"a": 1}, "Site": "A",
    }  # fmt: skip
    write_sidecar(paths.harmonized(), sidecar(run, [], skull_stripped=False, harmonization=facts | changes))
    record_images(settings, [ImageStatus(run, status, message)])
    return run


def call(settings):
    """What the participant level does for the mirror."""
    check_mirror(settings)
    start_mirror(settings, settings.bids_mirror)
    return write_mirror(settings)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def table(settings):
    return {row["filename"]: row for row in read_tsv(settings.bids_mirror / TABLE, "filename")[1]}


def value_of(path):
    return float(np.asanyarray(nib.load(path).dataobj).max())


T1W, RUN2, T2W, OTHER = (
    f"{ANAT}_T1w.nii.gz",
    f"{ANAT}_run-2_T1w.nii.gz",
    f"{ANAT}_T2w.nii",
    "sub-02/anat/sub-02_T1w.nii.gz",
)


@pytest.fixture
def three(mirrored):
    """Harmonized: T1w and T2w of one, not the second run, which failed; nobody asked for the other person."""
    harmonize(mirrored, T1W)
    harmonize(mirrored, T2W, value=9.0)
    record_images(mirrored, [ImageStatus(run_of(mirrored, RUN2), "failed", "no brain was found")])
    return mirrored


def test_all_files_and_no_others(three):
    assert call(three) == 0
    left_out = {name for name in FILES if name.startswith(("code/", "derivatives/", "sourcedata/", ".git/"))}
    expected = files(three.bids_dir) - left_out - {"sub-01/.DS_Store"} | {TABLE}
    assert files(three.bids_mirror) == expected


def test_harmonized_images_have_the_raw_names_and_the_others_are_listed(three, caplog):
    before = {name: sha256_file(three.bids_dir / name) for name in files(three.bids_dir)}
    call(three)
    assert [value_of(three.bids_mirror / name) for name in (T1W, RUN2, T2W, OTHER)] == [7.0, 1.0, 9.0, 1.0]
    # a raw .nii stays one: scans.tsv names it
    assert not (three.bids_mirror / T2W).read_bytes().startswith(gzip.compress(b"")[:2])
    rows = table(three)
    assert {name: row["image"] for name, row in rows.items()} == {
        T1W: "harmonized", RUN2: "original", T2W: "harmonized", OTHER: "original",
    }  # fmt: skip
    assert rows[RUN2]["reason"] == "failed: no brain was found"
    assert rows[OTHER]["reason"].startswith("no call harmonized it")
    said = [record.message for record in caplog.records if "ORIGINAL" in record.message]
    assert len(said) == 2 and any(RUN2 in line and "no brain was found" in line for line in said)
    assert {name: sha256_file(three.bids_dir / name) for name in files(three.bids_dir)} == before


def test_sidecar_says_what_the_raw_one_says_and_what_was_done(three):
    call(three)
    fields = json.loads((three.bids_mirror / f"{ANAT}_T1w.json").read_text())
    assert {name: fields[name] for name in ("EchoTime", "Manufacturer", "SkullStripped")} == {
        "EchoTime": 0.003, "Manufacturer": "Philips", "SkullStripped": False,
    }  # fmt: skip
    assert "MagneticFieldStrength" not in fields  # inherited from T1w.json, which is there
    assert fields["Sources"] == [f"bids:unharmonized:{T1W}"]
    assert fields["Harmonization"]["Derivative"] == f"bids:mmh:{ANAT}_desc-harmonized_T1w.nii.gz"
    assert fields["Harmonization"]["Method"] == "zscore" and "QC" not in fields["Harmonization"]
    # the second run is the raw one: a sidecar of its own would claim otherwise
    assert not (three.bids_mirror / f"{ANAT}_run-2_T1w.json").exists()


def test_a_sidecar_for_two_runs_is_not_lost(three):
    """``sub-01_ses-A_T1w.json`` speaks of run 2, too; the exact name hides it from BIDS readers."""
    harmonize(three, RUN2)
    call(three)
    fields = json.loads((three.bids_mirror / f"{ANAT}_run-2_T1w.json").read_text())
    assert fields["EchoTime"] == 0.003 and fields["Sources"] == [f"bids:unharmonized:{RUN2}"]


def test_description(three, tmp_path):
    call(three)
    fields = json.loads((three.bids_mirror / "dataset_description.json").read_text())
    assert (fields["DatasetType"], fields["BIDSVersion"], fields["License"]) == ("raw", "1.8.0", "CC0")
    assert [item["Name"] for item in fields["GeneratedBy"]] == ["mmh", "dcm2bids"]
    assert fields["SourceDatasets"] == [{"URL": "../raw", "DOI": "doi:10.0/x"}] and "DatasetDOI" not in fields
    links = fields["DatasetLinks"]
    assert links == {
        "atlas": "../raw/derivatives/atlas", "far": "https://a.b/c", "mmh": "../out", "unharmonized": "../raw",
    }  # fmt: skip
    readme = (three.bids_mirror / "README.rst").read_text()
    assert readme.startswith('This is the dataset "Study" once more') and "A study of two people." in readme
    assert (three.bids_mirror / ".bidsignore").read_text() == f"notes.doc\n{TABLE}\n"


def test_sloppy_images_are_stamped_on_the_mirror_too(three):
    write_dataset_files(Settings(**{**vars(three), "sloppy": True}))
    call(three)
    generator = json.loads((three.bids_mirror / "dataset_description.json").read_text())["GeneratedBy"][0]
    assert generator["Description"].endswith("not fit for science")


def test_data_are_linked_and_text_is_copied(three):
    call(three)
    bold = "sub-01/ses-A/func/sub-01_ses-A_task-rest_bold.nii.gz"
    assert (three.bids_mirror / bold).samefile(three.bids_dir / bold)
    assert (three.bids_mirror / OTHER).samefile(three.bids_dir / OTHER)
    for name in ("participants.tsv", "sub-01/ses-A/sub-01_ses-A_scans.tsv", "sub-01/ses-A/dwi/sub-01_ses-A_dwi.bval"):
        copy, source = three.bids_mirror / name, three.bids_dir / name
        assert copy.read_bytes() == source.read_bytes() and not copy.samefile(source)
    # who edits the mirror must not edit the raw data
    (three.bids_mirror / "participants.tsv").write_text("x")
    assert (three.bids_dir / "participants.tsv").read_text() == FILES["participants.tsv"]


@pytest.mark.parametrize("how", ["copy", "symlink"])
def test_other_ways_than_hard_links(three, how):
    settings = Settings(**{**vars(three), "bids_mirror_files": how})
    call(three)
    call(settings)  # another way than before: done again
    bold = settings.bids_mirror / "sub-01/ses-A/func/sub-01_ses-A_task-rest_bold.nii.gz"
    assert bold.read_bytes() == b"bold"
    assert bold.is_symlink() == (how == "symlink")
    assert os.path.isabs(os.readlink(bold)) if how == "symlink" else bold.stat().st_nlink == 1
    assert value_of(settings.bids_mirror / T1W) == 7.0
    assert not (settings.bids_mirror / "participants.tsv").is_symlink()


def test_where_there_are_no_hard_links_files_are_copied(three, monkeypatch):
    def refused(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    assert call(three) == 0
    bold = three.bids_mirror / "sub-01/ses-A/func/sub-01_ses-A_task-rest_bold.nii.gz"
    assert bold.read_bytes() == b"bold" and bold.stat().st_nlink == 1
    assert value_of(three.bids_mirror / T1W) == 7.0
    assert not [name for name in files(three.bids_mirror) if ".tmp-" in name]


@pytest.mark.parametrize("how", ["auto", "copy", "symlink"])
def test_a_second_call_changes_nothing(three, how):
    settings = Settings(**{**vars(three), "bids_mirror_files": how})
    call(settings)
    marks = {name: os.lstat(settings.bids_mirror / name).st_ino for name in files(settings.bids_mirror)}
    del marks[f"{ANAT}_T1w.json"], marks[f"{ANAT}_T2w.json"]
    call(settings)
    assert {name: os.lstat(settings.bids_mirror / name).st_ino for name in marks} == marks


def test_a_later_call_completes_it_and_half_files_go(three):
    call(three)
    half = three.bids_mirror / "sub-01/ses-A/anat/.tmp-1-0.nii.gz"
    half.write_text("half")
    harmonize(three, RUN2, value=5.0)
    harmonize(three, T1W, value=6.0)  # with other settings
    call(three)
    assert [value_of(three.bids_mirror / name) for name in (T1W, RUN2)] == [6.0, 5.0]
    assert table(three)[RUN2]["image"] == "harmonized" and not half.exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"Skull": "strip"}, "harmonized without its skull"),
        ({"SourceSHA256": "0"}, "changed since it was harmonized"),
        ({"status": "excluded", "message": "beyond use"}, "excluded: beyond use"),
    ],
)
def test_harmonized_images_that_do_not_fit_are_left_out(mirrored, changes, why):
    harmonize(mirrored, OTHER, **changes)
    call(mirrored)
    assert value_of(mirrored.bids_mirror / OTHER) == 1.0
    assert table(mirrored)[OTHER]["reason"].startswith(why)


def test_a_brain_stays_a_brain(mirrored):
    """A raw image that is stripped already has no skull to keep."""
    harmonize(mirrored, OTHER, Skull="strip", BrainExtraction={"InputSkullStripped": True})
    call(mirrored)
    assert value_of(mirrored.bids_mirror / OTHER) == 7.0
    fields = json.loads((mirrored.bids_mirror / OTHER.replace(".nii.gz", ".json")).read_text())
    assert fields["SkullStripped"] is True


def test_an_image_that_is_gone_leaves_the_table_with_its_participant(three):
    call(three)
    for folder in (three.bids_dir, three.bids_mirror):
        (folder / RUN2).unlink()
    call(Settings(**{**vars(three), "participant_label": ("02",)}))
    assert RUN2 in table(three)
    call(three)
    assert RUN2 not in table(three) and {T1W, T2W, OTHER} == set(table(three))


def test_only_the_participants_of_the_call(three):
    settings = Settings(**{**vars(three), "participant_label": ("02",)})
    call(settings)
    assert {name.split("/")[0] for name in files(settings.bids_mirror) if name.startswith("sub-")} == {"sub-02"}
    call(three)
    assert {T1W, OTHER} < set(table(three))


def test_links_to_content_that_is_there_and_that_is_not(three, tmp_path, caplog):
    """As DataLad leaves them."""
    store = tmp_path / "annex"
    store.mkdir()
    shutil.move(three.bids_dir / T1W, store / "key1")
    (three.bids_dir / T1W).symlink_to(store / "key1")
    shutil.move(three.bids_dir / RUN2, store / "key2")
    (three.bids_dir / RUN2).symlink_to(store / "key2")
    (three.bids_dir / OTHER).unlink()
    (three.bids_dir / OTHER).symlink_to(store / "gone")
    call(three)
    # the content, not a link that leads nowhere in a container
    assert not (three.bids_mirror / RUN2).is_symlink() and (three.bids_mirror / RUN2).samefile(store / "key2")
    assert value_of(three.bids_mirror / T1W) == 7.0
    assert OTHER not in files(three.bids_mirror) and OTHER not in table(three)
    assert any(OTHER in record.message and "datalad get" in record.message for record in caplog.records)


def test_one_participant_that_cannot_be_written_costs_that_one(three, caplog):
    start_mirror(three, three.bids_mirror)
    (three.bids_mirror / "sub-01").write_text("in the way")
    assert write_mirror(three) == 1
    assert OTHER in files(three.bids_mirror) and set(table(three)) == {OTHER}
    assert any("sub-01 is not whole" in record.message for record in caplog.records)


def test_jobs_take_turns_with_a_participant(three):
    from filelock import FileLock, Timeout

    start_mirror(three, three.bids_mirror)
    done = mirror_participant(three, "02", {})
    assert done.images.keys() == {OTHER}
    lock = FileLock(three.output_dir / "logs" / ".mirror-sub-02.lock", timeout=0)
    with lock, pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmh_bids.bids.mirror._LOCK_SECONDS", 0.05)
        with pytest.raises(Exception, match="another job held this lock") as caught:
            mirror_participant(three, "02", {})
        assert not isinstance(caught.value, Timeout)


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("raw", "is the dataset"), ("raw/derivatives/mirror", "lies inside the dataset"),
        ("out", "is the output folder"), ("out/mirror", "lies inside the output folder"),
        ("work/x", "lies inside the work directory"),
        (".", "holds the dataset"), ("full", "holds no mirror of mmh"), ("file", "holds no mirror of mmh"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_the_mirror(mirrored, tmp_path, place, why):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError) as caught:
        check_mirror(Settings(**{**vars(mirrored), "bids_mirror": tmp_path / place}))
    assert why in str(caught.value) and str(caught.value).startswith("--bids-mirror ")


def test_the_group_level_writes_none(mirrored):
    with pytest.raises(UsageError, match="is written by the level participant"):
        check_mirror(Settings(**{**vars(mirrored), "analysis_level": ("group",)}))


def test_a_mirror_is_no_output_folder(three):
    call(three)
    check_mirror(three)
    with pytest.raises(UsageError, match="is a mirror that --bids-mirror wrote"):
        check_output_dir(three.bids_mirror)
