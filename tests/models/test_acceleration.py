from __future__ import annotations

import pytest
import torch

from mmh_bids.errors import ImageError
from mmh_bids.models import acceleration
from mmh_bids.models.acceleration import Acceleration, choose_acceleration
from mmh_bids.models.memory import INFERENCE_BASE_GB, SLAB_PLANES, inference_gb
from mmh_bids.models.slabs import SlabUNet
from mmh_bids.models.unet import StyleUNet

PAPER = {"channels": [32, 64, 256, 256], "num_res_blocks": 2, "attention_levels": [False, False, True, True]}
GRID = (144, 184, 184)


@pytest.fixture
def choose(monkeypatch):
    """``choose(device, free, dtype)``: what is chosen for the paper's network with so many GB left."""

    def make(device, free, dtype="float16"):
        monkeypatch.setattr(acceleration, "free_gb", lambda device: free)
        monkeypatch.setattr(acceleration, "gpu_dtype", lambda device: dtype)
        return choose_acceleration(PAPER, GRID, device, "mmh-paper")

    return make


def need(planes, number_bytes):
    return inference_gb(PAPER, GRID, planes, number_bytes) - INFERENCE_BASE_GB


def test_a_cpu_computes_the_same_way_whatever_memory_is_left(choose):
    assert choose("cpu", 500) == choose("cpu", need(SLAB_PLANES, 4) + 0.1) == Acceleration()
    assert Acceleration() == Acceleration("float32", SLAB_PLANES, True, False)


def test_a_gpu_takes_the_whole_volume_where_it_fits_else_slabs(choose):
    assert choose("cuda", 80) == Acceleration("float16", None)
    assert choose("cuda:1", 1.1 * need(None, 2)) == Acceleration("float16", SLAB_PLANES)
    assert choose("cuda", 80, "float32") == Acceleration("float32", None, channels_last=False)


def test_too_little_memory_is_said_in_one_line_with_what_to_change(choose):
    with pytest.raises(ImageError) as refusal:
        choose("cpu", need(SLAB_PLANES, 4) - 0.1)
    message = str(refusal.value)
    assert "\n" not in message
    assert f"model mmh-paper needs about {need(SLAB_PLANES, 4):.1f} GB even slab by slab" in message
    assert all(word in message for word in ("this machine has", "--nprocs", "--mem", "--model"))
    with pytest.raises(ImageError, match=r"--device cuda:1 has 0.9 GB left: use --device cpu, or .*--model"):
        choose("cuda:1", 0.9)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_network_is_prepared_as_chosen(compiled, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: ("compiled", module))
    network = StyleUNet([4, 8], 1, [False, True], [0, 4], 4, 4)
    made = Acceleration("bfloat16", 3, False, compiled).prepared(network, "cpu")
    if compiled:
        word, made = made
        assert word == "compiled"
    assert isinstance(made, SlabUNet)
    assert not made.training and not network.training
    assert (made.thickness, made.dtype, made.layout) == (3, torch.bfloat16, torch.contiguous_format)
    assert network.network.conv_in.conv.weight.dtype == torch.bfloat16
    # what is told about time, class and style stays exact
    assert network.network.time_embed[0].weight.dtype == network.styles[0][0].weight.dtype == torch.float32
