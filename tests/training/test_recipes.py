"""The recipes' numbers, and that ``mmh-train global`` goes by them."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("lightning.fabric")

import torch  # noqa: E402
from workout import NETWORK as TINY  # noqa: E402

from mmh_bids.cli.train import build_parser, main  # noqa: E402
from mmh_bids.models.bundle import open_bundle  # noqa: E402
from mmh_bids.models.unet import StyleUNet  # noqa: E402
from mmh_bids.training import diffusion, losses, memory, recipes  # noqa: E402


def write_images(folder, shape, blank=False):
    """Model-grid images of four participants, T1w and T2w."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for person in range(4):
        for sequence in ("T1w", "T2w"):
            data = np.zeros(shape, np.float32)
            if not blank:
                data[2:-2, 2:-2, 2:-2] = rng.uniform(0.2, 0.9, [size - 4 for size in shape])
            name = f"sub-{person}_space-MNI152NLin2009aSym_desc-model_{sequence}.nii.gz"
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / name)


def train(folder, *more):
    return main([
        "global", str(folder / "in"), "--method", "mmh-diffusion", "--held-out", "sub-3", "--device", "cpu",
        "--output", str(folder / "bundle"), "--work", str(folder / "work"), *more,
    ])  # fmt: skip


def test_the_paper_recipe_has_the_published_values():
    paper = recipes.RECIPES["paper"]
    assert (paper.learning_rate, paper.batch, paper.at_once, paper.factor) == (1e-4, 4, 1, 1)
    assert (paper.epochs, paper.validate_epochs, paper.precision) == (300, 10, "16-mixed")
    assert (paper.plan["optimizer"], paper.plan["schedule"], paper.plan["patience"]) == ("adam", "plateau", 2)
    assert (diffusion.WEIGHTS, diffusion.RAMP_EPOCHS) == (
        {"gradient": 1.0, "histogram": 10.0, "moments": 1.0, "peak": 1.0}, 20,
    )  # fmt: skip
    assert losses.KERNEL_WIDTHS == (0.01, 0.015)
    with torch.device("meta"):
        assert StyleUNet(**paper.network).arguments == StyleUNet().arguments
        assert StyleUNet().arguments["channels"] == [32, 64, 256, 256]


def test_the_help_says_what_the_recipes_hold():
    small, paper = recipes.RECIPES["small"], recipes.RECIPES["paper"]
    assert recipes.RECIPES["light"].steps == small.steps
    said = " ".join(build_parser()._subparsers._group_actions[0].choices["global"].format_help().split())
    for words in (
        f"optimizer steps (default {small.steps}; paper: {paper.epochs} times every image)",
        f"(default {small.learning_rate}; paper: {paper.learning_rate:.4f})",
        f"on all devices together (default {small.batch})",
        f"(default {small.factor}; paper: {paper.factor})",
        f"(default {small.validate_every}; paper: {paper.validate_epochs} times every image)",
        f"(default {small.precision}; paper on a GPU: {paper.precision})",
    ):
        assert words in said


@pytest.fixture
def tiny_paper(monkeypatch):
    """The paper's recipe with a network that is none."""
    monkeypatch.setitem(recipes.RECIPES, "paper", replace(recipes.RECIPES["paper"], network=TINY))


@pytest.mark.slow
def test_a_training_by_the_paper_recipe_becomes_a_bundle(tmp_path, tiny_paper, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "paper", replace(recipes.RECIPES["paper"], epochs=2, validate_epochs=1))
    write_images(tmp_path / "in", (16, 16, 14))
    assert train(tmp_path, "--recipe", "paper") == 0
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.shape == (16, 16, 14)
    assert bundle.card["sampler"]["name"] == "paper"
    plan = bundle.card["training"]["plan"]
    # two epochs of six images, four a step: three steps of four passes
    assert (plan["steps"], plan["validate_every"], plan["accumulate"]) == (3, 2, 4)
    assert (plan["optimizer"], plan["schedule"], plan["monitor"], plan["patience"]) == ("adam", "plateau", "noise", 2)
    assert (plan["learning_rate"], plan["warmup"], plan["average"], plan["clip"]) == (1e-4, 0, 0.0, None)
    assert bundle.card["training"]["recipe"]["batch"] == 4
    assert "2,validation/noise" in (tmp_path / "work" / "log.csv").read_text()


def test_flags_override_the_recipe(tmp_path, tiny_paper):
    write_images(tmp_path / "in", (16, 16, 14))
    more = ["--steps", "1", "--batch", "1", "--factor", "2", "--learning-rate", "0.01", "--sampler", "3"]
    assert train(tmp_path, "--recipe", "paper", *more, "--validate-every", "7", "--precision", "32-true") == 0
    card = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    plan = card["training"]["plan"]
    assert (plan["steps"], plan["validate_every"], plan["accumulate"], plan["learning_rate"]) == (1, 7, 1, 0.01)
    assert (card["grid"]["shape"], card["sampler"]["name"], card["sampler"]["steps"]) == ([8, 8, 7], "plain", 3)


def test_the_published_size_is_refused_where_memory_is_short_with_what_to_change(tmp_path, monkeypatch, capsys):
    for module in (memory, diffusion):
        monkeypatch.setattr(module, "free_gb", lambda device: 10.0)
    write_images(tmp_path / "in", (144, 184, 184), blank=True)
    assert train(tmp_path, "--recipe", "paper") == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert "needs about 56.9 GB, this machine has 10.0 GB free" in said
    assert "factor 2 would need 8.6 GB" in said
    assert not (tmp_path / "bundle").exists()


def test_the_light_network_has_no_recipe_to_choose(tmp_path, capsys):
    assert main(["global", "a.nii.gz", "--recipe", "paper", "--held-out", "a", "--output", "o", "--work", "w"]) == 2
    assert "--recipe paper: is for --method mmh-diffusion" in capsys.readouterr().err
