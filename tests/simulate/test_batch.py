"""Tests of mmh_bids.simulate.batch: the torch simulator agrees with the whole-image one."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

torch = pytest.importorskip("torch")

from mmh_bids.image.grid import resample  # noqa: E402
from mmh_bids.simulate.acquire import acquire  # noqa: E402
from mmh_bids.simulate.batch import Scan, brain_values, draw_scan, simulate  # noqa: E402
from mmh_bids.simulate.modelhead import ModelHead  # noqa: E402
from mmh_bids.simulate.phantom import Head  # noqa: E402
from mmh_bids.simulate.scanner import load_scanners  # noqa: E402
from mmh_bids.simulate.tissues import INDEX, NAMES  # noqa: E402
from mmh_bids.simulate.unified import unified_truth  # noqa: E402

SIZE = 40


@pytest.fixture(scope="module")
def head():
    """A ball of white matter in grey matter in fluid in bone: (numpy head, torch head)."""
    radius = np.sqrt(((np.indices((SIZE,) * 3) - (SIZE - 1) / 2) ** 2).sum(0))
    first = np.full((SIZE,) * 3, INDEX["cortical_bone"], np.uint8)
    for name, limit in (("fluid", 18), ("cortex", 15), ("white_matter", 11)):
        first[radius < limit] = INDEX[name]
    texture = np.random.default_rng(0).standard_normal(first.shape).astype(np.float32)
    mask = radius < 18
    head = Head(first, np.eye(4), mask, texture)
    inside = torch.from_numpy(np.flatnonzero(mask))
    arrays = [torch.from_numpy(a) for a in (first, texture, mask, mask & (radius > 16))]
    return head, ModelHead(*arrays, inside, torch.eye(4), torch.full((3,), (SIZE - 1) / 2), 1.0, "ball")


def everywhere():
    axes = [torch.arange(float(SIZE))] * 3
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def clean(scan: Scan, **changes) -> Scan:
    """The scan on the head's own grid without field, noise and loss."""
    plain = {"voxel": (1.0,) * 3, "phase": (0.0,) * 3, "bias": torch.zeros_like(scan.bias), "noise": 0.0, "lost": 0.0}
    return dataclasses.replace(scan, **{**plain, **changes})


def average_person(scanner, sequence):
    """A scan of a person with the table's tissue properties."""

    class Average(np.random.Generator):
        def standard_normal(self, *args, **kwargs):
            return np.zeros_like(super().standard_normal(*args, **kwargs))

    return draw_scan(sequence, Average(np.random.PCG64(0)), scanner)


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 1.0), (0.9, 1.1, 3.0), (2.6, 1.0, 0.8)])
@pytest.mark.parametrize(("name", "sequence"), [("A", "T1w"), ("B", "T2w")])
def test_it_shows_what_the_whole_image_simulator_shows_after_resampling(head, name, sequence, voxel):
    """The same voxels in the same places, interpolated linearly to the head's grid."""
    grid = {"voxel": voxel, "axes": "RAS", "oblique": (0.0, 0.0, 0.0), "ghosting": 0.0, "slope": 1.0}
    scanner = dataclasses.replace(load_scanners()[name].changed({sequence: grid}), bias=0.0)
    scanned = acquire(head[0], scanner, sequence)
    affine = scanned.image.affine
    expected = resample(scanned.noise_free, affine, (SIZE,) * 3, np.eye(4)) / scanner.protocol(sequence).level
    phase = tuple(float(p) for p in (affine[:3, 3] / np.array(voxel)) % 1)
    scan = clean(average_person(scanner, sequence), voxel=voxel, phase=phase)
    image, truth, brain = simulate(head[1], scan, everywhere())
    inner = (slice(6, -6),) * 3
    assert np.allclose(image.numpy()[inner], expected[inner], atol=4e-3)
    flat = gaussian_filter(unified_truth(head[0], sequence), 0.54)
    assert np.allclose(truth.numpy()[inner], flat[inner], atol=4e-3)
    assert np.array_equal(brain.numpy()[inner] > 0.5, head[0].mask[inner])


def test_a_cube_is_a_part_of_the_whole(head):
    scan = clean(draw_scan("T1w", np.random.default_rng(3)))
    whole = simulate(head[1], scan, everywhere())[0]
    part = simulate(head[1], scan, everywhere()[8:32, 8:32, 16:40])[0]
    assert torch.allclose(whole[8:32, 8:32, 16:36], part[:, :, :20], atol=1e-5)


def test_the_truth_does_not_know_the_scan(head):
    """Thick slices, noise and a field are for the harmonizer to undo."""
    scales = np.ones((3, len(NAMES)))
    truths = [
        simulate(head[1], draw_scan("T2w", np.random.default_rng(seed), scales=scales), everywhere())[1]
        for seed in range(3)
    ]
    assert torch.equal(truths[0], truths[1]) and torch.equal(truths[0], truths[2])


def test_noise_has_the_asked_strength_and_the_field_is_smooth(head):
    scan = clean(draw_scan("T1w", np.random.default_rng(3)), noise=0.05)
    generator = torch.Generator().manual_seed(0)
    noisy = simulate(head[1], scan, everywhere(), generator)[0]
    quiet = simulate(head[1], clean(scan), everywhere())[0]
    white = head[1].tissue == INDEX["white_matter"]
    assert float((noisy - quiet)[white].std()) == pytest.approx(0.05, rel=0.1)
    weights = torch.zeros_like(scan.bias)
    weights[0] = 1.0
    uneven = simulate(head[1], clean(scan, bias=weights), everywhere())[0]
    ratio = (uneven / quiet)[white]
    assert float(ratio.std()) > 0.02
    assert float(torch.diff((uneven / quiet)[10:30, 20, 20]).abs().max()) < 0.05


def test_statistics_come_from_the_brain_alone(head):
    scan = clean(draw_scan("T1w", np.random.default_rng(5)))
    sample = brain_values(head[1], scan, np.random.default_rng(0), 5000)
    values, truth = sample.values, sample.truth
    image, ideal, _ = simulate(head[1], scan, everywhere())
    assert values.numel() == truth.numel() == 5000
    assert float(values.mean()) == pytest.approx(float(image[head[1].mask].mean()), rel=0.05)
    assert float(truth.mean()) == pytest.approx(float(ideal[head[1].mask].mean()), rel=0.05)
    lost = dataclasses.replace(scan, lost=1.0)
    fewer = brain_values(head[1], lost, np.random.default_rng(0), 5000).values
    assert fewer.numel() < 5000 and float(fewer.mean()) > float(values.mean())


def test_clean_statistics_know_neither_noise_nor_field(head):
    scan = draw_scan("T1w", np.random.default_rng(5))
    noisy = dataclasses.replace(clean(scan), noise=0.05, bias=torch.full_like(scan.bias, 0.05))
    found = brain_values(head[1], noisy, np.random.default_rng(0), 5000)
    quiet = brain_values(head[1], clean(scan), np.random.default_rng(0), 5000)
    bright = quiet.values > 0.5
    assert torch.allclose(found.clean[bright], quiet.values[bright], atol=0.003)
    assert float((found.values - quiet.values)[bright].std()) > 0.04
    assert torch.equal(found.truth, quiet.truth)
