"""The group level's numbers: rows, distances between sites, outliers, spreads, probes; and the table on disk."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from mmh_bids.bids.inventory import find_images
from mmh_bids.bids.tsv import read_tsv
from mmh_bids.cli.group import run_group
from mmh_bids.evaluation import group_probes
from mmh_bids.evaluation.group_distances import OUTLIER_IMAGES, compare, outliers
from mmh_bids.evaluation.group_gather import gather
from mmh_bids.evaluation.group_spread import Traveller, site_distance, site_spread, travellers, travelling_change
from mmh_bids.evaluation.group_summary import caveats, site_counts, summarize
from mmh_bids.evaluation.group_table import columns, number_of, write_table
from mmh_bids.evaluation.matrix import CannotSayError
from mmh_bids.evaluation.pool import KILLED


@pytest.fixture(scope="module")
def made(tmp_path_factory, benchmark_module):
    """``made(**arguments of write_outputs)``: images of a generated output folder, compared."""
    write_outputs = benchmark_module("group_data").write_outputs

    def make(**changes):
        folder = tmp_path_factory.mktemp("group")
        settings = write_outputs(folder / "out", folder / "raw", **changes)
        found = find_images(settings.bids_dir, settings.output_dir, changes.get("sequences", ["T1w"]))
        read = gather(found, settings.output_dir)
        assert read.problems == {}
        return compare(read.images)

    return make


@pytest.fixture(scope="module")
def images(made):
    return made(people=12, sites=("Utrecht", "Genève", "北京"), travellers=2, flagged=1, failed=1)


def table_of(images, folder):
    path = write_table(images, folder / "group_T1w.tsv")
    missing = {"na_values": ["n/a"], "keep_default_na": False, "quoting": csv.QUOTE_NONE}
    return path, pd.read_csv(path, sep="\t", dtype={"site": str}, **missing)


def test_the_table_goes_through_pandas_and_back(images, tmp_path):
    path, table = table_of(images, tmp_path)
    assert len(table) == len(images) == 16 and list(table.columns) == [column.name for column in columns()]
    assert set(table["site"]) == {"Utrecht", "Genève", "北京"}
    again = tmp_path / "again.tsv"
    table.to_csv(again, sep="\t", index=False, na_rep="n/a")
    back = pd.read_csv(again, sep="\t", na_values=["n/a"], keep_default_na=False, dtype={"site": str})
    pd.testing.assert_frame_equal(back, table)
    number = table.select_dtypes("number")
    assert {"gm_mean_after", "wm_volume_before", "distance_to_other_sites_after", "brain_mask_volume"} <= set(number)
    failed = table[table["status"] == "failed"]
    assert len(failed) == 1 and failed["gm_mean_after"].isna().all() and failed["flags"].isna().all()
    assert "truncated" in failed["message"].item()
    assert table.loc[table["status"] == "done", "gm_mean_after"].notna().all()


def test_every_column_is_described(images, tmp_path):
    path, table = table_of(images, tmp_path)
    described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert list(described) == list(table.columns)
    assert all(entry["Description"] for entry in described.values())
    for name in ("status", "verdict"):
        assert set(table[name]) <= set(described[name]["Levels"])


def test_the_same_images_give_the_same_bytes(images, tmp_path):
    path, _ = table_of(images, tmp_path)
    before = path.read_bytes()
    assert table_of(images, tmp_path)[0].read_bytes() == before


@pytest.mark.parametrize("site", ["a\tb\nc", '"quoted', "NA", " 001 ", "-5"])
def test_odd_site_names_stay_in_their_cell(images, tmp_path, site):
    odd = []
    for image in images[:3]:
        run = dataclasses.replace(image.source.run, site=site)
        odd.append(dataclasses.replace(image, source=dataclasses.replace(image.source, run=run)))
    _, table = table_of(odd, tmp_path)
    assert set(table["site"]) == {" ".join(site.split())}


def test_flagged_images_call_for_a_look(images):
    words = [image.verdict for image in images]
    assert (words.count("failed"), words.count("ok") + words.count("look")) == (1, 15)
    flagged = [image for image in images if image.flagged]
    assert [(image.verdict, image.flagged) for image in flagged] == [("look", ["MappedGradientCorrelation"])]


def test_distances_do_not_depend_on_the_unit_of_intensity(images):
    """Half the contrast is no harmonization."""
    names = ("distance_to_other_sites_after", "regional_distance_after")
    before = [[number_of(image, name) for name in names] for image in images if image.features]
    halved = []
    for image in images:
        if image.features:
            after = image.features["after"]
            weak = {name: getattr(after, name) * np.float32(0.5) for name in ("quantiles", "regions", "levels")}
            image = dataclasses.replace(
                image, features={**image.features, "after": dataclasses.replace(after, **weak)}, distances={}
            )
        halved.append(image)
    after = [[number_of(image, name) for name in names] for image in compare(halved) if image.features]
    np.testing.assert_allclose(after, before, rtol=1e-4)


def test_an_image_unlike_the_others_is_found(made):
    found = made(people=20, left=0.0)
    odd = found[3]
    after = odd.features["after"]
    levels = after.levels * np.float32(1.5)
    broken = dataclasses.replace(after, levels=levels, regions=after.regions * np.float32(1.5))
    found[3] = dataclasses.replace(odd, features={**odd.features, "after": broken})
    marked = [
        image for image in compare(found) if {"gm_mean_after", "regional_distance_after"} <= set(image.outlier_in)
    ]
    assert [image.source.key for image in marked] == [odd.source.key] and marked[0].verdict == "look"
    assert outliers(found[: OUTLIER_IMAGES - 1]) == [()] * (OUTLIER_IMAGES - 1)


def test_sites_come_closer_where_their_effect_is_taken_away(made):
    good, nothing = made(people=30, left=0.0), made(people=30, left=1.0)
    assert site_distance(good).verdict == "closer" and site_distance(good).ratio < 0.8
    same = site_distance(nothing)
    assert same.verdict == "alike" and same.ratio == pytest.approx(1)
    after, before = (site_spread(good, when) for when in ("after", "before"))
    assert before.between > 1.6 * before.expected and after.between < 1.5 * after.expected
    assert after.within == pytest.approx(before.within, rel=0.2)


def test_travelling_people(images, made):
    done = [image for image in images if image.features]
    found = travellers(done)
    assert [one.person for one in found] == ["sub-0001", "sub-0002"]
    assert set(found[0].sites) == {"Utrecht", "Genève", "北京"}
    assert all(one.after < 0.5 * one.before and np.isnan(one.rescan_before) for one in found)
    change = travelling_change(found)
    assert change.people == 2 and np.isnan(change.low) and change.verdict == "closer"
    with pytest.raises(CannotSayError, match="nobody was scanned at two sites"):
        travellers(made(people=4))


def test_a_traveller_without_a_number_does_not_spoil_the_others():
    nan = float("nan")
    known = [Traveller(f"sub-{number}", ("A", "B"), 1.0 + number, 0.5 + number / 2, nan, nan) for number in range(5)]
    lost = Traveller("sub-x", ("A", "B"), nan, nan, nan, nan)
    change, rest = travelling_change([*known, lost]), travelling_change(known)
    assert change == rest and (change.people, change.ratio, change.low) == (5, 0.5, 0.5)
    assert np.isnan(travelling_change([lost]).ratio)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"people": 6, "sites": ("A",)}, "all images are of one site"),
        ({"people": 1}, "all images are of one site"),
    ],
)
def test_what_the_data_cannot_support_is_said(made, tmp_path, changes, words):
    found = made(**changes)
    summary = summarize(found)
    assert words in summary.distance and "two sites" in summary.spread
    assert summary.travelling == summary.travellers == "nobody was scanned at two sites"
    assert all("needs two sites" in answer.refusal for answer in summary.answers if answer.kind != "people")
    _, table = table_of(found, tmp_path)
    assert table["distance_to_other_sites_after"].isna().all() and table["gm_mean_after"].notna().all()


def test_no_image_at_all():
    summary = summarize([])
    assert summary.answers == [] and summary.sites == [] and isinstance(summary.distance, str)


def test_sites_that_are_not_known_count_for_none(made):
    found = []
    for image in made(people=6):
        run = dataclasses.replace(image.source.run, site=None)
        found.append(dataclasses.replace(image, source=dataclasses.replace(image.source, run=run), distances={}))
    found = compare(found)
    assert all(np.isnan(number_of(image, "distance_to_other_sites_after")) for image in found)
    assert [count.site for count in site_counts(found)] == [""]
    assert "The site of 6 image(s) is not known" in " ".join(caveats(found))


def test_mixed_methods_and_one_person_under_two_labels_are_said(made):
    found = made(people=24)
    other = found[0]
    source = dataclasses.replace(other.source, facts={**other.source.facts, "Method": "none"})
    twin = dataclasses.replace(found[2], features=found[1].features)
    said = " ".join(caveats([dataclasses.replace(other, source=source), found[1], twin, *found[3:]]))
    assert "method mmh-light, none" in said and "sub-0002 and sub-0003" in said
    assert caveats(found) == []


def test_probes_are_asked_of_a_bounded_number_of_images_by_person(monkeypatch, images):
    monkeypatch.setattr(group_probes, "PERMUTATIONS", {"before": 1, "after": 1})
    monkeypatch.setattr(group_probes, "SILHOUETTE_PERMUTATIONS", 5)
    monkeypatch.setattr(group_probes, "MOST_IMAGES", 8)
    answers = group_probes.ask([image for image in images if image.features])
    assert [(one.kind, one.when) for one in answers][:2] == [("probe", "before"), ("probe", "after")]
    assert all(one.refusal or one.probes or one.silhouette for one in answers)
    keep = group_probes.sample_people([image.person for image in images], 8, 0)
    people = np.array([image.person for image in images])
    assert 8 <= keep.sum() <= 11 and not set(people[keep]) & set(people[~keep])


def test_probes_of_few_images_see_few_components(monkeypatch):
    """All components of twenty images, at equal spread, are mostly noise."""
    monkeypatch.setattr(group_probes, "PERMUTATIONS", {"before": 1, "after": 1})
    rng = np.random.default_rng(0)
    people, sites = np.repeat(np.arange(10), 2).astype(str), np.tile(["A", "B"], 10)
    anatomy = rng.normal(0, 1, (10, 2)) @ rng.normal(0, 1, (2, 200))
    values = np.repeat(anatomy, 2, axis=0) + rng.normal(0, 0.3, (20, 200)) + 0.1 * (sites == "B")[:, None]
    question = group_probes.Question("probe", "quantiles", "after", values, tuple(sites), tuple(people), 0)
    few = group_probes.answer(question).probes[0].balanced_accuracy
    monkeypatch.setattr(group_probes, "IMAGES_A_COMPONENT", 1)
    assert few > group_probes.answer(question).probes[0].balanced_accuracy > 0.5


def test_a_probe_whose_process_was_killed_is_said(monkeypatch, benchmark_module, tmp_path):
    settings = benchmark_module("group_data").write_outputs(tmp_path / "out", tmp_path / "raw", people=8)
    settings = dataclasses.replace(settings, modalities=("T1w",))
    monkeypatch.setattr(group_probes, "in_processes", lambda work, items, count: ((n, None) for n in range(len(items))))
    assert run_group(settings) == 1
    page = (tmp_path / "out" / "group_T1w.html").read_text(encoding="utf-8")
    assert KILLED in page and len(read_tsv(tmp_path / "out" / "group_T1w.tsv", "image")[1]) == 8


@pytest.mark.slow
def test_probes_tell_sites_before_and_not_after(made):
    summary = summarize(made(people=60, sites=("Utrecht", "Genève", "北京"), left=0.0), processes=2)
    answers = {(one.kind, one.feature, one.when): one for one in summary.answers}
    before, after = (answers["probe", "regions", when].probes for when in ("before", "after"))
    assert len(before) == 3 and all(probe.tells_sites and probe.converged for probe in before)
    assert not any(probe.tells_sites for probe in after)
