import dataclasses

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.simulate.acquire import acquire
from mmh_bids.simulate.draw import draw_scanner
from mmh_bids.simulate.scanner import SEQUENCES, load_scanners
from mmh_bids.simulate.tissues import GREY, WHITE, relaxation

SEEDS = st.integers(0, 10**9)


def plain(scanner):
    """The scanner as a YAML file has it."""
    fields = {key: value for key, value in vars(scanner).items() if key not in ("name", "protocols")}
    for sequence, protocol in scanner.protocols.items():
        values = dataclasses.asdict(protocol)
        fields[sequence] = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
    return {scanner.name: fields}


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_every_draw_passes_the_checks_of_a_scanner_file(tmp_path_factory, seed):
    scanner = draw_scanner(np.random.default_rng(seed), "X7")
    path = tmp_path_factory.mktemp("drawn") / "drawn.yaml"
    path.write_text(yaml.safe_dump(plain(scanner)))
    assert load_scanners(path) == {"X7": scanner}


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_grey_and_white_matter_look_apart_the_right_way_round(seed):
    scanner = draw_scanner(np.random.default_rng(seed))
    for sequence, sign in (("T1w", 1), ("T2w", -1)):
        signal = scanner.protocol(sequence).signals(relaxation(scanner.field))
        assert np.isfinite(signal).all() and (signal >= 0).all()
        assert sign * (signal[WHITE] - signal[GREY]) > 0.1 * signal[WHITE]


def test_draws_are_varied_and_follow_the_seed():
    draws = [draw_scanner(np.random.default_rng(seed)) for seed in range(300)]
    assert draws[7] == draw_scanner(np.random.default_rng(7))
    assert {scanner.field for scanner in draws} == {1.5, 3.0}
    protocols = [scanner.protocol(sequence) for scanner in draws for sequence in SEQUENCES]
    kinds = {protocol.sequence for protocol in protocols}
    assert kinds == {"mprage", "spoiled_gradient_echo", "spin_echo", "fast_spin_echo"}
    moving = [protocol for protocol in protocols if protocol.ghosting]
    # binomial: 600 draws of 0.2 are 120 with a standard deviation of 10
    assert 80 <= len(moving) <= 160
    assert {protocol.phase_encoding for protocol in moving} == {"i", "j", "k"}
    assert max(protocol.ghosting for protocol in moving) <= 0.4
    assert all(protocol.voxel["ijk".index(protocol.phase_encoding)] < max(protocol.voxel) for protocol in moving)
    assert all(scanner.use == "training" for scanner in draws)


@pytest.mark.parametrize("seed", range(4))
def test_drawn_scanners_scan(head, seed):
    scanner = draw_scanner(np.random.default_rng(seed))
    coarse = {sequence: {"voxel": (4.0, 4.0, 6.0)} for sequence in SEQUENCES}
    for sequence in SEQUENCES:
        scan = acquire(head, scanner.changed(coarse), sequence, seed)
        values, tissue = scan.image.get_fdata(), np.asarray(scan.tissue.dataobj)
        assert np.isfinite(values).all() and values[tissue == WHITE].mean() > 3 * values[tissue == 0].mean()
