"""Verdicts of facts, and of methods whose truth is known, through the command."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from simulated_study import METHODS, make_study, scans

from mmh_bids.cli.evaluate import main
from mmh_bids.evaluation.verdicts import EffectChange, Facts, Ratio, flags_of, ranking

SOUND = {"change": 0.1, "sharpness": 1.0, "own_share": 0.9, "people": 0.9}
NEARER, SAME = Ratio(0.5, 0.4, 0.6), Ratio(1.0, 0.9, 1.1)


def codes(**facts):
    return [flag.code for flag in flags_of(Facts(**(SOUND | facts)))]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, []),
        ({"sites": NEARER}, ["together"]),
        ({"sites": SAME}, []),
        ({"sites": Ratio(1.5, 1.2, 1.9)}, ["apart"]),
        ({"sites": Ratio(0.5)}, ["together"]),
        ({"sites": Ratio(0.9)}, []),
        ({"change": 0.0}, ["unchanged"]),
        ({"change": 0.0, "sites": NEARER}, ["gain", "together"]),
        ({"sharpness": 0.8, "sites": NEARER}, ["blurred"]),
        ({"own_share": 0.1, "sharpness": 0.8, "sites": NEARER}, ["anatomy"]),
        ({"people": 0.1, "sites": NEARER}, ["alike"]),
        ({"told": True}, ["told"]),
        ({"told": False, "told_before": True}, ["not-told"]),
        ({"told": False, "told_before": False}, []),
        ({"told": False, "told_before": True, "people": 0.1}, ["alike"]),
        ({"effects": (EffectChange("age", 0.7, 0.1, -0.8, -0.3),)}, ["effect"]),
        ({"effects": (EffectChange("age", 0.7, 0.6, -0.2, 0.1),)}, []),
        ({"effects": (EffectChange("age", 0.7, 0.3, -0.9, 0.1),)}, []),
        ({"effects": (EffectChange("age", 0.05, -0.3, -0.9, -0.1),)}, []),
        ({name: float("nan") for name in SOUND}, []),
    ],
)
def test_facts_give_flags(facts, expected):
    assert codes(**facts) == expected


def test_a_sound_method_that_helps_comes_first_and_a_broken_one_last():
    facts = {
        "broken twice": Facts(0.5, 1.0, 0.1, 0.1, Ratio(0.0, 0.0, 0.0)),
        "broken": Facts(0.5, 0.5, 0.9, 0.9, Ratio(0.1, 0.0, 0.2)),
        "nothing": Facts(0.0, 1.0, 1.0, 1.0, SAME),
        "helps little": Facts(0.1, 1.0, 0.9, 0.9, Ratio(0.8, 0.7, 0.9)),
        "helps": Facts(0.1, 1.0, 0.9, 0.9, NEARER),
    }
    order = ranking(facts, {name: flags_of(one) for name, one in facts.items()})
    assert order == ["helps", "helps little", "nothing", "broken", "broken twice"]


def call(root, out, methods, *words):
    folders = [f"{name}={root / name}" for name in methods]
    return main([str(root / "raw"), str(out), "--methods", *folders, "--modalities", "T1w", *map(str, words)])


def results(out):
    return json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["Sequences"]["T1w"]


@pytest.mark.slow
def test_methods_whose_truth_is_known_are_ranked_and_flagged_rightly(tmp_path):
    make_study(tmp_path)
    assert call(tmp_path, tmp_path / "out", METHODS, "--effects", "age", "--permutations", 60, "--nprocs", 2) == 0
    found = results(tmp_path / "out")
    flags = {name: {flag["Code"] for flag in own} for name, own in found["Flags"].items()}
    assert flags["perfect"] == {"together", "not-told"}
    assert {"unchanged", "told"} == flags["nothing"] == flags["identity"] == flags["preprocessing"]
    assert "blurred" in flags["blurring"]
    assert "anatomy" in flags["swapping"] and "alike" not in flags["swapping"]
    assert {"anatomy", "alike", "effect"} <= flags["template"]
    assert flags["ageless"] == {"effect"}
    order = [name for name in found["Ranking"] if name in METHODS]
    assert order[:2] == ["perfect", "nothing"], order
    assert order[-1] == "template"
    assert found["Summary"].startswith("perfect brings sites together")
    assert "Zürich" in found["Sites"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two travellers and three others, two methods, evaluated once."""
    root = tmp_path_factory.mktemp("small")
    make_study(root, methods=("nothing", "perfect"), targets={"nothing": "site:A"}, singles=2, travellers=1)
    return root


@pytest.fixture(scope="module")
def measured(small, tmp_path_factory):
    """A function: a fresh folder for results that has the measurements of the small study."""
    first = tmp_path_factory.mktemp("measured") / "out"
    assert call(small, first, ["nothing", "perfect"], "--effects", "age", "--permutations", 2) == 0

    def fresh(out):
        shutil.copytree(first, out)
        return out

    return fresh


def test_what_data_cannot_support_is_said_and_the_rest_is_measured(small, measured, tmp_path, capsys):
    out = measured(tmp_path / "out")
    table = pd.read_csv(out / "evaluation.tsv", sep="\t", na_values="n/a", keep_default_na=False)
    rows = results(out)["Rows"]
    assert len(table) == len(rows)
    assert np.allclose(
        table["value"], [np.nan if row["value"] is None else row["value"] for row in rows], equal_nan=True
    )
    said = {row["measure"]: row["note"] for row in rows if row["note"].startswith("cannot say")}
    assert "4 people" in said["probe.regions"] and "20 people" in said["effect.age"]
    assert "the target was unified" in said["target"]
    known = {row["measure"] for row in rows if row["value"] is not None}
    aimed = {row["measure"]: row for row in rows if row["method"] == "nothing" and row["measure"].startswith("target")}
    assert aimed["target.histogram"]["note"] == "towards site:A, 3 images"
    # it does nothing but give up the own scale of each image
    assert aimed["target.regions.ratio"]["value"] == pytest.approx(1, abs=0.2)
    assert {"travelling.MAE", "rescan.MAE", "travelling.tissue Dice", "sites.histogram", "change"} <= known
    page = (out / "evaluation.html").read_text(encoding="utf-8")
    assert "ComBat remains stronger" in page and "What these data cannot tell" in page and "<svg" in page
    # measurements are kept: a second call reads no image
    kept = {path: path.stat().st_mtime_ns for path in (out / "work").rglob("*.npz")}
    text = (out / "evaluation.json").read_bytes(), (out / "evaluation.html").read_bytes()
    assert call(small, out, ["nothing", "perfect"], "--effects", "age", "--permutations", 2) == 0
    assert "T1w: perfect brings sites together" in capsys.readouterr().out
    assert kept == {path: path.stat().st_mtime_ns for path in (out / "work").rglob("*.npz")}
    assert text == ((out / "evaluation.json").read_bytes(), (out / "evaluation.html").read_bytes())


@pytest.mark.slow
def test_style_clusters_are_measured_where_they_are_asked_for(tmp_path):
    make_study(tmp_path, methods=("nothing",), singles=0, travellers=2)
    assert call(tmp_path, tmp_path / "out", ["nothing"], "--style", "--permutations", 5) == 0
    rows = {row["measure"]: row for row in results(tmp_path / "out")["Rows"] if row["method"] == "nothing"}
    site, person = (rows[f"silhouette.style.{by}"] for by in ("site", "person"))
    assert site["n"] == person["n"] == 8 and -1 <= person["value"] <= 1
    # scanners differ more than these two people do, and the encoder looks at the scanner
    assert site["value"] > person["value"]
    assert site["value"] != rows["silhouette.regions.site"]["value"]


def test_missing_and_damaged_images_are_named_and_the_rest_goes_on(small, measured, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(small / "perfect", broken)
    first, second = (broken / scan.folder / f"{scan.stem}_desc-harmonized_T1w.nii.gz" for scan in scans(2, 1)[:2])
    first.unlink()
    second.write_bytes(second.read_bytes()[:3000])
    words = [f"nothing={small / 'nothing'}", f"broken={broken}"]
    out = measured(tmp_path / "out")
    code = main([str(small / "raw"), str(out), "--methods", *words, "--permutations", "2"])
    assert code == 1
    said = capsys.readouterr().err
    assert f"{broken}: no T1w of sub-00_ses-A_run-1" in said and f"{second.name}: truncated" in said
    found = results(out)
    assert "broken" in found["Ranking"]
    assert any("2 of" in note and "missing" in note for note in found["Notes"])


def test_a_mapping_file_says_who_is_who(small, measured, tmp_path):
    everybody = sorted({scan.person for scan in scans(2, 1)})
    table = tmp_path / "people.tsv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(["participant_id", "person"])
        writer.writerows([f"sub-{person:02d}", "one"] for person in everybody)
    words = ("--travelling", table, "--permutations", 2)
    out = measured(tmp_path / "out")
    assert call(small, out, ["nothing"], *words) == 0
    rows = results(out)["Rows"]
    travelled = next(row for row in rows if (row["method"], row["measure"]) == ("nothing", "travelling.MAE"))
    assert travelled["n"] == 1 and "11 pairs" in travelled["note"], "all scans are one person's now"


def test_wrong_use_is_one_line_and_code_2(small, tmp_path, capsys):
    raw, out = str(small / "raw"), str(tmp_path / "out")
    good = f"nothing={small / 'nothing'}"
    table = tmp_path / "people.tsv"
    table.write_text("participant_id\twho\nsub-00\tone\n")
    for words, text in (
        ([raw, out, "--methods", "nothing"], "NAME=FOLDER"),
        ([raw, out, "--methods", "blur=" + raw], "control's name"),
        ([raw, out, "--methods", good, good], "comes twice"),
        ([raw, out, "--methods", f"a={tmp_path / 'nowhere'}"], "no such folder"),
        ([str(tmp_path / "nowhere"), out, "--methods", good], "no such folder"),
        ([raw, raw + "/dataset_description.json/out", "--methods", good], "inside the dataset"),
        ([raw, str(table) + "/out", "--methods", good], "cannot be made"),
        ([raw, raw + "/inside", "--methods", good], "inside the dataset"),
        ([raw, out, "--methods", good, "--effects", "wisdom"], "it has age"),
        ([raw, out, "--methods", good, "--travelling", str(table)], "no person column"),
        ([raw, out, "--methods", good, "--nprocs", "0"], "must be 1 or more"),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err.strip()
        assert text in said and "\n" not in said
    assert main([raw, out, "--methods", f"raw={raw}"]) == 3
    assert "run mmh on it" in capsys.readouterr().err
