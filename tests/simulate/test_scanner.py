"""The committed scanners, and the fields `use`, `ghosting` and `phase_encoding` of one's own."""

import itertools

import pytest

from mmh_bids.errors import UsageError
from mmh_bids.simulate.scanner import SEQUENCES, load_scanners
from mmh_bids.simulate.tissues import GREY, WHITE, relaxation

SCANNERS = load_scanners()
ENTRY = """\
X:
  {manufacturer: M, model: N, institution: I, field: 3, bias: 0.1, transmit: 0.1, %s
   T2w: {sequence: spin_echo, tr: 3, te: 0.09, flip: 90, voxel: [1, 1, 1]%s}}
"""


def write(tmp_path, scanner="", protocol=""):
    path = tmp_path / "mine.yaml"
    path.write_text(ENTRY % (scanner, protocol))
    return path


def test_enough_scanners_of_each_use():
    uses = {use: [s for s in SCANNERS.values() if s.use == use] for use in ("training", "testing")}
    assert len(SCANNERS) >= 12 and len(uses["testing"]) >= 4
    assert [scanner.name for scanner in uses["testing"]] == list("PQRS")
    for group in uses.values():
        assert {scanner.field for scanner in group} == {1.5, 3.0}
        assert len({scanner.manufacturer for scanner in group}) == 4
        kinds = {protocol.sequence for scanner in group for protocol in scanner.protocols.values()}
        assert kinds == {"mprage", "spoiled_gradient_echo", "spin_echo", "fast_spin_echo"}
        assert any(max(protocol.oblique) for scanner in group for protocol in scanner.protocols.values())
        assert any(protocol.ghosting for scanner in group for protocol in scanner.protocols.values())


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_no_protocol_is_there_twice(sequence):
    for one, other in itertools.combinations([scanner.protocol(sequence) for scanner in SCANNERS.values()], 2):
        assert (one.sequence, one.tr, one.te, one.ti, one.flip) != (
            other.sequence,
            other.tr,
            other.te,
            other.ti,
            other.flip,
        )
        assert one.voxel != other.voxel


@pytest.mark.parametrize("name", sorted(SCANNERS))
def test_contrast_is_that_of_the_clinic(name):
    tissue = relaxation(SCANNERS[name].field)
    t1w, t2w = (SCANNERS[name].protocol(sequence).signals(tissue) for sequence in SEQUENCES)
    assert 0.55 < t1w[GREY] / t1w[WHITE] < 0.8
    assert 1.2 < t2w[GREY] / t2w[WHITE] < 1.7


@pytest.mark.parametrize("name", list("ABCD"))
def test_the_first_scanners_have_no_ghosts(name):
    assert SCANNERS[name].use == "training"
    assert all(protocol.ghosting == 0 for protocol in SCANNERS[name].protocols.values())


def test_fields_have_defaults_and_are_read(tmp_path):
    plain = load_scanners(write(tmp_path))["X"]
    assert (plain.use, plain.protocol("T2w").ghosting, plain.protocol("T2w").phase_encoding) == ("training", 0.0, None)
    assert "PhaseEncodingDirection" not in plain.sidecar("T2w")
    asked = load_scanners(write(tmp_path, "use: testing,", ", ghosting: 1, phase_encoding: k"))["X"]
    assert (asked.use, asked.protocol("T2w").ghosting) == ("testing", 1)
    assert asked.sidecar("T2w")["PhaseEncodingDirection"] == "k"


@pytest.mark.parametrize(
    ("scanner", "protocol", "words"),
    [
        ("use: tuning,", "", "use tuning is unknown; use one of training, testing"),
        ("", ", ghosting: -0.1, phase_encoding: i", "ghosting -0.1"),
        ("", ", ghosting: 2.5, phase_encoding: i", "from 0 to 2 mm"),
        ("", ", ghosting: .nan, phase_encoding: i", "ghosting nan"),
        ("", ", ghosting: mild, phase_encoding: i", "ghosting mild"),
        ("", ", ghosting: true, phase_encoding: i", "ghosting True"),
        ("", ", ghosting: [1, 2], phase_encoding: i", "ghosting"),
        ("", ", ghosting: 0.5", "give phase_encoding"),
        ("", ", ghosting: 0.5, phase_encoding: x", "phase_encoding x is unknown; use one of i, j, k"),
        ("", ", phase_encoding: 1", "phase_encoding 1"),
    ],
)
def test_faulty_fields_are_refused_in_one_line(tmp_path, scanner, protocol, words):
    with pytest.raises(UsageError) as caught:
        load_scanners(write(tmp_path, scanner, protocol))
    assert words in str(caught.value) and "mine.yaml: scanner X" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sequence", "change", "words"),
    [
        ("A", "T1w", {"ti": 0.3}, "InversionTime"), ("P", "T1w", {"tr": 1.2}, "RepetitionTime"),
        ("Q", "T1w", {"te": 0.02}, "EchoTime"), ("R", "T2w", {"echoes": 500}, "does not fit"),
        ("S", "T2w", {"te": 4.0}, "EchoTime"), ("B", "T2w", {"te": 0.5}, "outside the train"),
    ],
)  # fmt: skip
def test_protocols_with_negative_delays_are_refused(name, sequence, change, words):
    scanner = SCANNERS[name].changed({sequence: change})
    with pytest.raises(UsageError, match=words):
        scanner.protocol(sequence).signals(relaxation(scanner.field))
