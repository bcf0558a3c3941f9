"""Stage 2 of the light harmonizer: a look is learned from images beside the same without style."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from mmh_bids.errors import UsageError
from mmh_bids.models.style import TriPlanarEncoder
from mmh_bids.training.look import RECONSTRUCTIONS, LookRecipe
from mmh_bids.training.loop import Plan, fit
from mmh_bids.training.share import Share

CPU = torch.device("cpu")
SHAPE = (24, 24, 24)


class Tower(nn.Module):
    """Mean and mean square of an image, four times, as an image tower."""

    image_size, image_mean, image_std = (24, 24), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def forward(self, images):
        flat = images.flatten(1)
        return torch.stack([flat.mean(1), flat.square().mean(1)] * 4, dim=1)


def place():
    """From 0 to 1 along the first axis."""
    return torch.linspace(0, 1, SHAPE[0])[:, None, None].expand(SHAPE)


def pair(folder, number, curve, local=0.0):
    """A file as `removed_pair` makes it; the site's image is a curve of the one without style, brighter on one side."""
    rng = torch.Generator().manual_seed(number)
    mask = torch.zeros(1, 1, *SHAPE)
    mask[..., 2:-2, 2:-2, 2:-2] = 1
    # cubes of one brightness each: tissues
    cubes = torch.rand((1, 1, *(size // 6 for size in SHAPE)), generator=rng)
    removed = functional.interpolate(cubes, SHAPE, mode="nearest") * mask
    image = (curve(removed) + local * place()) * mask
    save_file({"removed": removed, "image": image, "mask": mask.to(torch.uint8)}, folder / f"{number}.safetensors")
    return folder / f"{number}.safetensors"


def bent(values):
    return 0.2 + 0.5 * values.square()


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    made = TriPlanarEncoder(Tower(), dim=8, slices=3, heads=2, margin_mm=4, card={"name": "test"})
    return made.requires_grad_(False).eval()


@pytest.fixture
def recipe(tmp_path, encoder):
    known = [pair(tmp_path, number, bent) for number in range(4)]
    return LookRecipe({"T1w": known[:2]}, {"T1w": known[2:3]}, {"T1w": known[3:]}, encoder)


def test_it_begins_with_the_curve_that_fits_best(recipe):
    look = recipe.build()["T1w"]
    at = torch.linspace(0.1, 0.9, 64).reshape(1, 1, 4, 4, 4)
    assert torch.allclose(look(at), bent(at), atol=5e-3)
    assert not look.local.any()


def test_what_no_one_curve_tells_is_learned_over_the_brain(tmp_path):
    files = [pair(tmp_path, number, bent, local=0.2) for number in range(6)]
    recipe = LookRecipe({"T1w": files[:5]}, {}, {"T1w": files[5:]})
    first = recipe.validate(recipe.build(), CPU, tmp_path, 0)
    plan = Plan(60, 3e-2, weight_decay=0.0, validate_every=60, warmup=5)
    network = fit(recipe, plan, tmp_path / "work", Fabric(accelerator="cpu", devices=1), {}, lambda line: None)
    last = recipe.validate(network, CPU, tmp_path, 60)
    assert first["error_after_T1w"] > 0.04
    assert last["error_after_T1w"] < 0.6 * first["error_after_T1w"]
    local = network["T1w"].local.detach()[0].mean(dim=(0, 2, 3))
    # the outermost cells lie in the brain's rim, which does not count
    assert local[-2] > local[1] + 0.05


def test_what_slices_blur_between_tissues_is_not_learned_as_contrast(tmp_path):
    """The site's slices are four times as thick as those of the image without style, along the second axis."""
    files = [pair(tmp_path, number, bent) for number in range(4)]
    for path in files:
        known = load_file(path)
        sharp = known["image"]
        thick = functional.avg_pool3d(functional.pad(sharp, (0, 0, 1, 2, 0, 0)), (1, 4, 1), (1, 1, 1))
        save_file(known | {"image": (thick * known["mask"]).contiguous()}, path)
    recipe = LookRecipe({"T1w": files}, {}, {})
    at = torch.linspace(0.1, 0.9, 64).reshape(1, 1, 4, 4, 4)
    assert torch.allclose(recipe.build()["T1w"](at), bent(at), atol=2e-2)


def test_style_transfer_comes_now_and_then_and_teaches_the_look(recipe):
    network = recipe.build()
    steps = [recipe.losses(network, Share(0, step), CPU) for step in range(60)]
    with_transfer = [parts for parts in steps if "displacement" in parts]
    assert 60 / (RECONSTRUCTIONS + 1) / 3 < len(with_transfer) < 60 / (RECONSTRUCTIONS + 1) * 3
    with_transfer[0]["displacement"].backward()
    assert network["T1w"].rises.grad.abs().max() > 0
    assert all(value.grad is None for value in recipe.encoder.parameters())


def test_the_loss_is_the_weighted_sum_of_its_parts(recipe):
    network = recipe.build()
    for step in range(20):
        parts = {name: float(value.detach()) for name, value in recipe.losses(network, Share(0, step), CPU).items()}
        total = parts["error"] + parts["roughness"]
        total += parts.get("displacement", 0.0) + 0.5 * parts.get("kept_edges", 0.0)
        assert parts["loss"] == pytest.approx(total, rel=1e-5)


def test_images_without_style_are_compared_at_the_targets_mean_and_spread(tmp_path):
    recipe = LookRecipe({"T1w": [pair(tmp_path, 0, bent)]}, {}, {})
    known = load_file(recipe.target["T1w"][0])
    mask = known["mask"].float()
    moved = recipe._matched(known["removed"], mask, "T1w")[mask.bool()]
    image = known["image"][mask.bool()]
    assert float(moved.mean()) == pytest.approx(float(image.mean()), abs=5e-3)
    assert float(moved.std()) == pytest.approx(float(image.std()), rel=2e-2)


def test_a_site_without_images_is_an_error():
    with pytest.raises(UsageError, match="no image of the target site"):
        LookRecipe({"T1w": []}, {}, {})


def test_sequences_without_images_have_no_look(recipe):
    assert recipe.sequences == ("T1w",) and "T2w" not in recipe.build().looks
    assert np.isfinite(list(recipe.validate(recipe.build(), CPU, None, 0).values())).all()
