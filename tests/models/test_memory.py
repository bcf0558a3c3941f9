from __future__ import annotations

import pytest
import torch

from mmh_bids.models.memory import _weights, inference_gb, training_gb
from mmh_bids.models.unet import StyleUNet

SMALL = {"channels": [8, 16, 32, 32], "num_res_blocks": 2, "attention_levels": [False, False, True, True]}
WIDE = {"channels": [16, 32, 64, 64], "num_res_blocks": 1, "attention_levels": [False, False, False, True]}
PAPER = {"channels": [32, 64, 256, 256], "num_res_blocks": 2, "attention_levels": [False, False, True, True]}


@pytest.mark.parametrize(
    ("network", "shape", "inference", "training"),
    # peaks of the resident set of a process that ran one pass, or one optimizer step: one CPU thread, torch 2.13;
    # the last two are older figures of MONAI's plain network
    [
        (SMALL, (48, 64, 64), 0.61, 1.17),
        (SMALL, (72, 96, 96), 0.89, 2.41),
        (WIDE, (48, 64, 64), 0.75, 1.38),
        (WIDE, (72, 96, 96), 1.18, 2.67),
        (PAPER, (48, 64, 64), 1.12, None),
        (PAPER, (32, 48, 48), None, 2.09),
        (WIDE, (144, 184, 184), 4.5, None),
        (SMALL, (144, 184, 184), 2.6, None),
    ],
)
def test_estimates_agree_with_measured_peaks(network, shape, inference, training):
    if inference:
        assert inference_gb(network, shape) == pytest.approx(inference, rel=0.3)
    if training:
        assert training_gb(network, shape) == pytest.approx(training, rel=0.3)


def test_need_grows_with_the_batch_and_shrinks_in_mixed_precision():
    one = training_gb(SMALL, (72, 96, 96))
    assert training_gb(SMALL, (72, 96, 96), batch=3) > 2 * one
    assert training_gb(SMALL, (72, 96, 96), mixed=True) < one


@pytest.mark.parametrize(("sizes", "heads", "groups"), [(SMALL, 16, 8), (PAPER, 32, 16)])
def test_weights_are_counted_about_right(sizes, heads, groups):
    with torch.device("meta"):
        network = StyleUNet(**sizes, num_head_channels=[0, 0, heads, heads], norm_num_groups=groups)
    assert _weights(sizes) == pytest.approx(sum(part.numel() for part in network.parameters()), rel=0.25)
