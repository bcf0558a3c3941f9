import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.simulate.acquire import acquire, stored_bytes
from mmh_bids.simulate.ghosting import displacements, moved_during_scan
from mmh_bids.simulate.scanner import load_scanners


def line_by_line(volume, axis, steps):
    """The volume, moved by whole voxels, is transformed anew for each line, which alone is kept."""
    size = volume.shape[axis]
    kept = np.zeros(volume.shape, complex)
    for line, step in enumerate(steps):
        whole = np.fft.fftshift(np.fft.fft(np.roll(volume, step, axis), axis=axis), axes=axis)
        index = tuple(line if a == axis else slice(None) for a in range(3))
        kept[index] = whole[index]
    assert len(steps) == size
    return np.abs(np.fft.ifft(np.fft.ifftshift(kept, axes=axis), axis=axis))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), axis=st.integers(0, 2), size=st.integers(2, 9))
def test_image_of_a_moving_head_equals_that_put_together_line_by_line(seed, axis, size):
    rng = np.random.default_rng(seed)
    shape = [3, 4, 5]
    shape[axis] = size
    volume = rng.random(shape, dtype=np.float32)
    steps = rng.integers(-3, 4, size)
    got = moved_during_scan(volume, axis, steps.astype(float))
    assert got.dtype == np.float32
    assert np.allclose(got, line_by_line(volume, axis, steps), atol=1e-5)


def test_no_motion_leaves_the_image():
    volume = np.random.default_rng(0).random((7, 8, 9), dtype=np.float32)
    assert np.allclose(moved_during_scan(volume, 2, np.zeros(9)), volume, atol=1e-6)


def test_copies_lie_as_many_voxels_away_as_there_are_periods():
    volume = np.zeros((1, 240, 1), np.float32)
    volume[0, 100:110] = 1.0
    motion = 0.5 * np.sin(2 * np.pi * 60 / 240 * np.arange(240))
    ghosts = moved_during_scan(volume, 1, motion)[0, :, 0]
    near_copies = np.r_[ghosts[36:54], ghosts[156:174]]
    elsewhere = np.r_[ghosts[66:90], ghosts[120:144]]
    assert near_copies.max() > 0.05
    assert near_copies.mean() > 4 * elsewhere.mean()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), lines=st.integers(24, 300), amplitude=st.floats(0, 3))
def test_the_head_moves_to_and_fro_about_its_place(seed, lines, amplitude):
    out = displacements(lines, amplitude, np.random.default_rng(seed))
    assert out.shape == (lines,) and np.abs(out).max() <= amplitude
    assert np.abs(out).max() >= 0.7 * amplitude
    # At least two whole periods: no drift, so the truth stays where it is.
    assert abs(out.mean()) <= 0.25 * amplitude


@pytest.fixture
def scanner():
    return load_scanners()["A"].changed({"T1w": {"voxel": (4.0, 5.0, 4.0), "phase_encoding": "j"}})


def test_ghosts_grow_with_the_motion_along_the_phase_encoding_only(head, scanner):
    still = acquire(head, scanner, "T1w", seed=1).noise_free
    # Columns along the phase encoding that hold air only get no ghosts: nothing comes from the other axes.
    empty = still.max(axis=1, keepdims=True) == 0
    air = (still < 1e-3 * still.max()) & ~empty
    assert empty.any() and air.any()
    strength = []
    for amount in (0.3, 1.2):
        scan = acquire(head, scanner.changed({"T1w": {"ghosting": amount}}), "T1w", seed=1)
        strength.append(scan.noise_free[air].mean())
        assert (scan.noise_free * empty).max() == 0
        change = np.abs(scan.noise_free - still).mean() / still.mean()
        assert change < 0.25
    assert 0 < 2 * strength[0] < strength[1]


def test_ghosts_depend_on_the_seed_and_not_on_the_rescan(head, scanner):
    moving = scanner.changed({"T1w": {"ghosting": 0.8}})
    first, again, rescan, other = (
        acquire(head, moving, "T1w", seed, noise_seed=noise) for seed, noise in ((2, 0), (2, 0), (2, 1), (3, 0))
    )
    assert stored_bytes(first.image) == stored_bytes(again.image)
    assert np.array_equal(first.noise_free, rescan.noise_free)
    assert not np.array_equal(first.noise_free, other.noise_free)


def test_a_phase_encoding_without_motion_changes_no_voxel(head, scanner):
    silent = scanner.changed({"T1w": {"phase_encoding": None}})
    images = [stored_bytes(acquire(head, one, "T1w", seed=4).image) for one in (scanner, silent)]
    assert images[0] == images[1]
