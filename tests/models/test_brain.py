"""Tests of mmh_bids.models.brain, with deepbet's own weights."""

import numpy as np
import pytest

from mmh_bids.errors import ImageError
from mmh_bids.image.brainmask import volume_ml


@pytest.fixture(scope="module")
def simulated(shared_data):
    """One head, T1w and T2w: (data, true mask) of each, 1 mm voxels."""
    import nibabel as nib

    from mmh_bids.simulate.acquire import acquire
    from mmh_bids.simulate.phantom import head_from_labels
    from mmh_bids.simulate.scanner import load_scanners

    head = head_from_labels(sorted((shared_data / "labelmaps").glob("*_dseg.nii.gz"))[10], seed=10)
    found = {}
    for sequence in ("T1w", "T2w"):
        scan = acquire(head, load_scanners()["A"], sequence, 10)
        image, mask = nib.as_closest_canonical(scan.image), nib.as_closest_canonical(scan.mask)
        found[sequence] = (image.get_fdata(dtype=np.float32), mask.get_fdata() > 0.5)
    return found


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def deepbet(data):
    """deepbet as its package runs it."""
    from deepbet.bet import BrainExtraction

    network = BrainExtraction(no_gpu=True)
    return network.postprocess(network.run_model(data.copy()) > 0.5).astype(bool)


def test_an_image_without_a_head_is_an_error():
    from mmh_bids.models.brain import extract_brain

    with pytest.raises(ImageError, match="no brain was found"):
        extract_brain(np.zeros((20, 20, 20), np.float32))


@pytest.mark.slow
def test_dark_fluid_is_found_better_than_by_deepbet_as_it_is(simulated):
    from mmh_bids.models.brain import extract_brain

    data, truth = simulated["T1w"]
    before = data.copy()
    mask = extract_brain(data)
    assert np.array_equal(data, before)
    assert dice(mask, truth) >= 0.97
    plain = deepbet(data)
    assert dice(mask, truth) > dice(plain, truth)
    assert volume_ml(mask, np.eye(4)) > volume_ml(plain, np.eye(4))
    assert np.array_equal(mask, extract_brain(data))


@pytest.mark.slow
def test_bright_fluid_is_segmented_as_deepbet_does(simulated):
    from mmh_bids.models.brain import extract_brain

    data, truth = simulated["T2w"]
    mask = extract_brain(data)
    assert dice(mask, truth) >= 0.955
    assert np.array_equal(mask, deepbet(data))
    holed = data.copy()
    holed[0, 0, 0] = np.nan
    assert dice(extract_brain(holed), mask) > 0.99
