from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from workout import NETWORK

from mmh_bids.errors import UsageError
from mmh_bids.harmonizers.mmh import Mmh
from mmh_bids.models.bundle import open_bundle
from mmh_bids.models.memory import free_gb, training_gb
from mmh_bids.models.sampler import make_sampler
from mmh_bids.models.unet import to_signed
from mmh_bids.training.diffusion import DiffusionRecipe
from mmh_bids.training.diffusion_bundle import write_stage_one
from mmh_bids.training.loop import Interrupted, Plan, fit
from mmh_bids.training.share import Share
from mmh_bids.training.standards import find_samples

PLAIN = {"name": "plain", "steps": 2, "top": 100}
CPU = torch.device("cpu")


def brain(level, seed):
    """A ball of two tissues in 16 x 16 x 14, zero outside."""
    rng = np.random.default_rng(seed)
    radius = np.linalg.norm(np.indices((16, 16, 14)).T - [7.5, 7.5, 6.5], axis=-1).T
    inside = np.where(radius < 4, level + 0.3, level) + rng.normal(0, 0.02, (16, 16, 14))
    return np.where(radius < 6.5, np.clip(inside, 0.02, 1), 0)


@pytest.fixture
def samples(make_nifti, tmp_path):
    """Three T1w images of differing brightness and two T2w."""
    for number, (sequence, level) in enumerate([("T1w", 0.2), ("T1w", 0.35), ("T1w", 0.5), ("T2w", 0.4), ("T2w", 0.6)]):
        name = f"in/sub-{number}_space-MNI152NLin2009aSym_desc-model_{sequence}.nii.gz"
        make_nifti(name, dtype=np.float32, data=brain(level, number), affine=np.diag([2.0, 2, 2, 1]))
    return find_samples([tmp_path / "in"])


@pytest.fixture
def recipe(samples):
    return DiffusionRecipe(samples, samples[1:4], NETWORK, PLAIN, ramp_images=4)


def step(recipe, seed=0, network=None):
    torch.manual_seed(seed)
    network = recipe.build() if network is None else network
    return network, recipe.losses(network, Share(seed, 0), CPU)


def train(recipe, folder, steps, **plan):
    fabric = Fabric(accelerator="cpu", devices=1)
    said = []
    plan = Plan(**{"steps": steps, "warmup": 2, "learning_rate": 4e-3, "validate_every": steps, **plan})
    return fit(recipe, plan, folder, fabric, recipe.facts, said.append), said


def test_a_step_has_all_losses_and_depends_on_its_seed_alone(recipe):
    network, losses = step(recipe)
    assert set(losses) == {"loss", "noise", "gradient", "histogram", "moments", "peak"}
    assert losses["noise"].item() == pytest.approx(1, abs=0.05)  # a new network predicts no noise at all
    _, again = step(recipe)
    assert all(torch.equal(again[name], value) for name, value in losses.items())
    assert step(recipe, seed=1)[1]["noise"] != losses["noise"]
    losses["loss"].backward()
    assert any(part.grad is not None and part.grad.abs().sum() > 0 for part in network.unet.parameters())


def test_the_statistics_start_from_the_clean_brain_and_count_images(samples):
    recipe = DiffusionRecipe(samples[:1], [], NETWORK, PLAIN)
    seeds = (seed for seed in range(50) if drawn_timestep(seed) >= 100)
    network, losses = step(recipe, next(seeds))
    values = 2 * brain(0.2, 0)[brain(0.2, 0) > 0] - 1
    assert network.statistics.mean[0].item() == pytest.approx(values.mean(), abs=1e-5)
    assert network.statistics.std[0].item() == pytest.approx(values.std(ddof=1), abs=1e-5)
    assert network.statistics.seen.tolist() == [True, False]
    assert int(network.statistics.images) == 1
    assert losses["histogram"] == losses["moments"] == losses["peak"] == 0
    assert losses["loss"].item() == pytest.approx((losses["noise"] + losses["gradient"]).item())


def drawn_timestep(seed):
    """The noise level of the first step's first image: the first number drawn, where nothing is cropped."""
    return int(Share(seed, 0).items(1)[0].rng.integers(1000))


def test_the_style_losses_are_weighted_and_ramped(samples):
    recipe = DiffusionRecipe(samples[:3], [], NETWORK, PLAIN, ramp_images=10)
    early = next(seed for seed in range(200) if drawn_timestep(seed) < 60)
    network = recipe.build()
    for seed in range(3):  # the style of other images, so that there is a distance
        step(recipe, seed, network)
    torch.nn.init.normal_(network.unet.network.out[2].conv.weight, std=0.1)
    for images, share in ((0, 0.0), (4, 0.4), (25, 1.0)):
        network.statistics.images.fill_(images)
        _, losses = step(recipe, early, network)
        assert losses["histogram"] > 1e-3
        expected = losses["noise"] + losses["gradient"] + losses["moments"] + losses["peak"]
        expected = expected + 10 * share * losses["histogram"]
        assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_statistics_move_when_all_passes_of_a_step_are_done(samples):
    """In the end they are what one pass over the whole batch leaves; until then the network is shown the same style."""
    arguments = (samples, [], NETWORK, PLAIN, 1, None, 12, 4)
    whole, parts = DiffusionRecipe(*arguments), DiffusionRecipe(*arguments)
    torch.manual_seed(0)
    expected, network = whole.build(), parts.build()
    network.load_state_dict(expected.state_dict())
    shown = []
    network.unet.register_forward_pre_hook(lambda module, given: shown.append(given[4][0].tolist()))
    for step in range(2):
        whole.losses(expected, Share(1, step), CPU)
        before = network.statistics.mean.tolist()
        for part in range(4):
            parts.losses(network, Share(1, step, part=part, parts=4), CPU)
            assert int(network.statistics.images) == 12 * (step + (part == 3))
            assert step == 0 or (network.statistics.mean.tolist() != before) is (part == 3)
        for name, value in expected.statistics.state_dict().items():
            torch.testing.assert_close(network.statistics.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert len({tuple(style) for style in shown[4:]}) <= 2  # one for each sequence


def test_every_sequence_is_drawn_as_often(samples):
    recipe = DiffusionRecipe(samples, [], NETWORK, PLAIN)
    labels = [int(recipe._drawn((0, number)).label) for number in range(40)]
    assert sum(labels) == 20
    assert labels not in ([0, 1] * 20, [1, 0] * 20)


def test_training_learns_and_validation_leaves_numbers_and_pictures(recipe, tmp_path):
    from PIL import Image

    network, _ = train(recipe, tmp_path / "out", 80, average=0.9)
    torch.manual_seed(3)
    first = recipe.validate(network, CPU, tmp_path / "again", 80)
    assert first["noise"] < 0.7
    assert set(first) == {"noise"} | {
        f"{what}_{sequence}" for what in ("change", "distance_before", "distance_after") for sequence in ("T1w", "T2w")
    }
    assert recipe.validate(network, CPU, tmp_path / "again", 80) == first  # no draw of the torch generator counts
    for sequence in ("T1w", "T2w"):
        with Image.open(tmp_path / "out" / "pictures" / f"step-000080_{sequence}.png") as picture:
            assert min(picture.size) > 400
            assert np.asarray(picture.convert("L")).std() > 10
    log = (tmp_path / "out" / "log.csv").read_text()
    assert "validation/noise" in log
    assert "train/gradient" in log


def test_a_sequence_that_was_not_trained_on_is_left_out_of_the_validation(samples, tmp_path):
    recipe = DiffusionRecipe(samples[:2], samples[2:], NETWORK, PLAIN)
    network, _ = step(recipe)
    with torch.no_grad():
        found = recipe.validate(network.eval(), CPU, tmp_path, 1)
    assert "change_T1w" in found
    assert "change_T2w" not in found
    assert recipe.validate(recipe.build(), CPU, tmp_path, 1) == {}


def test_an_interrupted_training_ends_at_the_same_weights_and_statistics(samples, tmp_path):
    class Stopped(DiffusionRecipe):
        def losses(self, network, rng, device):
            if int(network.statistics.images) == 2 * self.batch:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().losses(network, rng, device)

    arguments = (samples, samples[:1], NETWORK, PLAIN, 1, 12, 2, 3)
    whole, _ = train(DiffusionRecipe(*arguments), tmp_path / "whole", 6)
    with pytest.raises(Interrupted):
        train(Stopped(*arguments), tmp_path / "parts", 6)
    resumed, said = train(DiffusionRecipe(*arguments), tmp_path / "parts", 6)
    assert said[0] == "resumed at step 3"
    expected = whole.state_dict()
    assert int(resumed.statistics.images) == 12
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_shrunk_and_cropped_batches_have_the_size_asked_for(samples):
    recipe = DiffusionRecipe(samples, [], NETWORK, PLAIN, factor=2, crop=6, batch=3)
    network = recipe.build()
    seen = []
    network.unet.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
    step(recipe, network=network)
    assert seen == [(3, 1, 6, 6, 6)]


def test_a_training_that_memory_will_not_hold_is_refused_with_what_to_change(samples):
    recipe = DiffusionRecipe(samples, [], NETWORK, PLAIN, batch=10**6)
    with pytest.raises(
        UsageError, match=r"needs about \d+.* GB, this machine has .*factor 1.*crop .*batch \(1000000\)"
    ):
        recipe.check_memory(CPU)
    with pytest.raises(UsageError, match="needs about"):
        step(recipe)
    DiffusionRecipe(samples, [], NETWORK, PLAIN).check_memory(CPU)


def test_the_refusal_proposes_a_factor_that_fits(samples):
    free = free_gb()
    batch = int(3 * free / (training_gb(NETWORK, (16, 16, 14), 1000) / 1000))
    recipe = DiffusionRecipe(samples, [], NETWORK, PLAIN, batch=batch)
    with pytest.raises(UsageError, match=r"\(factor 2 would need [\d.]+ GB\)") as refusal:
        recipe.check_memory(CPU)
    would = float(str(refusal.value).split("would need ")[1].split()[0])
    assert would == training_gb(NETWORK, (8, 8, 7), batch) < free


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": []}, "no images"),
        ({"factor": 0}, "at least 1"),
        ({"crop": 0}, "at least 1"),
        ({"sampler": {"name": "odd"}}, "'odd' is unknown"),
        ({"network": {"depth": 3}}, "depth"),
        ({"network": {"channels": [3, 5]}}, "cannot be made"),
    ],
)
def test_a_wrong_recipe_is_refused(samples, changes, words):
    with pytest.raises(UsageError, match=words):
        DiffusionRecipe(**{"train": samples, "validation": [], "network": NETWORK, "sampler": PLAIN} | changes)


def test_the_bundle_harmonizes_as_the_trained_network_does(samples, tmp_path):
    recipe = DiffusionRecipe(samples, [], NETWORK, PLAIN, factor=2)
    network, _ = train(recipe, tmp_path / "out", 8)
    write_stage_one(tmp_path / "toy", "toy", network, recipe, "simulated", {"noise": 0.5})
    bundle = open_bundle(tmp_path / "toy")
    assert bundle.shape == (8, 8, 7)
    np.testing.assert_allclose(bundle.affine, [[4, 0, 0, 1], [0, 4, 0, 1], [0, 0, 4, 1], [0, 0, 0, 1]])
    assert bundle.sequences == ("T1w", "T2w")
    assert bundle.card["training"]["recipe"] == json.loads(json.dumps(recipe.facts))
    assert bundle.card["sequences"]["T1w"]["targets"]["unified"]["images"] == 3
    volume = np.random.default_rng(0).uniform(0.1, 0.9, (1, 8, 8, 7)).astype(np.float32)
    result = Mmh.load(bundle, "cpu").harmonize(volume, np.ones((8, 8, 7), bool), "T2w", "unified", 0)
    with torch.no_grad():
        image = to_signed(torch.from_numpy(volume)[None])
        expected = network.harmonize(make_sampler(PLAIN), image, torch.tensor([1]))
    np.testing.assert_allclose(result.volume, (expected[0].numpy() + 1).clip(0, 2) / 2, atol=1e-6)
    assert np.abs(result.volume - volume).max() > 1e-3


def test_an_untrained_network_makes_no_bundle(recipe, tmp_path):
    with pytest.raises(UsageError, match="trained on no image"):
        write_stage_one(tmp_path / "toy", "toy", recipe.build(), recipe, "simulated", {})
