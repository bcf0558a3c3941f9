import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.simulate.phantom import rotation_matrix
from mmh_bids.simulate.sampling import nearest, voxel_average


def ramp(shape, affine, slope):
    points = np.indices(shape).reshape(3, -1)
    return (slope @ (affine[:3, :3] @ points + affine[:3, 3:])).reshape(shape).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_average_of_a_plane_is_its_value_at_the_centre_of_the_voxel(seed):
    rng = np.random.default_rng(seed)
    source = np.eye(4)
    source[:3, 3] = -12.0
    target = np.eye(4)
    target[:3, :3] = rotation_matrix(rng.uniform(-0.3, 0.3, 3)) * rng.uniform(0.7, 3.5, 3)
    slope = rng.uniform(-1, 1, 3)
    got = voxel_average(ramp((25, 25, 25), source, slope), source, (2, 2, 2), target)
    assert np.allclose(got, ramp((2, 2, 2), target, slope), atol=1e-4)


def test_thick_voxels_hold_the_mean_of_what_they_cover():
    fine = np.random.default_rng(0).random((8, 6, 6), dtype=np.float32)
    target = np.diag([4.0, 1.0, 1.0, 1.0])
    target[0, 3] = 1.5
    got = voxel_average(fine, np.eye(4), (2, 6, 6), target)
    assert np.allclose(got, fine.reshape(2, 4, 6, 6).mean(1), atol=1e-6)


def test_labels_are_taken_over_not_mixed_and_keep_their_type():
    labels = np.array([2, 41, 511, 24], np.int16).reshape(4, 1, 1)
    target = np.eye(4)
    target[0, 3] = 0.4
    got = nearest(labels, np.eye(4), (4, 1, 1), target)
    assert got.dtype == np.int16 and got.ravel().tolist() == [2, 41, 511, 0]
