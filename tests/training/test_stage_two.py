"""Stage 2 of the diffusion: what it learns from, in which order, and through which steps gradients flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmh_bids.harmonizers.moments import brain_moments
from mmh_bids.models.gradient import gradient_condition
from mmh_bids.models.sampler import make_sampler
from mmh_bids.models.style import TriPlanarEncoder
from mmh_bids.models.unet import from_signed, to_signed
from mmh_bids.training.diffusion import StageOne
from mmh_bids.training.share import Share
from mmh_bids.training.stage_two import PASSES, StageTwo, TargetRecipe, invert, latent_of
from mmh_bids.training.standards import find_samples
from mmh_bids.training.style_losses import multiscale_gradient_loss

NETWORK = {
    "channels": [8, 16], "num_res_blocks": 1, "attention_levels": [False, True], "num_head_channels": [0, 8],
    "norm_num_groups": 4, "style_hidden": 8,
}  # fmt: skip
SAMPLER = make_sampler({"name": "plain", "steps": 4, "top": 100})
CPU = torch.device("cpu")


class Tower(nn.Module):
    """Eight random projections of an image, as an image tower."""

    image_size, image_mean, image_std = (8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * 64, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return images.flatten(1) @ self.weight


@pytest.fixture(scope="module")
def stage_one():
    torch.manual_seed(0)
    network = StageOne(NETWORK)
    network.statistics.mean[:], network.statistics.std[:] = torch.tensor([-0.2, -0.4]), torch.tensor([0.4, 0.3])
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two T1w of the target, one of another site, one to validate on; tensors as `latent_of` makes them."""
    folder, rng, found = tmp_path_factory.mktemp("latents"), torch.Generator().manual_seed(1), []
    mask = torch.zeros(1, 1, 8, 8, 8)
    mask[..., 2:6, 2:6, 2:6] = 1
    for number in range(4):
        tensors = {name: torch.rand(mask.shape, generator=rng) * mask for name in ("image", "matched")}
        tensors |= {"latent": torch.randn(mask.shape, generator=rng), "mask": mask.to(torch.uint8)}
        save_file(tensors, folder / f"{number}.safetensors")
        found.append(folder / f"{number}.safetensors")
    return found


@pytest.fixture
def recipe(stage_one, files):
    torch.manual_seed(0)
    encoder = TriPlanarEncoder(Tower(), dim=8, slices=2, heads=2, card={"name": "test"}).requires_grad_(False).eval()
    return TargetRecipe(
        stage_one, SAMPLER, {"T1w": files[:2]}, {"T1w": files[2:3]}, {"T1w": files[3:]}, encoder, last=2
    )


def losses(recipe, network, step):
    return recipe.losses(network, Share(0, step), CPU)


def test_it_begins_as_stage_one(recipe, stage_one):
    network = recipe.build()
    noisy, condition = torch.randn(1, 1, 8, 8, 8), torch.randn(1, 1, 8, 8, 8)
    times, label = torch.tensor([50]), torch.tensor([1])
    assert torch.equal(network(noisy, condition, times, label), stage_one(noisy, condition, times, label))


def test_an_epoch_is_eight_passes_of_the_target_then_the_others(recipe):
    network = recipe.build()
    assert recipe.epoch == PASSES * 2 + 1
    kinds = ["displacement" in losses(recipe, network, step) for step in range(2 * recipe.epoch)]
    assert kinds == ([False] * 16 + [True]) * 2


def test_each_pass_shows_every_image_of_the_target_once(recipe, monkeypatch):
    seen = []
    monkeypatch.setattr(TargetRecipe, "_reconstruct", lambda self, network, one, device: seen.append(one[1]) or {})
    for step in range(PASSES * 2):
        losses(recipe, None, step)
    pairs = [frozenset(seen[start : start + 2]) for start in range(0, len(seen), 2)]
    assert set(pairs) == {frozenset(recipe.target["T1w"])}
    assert len({tuple(seen[start : start + 2]) for start in range(0, len(seen), 2)}) == 2  # in changing order


def test_gradients_flow_through_the_last_steps_only(recipe, monkeypatch):
    """The same loss by hand: two steps without gradients, two with, their features kept."""
    seen = []
    translate = TargetRecipe.translate
    spy = lambda self, network, tensors, label: seen.append(tensors) or translate(self, network, tensors, label)  # noqa: E731
    monkeypatch.setattr(TargetRecipe, "translate", spy)
    network = recipe.build()
    losses(recipe, network, 0)["loss"].backward()
    found = {name: value.grad.clone() for name, value in network.unet.named_parameters() if value.grad is not None}
    network.zero_grad()
    tensors, calls = seen[0], []
    condition = gradient_condition(to_signed(tensors["matched"]))

    def predict(noisy, times):
        calls.append(torch.is_grad_enabled())
        return network(noisy, condition, times, torch.tensor([0]))

    with torch.no_grad():
        half = SAMPLER.denoise(predict, tensors["latent"], slice(0, 2))
    made, image = SAMPLER.denoise(predict, half, slice(2, 4)), to_signed(tensors["image"])
    error = (made - image)[tensors["mask"].bool()].abs().mean()
    (error + 0.5 * multiscale_gradient_loss(made, image)).backward()
    assert calls == [False, False, True, True]
    assert len(found) > 20
    for name, value in found.items():
        assert torch.allclose(value, network.unet.get_parameter(name).grad, atol=1e-6, rtol=1e-3), name


def test_running_statistics_move_a_fifth_of_the_way_to_the_image(recipe):
    network = recipe.build()
    before = float(network.statistics.mean[0]), float(network.statistics.std[0])
    losses(recipe, network, 0)
    after = float(network.statistics.mean[0]), float(network.statistics.std[0])
    aims = []
    for path in recipe.target["T1w"]:
        tensors = load_file(path)
        values = to_signed(tensors["image"])[tensors["mask"].bool()]
        aims.append((float(values.mean()), float(values.std())))
    steps = [[0.8 * old + 0.2 * new for old, new in zip(before, aim, strict=True)] for aim in aims]
    assert any(after == pytest.approx(step, abs=1e-6) for step in steps)
    still = network.statistics.mean.clone()
    losses(recipe, network, 16)  # style transfer
    assert torch.equal(network.statistics.mean, still)


def test_style_transfer_teaches_network_and_aggregator_but_not_the_tower(recipe):
    network = recipe.build()
    losses(recipe, network, 16)["loss"].backward()
    assert any(value.grad is not None and value.grad.abs().max() > 0 for value in network.unet.parameters())
    assert network.aggregator.query.grad.abs().max() > 0
    assert all(value.grad is None for value in recipe.encoder.tower.parameters())
    assert recipe.groups(network)[1]["factor"] == pytest.approx(6e-7 / 5e-7)


def test_the_displacement_weighs_more_from_epoch_to_epoch(recipe):
    network = recipe.build()
    first, ninth = (losses(recipe, network, epoch * recipe.epoch + 16) for epoch in (0, 8))
    # the aim of an epoch is drawn anew, so the weight is read off the parts
    for parts, weight in ((first, 1.0), (ninth, 5.0)):
        loss, displacement, edges = (float(parts[n].detach()) for n in ("loss", "displacement", "transferred_edges"))
        assert loss == pytest.approx(weight * displacement + 0.5 * edges, rel=1e-5)


def test_without_an_encoder_there_is_no_transfer(stage_one, files):
    recipe = TargetRecipe(stage_one, SAMPLER, {"T1w": files[:2]}, {"T1w": files[2:]}, {}, None)
    assert recipe.epoch == PASSES * 2 and recipe.build().aggregator is None
    assert recipe.last == 4  # of ten asked for, as many as there are


def test_what_is_cached_of_an_image(stage_one, make_nifti, tmp_path):
    radius = np.linalg.norm(np.indices((16, 16, 16)).T - 7.5, axis=-1).T
    data = np.where(radius < 6, 0.3 + 0.04 * radius, 0)
    name = "in/sub-1_space-MNI152NLin2009aSym_desc-model_T1w.nii.gz"
    make_nifti(name, dtype=np.float32, data=data, affine=np.eye(4))
    (sample,) = find_samples([tmp_path / "in"])
    made = latent_of(sample, stage_one, SAMPLER, 2, (0.4, 0.05))
    mask = made["mask"].bool()[0, 0].numpy()
    assert made["image"].shape == (1, 1, 8, 8, 8)
    mean, std = brain_moments(made["matched"][0, 0].numpy(), mask)
    assert (mean, std) == pytest.approx((0.4, 0.05), abs=2e-3)
    matched, label = to_signed(made["matched"]), torch.tensor([0])
    with torch.no_grad():
        assert torch.allclose(invert(stage_one, SAMPLER, matched, label), made["latent"])
        plain = from_signed(stage_one.harmonize(SAMPLER, to_signed(made["image"]), label))[0, 0].numpy()
    inside = made["matched"][0, 0].numpy()[mask]
    assert np.corrcoef(plain[mask], inside)[0, 1] > 0.999  # one shift and stretch


def test_validation_measures_what_was_put_back(recipe, tmp_path):
    values = recipe.validate(recipe.build(), CPU, tmp_path, 0)
    assert set(values) == {f"{name}_{when}_T1w" for name in ("error", "distance") for when in ("before", "after")}
    assert isinstance(recipe.build(), StageTwo)
