"""The example of docs/combat.md runs as it stands there, and does what it says."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmh_bids.bids.inventory import find_images
from mmh_bids.evaluation.group_distances import compare
from mmh_bids.evaluation.group_gather import gather
from mmh_bids.evaluation.group_table import write_table

SLOPE = -2.0  # mL a year
SITE = {"Utrecht": 0.0, "Genève": 60.0, "001": -40.0}


@pytest.fixture
def folder(tmp_path, benchmark_module, monkeypatch):
    """A current folder with OUT/group_T1w.tsv and BIDS/participants.tsv; grey matter shrinks with age, sites differ."""
    pytest.importorskip("neuroCombat", reason="neuroCombat is not installed")
    write_outputs = benchmark_module("group_data").write_outputs
    settings = write_outputs(tmp_path / "OUT", tmp_path / "BIDS", people=90, sites=tuple(SITE), left=0.0, failed=1)
    rng = np.random.default_rng(0)
    ages = rng.uniform(20, 80, 90)
    images = []
    read = gather(find_images(settings.bids_dir, settings.output_dir, ["T1w"]), settings.output_dir)
    for image, age in zip(read.images, ages, strict=True):
        if image.features:
            after = image.features["after"]
            volumes = np.array([250, 650, 500]) + [0, SLOPE * age, 0] + SITE[image.site] + rng.normal(0, 8, 3)
            changed = dataclasses.replace(after, volumes_ml=volumes.astype(np.float32))
            image = dataclasses.replace(image, features={**image.features, "after": changed})
        images.append(image)
    write_table(compare(images), settings.output_dir / "group_T1w.tsv")
    people = pd.DataFrame({"participant_id": [image.person for image in images], "age": ages.round(1)})
    people["sex"] = np.where(np.arange(90) % 2, "F", "M")
    people.loc[3, "age"] = np.nan
    people.to_csv(tmp_path / "BIDS" / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_takes_the_site_away_and_keeps_age(folder, repo_root, capsys):
    text = (repo_root / "docs" / "combat.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    exec(compile(example, "docs/combat.md", "exec"), names)  # noqa: S102 - it is our own document
    before, after = names["rows"], pd.read_csv("volumes_combat.tsv", sep="\t", dtype={"site": str})
    assert len(after) == len(before) >= 80 and set(after["site"]) == set(SITE)
    for name in ("csf_volume_after", "gm_volume_after", "wm_volume_after"):
        spread = [_without_age(rows, name).groupby(rows["site"]).mean().std() for rows in (before, after)]
        assert spread[0] > 40 and spread[1] < 4, name
    assert np.polyfit(after["age"], after["gm_volume_after"], 1)[0] == pytest.approx(SLOPE, abs=0.2)
    assert Path("BIDS/participants.tsv").exists()


def _without_age(rows, name):
    return rows[name] - (SLOPE * rows["age"] if name.startswith("gm") else 0)
