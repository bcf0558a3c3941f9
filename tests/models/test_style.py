"""The tri-planar style encoder on a small tower; BiomedCLIP's folder form is in test_tower.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mmh_bids.models.style import Aggregator, TriPlanarEncoder, sinusoids, slice_places

DIM = 16
MEAN, STD = (0.5, 0.25, 0.1), (0.2, 0.4, 0.8)


class PatchTower(nn.Module):
    """Patches of 8 voxels, a nonlinearity, their mean: every pixel counts. Keeps what it was given last."""

    def __init__(self, size=32):
        super().__init__()
        self.image_size, self.image_mean, self.image_std = (size, size), MEAN, STD
        self.patches, self.out = nn.Conv2d(3, 12, 8, stride=8), nn.Linear(12, DIM)
        self.drop = nn.Dropout(0.5)
        self.batches: list[int] = []
        self.seen = torch.empty(0)

    def forward(self, images):
        self.batches.append(len(images))
        self.seen = images.detach()
        return self.out(self.drop(functional.gelu(self.patches(images))).mean(dim=(2, 3)))


def encoder(size=32, seed=0, **changes):
    """An encoder whose weights are all random: a new one's fusion is the plain mean."""
    torch.manual_seed(seed)
    settings = {"dim": DIM, "slices": 5, "margin_mm": 6.0, "card": {"name": "patches"}}
    made = TriPlanarEncoder(PatchTower(size), **settings | changes)
    for parameter in made.aggregator_parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def brain(shape=(20, 26, 24), batch=1, seed=3):
    """Random intensities in a box, zeros around it."""
    generator = torch.Generator().manual_seed(seed)
    volume = torch.zeros(batch, 1, *shape)
    inner = [side - 4 for side in shape]
    volume[:, :, 2:-2, 2:-2, 2:-2] = torch.rand(batch, 1, *inner, generator=generator) * 0.9 + 0.1
    return volume


def test_slices_of_the_papers_grid():
    across = [50, 52, 54, 56, 57, 59, 61, 63, 65, 67, 69, 71, 72, 74, 76, 78, 80, 82, 84, 86, 87, 89, 91, 93]
    along = [50, 54, 57, 61, 64, 68, 72, 75, 79, 82, 86, 90, 93, 97, 101, 104, 108, 111, 115, 119, 122, 126, 129, 133]
    assert slice_places(144, 24, 50) == across
    assert slice_places(184, 24, 50) == along
    # the same millimetres on a grid of 2 mm
    assert slice_places(92, 24, 25)[::23] == [25, 66]


@pytest.mark.parametrize("size", [1, 2, 7, 16, 40])
def test_small_grids_keep_their_middle(size):
    places = slice_places(size, 9, 50)
    assert len(places) == 9
    assert places == sorted(places)
    assert math.floor(3 * size / 8) <= places[0]
    assert places[-1] <= math.ceil(5 * size / 8) - (size > 7)
    assert min(places) >= 0
    assert max(places) < size
    # symmetric to a voxel
    assert abs(places[0] - (size - 1 - places[-1])) <= 1


def test_one_slice_is_the_middle_one():
    assert slice_places(21, 1, 5) == [10]


def aggregate_by_hand(state, embeddings, heads, alpha):
    """The aggregator in float64 NumPy: (3, S, D) to (D,)."""
    w = {name: value.double().numpy() for name, value in state.items()}
    planes, count, dim = embeddings.shape
    place = np.zeros((count, dim))
    for position in range(count):
        for column in range(dim):
            angle = position / 10_000 ** (2 * (column // 2) / dim)
            place[position, column] = np.cos(angle) if column % 2 else np.sin(angle)
    (wq, wk, wv), (bq, bk, bv) = np.split(w["attention.in_proj_weight"], 3), np.split(w["attention.in_proj_bias"], 3)

    def normed(vector, name):
        centred = vector - vector.mean()
        return centred / np.sqrt((centred**2).mean() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    vectors = []
    for plane in range(planes):
        keys = embeddings[plane] + place + w["view"][plane]
        keys = keys / np.sqrt((keys**2).sum(axis=1, keepdims=True))
        query, key, value = wq @ w["query"][plane] + bq, keys @ wk.T + bk, keys @ wv.T + bv
        gathered = []
        for head in np.split(np.arange(dim), heads):
            scores = key[:, head] @ query[head] / np.sqrt(dim / heads)
            shares = np.exp(scores - scores.max())
            gathered.append(shares / shares.sum() @ value[:, head])
        out = w["attention.out_proj.weight"] @ np.concatenate(gathered) + w["attention.out_proj.bias"]
        vectors.append(normed(out, "norm"))
    hidden = w["fuse.0.weight"] @ np.concatenate(vectors) + w["fuse.0.bias"]
    hidden = np.array([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in hidden])
    return np.mean(vectors, axis=0) + alpha * normed(hidden, "fuse.2")


@pytest.mark.parametrize("heads", [1, 8])
def test_aggregator_matches_a_computation_by_hand(heads):
    torch.manual_seed(5)
    aggregator = Aggregator(DIM, heads, alpha=0.3)
    for parameter in aggregator.parameters():
        nn.init.normal_(parameter, std=0.7)
    embeddings = torch.randn(2, 3, 7, DIM) * 3
    aggregator = aggregator.double()
    out = aggregator(embeddings.double()).detach().numpy()
    for row, volume in zip(out, embeddings.double().numpy(), strict=True):
        expected = aggregate_by_hand(aggregator.state_dict(), volume, heads, 0.3)
        np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-6)
    # what is compared is no constant
    assert np.abs(out[0] - out[1]).max() > 0.1


def test_fusion_starts_as_the_plain_mean_and_leaves_it_by_learning():
    torch.manual_seed(1)
    aggregator = Aggregator(DIM)
    embeddings = torch.randn(4, 3, 6, DIM)
    means = {}

    def keep(module, inputs, output):
        means["plain"] = output.reshape(4, 3, DIM).mean(dim=1)

    aggregator.norm.register_forward_hook(keep)
    assert torch.equal(aggregator(embeddings), means["plain"])
    # of the first step's gradients the last layer gets its share, from the second on all of the fusion does
    for first in (True, False):
        aggregator.zero_grad()
        aggregator(embeddings)[:, 0].square().sum().backward()
        assert aggregator.fuse[2].weight.grad.abs().max() > 0
        assert bool(aggregator.fuse[0].weight.grad.abs().max() > 0) is not first
        # no division by the spread of nothing
        assert max(parameter.grad.abs().max() for parameter in aggregator.parameters()) < 1e3
        with torch.no_grad():
            for parameter in aggregator.parameters():
                parameter -= 0.05 * parameter.grad
    assert not torch.allclose(aggregator(embeddings), means["plain"], atol=1e-3)


def test_place_and_plane_of_a_slice_count():
    made = encoder().aggregator
    embeddings = torch.randn(1, 3, 6, DIM)
    out = made(embeddings)
    assert not torch.allclose(made(embeddings.flip(2)), out, atol=1e-3)
    assert not torch.allclose(made(embeddings.flip(1)), out, atol=1e-3)


def test_dim_must_fit_the_heads():
    with pytest.raises(ValueError, match="divisible by 8 heads"):
        Aggregator(20)


def test_sinusoids_are_far_apart():
    table = sinusoids(24, 512)
    assert torch.allclose(table.square().sum(dim=1), torch.tensor(256.0))
    assert torch.cdist(table, table).add(torch.eye(24) * 9).min() > 1


def test_slices_are_upright_padded_and_normalised():
    volume = torch.zeros(1, 1, 20, 26, 24)
    volume[0, 0, 3, 13, 20] = 0.8
    made = encoder(slices=1).eval()
    made.tower.seen = None
    seen = []
    made.tower.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    made(volume)
    # the coronal slice y = 13: x from left to right, z upwards, 20 x 24 in the middle of 32 x 32
    (coronal,) = seen[1]
    background = torch.tensor([(0 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    voxel = torch.tensor([(0.8 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    row, column = 4 + (23 - 20), 6 + 3
    assert torch.allclose(coronal[:, row, column], voxel)
    others = torch.ones(32, 32, dtype=torch.bool)
    others[row, column] = False
    assert torch.allclose(coronal[:, others], background[:, None])
    # sagittal and axial middle slices, x = 9.5 and z = 11.5, do not hold the voxel
    for (image,) in (seen[0], seen[2]):
        assert torch.allclose(image, background[:, None, None].expand_as(image))


def test_what_is_larger_than_the_image_is_cut_to_its_middle():
    volume = torch.rand(1, 1, 40, 45, 50)
    made = encoder(size=32, slices=1).eval()
    made(volume)
    # axial, the last plane: z = 24.5 rounds up; rows are y from the front, 45 = 6 + 32 + 7
    expected = volume[0, 0, :, :, 25].T.flip(0)[7:39, 4:36]
    assert torch.allclose(made.tower.seen[0, 0] * STD[0] + MEAN[0], expected, atol=1e-6)


def test_chunks_make_no_difference():
    volumes = [brain(batch=2).requires_grad_() for _ in range(2)]
    outs = []
    for volume, chunk in zip(volumes, (30, 4), strict=True):
        made = encoder(chunk=chunk).eval()
        outs.append(made(volume))
        outs[-1].square().sum().backward()
        assert max(made.tower.batches) == min(chunk, 10)
    assert torch.allclose(outs[0], outs[1], atol=1e-6)
    assert torch.allclose(volumes[0].grad, volumes[1].grad, atol=1e-7)


def test_gradients_reach_the_voxels_of_the_slices_and_no_weight_of_the_tower():
    volume = brain().requires_grad_()
    made = encoder().train()
    made(volume)[0, 0].backward()
    used = torch.zeros(volume.shape[2:], dtype=torch.bool)
    for axis, size in enumerate(used.shape):
        used.index_fill_(axis, torch.tensor(slice_places(size, 5, 6.0)), True)
    gradient = volume.grad[0, 0]
    inside = volume.detach()[0, 0] > 0
    assert (gradient[used & inside] != 0).all()
    assert (gradient[~used] == 0).all()
    assert (~used & inside).any()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in made.tower.parameters())
    assert all(parameter.grad is not None for parameter in made.aggregator_parameters())


def test_tower_stays_in_evaluation_mode():
    made = encoder().train()
    assert made.training
    assert not made.tower.training
    assert not made.tower.drop.training
    with torch.no_grad():
        assert torch.equal(made(brain()), made(brain()))


def test_finer_volumes_are_averaged():
    made = encoder(voxel_mm=2.0).eval()
    coarse = brain((20, 26, 24))
    fine = functional.interpolate(coarse, scale_factor=2)
    noise = torch.rand(fine.shape, generator=torch.Generator().manual_seed(1))
    noise = noise - functional.interpolate(functional.avg_pool3d(noise, 2), scale_factor=2)
    with torch.no_grad():
        expected = made(coarse, voxel_mm=2.0)
        assert torch.allclose(made(fine + noise, voxel_mm=1.0), expected, atol=1e-5)
        # never to more than 2 mm; the margin stays the same in millimetres
        assert torch.allclose(made(fine, voxel_mm=0.9), made(coarse, voxel_mm=1.8), atol=1e-5)
        assert not torch.allclose(made(coarse, voxel_mm=1.2), expected, atol=1e-3)
        # an odd edge is averaged over what there is of it
        odd = fine[..., :-1]
        assert torch.allclose(made(odd, voxel_mm=1.0), expected, atol=1e-5)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(1, 2, 8, 8, 8\)"):
        encoder()(torch.zeros(1, 2, 8, 8, 8))


def test_aggregators_state_travels():
    first, second = encoder(seed=0).eval(), encoder(seed=1).eval()
    second.tower.load_state_dict(first.tower.state_dict())
    volume = brain()
    with torch.no_grad():
        assert not torch.allclose(first(volume), second(volume))
        state = first.aggregator_state()
        assert sum(value.numel() for value in state.values()) == sum(p.numel() for p in first.aggregator_parameters())
        second.load_aggregator_state(state)
        assert torch.equal(first(volume), second(volume))
        # a copy: training on does not change it
        first.aggregator.query.add_(1)
    assert not torch.equal(state["query"], first.aggregator.query)
    with pytest.raises(RuntimeError, match="view"):
        second.load_aggregator_state({})
