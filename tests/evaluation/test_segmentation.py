from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.errors import ImageError
from mmh_bids.evaluation.segmentation import NO_CLASS, class_dice, class_volumes, classify, segment_brain, true_classes
from mmh_bids.evaluation.smoothing import smooth_inside
from mmh_bids.simulate.tissues import GREY, INDEX, WHITE

LEVELS = {"T1w": (0.2, 0.5, 0.75), "T2w": (0.95, 0.4, 0.22)}


def shells(sequence, noise=0.03, seed=0):
    """Shells of fluid, cortex, white matter: tissue, mask, noisy image."""
    radius = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0)
    names = [WHITE, GREY, INDEX["fluid"]]
    fluid, grey, white = LEVELS[sequence]
    tissue = np.select([radius < 11, radius < 16, radius < 19], names, 0).astype(np.uint8)
    image = np.select([radius < 11, radius < 16, radius < 19], [white, grey, fluid], 0)
    image = image + np.random.default_rng(seed).normal(0, noise, image.shape)
    return tissue, radius < 19, image.astype(np.float32)


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_known_tissues_are_found(sequence):
    tissue, mask, image = shells(sequence)
    found = segment_brain(image, mask, sequence)
    true = true_classes(tissue[mask])
    assert class_dice(found, true) > 0.9
    wanted = np.bincount(true, minlength=3)
    assert class_volumes(found, 1.0) == pytest.approx(wanted, rel=0.15)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.01, 500), st.floats(-50, 50), st.sampled_from(["T1w", "T2w"]))
def test_units_make_no_difference(gain, offset, sequence):
    tissue, mask, image = shells(sequence)
    values = image[mask].astype(np.float64)
    plain = classify(values, sequence)
    # the logarithm of T2w keeps the gain out, but not an offset, which magnitude images do not have
    offset = offset if sequence == "T1w" else 0.0
    assert (plain != classify(gain * values + offset, sequence)).mean() < 1e-3


def test_classes_are_ordered_by_intensity_without_a_class_in_a_far_tail():
    _, mask, image = shells("T1w", noise=0.1)
    values = image[mask]
    found = classify(values, "T1w")
    assert values[found == 0].max() <= values[found == 1].min() <= values[found == 1].max() <= values[found == 2].min()


def test_blur_and_noise_lose_dice():
    tissue, mask, image = shells("T1w")
    true = true_classes(tissue[mask])
    sharp = class_dice(segment_brain(image, mask, "T1w"), true)
    blurred = class_dice(segment_brain(smooth_inside(image, mask, 6.0), mask, "T1w"), true)
    noisy = class_dice(segment_brain(shells("T1w", noise=0.3)[2], mask, "T1w"), true)
    assert blurred < sharp - 0.02 and noisy < sharp - 0.02


def test_the_same_image_gives_the_same_classes():
    _, mask, image = shells("T2w")
    assert np.array_equal(segment_brain(image, mask, "T2w"), segment_brain(image.copy(), mask, "T2w"))


def test_a_flat_brain_has_no_classes():
    with pytest.raises(ImageError, match="no tissue"):
        classify(np.full(100, 3.0), "T1w")


def test_dice_by_hand_and_unknown_tissue_left_out():
    true = np.array([0, 0, 1, 1, 2, 2, NO_CLASS], np.uint8)
    found = np.array([0, 1, 1, 1, 2, 0, 2], np.uint8)
    # CSF: 1 shared of 2 and 2; grey: 2 of 3 and 2; white: 1 of 1 and 2
    assert class_dice(found, true) == pytest.approx(np.mean([0.5, 0.8, 2 / 3]))
