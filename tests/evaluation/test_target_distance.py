"""How near images are to the site whose look they were to get: known distances, and what cannot be said."""

from pathlib import Path

import numpy as np
import pytest

from mmh_bids.bids.run import Run
from mmh_bids.evaluation.features import ImageFeatures
from mmh_bids.evaluation.sample import Sample
from mmh_bids.evaluation.sources import Source
from mmh_bids.evaluation.target import target_rows
from mmh_bids.evaluation.travelling import pooled_units

SITES = {"A": 0.5, "B": 0.7, "C": 0.9}
SHAPE = np.linspace(-0.1, 0.1, 256)


def sample_of(method, level, target, people=12, sites=tuple(SITES), contrast=1.0):
    """People at sites in turn; an image's level is `level` of its site and of what its person is."""
    sources, features = [], []
    for number in range(people):
        site, own = sites[number % len(sites)], 0.02 * (number // len(sites) - 1.5)
        run = Run(Path(f"sub-{number}_T1w.nii"), "T1w", {"sub": str(number)}, site=site)
        sources.append(Source(run, f"sub-{number}", Path("mask"), Path("xfm"), Path("preproc")))
        value = level(site) + own
        regions = np.append(np.full(4, value), np.nan).astype(np.float32)
        features.append(
            ImageFeatures(
                (value + contrast * SHAPE).astype(np.float32),
                regions,
                np.zeros(3),
                np.zeros(3),
                np.float32(1),
                np.ones(5),
            )
        )
    paths = [Path("none")] * people
    return Sample(
        method, sources, features, paths, pooled_units([one.quantiles for one in features]), [target] * people
    )


def rows_of(level, target, **how):
    plain = sample_of("preprocessing", SITES.get, None, **how)
    rows = target_rows(sample_of("m", level, target, **how), plain, "T1w")
    return {row.measure: row for row in rows}, plain.units.deviation


def test_distances_to_the_target_are_those_that_were_made():
    rows, unit = rows_of(lambda site: 0.55, "site:A")
    assert set(rows) == {
        f"target.{name}{end}" for name in ("histogram", "regions") for end in ("", ".before", ".ratio")
    }
    for name in ("histogram", "regions"):
        after, before, ratio = (rows[f"target.{name}{end}"] for end in ("", ".before", ".ratio"))
        # people spread by 0.02 around their site's level: 0.05 above A's after, 0.2 and 0.4 before
        assert after.value * unit == pytest.approx(0.05, abs=1e-6)
        assert before.value * unit == pytest.approx(0.3, abs=1e-6)
        assert ratio.value == pytest.approx(1 / 6, abs=1e-5) and ratio.low < ratio.value < ratio.high
        assert after.n == 8 and "towards site:A, 8 images" in after.note  # those of A itself do not count


def test_a_method_with_less_contrast_is_no_nearer():
    plain = sample_of("preprocessing", SITES.get, None)
    weak = sample_of("m", lambda site: 0.55, "site:A", contrast=0.1)
    (row,) = [row for row in target_rows(weak, plain, "T1w") if row.measure == "target.regions"]
    assert row.value * plain.units.deviation == pytest.approx(0.05, abs=1e-6)
    assert weak.units.deviation < 0.2 * plain.units.deviation


def test_near_each_other_is_not_near_the_target():
    together, _ = rows_of(lambda site: 0.9, "site:A")
    nothing, _ = rows_of(SITES.get, "site:A")
    assert together["target.regions.ratio"].value == pytest.approx(4 / 3, rel=1e-3)
    assert nothing["target.histogram.ratio"].value == pytest.approx(1) == nothing["target.histogram.ratio"].high


def test_the_reference_is_without_the_person_who_is_compared():
    """Somebody scanned at both sites is no measure of the own distance."""
    plain, method = sample_of("preprocessing", SITES.get, None), sample_of("m", SITES.get, "site:A")
    for sample in (plain, method):
        run = sample.sources[0].run
        twice = Run(Path("again.nii"), "T1w", {"sub": "0", "ses": "2"}, site="B")
        sample.sources.append(Source(twice, sample.sources[0].person, Path("m"), Path("x"), Path("p")))
        for own in (sample.features, sample.paths, sample.targets):
            own.append(own[0])
        assert run.site == "A"
    only = method.chosen([len(method.sources) - 1])
    (row, *_) = target_rows(only, plain, "T1w")
    # three others at A, who lie 0.02, 0.04 and 0.06 higher: the median of those, not of all four
    assert row.value * plain.units.deviation == pytest.approx(0.04, abs=1e-6)


@pytest.mark.parametrize(
    ("target", "how", "words"),
    [
        ("unified", {}, "the target was unified, a look of which the dataset has no image"),
        ("image:ref_T1w.nii.gz", {}, "the target was image, a look of which the dataset has no image"),
        ("site:D", {}, "no image of the target's site D"),
        (None, {}, "do not say what their target was"),
        ("site:A", {"sites": ("A",)}, "own site A are not compared"),
    ],
)
def test_what_cannot_be_said_is_said(target, how, words):
    rows, _ = rows_of(lambda site: 0.55, target, **how)
    assert list(rows) == ["target"]
    assert (
        np.isnan(rows["target"].value)
        and rows["target"].note.startswith("cannot say: ")
        and words in rows["target"].note
    )
