"""Image towers from folders in open_clip's form, small ones with random weights; and the full ViT-B/16 without any."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from mmh_bids.errors import UsageError
from mmh_bids.models import tower as tower_module
from mmh_bids.models.style import TriPlanarEncoder
from mmh_bids.models.tower import CLIP_MEAN, CLIP_STD, CONFIG, REPOSITORY, SAFE_WEIGHTS, WEIGHTS, load_tower
from mmh_bids.models.vision import mend_torchvision

#: As BiomedCLIP's, but for the size: a ViT of timm, its class token, one linear layer.
TIMM = {
    "embed_dim": 32,
    "vision_cfg": {
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 160,
    },
    "text_cfg": {"hf_model_name": "of/no-matter", "hf_proj_type": "mlp"},
}
#: open_clip's own ViT.
PLAIN = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32},
    "text_cfg": {"layers": 1, "width": 8, "heads": 1},
}
BIOMEDCLIP = {
    "embed_dim": 512,
    "vision_cfg": {**TIMM["vision_cfg"], "timm_model_name": "vit_base_patch16_224", "image_size": 224},
    "text_cfg": {"hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"},
}


def random_tower(model):
    """The image tower that open_clip itself builds of a config, with random weights."""
    mend_torchvision()
    import open_clip

    torch.manual_seed(0)
    visual = open_clip.CustomTextCLIP(
        model["embed_dim"],
        open_clip.CLIPVisionCfg(**model["vision_cfg"]),
        open_clip.CLIPTextCfg(width=8, heads=1, layers=1, vocab_size=5, context_length=3),
    ).visual
    return visual.eval()


@pytest.fixture(scope="module")
def towers():
    """The two towers by name, built once."""
    return {"timm": random_tower(TIMM), "plain": random_tower(PLAIN)}


@pytest.fixture
def write(tmp_path, towers):
    """``write(kind, safe, preprocess, prefix)``: a folder as open_clip writes it, with a text tower's weights."""

    def make(kind="plain", safe=True, preprocess=None, prefix=""):
        folder = tmp_path / "clip"
        folder.mkdir()
        config = {"model_cfg": TIMM if kind == "timm" else PLAIN}
        if preprocess:
            config["preprocess_cfg"] = preprocess
        (folder / CONFIG).write_text(json.dumps(config))
        weights = {f"{prefix}visual.{name}": value for name, value in towers[kind].state_dict().items()}
        weights |= {f"{prefix}text.layer": torch.ones(3), f"{prefix}logit_scale": torch.ones(())}
        if safe:
            save_file(weights, folder / SAFE_WEIGHTS)
        else:
            torch.save(weights, folder / WEIGHTS)
        return folder

    return make


@pytest.mark.parametrize(
    ("kind", "safe", "size", "dim"), [("timm", False, 160, 32), ("timm", True, 160, 32), ("plain", True, 32, 16)]
)
def test_loaded_tower_is_the_saved_one(write, towers, kind, safe, size, dim):
    folder = write(kind, safe)
    loaded, facts = load_tower(folder)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        out = loaded(images)
        assert torch.equal(out, towers[kind](images))
    assert out.shape == (2, dim)
    assert out.std() > 0
    assert not loaded.training
    assert not [name for name, _ in loaded.named_parameters() if "text" in name]
    assert facts["name"] == "clip"
    assert (facts["embed_dim"], facts["image_size"]) == (dim, [size, size])
    file = folder / (SAFE_WEIGHTS if safe else WEIGHTS)
    assert facts["sha256"] == subprocess.run(["sha256sum", file], capture_output=True, text=True).stdout.split()[0]
    json.dumps(facts)


def test_class_token_alone_makes_the_embedding_where_the_pool_is_empty(write):
    loaded, _ = load_tower(write("timm"))
    with torch.no_grad():
        images = torch.randn(1, 3, 160, 160)
        assert torch.equal(loaded(images), loaded.head(loaded.trunk.forward_features(images)[:, 0]))


def test_safetensors_are_preferred(write, towers):
    folder = write()
    torch.save({f"visual.{k}": torch.zeros_like(v) for k, v in towers["plain"].state_dict().items()}, folder / WEIGHTS)
    loaded, _ = load_tower(folder)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), towers["plain"].parameters(), strict=True))


def test_weights_of_a_training_are_unwrapped(write, towers):
    folder = write(safe=False, prefix="module.")
    torch.save({"state_dict": torch.load(folder / WEIGHTS, weights_only=True), "epoch": 3}, folder / WEIGHTS)
    loaded, _ = load_tower(folder)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), towers["plain"].parameters(), strict=True))


def test_normalisation_is_the_folders_or_clips(write):
    folder = write(preprocess={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"})
    made = TriPlanarEncoder(load_tower(folder)[0], dim=16, slices=2, card={})
    assert made.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert made.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config["model_cfg"]}))
    made = TriPlanarEncoder(load_tower(folder)[0], dim=16, slices=2, card={})
    assert made.mean.flatten().tolist() == pytest.approx(CLIP_MEAN)
    assert made.std.flatten().tolist() == pytest.approx(CLIP_STD)
    mend_torchvision()
    import open_clip

    assert (CLIP_MEAN, CLIP_STD) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def test_encoder_on_a_loaded_tower_is_differentiable(write):
    tower, facts = load_tower(write())
    made = TriPlanarEncoder(tower, dim=16, slices=3, margin_mm=4, card=facts)
    volume = torch.rand(2, 1, 16, 18, 20, requires_grad=True)
    out = made(volume)
    assert out.shape == (2, 16)
    out[0].square().sum().backward()
    assert volume.grad[0].abs().sum() > 0
    assert volume.grad[1].abs().sum() == 0


def complaint(folder):
    """The one line that loading `folder` ends with."""
    with pytest.raises(UsageError) as caught:
        load_tower(folder)
    (line,) = str(caught.value).splitlines()
    return line


def says_where_to_get_it(line):
    return all(part in line for part in (REPOSITORY, CONFIG, WEIGHTS, "784 MB", "MIT", "--style-weights DIR"))


def test_missing_files_say_what_to_get(write, tmp_path):
    folder = write()
    line = complaint(tmp_path / "nowhere")
    assert "nowhere: no such folder" in line
    assert says_where_to_get_it(line)
    (folder / SAFE_WEIGHTS).rename(tmp_path / "kept")
    line = complaint(folder)
    assert "has neither" in line
    assert says_where_to_get_it(line)
    (folder / CONFIG).unlink()
    line = complaint(folder)
    assert f"has no {CONFIG}" in line
    assert says_where_to_get_it(line)


@pytest.mark.parametrize("safe", [True, False])
def test_truncated_weights_are_named(write, safe):
    folder = write(safe=safe)
    path = folder / (SAFE_WEIGHTS if safe else WEIGHTS)
    path.write_bytes(path.read_bytes()[:-200])
    line = complaint(folder)
    assert f"{path}: truncated or no file of weights" in line
    assert says_where_to_get_it(line)


@pytest.mark.parametrize("content", [b"", b"version https", b"\x80\x02}q\x00."])
def test_other_files_are_no_weights(write, content):
    folder = write(safe=False)
    (folder / WEIGHTS).write_bytes(content)
    assert "truncated or no file of weights" in complaint(folder) or "has no image tower" in complaint(folder)


def test_code_in_a_weight_file_is_not_run(write, tmp_path):
    class Bad:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = write(safe=False)
    torch.save({"visual.x": Bad()}, folder / WEIGHTS)
    assert "truncated or no file of weights" in complaint(folder)
    assert not (tmp_path / "ran").exists()


def test_files_that_do_not_fit_each_other_are_named(write, towers):
    folder = write()
    config = json.loads((folder / CONFIG).read_text())

    def changed(**vision):
        model = {**PLAIN, "vision_cfg": PLAIN["vision_cfg"] | vision}
        (folder / CONFIG).write_text(json.dumps(config | {"model_cfg": model}))
        return complaint(folder)

    assert f"does not fit {CONFIG}" in changed(layers=2)
    assert f"does not fit {CONFIG}" in changed(width=24)
    assert "no image tower can be built" in changed(unheard_of=1)
    assert "no image tower can be built" in changed(timm_model_name="no_such_vit")
    (folder / CONFIG).write_text(json.dumps(config))
    weights = towers["plain"].state_dict()
    save_file(weights, folder / SAFE_WEIGHTS)
    assert "has no image tower (visual.*)" in complaint(folder)
    weights = {f"visual.{name}": value for name, value in weights.items()}
    del weights["visual.proj"]
    save_file(weights, folder / SAFE_WEIGHTS)
    assert f"does not fit {CONFIG}" in complaint(folder)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"timm_model_name": "vit_tiny_patch16_224"}, r"takes no images of \(160, 160\)"),
        ({"timm_pool": "token", "timm_proj": "none"}, r"gives \(64,\) numbers an image, not embed_dim 32"),
    ],
)
def test_config_must_state_the_towers_sizes(tmp_path, vision, message):
    model = {**TIMM, "vision_cfg": TIMM["vision_cfg"] | vision}
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": model}))
    save_file({f"visual.{k}": v for k, v in random_tower(model).state_dict().items()}, tmp_path / SAFE_WEIGHTS)
    assert re.search(message, complaint(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model_cfg": {"embed_dim": 3}}', '{"model_cfg": {"embed_dim": "x", "vision_cfg": {}}}']
)
def test_other_configs_are_named(write, text):
    folder = write()
    (folder / CONFIG).write_text(text)
    line = complaint(folder)
    assert str(folder / CONFIG) in line
    assert says_where_to_get_it(line)


def test_wrong_normalisation_is_named(write):
    assert "mean and std" in complaint(write(preprocess={"mean": [0.5], "std": [0, 1, 1]}))


def test_download_without_a_connection_says_what_to_get(tmp_path):
    # the hub's client is offline in all tests
    with pytest.raises(UsageError, match="--allow-download") as caught:
        tower_module.download_tower(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert says_where_to_get_it(str(caught.value))


def test_download_fetches_the_two_files_of_one_repository(write, tmp_path, monkeypatch):
    import huggingface_hub

    folder, asked = write(safe=False), []

    def fetch(repository, name, cache_dir=None):
        asked.append((repository, name))
        (tmp_path / "cache").mkdir(exist_ok=True)
        return str(shutil.copy(folder / name, tmp_path / "cache" / name))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    place = tower_module.download_tower(tmp_path / "cache")
    assert asked == [(REPOSITORY, CONFIG), (REPOSITORY, WEIGHTS)]
    load_tower(place)


def test_only_loading_a_tower_imports_open_clip():
    code = """
import pkgutil, sys
import mmh_bids.models, mmh_bids.cli.run
for module in pkgutil.iter_modules(mmh_bids.models.__path__, "mmh_bids.models."):
    __import__(module.name)
print([name for name in ("open_clip", "timm") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.slow
def test_full_biomedclip_shape():
    """The config of the real file, random weights: shape of the style vector and of its gradient."""
    tower = random_tower(BIOMEDCLIP)
    assert sum(parameter.numel() for parameter in tower.trunk.parameters()) == 85_798_656
    assert tower.head.proj.weight.shape == (512, 768)
    tower.image_mean, tower.image_std = CLIP_MEAN, CLIP_STD
    made = TriPlanarEncoder(tower, dim=512, slices=1, card={"name": REPOSITORY})
    volume = torch.zeros(1, 1, 144, 184, 184)
    volume[:, :, 30:110, 30:150, 30:150] = torch.rand(80, 120, 120)
    volume.requires_grad_()
    out = made(volume)
    assert out.shape == (1, 512)
    out.square().sum().backward()
    assert volume.grad.abs().sum() > 0
