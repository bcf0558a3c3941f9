import json
from datetime import datetime, timezone
from urllib.parse import quote

import pytest
from prov.model import (
    ProvActivity,
    ProvAgent,
    ProvDerivation,
    ProvDocument,
    ProvEntity,
    ProvGeneration,
    ProvUsage,
)

from mmh_bids.bids.provenance import (
    ActivityRecord,
    FileRecord,
    software_versions,
    write_provenance,
)

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
ENDED = datetime(2026, 1, 2, 3, 9, 5, tzinfo=timezone.utc)
RAW = "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"
OUT = "bids::sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz"
MASK = "bids::sub-01/anat/sub-01_desc-brain_mask.nii.gz"


def write(path, **changes):
    arguments = {
        "run_id": "20260102-ab12",
        "settings_toml": 'method = "nyul"\nrandom_seed = 7\n',
        "inputs": [FileRecord(RAW, "a" * 64)],
        "outputs": [FileRecord(OUT, "b" * 64), FileRecord(MASK, "c" * 64)],
        "activities": [
            ActivityRecord(
                "sub-01_T1w",
                [RAW],
                [OUT, MASK],
                {"Method": "nyul", "Seed": 7, "Map": {"Input": [0, 1]}, "None": None},
            )
        ],
        "software": {"mmh_bids": "0.1.0", "numpy": "2.4.6"},
        "container": "docker:abc",
        "started": STARTED,
        "ended": ENDED,
    } | changes
    return write_provenance(path, **arguments)


def attributes(record):
    return {str(name): value for name, value in record.attributes}


def test_what_was_written_is_read_back_by_the_prov_library(tmp_path):
    document = ProvDocument.deserialize(write(tmp_path / "logs" / "provenance.json"), format="json")
    entities = {record.identifier.uri: record for record in document.get_records(ProvEntity)}
    assert {RAW, OUT, MASK} <= set(entities)  # qualified names expand to the BIDS URIs themselves
    digest = attributes(entities[OUT])["mmh:sha256"]
    assert digest == "b" * 64
    plan = entities["urn:mmh_bids:run:20260102-ab12/settings"]
    assert "random_seed = 7\n" in attributes(plan)["prov:value"]


def test_every_relation_is_there(tmp_path):
    document = ProvDocument.deserialize(write(tmp_path / "p.json"), format="json")

    def pairs(kind):
        return {
            tuple(value.uri for _, value in list(record.formal_attributes)[:2]) for record in document.get_records(kind)
        }

    activity = "urn:mmh_bids:run:20260102-ab12/sub-01_T1w"
    assert pairs(ProvUsage) == {(activity, RAW)}
    assert pairs(ProvGeneration) == {(OUT, activity), (MASK, activity)}
    assert pairs(ProvDerivation) == {(OUT, RAW), (MASK, RAW)}
    content = json.loads((tmp_path / "p.json").read_text())
    by_activity = {}
    for link in content["wasAssociatedWith"].values():
        by_activity.setdefault(link["prov:activity"], set()).add((link["prov:agent"], link["prov:plan"]))
    plan = "run:20260102-ab12/settings"
    assert by_activity == {
        "run:20260102-ab12": {("software:mmh_bids", plan), ("software:numpy", plan)},
        "run:20260102-ab12/sub-01_T1w": {("software:mmh_bids", plan)},
    }


def test_versions_parameters_times_and_container_are_stored(tmp_path):
    document = ProvDocument.deserialize(write(tmp_path / "p.json"), format="json")
    agents = {str(record.identifier): attributes(record) for record in document.get_records(ProvAgent)}
    assert agents["software:numpy"]["mmh:version"] == "2.4.6"
    run, image = sorted(document.get_records(ProvActivity), key=lambda record: len(str(record.identifier)))
    assert (run.get_startTime(), run.get_endTime()) == (STARTED, ENDED)
    assert attributes(run)["mmh:container"] == "docker:abc"
    stored = attributes(image)
    assert stored["mmh:Seed"] == 7 and stored["mmh:Method"] == "nyul"
    assert json.loads(stored["mmh:Map"]) == {"Input": [0, 1]}
    assert "mmh:None" not in stored


def test_same_record_same_bytes_and_odd_names_survive(tmp_path):
    uri = "bids:raw:sub-01/ses-Köln/anat/sub-01_acq-a,b (1)'_T1w.nii.gz"
    changes = {"inputs": [FileRecord(uri, "d" * 64)], "activities": [ActivityRecord("ünï", [uri], [OUT])]}
    first = write(tmp_path / "a.json", **changes).read_bytes()
    assert write(tmp_path / "b.json", **changes).read_bytes() == first
    document = ProvDocument.deserialize(tmp_path / "a.json", format="json")
    entities = {record.identifier.uri: record for record in document.get_records(ProvEntity)}
    quoted = "bids:raw:" + quote(uri.removeprefix("bids:raw:"))
    assert attributes(entities[quoted])["prov:label"] == uri


def test_a_file_without_hash_or_with_two_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no hash recorded for bids::lost"):
        write(tmp_path / "p.json", activities=[ActivityRecord("x", ["bids::lost"], [])])
    with pytest.raises(ValueError, match="two different hashes"):
        write(tmp_path / "p.json", inputs=[FileRecord(RAW, "a" * 64), FileRecord(RAW, "b" * 64)])
    assert list(tmp_path.iterdir()) == []


def test_versions_name_what_is_installed():
    import numpy

    versions = software_versions()
    assert versions["numpy"] == numpy.__version__
    assert {"mmh_bids", "SimpleITK", "Python", "Platform"} <= set(versions)
