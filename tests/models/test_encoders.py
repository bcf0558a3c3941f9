"""Which style encoder is loaded; the folder of the small one; the small tower."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from mmh_bids.errors import UsageError
from mmh_bids.models import encoders
from mmh_bids.models.encoders import CARD, WEIGHTS_FILE, build_small, load_style_encoder, read_small, write_small
from mmh_bids.models.small_tower import SmallTower
from mmh_bids.models.tower import CONFIG, SAFE_WEIGHTS
from mmh_bids.models.vision import mend_torchvision

NETWORK = {
    "dim": 16, "slices": 3, "margin_mm": 8.0, "heads": 8, "alpha": 0.2, "voxel_mm": 2.0,
    "tower": {"channels": [4, 6], "bins": 7, "image_size": 16},
}  # fmt: skip
FACTS = {"name": "tiny", "license": "Apache-2.0", "network": NETWORK, "training": {}, "metrics": {}}


@pytest.fixture
def small(tmp_path):
    """A small encoder with random weights, and the folder it was written to."""
    torch.manual_seed(0)
    made = build_small(NETWORK, card={})
    return made.eval(), write_small(tmp_path / "tiny", made, FACTS)


def volume(seed=0):
    generator = torch.Generator().manual_seed(seed)
    out = torch.zeros(1, 1, 24, 28, 26)
    out[:, :, 3:-3, 3:-3, 3:-3] = torch.rand(18, 22, 20, generator=generator) * 0.8 + 0.1
    return out


def test_written_encoder_is_read_back(small):
    made, folder = small
    read = read_small(folder)
    assert torch.allclose(read(volume()), made(volume()), atol=1e-5)
    assert not read.training
    assert read.card["name"] == "tiny"
    assert read.card["sha256"] == json.loads((folder / CARD).read_text())["files"][WEIGHTS_FILE]["sha256"]
    assert read.card["voxel_mm"] == 2.0
    json.dumps(read.card)
    assert not any(parameter.requires_grad for parameter in read.parameters())
    assert not list(folder.parent.glob(".*"))


def test_an_encoder_of_ones_own_is_loaded_from_its_folder(small):
    _, folder = small
    assert load_style_encoder(folder).card["name"] == "tiny"


def test_small_encoder_is_differentiable_in_the_volume(small):
    _, folder = small
    image = volume().requires_grad_()
    read_small(folder)(image).square().sum().backward()
    assert image.grad[image.detach() > 0].abs().sum() > 0


def test_brightness_and_contrast_count(small):
    made, _ = small
    with torch.no_grad():
        plain = made(volume())
        noise = (made(volume(1)) - plain).norm()
        assert (made(volume() * 0.8) - plain).norm() > 3 * noise
        assert (made((volume() - 0.5) * 0.7 * (volume() > 0) + 0.5 * (volume() > 0)) - plain).norm() > 3 * noise


def test_small_tower_sees_the_brain_alone():
    torch.manual_seed(0)
    tower = SmallTower(dim=8, channels=[4], bins=7, image_size=16).eval()
    flat = torch.zeros(2, 3, 16, 16)
    flat[0, :, 4:12, 4:12] = 0.5
    flat[1, :, 2:14, 2:14] = 0.5
    with torch.no_grad():
        small, large = tower.describe(flat)
        empty = tower(torch.zeros(1, 3, 16, 16))
        changed = tower.describe(flat * 0.8)[0]
    assert empty.isfinite().all()
    # histogram and differences are the same: the background counts for nothing
    assert torch.allclose(small[:15], large[:15], atol=1e-5)
    # what differs comes from the edge that a convolution reaches over
    assert (small - large).norm() < 0.5 * (small - changed).norm()


def test_existing_folders_are_not_replaced_unasked(small, tmp_path):
    made, folder = small
    with pytest.raises(UsageError, match="exists already"):
        write_small(folder, made, FACTS)
    write_small(folder, made, FACTS | {"name": "new"}, overwrite=True)
    assert read_small(folder).card["name"] == "new"
    (tmp_path / "thesis").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        write_small(tmp_path / "thesis", made, FACTS, overwrite=True)


def test_damaged_encoders_are_named(small):
    _, folder = small
    path, raw = folder / WEIGHTS_FILE, (folder / WEIGHTS_FILE).read_bytes()
    for damage in (raw[:-1], raw[:-1] + bytes([raw[-1] ^ 1])):
        path.write_bytes(damage)
        with pytest.raises(UsageError, match="truncated or altered") as caught:
            read_small(folder)
        assert str(path) in str(caught.value)
        assert "mmh-train encoder" in str(caught.value)
    path.unlink()
    with pytest.raises(UsageError, match="missing"):
        read_small(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format 2 is unknown"),
        ({"files": {}}, "has no sha256"),
        ({"network": {**NETWORK, "dim": 32}}, "weights and card differ"),
        ({"network": {**NETWORK, "other": 1}}, "weights and card differ"),
    ],
)
def test_wrong_cards_are_named(small, change, message):
    _, folder = small
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | change))
    with pytest.raises(UsageError, match=message) as caught:
        read_small(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_unreadable_cards_are_named(small, content):
    _, folder = small
    (folder / CARD).write_text(content)
    with pytest.raises(UsageError, match=CARD):
        read_small(folder)


@pytest.fixture
def clip(tmp_path):
    """``clip(dim)``: a folder in open_clip's form, random weights."""
    mend_torchvision()
    import open_clip

    def make(dim):
        vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32}
        torch.manual_seed(dim)
        text = open_clip.CLIPTextCfg(width=8, heads=1, layers=1, vocab_size=5, context_length=3)
        model = open_clip.CustomTextCLIP(dim, open_clip.CLIPVisionCfg(**vision), text)
        folder = tmp_path / "clip"
        folder.mkdir()
        (folder / CONFIG).write_text(json.dumps({"model_cfg": {"embed_dim": dim, "vision_cfg": vision}}))
        save_file(model.state_dict(), folder / SAFE_WEIGHTS)
        return folder

    return make


def test_a_folder_makes_the_published_encoder(clip):
    folder = clip(16)
    torch.manual_seed(1)
    first = load_style_encoder(folder)
    torch.manual_seed(2)
    second = load_style_encoder(folder)
    assert torch.equal(first(volume()), second(volume()))
    assert (first.slices, first.margin_mm, first.voxel_mm, first.aggregator.alpha) == (24, 50.0, 1.0, 0.2)
    assert first.aggregator.attention.num_heads == 8
    assert first.card["name"] == "clip"
    assert first.card["slices"] == 24
    assert len(first.card["sha256"]) == 64
    json.dumps(first.card)
    assert not first.training
    assert all(parameter.requires_grad for parameter in first.aggregator_parameters())
    # the caller's random numbers are left alone
    torch.manual_seed(7)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    load_style_encoder(folder)
    assert torch.equal(torch.rand(1), drawn)


def test_a_tower_that_does_not_fit_is_named(clip):
    with pytest.raises(UsageError, match="--style-weights .*divisible by 8"):
        load_style_encoder(clip(12))


def test_downloads_happen_only_when_asked_for(clip, monkeypatch):
    folder, asked = clip(16), []
    monkeypatch.setattr(encoders, "download_tower", lambda: asked.append(1) or folder)
    # a folder that is given is what is read
    load_style_encoder(folder, allow_download=True)
    load_style_encoder(folder)
    assert asked == []
    assert load_style_encoder(None, allow_download=True).card["name"] == "clip"
    assert asked == [1]
