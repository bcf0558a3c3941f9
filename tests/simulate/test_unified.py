import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.simulate.acquire import acquire
from mmh_bids.simulate.phantom import head_from_labels, random_affine, transform_head
from mmh_bids.simulate.scanner import SEQUENCES, load_scanners
from mmh_bids.simulate.tissues import GREY, INDEX, NAMES, WHITE, person_scales, relaxation
from mmh_bids.simulate.unified import IDEAL, WHITE_LEVEL, unified_on_grid, unified_tissues, unified_truth

BRAIN = [index for name, index in INDEX.items() if name in ("white_matter", "cortex", "fluid", "deep_grey")]


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_an_average_person_has_the_tissue_values(label_file, sequence):
    head = head_from_labels(label_file, seed=3, person_spread=False)
    out, values = unified_truth(head, sequence), unified_tissues(sequence)
    assert out.dtype == np.float32 and out.shape == head.first.shape
    for index in (WHITE, GREY, INDEX["muscle"]):
        assert out[head.first == index].mean() == pytest.approx(values[index], rel=0.02)
    assert values[WHITE] == pytest.approx(WHITE_LEVEL[sequence])
    assert out[head.first == INDEX["air"]].max() == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), sequence=st.sampled_from(SEQUENCES))
def test_no_brain_is_cut_off_and_the_order_of_tissues_is_that_of_the_clinic(seed, sequence):
    protocol, average = IDEAL.protocol(sequence), relaxation(IDEAL.field)
    own = protocol.signals(average.scaled(*person_scales(np.random.default_rng(seed))))
    values = own * WHITE_LEVEL[sequence] / protocol.signals(average)[WHITE]
    assert len(values) == len(NAMES) and values[BRAIN].max() < 1
    order = values[[INDEX["fluid"], GREY, WHITE]]
    assert (np.diff(order) > 0).all() if sequence == "T1w" else (np.diff(order) < 0).all()


def test_it_does_not_depend_on_where_the_head_lies(head):
    placed = transform_head(head, random_affine(np.random.default_rng(0), head.brain_centre))
    assert np.array_equal(unified_truth(placed, "T1w"), unified_truth(head, "T1w"))


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_every_scanner_has_the_same_truth_on_its_own_grid(head, sequence):
    """Tissue means agree between two scanners that differ in everything; those of their images do not."""
    images, truths = [], []
    for name in ("B", "P"):
        scanner = load_scanners()[name].changed({sequence: {"voxel": (3.0, 3.0, 3.0)}})
        scan = acquire(head, scanner, sequence, 1)
        tissue = np.asarray(scan.tissue.dataobj)
        truth = unified_on_grid(head, sequence, scan.image.shape, scan.image.affine)
        assert truth.shape == scan.image.shape and truth.min() >= 0 and truth.max() <= 1
        values = [truth[tissue == index].mean() for index in (WHITE, GREY)]
        truths.append(values[1] / values[0])
        images.append(scan.noise_free[tissue == GREY].mean() / scan.noise_free[tissue == WHITE].mean())
    assert truths[0] == pytest.approx(truths[1], rel=0.01)
    assert abs(images[0] / images[1] - 1) > 0.03
    assert (truths[0] < 0.95) if sequence == "T1w" else (truths[0] > 1.05)


def test_signal_is_kept_by_thick_slices(head):
    fine = unified_truth(head, "T2w").sum() * abs(np.linalg.det(head.affine))
    thick = load_scanners()["B"].changed({"T2w": {"voxel": (4.0, 4.0, 12.0)}})
    scan = acquire(head, thick, "T2w", neck=200.0)
    coarse = unified_on_grid(head, "T2w", scan.image.shape, scan.image.affine).sum()
    assert coarse * np.prod(scan.image.header.get_zooms()) == pytest.approx(fine, rel=0.02)
