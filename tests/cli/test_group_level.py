"""``mmh BIDS OUT group`` on what the app itself wrote: files, links, exit codes, and what is made again."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from small_study import SOURCES, files, hashes, sidecar_of
from tiny import leftovers, mmh

GROUP = {f"group_{sequence}.{kind}" for sequence in ("T1w", "T2w") for kind in ("html", "json", "tsv")}


@pytest.fixture
def outputs(study, tmp_path):
    """Dataset, a copy of its outputs, and the words of a group call."""
    root, out, _, work, _ = study
    return root, Path(shutil.copytree(out, tmp_path / "out")), ("group", "-w", work, "--nprocs", 1)


def read(path):
    return pd.read_csv(path, sep="\t", na_values=["n/a"], quoting=csv.QUOTE_NONE, dtype={"site": str})


def test_group_call_writes_tables_and_reports_and_touches_nothing_else(outputs, here):
    root, out, words = outputs
    before = hashes(out)
    (out / ".bidsignore").write_text("*.html\n")  # as an older version left it
    call = here(root, out, *words)
    assert call.code == 0, call.err
    after = hashes(out)
    assert set(after) - set(before) == GROUP and {name: after[name] for name in before} == before
    assert "have no features yet" not in call.err  # the participant level left them
    assert call.err.splitlines()[-1] == "mmh: ends with exit code 0 (all done)"
    table = read(out / "group_T1w.tsv")
    assert list(table["image"]) == [source for source in SOURCES if "T1w" in source]
    assert set(table["session_id"]) == {"ses-A", "ses-B"} and set(table["site"]) == {"A"}
    assert table["gm_mean_after"].between(0, 1.2).all() and (table["wm_volume_after"] > 100).all()
    assert table["gradient_correlation"].notna().all() and table["distance_to_other_sites_after"].isna().all()
    assert leftovers(out) == []
    assert here(root, out, *words).code == 0
    assert hashes(out) == after


def test_page_links_to_the_participants_reports(outputs, here):
    root, out, words = outputs
    assert here(root, out, *words).code == 0
    text = (out / "group_T1w.html").read_text(encoding="utf-8")
    links = set(re.findall(r'href="(sub-[^"]*)"', text))
    assert len(links) == 2
    for link in links:
        page, _, anchor = unquote(link).partition("#")
        assert f'id="{anchor}"' in (out / page).read_text(encoding="utf-8")
    assert "cannot be said" in text and "all images are of one site" in text


def test_missing_features_are_made_again_with_the_same_bytes(outputs, here):
    root, out, words = outputs
    features = sorted(out.rglob("*_desc-features_*.npz"))
    assert len(features) == len(SOURCES)
    before = hashes(out)
    features[0].unlink()
    features[1].write_bytes(b"broken")
    call = here(root, out, *words)
    assert call.code == 0 and "2 image(s) have no features yet" in call.err, call.err
    assert {name: value for name, value in hashes(out).items() if name in before} == before


def test_a_broken_sidecar_costs_that_image_only(outputs, here):
    root, out, words = outputs
    broken = out / "sub-01/ses-A/anat/sub-01_ses-A_desc-harmonized_T1w.json"
    broken.write_text("{")
    call = here(root, out, *words)
    assert call.code == 1
    (line,) = [line for line in call.err.splitlines() if "left out" in line]
    assert line.startswith(f"sub-01_ses-A_T1w: left out: {broken}: cannot be read")
    assert list(read(out / "group_T1w.tsv")["session_id"]) == ["ses-B"]
    assert "1 could not be read" in (out / "group_T1w.html").read_text(encoding="utf-8")
    assert len(read(out / "group_T2w.tsv")) == 2


def test_a_lost_image_without_features_is_named(outputs, here):
    root, out, words = outputs
    lost = out / "sub-02/anat/sub-02_desc-harmonized_T2w.nii.gz"
    lost.unlink()
    (out / "sub-02/features/sub-02_desc-features_T2w.npz").unlink()
    call = here(root, out, *words)
    assert call.code == 1 and f"sub-02_T2w: left out: {lost}: no such file; run the participant level again" in call.err


def test_failed_images_have_a_row(outputs, here):
    root, out, words = outputs
    path = out / "logs" / "images.tsv"
    lines = path.read_text().splitlines()
    assert lines[-1].startswith("sub-02/anat/sub-02_T2w.nii.gz")
    lines[-1] = lines[-1].replace("done\tn/a", "failed\tevery voxel is 0")
    path.write_text("\n".join(lines) + "\n")
    call = here(root, out, *words, "--modalities", "T2w")
    assert call.code == 0 and "group_T2w.html: 1 of 2 images were harmonized; " in call.err and "; 1 failed" in call.err
    row = read(out / "group_T2w.tsv").iloc[-1]
    assert (row["verdict"], row["message"]) == ("failed", "every voxel is 0") and pd.isna(row["sharpness_after"])
    assert not (out / "group_T1w.tsv").exists()


def test_nothing_there(study, tmp_path, here):
    root, _, _, work, _ = study
    call = here(root, tmp_path / "none", "group", "-w", work)
    assert call.code == 3 and "does not exist; run the participant level first" in call.err
    (tmp_path / "empty").mkdir()
    call = here(root, tmp_path / "empty", "group", "-w", work)
    assert call.code == 3 and "holds no T1w or T2w image" in call.err
    assert files(tmp_path / "empty") == []
    (tmp_path / "empty" / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    call = here(root, tmp_path / "empty", "group", "-w", work)
    assert call.code == 2 and "fMRIPrep" in call.err


def test_dry_run_lists_and_writes_nothing(outputs, here):
    root, out, words = outputs
    before = files(out)
    call = here(root, out, *words, "--dry-run")
    assert call.code == 0 and len(call.out.splitlines()) == len(SOURCES) and files(out) == before


def test_labels_do_not_choose_who_counts(outputs, here):
    root, out, words = outputs
    call = here(root, out, *words, "--participant-label", "02")
    assert call.code == 0 and "everybody in" in call.err
    assert len(read(out / "group_T1w.tsv")) == 2


@pytest.mark.slow
def test_both_levels_in_one_call(study, tmp_path):
    root, _, words, work, _ = study
    out = tmp_path / "out"
    call = mmh(root, out, "group", *words, "-w", tmp_path / "work", "--participant-label", "02")
    assert call.code == 0, call.err
    assert {name for name in files(out) if name.startswith("group")} == {n for n in GROUP if "T2w" in n}
    assert len(list(out.glob("logs/mmh-*.log"))) == len(list(out.glob("logs/config-*.toml"))) == 1
    assert "group_T2w.html" in next(out.glob("logs/mmh-*.log")).read_text()
    facts = json.loads(sidecar_of(out / "sub-02/anat/sub-02_desc-harmonized_T2w.nii.gz"))["Harmonization"]
    assert facts["Site"] == read(out / "group_T2w.tsv")["site"].item() == "B"


def test_group_level_starts_without_the_heavy_libraries():
    heavy = {"torch", "pandas", "sklearn", "matplotlib", "nipype"}
    code = f"import sys, mmh_bids.cli.group; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
