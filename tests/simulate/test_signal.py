"""The closed forms against step-by-step Bloch simulations and known limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.errors import UsageError
from mmh_bids.simulate import signal
from mmh_bids.simulate.tissues import GREY, INDEX, NAMES, WHITE, person_scales, relaxation

T1 = st.floats(0.2, 5.0)


def recover(longitudinal, seconds, t1):
    return 1 + (longitudinal - 1) * np.exp(-seconds / t1)


@settings(max_examples=20, deadline=None)
@given(t1=T1, flip=st.floats(2, 20), echoes=st.integers(2, 40), ti=st.floats(0.5, 1.0), rest=st.floats(0.0, 1.0))
def test_mprage_equals_pulse_by_pulse_simulation(t1, flip, echoes, ti, rest):
    spacing, efficiency, pulses_before = 0.008, 0.93, echoes // 2
    tr = ti + (echoes - pulses_before) * spacing + rest
    longitudinal, centre = 1.0, 0.0
    for _cycle in range(200):
        longitudinal = recover(-efficiency * longitudinal, ti - pulses_before * spacing, t1)
        for pulse in range(echoes):
            if pulse == pulses_before:
                centre = longitudinal * np.sin(np.deg2rad(flip))
            longitudinal = recover(longitudinal * np.cos(np.deg2rad(flip)), spacing, t1)
        longitudinal = recover(longitudinal, rest, t1)
    got = signal.mprage(
        t1, 1e9, 1.0, tr=tr, ti=ti, te=0.003, flip=flip, echo_spacing=spacing, echoes=echoes,
        inversion_efficiency=efficiency,
    )  # fmt: skip
    assert float(got) == pytest.approx(abs(centre), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(t1=T1, flip=st.floats(2, 60), tr=st.floats(0.006, 0.05))
def test_spoiled_echo_is_the_fixed_point_of_its_pulses(t1, flip, tr):
    before = float(signal.spoiled_gradient_echo(t1, 1e9, 1.0, tr=tr, te=tr / 2, flip=flip)) / np.sin(np.deg2rad(flip))
    assert recover(before * np.cos(np.deg2rad(flip)), tr, t1) == pytest.approx(before, rel=1e-9)


def test_spin_echo_equals_its_three_recoveries():
    t1, t2, tr, te = 0.9, 0.08, 1.2, 0.05
    longitudinal = 0.0  # after the 90 degree pulse
    for _cycle in range(50):
        longitudinal = -recover(0.0, te / 2, t1)
        longitudinal = recover(longitudinal, tr - te / 2, t1)
    assert float(signal.spin_echo(t1, t2, 1.0, tr=tr, te=te)) == pytest.approx(longitudinal * np.exp(-te / t2))


def test_fast_spin_echo_of_one_echo_and_long_repetition_is_a_spin_echo():
    fast = signal.fast_spin_echo(0.9, 0.08, 0.7, tr=30.0, te=0.05, echo_spacing=0.05, echoes=1)
    assert float(fast) == pytest.approx(float(signal.spin_echo(0.9, 0.08, 0.7, tr=30.0, te=0.05)), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: signal.mprage(1, 1, 1, tr=2, ti=0.5, te=0.003, flip=8, echo_spacing=0.008, echoes=160), "too short"),
        (lambda: signal.mprage(1, 1, 1, tr=1.2, ti=0.9, te=0.003, flip=8, echo_spacing=0.008, echoes=160), "too short"),
        (lambda: signal.mprage(1, 1, 1, tr=2, ti=0.9, te=0.009, flip=8, echo_spacing=0.008, echoes=10), "EchoTime"),
        (lambda: signal.spoiled_gradient_echo(1, 1, 1, tr=0.01, te=0.02, flip=20), "EchoTime"),
        (lambda: signal.spin_echo(1, 1, 1, tr=0.05, te=0.09), "EchoTime"),
        (lambda: signal.fast_spin_echo(1, 1, 1, tr=0.1, te=0.05, echo_spacing=0.01, echoes=16), "does not fit"),
        (lambda: signal.fast_spin_echo(1, 1, 1, tr=3, te=0.3, echo_spacing=0.01, echoes=16), "outside the train"),
    ],
)
def test_impossible_protocols_are_refused_in_one_line(call, words):
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_contrasts_are_those_of_the_textbook():
    for field in (1.5, 3.0):
        own = relaxation(field)
        t1w = signal.mprage(
            own.t1, own.t2star, own.pd, tr=2.3, ti=0.9, te=0.003, flip=9, echo_spacing=0.0072, echoes=176
        )
        t2w = signal.spin_echo(own.t1, own.t2, own.pd, tr=5.0, te=0.09)
        fluid, fat, bone = INDEX["fluid"], INDEX["fat"], INDEX["cortical_bone"]
        assert t1w[fat] > t1w[WHITE] > t1w[GREY] > t1w[fluid]
        assert t2w[fluid] > t2w[GREY] > t2w[WHITE]
        assert bone and t2w[bone] < 0.02 * t2w[WHITE]


def test_times_grow_with_the_field_and_fields_out_of_range_are_refused():
    low, middle, high = (relaxation(field).t1 for field in (1.5, 2.1, 3.0))
    living = np.arange(len(NAMES)) != INDEX["air"]
    assert (low[living] < middle[living]).all() and (middle[living] < high[living]).all()
    with pytest.raises(UsageError, match="7"):
        relaxation(7.0)


def test_people_differ_by_a_few_per_cent():
    drawn = np.stack([person_scales(np.random.default_rng(seed)) for seed in range(200)])
    spread = drawn[:, 0, WHITE].std()
    assert 0.02 < spread < 0.04 and abs(drawn - 1).max() <= 3 * 0.04 + 1e-9
