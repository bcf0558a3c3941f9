"""Site probes: they find sites that are there, none that are not, and refuse people on both sides."""

import numpy as np
import pytest

from mmh_bids.evaluation.clustering import by_site, by_subject
from mmh_bids.evaluation.matrix import CannotSayError, LeakError, check_identities, principal, shuffled
from mmh_bids.evaluation.probes import PROBES, check_folds, folds_by_subject, probe_site

FAST = {"permutations": 19, "seeds": 1}
LINEAR = {"probes": ["logistic regression"]} | FAST


def people_at_sites(count=24, sites=3, strength=2.0, scans=1, seed=0):
    """Features (N, 12) of people who were scanned at one of some sites, and both labels."""
    rng = np.random.default_rng(seed)
    site = np.repeat(np.arange(count) % sites, scans)
    person = np.repeat(np.arange(count), scans)
    own = rng.normal(0, 1, (count, 12))[person]
    return own + rng.normal(0, 0.3, own.shape) + strength * rng.normal(0, 1, (sites, 12))[site], site, person


def test_every_probe_finds_sites_that_are_there():
    results = probe_site(*people_at_sites(), **FAST)
    assert [one.probe for one in results] == list(PROBES)
    for one in results:
        assert one.balanced_accuracy > 0.8 > one.null_high
        assert one.p == pytest.approx(1 / 20)
        assert one.tells_sites and one.converged
        assert (one.images, one.people, one.sites) == (24, 24, 3)


def test_travellers_whose_scans_differ_by_site_are_found():
    rng = np.random.default_rng(1)
    person, site = np.repeat(np.arange(8), 3), np.tile(np.arange(3), 8)
    features = 3 * rng.normal(0, 1, (8, 6))[person] + rng.normal(0, 1, (3, 6))[site] + rng.normal(0, 0.2, (24, 6))
    linear = probe_site(features, site, person, **LINEAR)[0]
    assert linear.tells_sites


@pytest.mark.slow
@pytest.mark.parametrize(("travel", "probes"), [(False, tuple(PROBES)), (True, ("logistic regression", "linear SVM"))])
def test_shuffled_labels_stay_within_the_null_interval(travel, probes):
    features, site, person = people_at_sites(strength=2.0)
    if travel:
        person = np.repeat(np.arange(8), 3)
    outside = dict.fromkeys(probes, 0)
    for seed in range(20):
        labels = shuffled(site, person, np.random.default_rng(1000 + seed))
        for one in probe_site(features, labels, person, seed=seed, permutations=60, seeds=1, probes=probes):
            outside[one.probe] += not one.null_low <= one.balanced_accuracy <= one.null_high
    assert max(outside.values()) <= 1, outside


def test_folds_never_share_a_person_and_leaked_ones_are_refused():
    _, site, person = people_at_sites(scans=2)
    folds = folds_by_subject(site, person, 4, 0)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(48))
    train, test = folds[0]
    leaked = [(np.append(train, test[0]), test), *folds[1:]]
    with pytest.raises(LeakError, match="on both sides"):
        check_folds(leaked, person)
    with pytest.raises(LeakError, match="on both sides"):
        probe_site(people_at_sites(scans=2)[0], site, person, folds=leaked, **FAST)


def test_one_person_under_two_labels_is_refused():
    features, _, person = people_at_sites()
    check_identities(features, person)
    features[5] = features[17]
    with pytest.raises(LeakError, match="5 and 17"):
        check_identities(features, person)


def test_what_the_data_cannot_support_is_said():
    features, site, person = people_at_sites()
    with pytest.raises(CannotSayError, match=r"two sites .*0 \(24\)"):
        probe_site(features, np.zeros(24, int), person, **LINEAR)
    with pytest.raises(CannotSayError, match="do not differ"):
        probe_site(np.ones((24, 5)), site, person, **LINEAR)
    few = probe_site(features, np.where(np.arange(24) == 3, "Zürich", site.astype(str)), person, **LINEAR)[0]
    assert "Zürich" in few.note and few.images == 23


def test_a_probe_that_does_not_converge_says_so(monkeypatch):
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setitem(PROBES, "logistic regression", lambda seed: LogisticRegression(max_iter=1))
    found = probe_site(*people_at_sites(), **LINEAR)[0]
    assert not found.converged and "converge" in found.note


def test_the_same_seed_gives_the_same_answer():
    data = people_at_sites(strength=0.5)
    assert probe_site(*data, seed=3, permutations=3) == probe_site(*data, seed=3, permutations=3)


def test_gaps_are_filled_and_signs_of_components_are_fixed():
    features, *_ = people_at_sites()
    features[0, 0] = np.nan
    scores = principal(features)
    assert np.isfinite(scores).all() and scores.shape == (24, 12)
    assert (scores[np.abs(scores).argmax(axis=0), np.arange(12)] > 0).all()


def test_silhouettes_tell_sites_from_people():
    features, site, person = people_at_sites(strength=0.0, scans=2)
    people = by_subject(features, person, permutations=50)
    assert people.value > people.null_high and people.groups == 24
    sites = by_site(features, site, person, permutations=50)
    assert sites.null_low <= sites.value <= sites.null_high
    with pytest.raises(CannotSayError, match="two people"):
        by_subject(features[::2], person[::2])
    with pytest.raises(CannotSayError, match="two sites"):
        by_site(features, np.zeros(48, int), person)
