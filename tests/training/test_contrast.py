"""Simulated scans for contrast, and the recipe that learns from them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from mmh_bids.models.encoders import build_small
from mmh_bids.simulate.batch import draw_scan, simulate
from mmh_bids.simulate.modelhead import ModelHead
from mmh_bids.simulate.tissues import INDEX
from mmh_bids.training import contrast, scanners
from mmh_bids.training.contrast import ContrastRecipe, discriminant_start, nearest_share, vary
from mmh_bids.training.scanners import coarse_scan, draw_scans, make_scans, scan_volume
from mmh_bids.training.share import Share

NETWORK = {
    "dim": 16, "slices": 3, "margin_mm": 20.0, "heads": 8, "alpha": 0.2, "voxel_mm": 2.0,
    "tower": {"channels": [4, 6], "bins": 9, "image_size": 24},
}  # fmt: skip


def ball(size=44):
    """A head of a ball of white matter in grey matter in fluid, 1 mm, in the middle of the model grid."""
    radius = np.sqrt(((np.indices((size,) * 3) - (size - 1) / 2) ** 2).sum(0))
    first = np.full((size,) * 3, INDEX["cortical_bone"], np.uint8)
    for name, limit in (("fluid", 20), ("cortex", 17), ("white_matter", 12)):
        first[radius < limit] = INDEX[name]
    texture = np.random.default_rng(0).standard_normal(first.shape).astype(np.float32)
    mask = radius < 20
    arrays = [torch.from_numpy(a) for a in (first, texture, mask, mask & (radius > 18))]
    from_model = torch.eye(4)
    from_model[:3, 3] = (size - 1) / 2 - (torch.tensor([144.0, 184, 184]) - 1) / 2
    inside = torch.from_numpy(np.flatnonzero(mask))
    return ModelHead(*arrays, inside, from_model, torch.full((3,), (size - 1) / 2), 1.0, "ball")


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 1.0), (0.9, 1.2, 1.0)])
def test_a_coarse_scan_has_the_noise_and_the_edges_of_an_averaged_one(voxel):
    head = ball()
    scan = draw_scan("T1w", np.random.default_rng(3))
    scan = dataclasses.replace(scan, voxel=voxel, noise=0.05, bias=torch.zeros_like(scan.bias), transmit=0.0)
    found = {}
    for name, factor in (("averaged", 1), ("coarse", 2)):
        axes = [torch.arange((factor - 1) / 2, 44, factor)] * 3
        # the two grids beat, as they do in a head that is turned: points fall on voxels and between them
        where = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) * 0.95
        noisy = scan if factor == 1 else coarse_scan(scan)
        images = []
        for one in (noisy, dataclasses.replace(noisy, noise=0.0)):
            image, _, brain = simulate(head, one, where, torch.Generator().manual_seed(0))
            if factor == 1:
                image, brain = (functional.avg_pool3d(values[None, None], 2)[0, 0] for values in (image, brain))
            images.append(image)
        inside = brain > 0.99
        edges = images[1].diff(dim=0)[inside[1:]].abs().mean()
        found[name] = float((images[0] - images[1])[inside].std()), float(edges)
    for coarse, averaged in zip(found["coarse"], found["averaged"], strict=True):
        assert coarse == pytest.approx(averaged, rel=0.12)
    # without the correction the noise would be another
    assert found["averaged"][0] < 0.6 * 0.05


def test_a_scan_is_prepared_as_the_app_does():
    head, rng = ball(), np.random.default_rng(0)
    volume = scan_volume(head, draw_scan("T1w", rng), rng)
    assert volume.shape == (72, 92, 92)
    assert volume.min() == 0
    inside = volume > 0
    assert 0.8 < volume.max() <= 1
    # in the middle of the grid, as large as the ball
    assert 3000 < int(inside.sum()) < 6000
    centre = inside.nonzero().float().mean(dim=0)
    assert torch.allclose(centre, torch.tensor([35.5, 45.5, 45.5]), atol=4)


def test_one_scanner_scans_all_with_one_protocol(monkeypatch):
    seen = []
    monkeypatch.setattr(scanners, "scan_volume", lambda head, scan, rng, factor: seen.append(scan) or torch.zeros(2))
    draw_scans([ball(), ball()], np.random.default_rng(0))
    assert [scan.sequence for scan in seen] == ["T1w", "T1w", "T2w", "T2w"]
    for first, second in (seen[:2], seen[2:]):
        assert first.voxel == second.voxel
        assert first.noise == second.noise
        # other people, another rest of the field
        assert not torch.equal(first.tables, second.tables)
        assert not torch.equal(first.bias, second.bias)


def heads_as_files(folder, count=3):
    files = []
    for number in range(count):
        head = ball()
        arrays = {
            key: getattr(head, key).numpy() for key in ("tissue", "texture", "mask", "rim", "from_model", "centre")
        }
        files.append(folder / f"head-{number}_model.npz")
        np.savez(files[-1], **arrays, spacing=np.array(1.0))
    return files


def test_scans_are_kept_and_another_seeds_are_not(tmp_path):
    heads = heads_as_files(tmp_path)
    files = make_scans(heads, 1, tmp_path / "scans", seed=0, workers=1, together=2)
    stored = load_file(files[0])
    assert {name: tuple(volumes.shape) for name, volumes in stored.items()} == {
        "T1w": (2, 72, 92, 92), "T2w": (2, 72, 92, 92),
    }  # fmt: skip
    assert stored["T1w"].dtype == torch.uint8
    assert 200 < stored["T1w"].max() <= 255
    written = files[0].stat().st_mtime_ns
    assert make_scans(heads, 1, tmp_path / "scans", seed=0, workers=1, together=2) == files
    assert files[0].stat().st_mtime_ns == written
    make_scans(heads, 1, tmp_path / "scans", seed=1, workers=1, together=2)
    assert not torch.equal(load_file(files[0])["T1w"], stored["T1w"])
    make_scans(heads, 1, tmp_path / "scans", seed=0, workers=1)
    assert load_file(files[0])["T1w"].shape[0] == 3


def test_a_wish_to_stop_is_heard_between_scanners(tmp_path, monkeypatch):
    done = []

    def check():
        done.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(scanners, "_make", int)
    with pytest.raises(KeyboardInterrupt):
        make_scans([], 0, tmp_path, 0, 1, check=check) or make_scans([1], 5, tmp_path, 0, 1, check=check)
    assert done == [1]


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    """Six made-up scanners that differ in their levels, three heads on each: random blocks of two tissues."""
    folder = tmp_path_factory.mktemp("looks")
    files = []
    for number in range(6):
        rng = np.random.default_rng(number)
        scans = np.zeros((3, 24, 24, 24))
        for head in range(3):
            blocks = rng.random((6, 6, 6)).repeat(4, 0).repeat(4, 1).repeat(4, 2) < rng.uniform(0.4, 0.6)
            levels = 0.3 + 0.05 * number, 0.9 - 0.04 * number
            scans[head] = np.where(blocks, *levels) + rng.normal(0, 0.01, blocks.shape)
        volumes = torch.from_numpy((scans * 255).round().astype(np.uint8))
        files.append(folder / f"scanner-{number}.safetensors")
        save_file({"T1w": volumes, "T2w": volumes.flip(0)}, files[-1])
    return files


def pairs_loss(first, second):
    """Independent, in float64: of every scan, how surely its pair is told from all the others."""
    vectors = torch.cat([first, second]).detach().double().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    total = 0.0
    for one in range(len(unit)):
        scores = np.exp(unit @ unit[one] / 0.1)
        total -= np.log(scores[(one + len(first)) % len(unit)] / (scores.sum() - scores[one]))
    return total / len(unit)


def test_loss_is_that_of_the_pairs(looks):
    recipe = ContrastRecipe(looks, looks, NETWORK, batch=8)
    torch.manual_seed(0)
    network = recipe.build()
    assert all(parameter.requires_grad for parameter in network.parameters())
    seen = []
    network.aggregator.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    found = recipe.losses(network, Share(0, step=1), torch.device("cpu"))
    embeddings, vectors = seen[0]
    assert embeddings.shape == (16, 3, 3, 16)
    volumes = pairs_loss(vectors[::2], vectors[1::2])
    slices = np.mean([
        pairs_loss(embeddings[::2, plane, place], embeddings[1::2, plane, place])
        for plane in range(3) for place in range(3)
    ])  # fmt: skip
    assert float(found["volumes"].detach()) == pytest.approx(volumes, rel=1e-4)
    assert float(found["slices"].detach()) == pytest.approx(slices, rel=1e-4)
    assert float(found["loss"].detach()) == pytest.approx(volumes + slices, rel=1e-4)
    found["loss"].backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_both_scans_of_a_pair_get_one_curve(looks, monkeypatch):
    # whole brains: what is shown of them is another test's subject
    monkeypatch.setattr(contrast, "vary", lambda scan, rng: scan)
    recipe = ContrastRecipe(looks, looks, NETWORK, batch=8)
    plain = load_file(looks[0])["T1w"].float() / 255
    darkest = float(plain.flatten().kthvalue(2000).values)
    changed = 0
    for seed in range(12):
        pair = recipe._pair(looks[0], "T1w", np.random.default_rng(seed))
        found = [float(scan.flatten().kthvalue(2000).values) for scan in pair]
        # the three scans differ by little, see `looks`
        assert max(found) - min(found) <= 0.02
        changed += abs(found[0] - darkest) > 0.02
    assert 2 < changed < 11


def test_a_part_of_a_brain_is_shown():
    scan = torch.zeros(40, 40, 40)
    scan[4:36, 4:36, 4:36] = torch.rand(32, 32, 32, generator=torch.Generator().manual_seed(0)) + 0.5
    sizes = []
    for seed in range(8):
        seen = vary(scan, np.random.default_rng(seed))
        assert seen.shape == scan.shape
        # nothing is made up
        assert torch.isin(seen, scan).all()
        sizes.append(int((seen > 0).sum()))
    assert len(set(sizes)) > 4
    assert min(sizes) > 0.1 * 32**3


def test_the_start_is_a_discriminant(looks):
    """What differs between heads on a scanner counts about as much in each direction; scanners are told apart."""
    torch.manual_seed(0)
    plain = build_small(NETWORK, card={})
    torch.manual_seed(0)
    begun = build_small(NETWORK, card={})
    discriminant_start(begun, looks)
    shares = {}
    for name, network in (("plain", plain), ("begun", begun)):
        with torch.no_grad():
            rows = [network.embed(load_file(path)["T1w"].float()[:, None] / 255, 2.0).flatten(1) for path in looks]
        rows = torch.stack(rows)
        apart = (rows - rows.mean(dim=1, keepdim=True)).square().mean()
        shares[name] = float(rows.mean(dim=1).var(dim=0).mean() / apart)
    assert shares["begun"] > 2 * shares["plain"]


def test_it_learns_to_tell_scanners_apart(looks, tmp_path):
    recipe = ContrastRecipe(looks[:4], looks[4:], NETWORK, batch=8)
    torch.manual_seed(0)
    network = recipe.build()
    optimizer = torch.optim.AdamW(recipe.groups(network), 3e-3)
    losses = []
    for step in range(25):
        found = recipe.losses(network, Share(0, step), torch.device("cpu"))
        losses.append(float(found["loss"].detach()))
        found["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    with torch.no_grad():
        values = recipe.validate(network.eval(), torch.device("cpu"), tmp_path, 25)
    assert values == {"T1w_nearest": 1.0, "T2w_nearest": 1.0}


def test_nearest_share_counts_other_heads_only():
    # two scanners, two heads; each head's own scans are the most alike, which must not count
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.01], [0.01, 1.0]]])
    assert nearest_share(vectors) in (0.0, 0.25, 0.5)
    vectors = torch.tensor([[[1.0, 0.4], [1.0, 0.5]], [[-1.0, 0.4], [-1.0, 0.5]]])
    assert nearest_share(vectors) == 1.0
    # lengths make no difference
    assert nearest_share(vectors * torch.tensor([1.0, 9.0])[:, None, None]) == 1.0
