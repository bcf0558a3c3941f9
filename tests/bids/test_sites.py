import itertools

import pytest

from mmh_bids.bids.discovery import discover
from mmh_bids.bids.sites import WAYS
from mmh_bids.errors import UsageError

IMAGES = ["sub-01_ses-A_T1w.nii.gz", "sub-01_ses-B_T1w.nii.gz", "sub-02_T1w.nii.gz"]
PARTICIPANTS = "participant_id\tage\tsite\nsub-01\t30\tParis\nsub-02\t40\tn/a\n"
SCANNER = {"Manufacturer": "Siemens", "ManufacturersModelName": "Prisma", "MagneticFieldStrength": 3}


@pytest.fixture
def sites(make_dataset, settings):
    """``sites(files, **fields)`` -> [(site, where it came from)] of the three images."""

    counter = itertools.count()

    def find(files, **fields):
        root = make_dataset(IMAGES, files, folder=f"raw{next(counter)}")
        return [(run.site, run.site_source) for run in discover(settings(root, **fields))]

    return find


@pytest.mark.parametrize("site_from", ["auto", "participants"])
def test_participants_table(sites, site_from):
    assert sites({"participants.tsv": PARTICIPANTS}, site_from=site_from) == [
        ("Paris", "participants.tsv:site"),
        ("Paris", "participants.tsv:site"),
        (None, "participants.tsv:site is n/a"),
    ]


@pytest.mark.parametrize("site_from", ["auto", "participants"])
def test_sessions_table_goes_first(sites, site_from):
    files = {
        "participants.tsv": PARTICIPANTS,
        "sub-01/sub-01_sessions.tsv": "session_id\tsite\nses-A\tn/a\nses-B\tLyon\n",
    }
    assert sites(files, site_from=site_from)[:2] == [
        ("Paris", "participants.tsv:site"),
        ("Lyon", "sub-01_sessions.tsv:site"),
    ]


def test_tables_go_before_the_scanner_and_the_scanner_before_the_dataset(sites):
    assert sites({"participants.tsv": PARTICIPANTS, "T1w.json": SCANNER})[2] == (
        None,
        "participants.tsv:site is n/a",
    )
    label = ("Siemens_Prisma_3T", "sidecar:Manufacturer,ManufacturersModelName,MagneticFieldStrength")
    files = {"participants.tsv": "participant_id\nsub-01\n", "sub-01/sub-01_T1w.json": SCANNER}
    assert sites(files) == [label, label, ("Study", "dataset:Name")]


def test_label_does_not_depend_on_the_selection(sites):
    files = {"sub-01/sub-01_sessions.tsv": "session_id\tsite\nses-A\tLyon\n", "T1w.json": SCANNER}
    everybody = sites(files)
    assert sites(files, participant_label=("02",)) == everybody[2:]
    assert everybody[0] == ("Lyon", "sub-01_sessions.tsv:site")
    assert everybody[2][0] == "Siemens_Prisma_3T"


def test_other_ways(sites):
    files = {
        "participants.tsv": PARTICIPANTS,
        "sub-02/sub-02_T1w.json": SCANNER | {"InstitutionName": "Klinik Köln"},
    }
    assert [site for site, _ in sites(files, site_from="session")] == ["A", "B", None]
    assert [site for site, _ in sites(files, site_from="sidecar")] == [
        None,
        None,
        "Siemens_Prisma_3T_Klinik-Köln",
    ]
    assert [site for site, _ in sites(files, site_from="dataset")] == ["Study"] * 3
    unnamed = files | {"dataset_description.json": {"BIDSVersion": "1.10.0"}}
    assert sites(unnamed, site_from="dataset") == [("raw3", "dataset folder")] * 3


def test_two_scanners_of_a_kind_are_told_apart(sites):
    files = {
        "sub-01/sub-01_T1w.json": SCANNER | {"DeviceSerialNumber": "45001"},
        "sub-02/sub-02_T1w.json": SCANNER | {"DeviceSerialNumber": 45002},
    }
    found = [site for site, _ in sites(files)]
    assert found == ["Siemens_Prisma_3T_45001", "Siemens_Prisma_3T_45001", "Siemens_Prisma_3T_45002"]


@pytest.mark.parametrize("site_from", ["auto", "participants"])
def test_site_column(sites, site_from):
    files = {"participants.tsv": "participant_id\tCenter\tscanner\nsub-01\tx\ty\nsub-02\tz\ty\n"}
    assert sites(files, site_from=site_from, site_column="center")[2] == ("z", "participants.tsv:Center")
    with pytest.raises(UsageError, match="--site-column sit: no table has it; there are Center, scanner"):
        sites(files, site_from=site_from, site_column="sit")


def test_missing_column_matters_only_where_it_was_asked_for(sites):
    files = {"participants.tsv": "participant_id\tage\nsub-01\t30\n"}
    assert {site for site, _ in sites(files)} == {"Study"}
    with pytest.raises(UsageError, match="--site-column site: no table has it; there are age"):
        sites(files, site_from="participants")
    with pytest.raises(UsageError, match="there are none"):
        sites({"participants.tsv": "participant_id\nsub-01\n"}, site_from="participants")


def test_column_in_one_participants_sessions_table_only(sites):
    files = {
        "participants.tsv": "participant_id\tage\nsub-01\t30\n",
        "sub-01/sub-01_sessions.tsv": "session_id\tsite\nses-A\tLyon\nses-B\tLyon\n",
    }
    assert sites(files, site_from="participants")[2][0] is None


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffparticipant_id\tsite\nsub-01\t東京 \"x\n",
        "participant_id\tsite\r\nsub-01\t東京 \"x\r\n\r\n",
        "site\tparticipant_id\n東京 \"x\t01\n",
        "participant_id\tsite\nsub-02\nsub-01\t 東京  \"x \n",
    ],
)  # fmt: skip
def test_odd_but_readable_tables(sites, text):
    assert sites({"participants.tsv": text})[0][0] == '東京 "x'


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("participant_id,site\nsub-01,Paris\n", "separated by tabs"),
        ("", "no participant_id column"),
        ("participant_id\tsite\nsub-01\tParis\textra\n", "line 2 has 3 cells for 2 columns"),
        ("participant_id\tsite\nsub-01\tParis\nsub-01\tLyon\n", "sub-01 has more than one site"),
        ("participant_id\tsite\tsite\n", "twice"),
        ("participant_id\tsite\nsub-01\tGenève\n".encode("latin-1"), "UTF-8"),
    ],
)
def test_malformed_tables(sites, content, word):
    with pytest.raises(UsageError, match=word) as caught:
        sites({"participants.tsv": content})
    assert "participants.tsv" in str(caught.value)
    assert sites({"participants.tsv": content}, site_from="dataset")[0][0] == "Study"


def test_unknown_way(sites):
    with pytest.raises(UsageError, match=", ".join(WAYS)):
        sites({}, site_from="moon")
