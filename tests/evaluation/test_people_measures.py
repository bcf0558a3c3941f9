"""Measures over people with known answers: pairs, intervals, distances of sites, tissues, known effects."""

import numpy as np
import pytest

from mmh_bids.evaluation.agreement import ssim
from mmh_bids.evaluation.alignment import between_people, between_sites
from mmh_bids.evaluation.effects import compare, find_effect, score_of
from mmh_bids.evaluation.estimate import bootstrap, mean_over_people, person_means, ratio_over_people
from mmh_bids.evaluation.matrix import CannotSayError
from mmh_bids.evaluation.reliability import crossed_table, icc21, pair_dice, tissue_labels, volume_icc
from mmh_bids.evaluation.travelling import (
    BEST_PSNR,
    MEASURES,
    Units,
    change_beyond_gain,
    find_pairs,
    pair_measures,
    pooled_units,
)


def test_pairs_of_travellers_and_rescans():
    pairs = find_pairs(["a", "a", "a", "b", "c", "c"], ["X", "X", "Y", "X", None, "Y"])
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [
        (0, 1, "rescan"),
        (0, 2, "between"),
        (1, 2, "between"),
    ]


def test_measures_do_not_depend_on_a_methods_gain_but_on_a_sites():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 12, 12, 12), dtype=np.float32)
    inside = np.ones(first.shape, bool)
    quantiles = np.sort(np.stack([first.ravel()[:256], second.ravel()[:256]]), axis=1)
    plain = pair_measures(first, second, inside, pooled_units(quantiles))
    scaled = pair_measures(7 * first + 3, 7 * second + 3, inside, pooled_units(7 * quantiles + 3))
    assert list(plain) == list(MEASURES)
    for name in ("MAE", "PSNR", "Pearson", "Wasserstein-1"):
        assert scaled[name] == pytest.approx(plain[name], rel=1e-4)
    one_site = pair_measures(first, 2 * first, inside, pooled_units(quantiles))
    assert one_site["Pearson"] == pytest.approx(1) and one_site["Wasserstein-1"] > 0.5


def test_ssim_is_monais():
    import torch
    from monai.metrics.regression import compute_ssim_and_cs

    one, other = np.random.default_rng(0).random((2, 14, 13, 12), dtype=np.float32)
    inside = np.zeros(one.shape, bool)
    inside[2:12, 1:12, 2:10] = True
    inside[3:5, 4:6, :] = False
    padded = [torch.from_numpy(np.pad(np.where(inside, image, 0), 3))[None, None] for image in (one, other)]
    how = {"kernel_type": "uniform", "kernel_size": (7, 7, 7), "kernel_sigma": (1.5, 1.5, 1.5)}
    theirs = compute_ssim_and_cs(*padded, spatial_dims=3, data_range=0.8, **how)[0][0, 0].numpy()[inside].mean()
    assert ssim(one, other, inside, 0.8) == pytest.approx(float(theirs), abs=1e-5)


def test_equal_and_flat_images_have_finite_measures():
    image, inside = np.random.default_rng(0).random((9, 9, 9), dtype=np.float32), np.ones((9, 9, 9), bool)
    found = pair_measures(image, image, inside, Units(0.3, 1.0))
    assert found["PSNR"] == BEST_PSNR and found["SSIM"] == pytest.approx(1)
    assert np.isnan(pair_measures(image, 0 * image, inside, Units(0.3, 1.0))["Pearson"])
    with pytest.raises(CannotSayError):
        pooled_units(np.ones((3, 256)))


def test_a_curve_is_a_change_and_a_gain_is_none():
    image = np.random.default_rng(0).random(1000)
    assert change_beyond_gain(image, 5 + 2 * image, Units(1.0, 1.0)) == pytest.approx(0, abs=1e-12)
    assert change_beyond_gain(image, image**2, Units(1.0, 1.0)) > 0.02


def test_intervals_are_over_people_not_images():
    values, people = np.repeat([1.0, 2.0, 3.0, 4.0], 50), np.repeat(list("abcd"), 50)
    wide = mean_over_people(values, people)
    assert wide.people == 4 and wide.high - wide.low > 1
    alone = mean_over_people([1.0, 2.0], ["a", "a"])
    assert alone.value == 1.5 and np.isnan(alone.low)
    with pytest.raises(ValueError):
        mean_over_people([np.nan], ["a"])
    ratio = ratio_over_people([1.0, np.nan, 2.0], [2.0, 5.0, 4.0], list("abc"))
    assert (ratio.value, ratio.people) == (0.5, 2)
    assert person_means([1, 3], ["a", "a"])[1].tolist() == [2.0]
    assert np.isnan(bootstrap(lambda drawn: float("nan"), 5)).all()


def test_sites_apart_and_people_apart_are_told_from_each_other():
    rng = np.random.default_rng(0)
    sites, people = np.repeat(["A", "B"], 10).tolist(), list(range(20))
    rows = rng.normal(0, 0.5, (20, 40)) + 3 * (np.array(sites) == "B")[:, None]
    apart = between_sites(rows, sites, people, 1.0)
    assert apart.low < apart.value < apart.high and apart.value == pytest.approx(3, abs=0.2)
    assert between_people(rows, sites, people, 1.0).value == pytest.approx(0.5, rel=0.1)
    assert between_people(rows[:10], [None] * 10, people[:10], 1.0).value == pytest.approx(0.5, rel=0.1)
    with pytest.raises(CannotSayError, match="there is A"):
        between_sites(rows[:10], sites[:10], people[:10], 1.0)
    with pytest.raises(CannotSayError, match="two people"):
        between_people(rows[:2], ["A", "B"], [1, 2], 1.0)


def test_gaps_of_one_image_do_not_spoil_the_rest():
    rows = np.array([[1.0, np.nan], [1.0, 2.0], [2.0, 4.0], [2.0, 4.0]])
    assert between_sites(rows, list("AABB"), list("1234"), 1.0).value == pytest.approx(1.5)


def test_agreement_of_volumes():
    rng = np.random.default_rng(0)
    people, sites = np.repeat(np.arange(12), 3), np.tile(list("ABC"), 12)
    true = np.repeat(rng.normal(600, 40, 12), 3)
    good = volume_icc(true + rng.normal(0, 5, 36), people, sites.tolist())
    shifted = volume_icc(true + np.tile([0, 60, -60], 12), people, sites.tolist())
    assert good.value > 0.95 and good.low > 0.8 and good.people == 12
    assert shifted.value < 0.5, "a site that measures all volumes too large does not agree"
    with pytest.raises(CannotSayError, match="vary"):
        volume_icc(np.ones(36), people, sites.tolist())
    with pytest.raises(CannotSayError, match="3 people"):
        volume_icc(true[:6], people[:6], sites[:6].tolist())
    with pytest.raises(ValueError):
        icc21([[1.0, np.nan], [1.0, 2.0]])


def test_the_largest_crossed_table_is_taken():
    people = ["a", "a", "a", "b", "b", "b", "c", "c", "c", "d", "d"]
    sites = ["A", "B", "C", "A", "B", "C", "A", "B", "C", "A", "B"]
    table, used = crossed_table(np.arange(11.0), people, sites)
    assert table.shape == (3, 3) and used == ["A", "B", "C"]


def test_dice_falls_when_tissue_moves():
    image = np.tile(np.repeat(np.float32([0.2, 0.5, 0.8]), 6), (18, 18, 1))
    image += np.random.default_rng(0).normal(0, 0.02, image.shape).astype(np.float32)
    inside = np.ones(image.shape, bool)
    labels = tissue_labels(image, inside, "T1w")
    assert pair_dice(labels, labels) == 1.0
    assert pair_dice(labels, tissue_labels(np.roll(image, 2, axis=2), inside, "T1w")) < 0.8


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    age, sex = rng.uniform(20, 80, 50), np.where(rng.random(50) < 0.5, "F", "M")
    noise = rng.normal(0, 1, (50, 15))
    with_age = noise + np.outer((age - 50) / 20, np.r_[np.ones(5), np.zeros(10)])
    with_both = with_age + np.outer(sex == "M", np.r_[np.zeros(10), 2 * np.ones(5)])
    return age, sex, noise, with_both


def test_an_effect_that_is_there_is_found_and_a_lost_one_is_seen(cohort):
    age, sex, noise, with_both = cohort
    people, cells = list(range(50)), [f"{value:.1f}" for value in age]
    before, after = (find_effect("age", table, cells, people) for table in (with_both, noise))
    assert before.kind == "number" and before.score > 0.8 and before.r2 > 0.5 and before.mae < 12
    difference, low, high = compare(before, after)
    assert high < 0 and low < difference < high
    groups = find_effect("sex", with_both, sex.tolist(), people)
    assert groups.kind == "group" and groups.score > 0.9 and groups.low > 0.7
    assert abs(find_effect("sex", noise, sex.tolist(), people).score - 0.5) < 0.25


@pytest.mark.parametrize("groups", ["FM", "FMX"])
def test_the_area_under_the_curve_is_sklearns(groups):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    true = rng.choice(list(groups), 40)
    said = rng.integers(0, 6, (40, len(groups))) / 5  # with ties
    theirs = [roc_auc_score(true == name, said[:, column]) for column, name in enumerate(groups)]
    assert score_of(said, true) == pytest.approx(np.mean(theirs), abs=1e-12)
    # a draw of one group only has no area
    assert np.isnan(score_of(said, np.full(40, "F")))


def test_nothing_to_tell_is_no_correlation_and_no_negative_one():
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(8):
        ages = [f"{value:.1f}" for value in rng.uniform(20, 80, 24)]
        scores.append(find_effect("age", rng.normal(0, 1, (24, 2)), ages, range(24)).score)
    assert -0.25 < np.mean(scores) < 0.25, scores


def test_missing_values_are_dropped_and_counted(cohort):
    age, _, _, with_both = cohort
    cells = [None if index < 5 else f"{value:.1f}" for index, value in enumerate(age)]
    found = find_effect("age", with_both, cells, list(range(50)))
    assert (found.people, found.missing) == (45, 5)
    with pytest.raises(CannotSayError, match="20 people"):
        find_effect("age", with_both[:10], cells[:10], list(range(10)))
    with pytest.raises(CannotSayError, match="two groups"):
        find_effect("sex", with_both, ["F"] * 48 + ["M"] * 2, list(range(50)))


def test_several_scans_of_a_person_are_one_row(cohort):
    age, _, _, with_both = cohort
    cells = [f"{value:.1f}" for value in age]
    twice = find_effect("age", np.repeat(with_both, 2, axis=0), np.repeat(cells, 2).tolist(), np.repeat(range(50), 2))
    assert twice.people == 50
    with pytest.raises(ValueError, match="other people"):
        compare(twice, find_effect("age", with_both[:40], cells[:40], range(40)))
