import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.reports.flags import QUANTITIES, RULES, flags, show, unusable

GOOD = {
    "MappedGradientCorrelation": 0.95, "GradientCorrelation": 0.85, "RangeMin": 0.0, "RangeMax": 100.0,
    "Finite": True, "NonNegative": True, "IntensityMapMonotone": True, "BrainMaskVolume": 900.0,
    "ParenchymaVolumeBefore": 1000.0, "ParenchymaVolumeAfter": 1100.0, "ReferenceDistanceBefore": 0.1,
    "ReferenceDistanceAfter": 0.1, "GridCoverage": 0.99, "TemplateDice": 0.9,
}  # fmt: skip


def test_values_on_their_thresholds_pass():
    assert flags(GOOD) == []


@pytest.mark.parametrize(
    ("key", "usable", "beyond"),
    [
        ("MappedGradientCorrelation", 0.9, 0.8999),
        ("BrainMaskVolume", 600.0, 599.9),
        ("BrainMaskVolume", 2200.0, 2200.1),
        ("ParenchymaVolumeAfter", 1250.0, 1250.5),
        ("ParenchymaVolumeAfter", 750.0, 749.5),
        ("GridCoverage", 0.95, 0.9499),
        ("TemplateDice", 0.8, 0.7999),
        ("Finite", True, False),
        ("NonNegative", True, False),
        ("IntensityMapMonotone", True, False),
        ("MappedGradientCorrelation", 0.9, math.nan),
    ],
)
def test_beyond_use_begins_where_the_documentation_says(key, usable, beyond):
    assert unusable(GOOD | {key: usable}) == []
    assert [flag.key for flag in unusable(GOOD | {key: beyond})] == [key]


@pytest.mark.parametrize(
    ("key", "value"),
    [("GradientCorrelation", 0.0), ("GradientCorrelation", math.nan), ("ReferenceDistanceAfter", 99.0)],
)
def test_what_tells_of_little_use_only_asks_for_a_look(key, value):
    assert [flag.key for flag in flags(GOOD | {key: value})] == [key]
    assert unusable(GOOD | {key: value}) == []


def test_an_input_without_three_classes_cannot_tell_that_volumes_changed():
    assert unusable(GOOD | {"ParenchymaVolumeBefore": 0.0}) == []
    assert [flag.key for flag in flags(GOOD | {"ParenchymaVolumeBefore": 0.0})] == ["ParenchymaVolumeAfter"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MappedGradientCorrelation", 0.9499),
        ("GradientCorrelation", 0.8499),
        ("BrainMaskVolume", 899.9),
        ("BrainMaskVolume", 1900.1),
        ("Finite", False),
        ("NonNegative", False),
        ("IntensityMapMonotone", False),
        ("ParenchymaVolumeAfter", 1100.5),
        ("ParenchymaVolumeAfter", 899.0),
        ("ReferenceDistanceAfter", 0.11),
        ("GridCoverage", 0.9899),
        ("TemplateDice", 0.8999),
    ],
)
def test_each_threshold_flags_its_own_key_only(key, value):
    found = flags(GOOD | {key: value})
    assert [flag.key for flag in found] == [key]
    assert found[0].value == show(key, value)
    assert found[0].limit and found[0].sentence.endswith((".", ")"))


def test_every_rule_speaks_of_a_known_quantity():
    assert {key for rule in RULES for key in rule.keys} <= {quantity.key for quantity in QUANTITIES}


values = st.none() | st.booleans() | st.floats() | st.integers() | st.text()
keys = st.sampled_from([quantity.key for quantity in QUANTITIES]) | st.text()


@given(st.dictionaries(keys, values))
@settings(max_examples=60, deadline=None)
def test_no_value_whatever_stops_it(qc):
    for flag in flags(qc):
        assert flag.key in qc
    for key, value in qc.items():
        assert isinstance(show(key, value), str)


@given(st.sampled_from(sorted(GOOD)), st.sampled_from([math.nan, math.inf, -math.inf]))
@settings(max_examples=40, deadline=None)
def test_a_threshold_is_never_passed_by_not_a_number(key, value):
    ruled = {rule.keys[-1] for rule in RULES if key in rule.keys}
    assert {flag.key for flag in flags(GOOD | {key: value})} == ruled
