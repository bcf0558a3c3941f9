import json
import os
import tempfile
from pathlib import Path

import pytest

from mmh_bids.bids.discovery import discover
from mmh_bids.bids.table import dry_run_table
from mmh_bids.errors import NothingToDoError, UsageError

TWO_SESSIONS = ["sub-01_ses-A_T1w.nii.gz", "sub-01_ses-B_T1w.nii.gz", "sub-02_ses-A_T2w.nii.gz"]


def keys(runs):
    return [run.key for run in runs]


def only(runs):
    (run,) = runs
    return run


def test_all_images_in_stable_order_with_labels_as_spelled(make_dataset, settings):
    names = [
        "sub-010_T1w.nii.gz", "sub-2_T2w.nii", "sub-2_T1w.nii.gz",
        "sub-2_acq-mprage_rec-norm_run-02_T1w.nii.gz",
        "sub-2_run-1_part-mag_T1w.nii.gz", "sub-2_FLAIR.nii.gz", "sub-2_desc-x_mask.nii.gz",
    ]  # fmt: skip
    runs = discover(settings(make_dataset(names)))
    assert keys(runs) == [
        "sub-2_T1w",
        "sub-2_T2w",
        "sub-2_acq-mprage_rec-norm_run-02_T1w",
        "sub-2_run-1_part-mag_T1w",
        "sub-010_T1w",
    ]
    assert {run.action for run in runs} == {"harmonize"}
    assert list(runs[2].entities.items()) == [("sub", "2"), ("acq", "mprage"), ("rec", "norm"), ("run", "02")]
    assert all(run.path.is_absolute() and run.path.is_file() for run in runs)


@pytest.mark.parametrize("prefix", ["", "sub-"])
def test_participant_label(make_dataset, settings, prefix):
    root = make_dataset(["sub-01_T1w.nii.gz", "sub-011_T1w.nii.gz", "sub-1_T1w.nii.gz"])
    assert keys(discover(settings(root, participant_label=(f"{prefix}01",)))) == ["sub-01_T1w"]


@pytest.mark.parametrize("prefix", ["", "ses-"])
def test_session_label(make_dataset, settings, prefix):
    root = make_dataset([*TWO_SESSIONS, "sub-03_T1w.nii.gz"])
    runs = discover(settings(root, session_label=(f"{prefix}A",)))
    assert keys(runs) == ["sub-01_ses-A_T1w", "sub-02_ses-A_T2w"]


def test_modalities(make_dataset, settings):
    root = make_dataset(["sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz"])
    assert keys(discover(settings(root, modalities=("T2w",)))) == ["sub-01_T2w"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"participant_label": ("1",)}, ["--participant-label 1", "nearest: 01"]),
        ({"participant_label": ("01", "sub-07")}, ["--participant-label 07", "nearest: 02, 01"]),
        ({"participant_label": ("zzzz",)}, ["zzzz", "there are 01, 02"]),
        ({"session_label": ("a",)}, ["--session-label a", "nearest: A"]),
        ({"session_label": ("B",), "participant_label": ("02",)}, ["--session-label B", "there are A"]),
    ],
)
def test_unknown_labels_name_the_nearest(make_dataset, settings, fields, words):
    with pytest.raises(UsageError) as caught:
        discover(settings(make_dataset(TWO_SESSIONS), **fields))
    assert all(word in str(caught.value) for word in words), caught.value


def test_dataset_errors(make_dataset, settings, tmp_path):
    smallest = '{"Name": "My study", "BIDSVersion": "1.10.0"}'
    file = tmp_path / "file"
    file.touch()
    folder = make_dataset()
    for root, word in [(tmp_path / "no", "does not exist"), (file, "not a directory")]:
        with pytest.raises(UsageError, match=word):
            discover(settings(root))
    for content, word in [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        (None, "no dataset_description.json"),
    ]:
        path = folder / "dataset_description.json"
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(UsageError, match=word) as caught:
            discover(settings(folder))
        assert smallest in str(caught.value)
        json.loads(smallest)


def test_nothing_to_do_says_what_was_looked_for(make_dataset, settings):
    root = make_dataset(["sub-01_T2w.nii.gz"])
    with pytest.raises(NothingToDoError, match=r"within --participant-label 01; looked for .*_T1w\.nii"):
        discover(settings(root, modalities=("T1w",), participant_label=("01",)))


def test_unreadable_folder_is_a_usage_error(make_dataset, settings):
    # not in the tests' own TMPDIR, which is closed to others
    with tempfile.TemporaryDirectory(dir=os.environ["PYTEST_DEBUG_TEMPROOT"]) as temporary:
        raw = Path(temporary) / "raw"
        make_dataset(TWO_SESSIONS).rename(raw)
        discover(settings(raw))  # imports everything before privileges are dropped
        Path(temporary).chmod(0o755)
        was_root = os.geteuid() == 0
        for folder in (raw / "sub-01" / "ses-B" / "anat", raw / "sub-02", raw):
            mode = folder.stat().st_mode
            folder.chmod(0o000)
            if was_root:
                os.seteuid(65534)
            try:
                with pytest.raises(UsageError, match="permission") as caught:
                    discover(settings(raw))
            finally:
                if was_root:
                    os.seteuid(0)
                folder.chmod(mode)
            assert str(folder) in str(caught.value)


def test_derivatives_sourcedata_and_other_folders_are_not_searched(make_dataset, settings):
    names = [f"{folder}/sub-01/anat/sub-01_acq-{folder}_T1w.nii.gz" for folder in ("derivatives", "sourcedata", "code")]
    root = make_dataset(["sub-01_T1w.nii.gz", *names, "sub-01/func/sub-01_T1w.nii.gz"])
    assert keys(discover(settings(root))) == ["sub-01_T1w"]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("sub-01_part-phase_T1w.nii.gz", "part-phase"),
        ("sub-01_echo-1_T1w.nii.gz", "echo-1"),
        ("sub-01_inv-2_T1w.nii.gz", "inv-2"),
        ("sub-01_space-MNI_T1w.nii.gz", "derivative"),
        ("sub-01_desc-preproc_T2w.nii.gz", "derivative"),
    ],
)
def test_skipped_by_name(make_dataset, settings, name, word):
    run = only(discover(settings(make_dataset([name]))))
    assert run.action == "skip"
    assert word in run.reason


def test_4d_is_skipped_and_a_trailing_axis_is_not(make_dataset, write_image, settings):
    root = make_dataset([])
    write_image(root / "sub-01" / "anat" / "sub-01_T1w.nii.gz", (9, 9, 9, 1))
    write_image(root / "sub-02" / "anat" / "sub-02_T1w.nii.gz", (9, 9, 9, 2))
    assert [run.action for run in discover(settings(root))] == ["harmonize", "skip"]


def test_bad_header_fails_its_image_only(make_dataset, settings):
    root = make_dataset(["sub-01_T1w.nii.gz"], {"sub-01/anat/sub-01_T2w.nii.gz": "not an image"})
    good, bad = discover(settings(root))
    assert (good.action, bad.action) == ("harmonize", "fail")
    assert "sub-01_T2w.nii.gz" in bad.reason


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("sub-01/anat/sub-02_T1w.nii.gz", "the name says sub-02, but it lies in the folder sub-01"),
        ("sub-01/ses-A/anat/sub-01_T1w.nii.gz", "no ses-, but it lies in the folder ses-A"),
        ("sub-01/anat/sub-01_ses-A_T1w.nii.gz", "ses-A, but it lies in no ses- folder"),
        ("sub-01/anat/sub-01_brain_T1w.nii.gz", "'brain' is not a key-label pair"),
    ],
)
def test_wrong_names_fail(make_dataset, settings, name, word):
    run = only(discover(settings(make_dataset([name]))))
    assert run.action == "fail"
    assert word in run.reason
    assert run.participant == name[4:6] or "sub-02" in name


def test_same_image_twice(make_dataset, settings):
    runs = discover(settings(make_dataset(["sub-01_T1w.nii", "sub-01_T1w.nii.gz"])))
    assert [(run.path.name, run.action) for run in runs] == [
        ("sub-01_T1w.nii", "skip"),
        ("sub-01_T1w.nii.gz", "harmonize"),
    ]
    assert "sub-01_T1w.nii.gz" in runs[0].reason


def test_metadata_is_inherited_and_the_nearer_file_wins(make_dataset, settings):
    files = {
        "T1w.json": {"Manufacturer": "far", "EchoTime": 1, "FlipAngle": 9},
        "T2w.json": {"InversionTime": 7},
        "acq-b_T1w.json": {"EchoTime": 100},
        "sub-01/sub-01_T1w.json": {"EchoTime": 2},
        "sub-01/ses-A/sub-01_ses-A_T1w.json": {"RepetitionTime": None},
        "sub-01/ses-A/anat/sub-01_ses-A_acq-a_T1w.json": {"Manufacturer": "near"},
    }
    root = make_dataset(["sub-01_ses-A_acq-a_T1w.nii.gz", "sub-02_T1w.nii.gz"], files)
    first, second = discover(settings(root))
    assert first.metadata == {"Manufacturer": "near", "EchoTime": 2, "FlipAngle": 9}
    assert second.metadata == {"Manufacturer": "far", "EchoTime": 1, "FlipAngle": 9}


@pytest.mark.parametrize(("content", "word"), [("{", "not valid JSON"), ("[1]", "no JSON object"), (b"\xff", "UTF-8")])
def test_broken_sidecar_fails_its_image_only(make_dataset, settings, content, word):
    root = make_dataset(["sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz"], {"sub-01/anat/sub-01_T1w.json": content})
    bad, good = discover(settings(root))
    assert (bad.action, good.action) == ("fail", "harmonize")
    assert word in bad.reason
    assert "sub-01_T1w.json" in bad.reason


BOTH = ["sub-01_acq-a_run-1_T1w", "sub-01_acq-b_run-02_T1w"]


class TestFilterFile:
    names = (
        "sub-01_T1w.nii.gz",
        "sub-01_acq-a_run-1_T1w.nii.gz",
        "sub-01_acq-b_run-02_T1w.nii.gz",
        "sub-01_T2w.nii.gz",
    )

    @pytest.mark.parametrize(
        ("filters", "expected"),
        [
            ({"t1w": {"acquisition": "a"}}, ["sub-01_T2w", "sub-01_acq-a_run-1_T1w"]),
            ({"T1w": {"acquisition": ["a", "b"]}, "T2w": {"acquisition": "*"}}, BOTH),
            ({"t1w": {"acquisition": None}}, ["sub-01_T1w", "sub-01_T2w"]),
            ({"t1w": {"acquisition": "Query.NONE"}, "bold": {"task": "rest"}}, ["sub-01_T1w", "sub-01_T2w"]),
            ({"t1w": {"run": "Query.ANY"}, "t2w": {"run": 9}}, BOTH),
            ({"t1w": {"run": 2, "suffix": "T1w"}, "t2w": {"run": 2}}, ["sub-01_acq-b_run-02_T1w"]),
            ({"t1w": {"EchoTime": 0.003}, "t2w": {"run": 2}}, ["sub-01_acq-a_run-1_T1w"]),
        ],
    )  # fmt: skip
    def test_selects(self, make_dataset, settings, tmp_path, filters, expected):
        root = make_dataset(self.names, {"sub-01/anat/sub-01_acq-a_run-1_T1w.json": {"EchoTime": 0.003}})
        file = tmp_path / "filter.json"
        file.write_text(json.dumps(filters))
        assert keys(discover(settings(root, bids_filter_file=file))) == expected

    @pytest.mark.parametrize(
        ("content", "word"),
        [
            (None, "cannot be read"),
            ("{", "not valid JSON"),
            ("[]", "not an object"),
            ('{"t1w": "a"}', "not an object"),
            ('{"bold": {}}', "neither a 't1w'"),
            ('{"t1": {"run": 1}}', "did you mean"),
            ('{"t1w": {"run": "Query.NIL"}}', "Query.NONE"),
            ('{"t1w": {"acquisitoin": "a"}}', "Did you mean"),
            ('{"t1w": {"suffix": "T2w"}}', "must be T1w"),
        ],
    )
    def test_errors(self, make_dataset, settings, tmp_path, content, word):
        file = tmp_path / "filter.json"
        if content is not None:
            file.write_text(content)
        with pytest.raises(UsageError, match=word) as caught:
            discover(settings(make_dataset(self.names), bids_filter_file=file))
        assert "--bids-filter-file" in str(caught.value)
        assert "\n" not in str(caught.value)


class TestDatabase:
    def test_is_made_then_used_and_filtered(self, make_dataset, settings, tmp_path):
        root = make_dataset(TWO_SESSIONS, {"T1w.json": {"EchoTime": 1}})
        asked = settings(root, bids_database_dir=tmp_path / "new" / "db", participant_label=("01",))
        plain = discover(settings(root, participant_label=("01",)))
        assert discover(asked) == plain
        database = tmp_path / "new" / "db" / "layout_index.sqlite"
        written = database.stat().st_mtime_ns
        assert discover(asked) == plain
        assert database.stat().st_mtime_ns == written
        assert keys(discover(settings(root, bids_database_dir=asked.bids_database_dir))) == [
            name.removesuffix(".nii.gz") for name in TWO_SESSIONS
        ]
        (root / "sub-01" / "ses-A" / "anat" / "sub-01_ses-A_T1w.nii.gz").unlink()
        gone = discover(asked)[0]
        assert gone.action == "fail"
        assert "--bids-database-dir" in gone.reason

    def test_errors(self, make_dataset, settings, tmp_path):
        root = make_dataset()
        other = make_dataset(["sub-09_T1w.nii.gz"], folder="other")
        database = tmp_path / "db"
        discover(settings(other, bids_database_dir=database))
        file = tmp_path / "file"
        file.touch()
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "layout_index.sqlite").write_text("not a database at all")
        for folder, word in [
            (database, "is an index of"),
            (file, "is a file"),
            (broken, "not a pybids database"),
        ]:
            with pytest.raises(UsageError, match=f"--bids-database-dir .*{word}"):
                discover(settings(root, bids_database_dir=folder))


def test_dry_run_table(make_dataset, settings):
    names = ["sub-01_ses-A_T1w.nii.gz", "sub-01_ses-A_part-phase_T1w.nii.gz"]
    files = {"participants.tsv": "participant_id\tsite\nsub-01\tGenève Süd\n"}
    table = dry_run_table(discover(settings(make_dataset(names, files))))
    rows = [[cell.strip() for cell in line.split("\t")] for line in table.splitlines()]
    assert rows == [
        ["file", "sequence", "session", "site", "site_from", "action", "reason"],
        [names[0], "T1w", "A", "Genève Süd", "participants.tsv:site", "harmonize", "n/a"],
        [
            names[1],
            "T1w",
            "A",
            "Genève Süd",
            "participants.tsv:site",
            "skip",
            "part-phase is not a magnitude image",
        ],
    ]
    assert len({line.index("T1w ") for line in table.splitlines()[1:]}) == 1


def test_link_to_absent_content(make_dataset, settings):
    root = make_dataset([])
    path = root / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    path.symlink_to(root / ".git" / "annex" / "nowhere")
    run = only(discover(settings(root)))
    assert run.action == "fail"
    assert "datalad get" in run.reason


def test_real_multisite(real_multisite, settings):
    runs = discover(settings(real_multisite))
    assert len(runs) == 14
    assert {run.action for run in runs} == {"harmonize"}
    assert sum(run.sequence == "T2w" for run in runs) == 5
    assert len({run.site for run in runs}) == 7
    assert {run.site_source for run in runs} == {"participants.tsv:site"}
    assert next(run for run in runs if run.key == "sub-boston_T1w").metadata["ManufacturersModelName"] == "TrioTim"
