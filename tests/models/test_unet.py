from __future__ import annotations

import copy
import json

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mmh_bids.models.unet import AdaptiveInstanceNorm, StyleUNet, from_signed, to_signed

TINY = {
    "channels": [4, 8, 8],
    "num_res_blocks": 1,
    "attention_levels": [False, False, True],
    "num_head_channels": [0, 0, 4],
    "norm_num_groups": 4,
    "style_hidden": 6,
}


def network(**changes):
    """A tiny network whose weights are all random: a new one predicts zero everywhere."""
    torch.manual_seed(0)
    made = StyleUNet(**TINY | changes)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def inputs(shape=(8, 8, 8), batch=1, mean=-0.2):
    generator = torch.Generator().manual_seed(1)
    noisy, condition = torch.randn(2, batch, 1, *shape, generator=generator)
    return (
        noisy,
        condition,
        torch.full((batch,), 40),
        torch.zeros(batch, dtype=torch.long),
        torch.tensor([[mean, 0.5]] * batch),
    )


def test_the_paper_network_has_the_papers_size():
    with torch.device("meta"):
        paper = StyleUNet()
    assert sum(parameter.numel() for parameter in paper.parameters()) == 62_395_553
    # MONAI's network alone, without the second normalisations of twelve residual blocks
    assert sum(parameter.numel() for parameter in paper.network.parameters()) == pytest.approx(62.2e6, rel=2e-3)
    assert paper.multiple == 8


def test_all_attention_is_memory_efficient():
    blocks = [module for module in network().modules() if hasattr(module, "use_flash_attention")]
    assert len(blocks) == 1 + 1 + 2  # down, middle, up
    assert all(block.use_flash_attention for block in blocks)


class Recorder(TorchDispatchMode):
    """Notes the operations that run, and the largest tensor that one of them makes."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        self.names.append(str(function))
        sizes = [one.numel() for one in (out if isinstance(out, tuple) else [out]) if isinstance(one, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


def test_no_matrix_of_all_tokens_with_all_tokens_is_made():
    """Not a flag of MONAI's but what runs: at the paper's size such a matrix would hold 5.8e9 numbers a head."""
    made, tokens = network(), 12 * 12 * 12
    with torch.no_grad(), Recorder() as seen:
        made(*inputs((48, 48, 48)))
    assert sum("scaled_dot_product" in name for name in seen.names) == 4
    assert seen.largest < tokens**2
    plain = network()
    for module in plain.modules():
        if hasattr(module, "use_flash_attention"):
            module.use_flash_attention = False
    with torch.no_grad(), Recorder() as seen:
        plain(*inputs((48, 48, 48)))
    assert seen.largest >= tokens**2


def test_only_the_up_blocks_are_modulated():
    made = network()
    count = [sum(isinstance(part, AdaptiveInstanceNorm) for part in blocks.modules())
             for blocks in (made.network.down_blocks, made.network.middle_block, made.network.up_blocks)]  # fmt: skip
    assert count == [0, 0, 6]
    assert not any(
        isinstance(resnet.norm1, AdaptiveInstanceNorm) for b in made.network.up_blocks for resnet in b.resnets
    )


def test_style_mlps_start_close_to_no_modulation():
    torch.manual_seed(0)
    made = StyleUNet(**TINY | {"style_hidden": 128})
    assert [tuple(mlp[2].weight.shape) for mlp in made.styles] == [(16, 128), (16, 128), (8, 128)]
    weights = torch.cat([mlp[2].weight.flatten() for mlp in made.styles])
    assert weights.std().item() == pytest.approx(1e-3, rel=0.05)
    assert abs(weights.mean().item()) < 1e-4
    assert not any(mlp[2].bias.any() for mlp in made.styles)


def test_modulation_sets_each_channels_mean_and_spread():
    norm = AdaptiveInstanceNorm()
    gamma, beta = torch.tensor([[0.5, -0.2]]), torch.tensor([[3.0, -1.0]])
    norm.style = gamma, beta
    out = norm(torch.rand(1, 2, 9, 9, 9) * 7 - 2)
    torch.testing.assert_close(out.mean(dim=(2, 3, 4)), beta, atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(dim=(2, 3, 4), correction=0), 1 + gamma, atol=1e-4, rtol=0)


def test_the_blocks_modulate_by_what_their_own_mlp_makes_of_mean_and_std():
    made, arguments = network(), inputs()
    seen = []
    for block in made.network.up_blocks:
        for resnet in block.resnets:
            resnet.norm2.register_forward_hook(lambda module, given, out: seen.append(out))
    made(*arguments)
    for index, mlp in enumerate(made.styles):
        gamma, beta = mlp(arguments[4]).chunk(2, dim=1)
        for out in seen[2 * index : 2 * index + 2]:
            torch.testing.assert_close(out.mean(dim=(2, 3, 4)), beta, atol=1e-4, rtol=1e-4)
            if out[0, 0].numel() > 8:  # the epsilon of the variance shows where there are few voxels
                spread = out.std(dim=(2, 3, 4), correction=0)
                torch.testing.assert_close(spread, (1 + gamma).abs(), atol=0.01, rtol=0.01)


def test_without_modulation_it_is_monais_network_with_instance_norm():
    made, (noisy, condition, timesteps, label, style) = network(), inputs()
    for mlp in made.styles:
        torch.nn.init.zeros_(mlp[2].weight)
        torch.nn.init.zeros_(mlp[2].bias)
    plain = copy.deepcopy(made.network)
    for block in plain.up_blocks:
        for resnet in block.resnets:
            resnet.norm2 = torch.nn.InstanceNorm3d(resnet.out_channels)
    expected = plain(torch.cat([noisy, condition], dim=1), timesteps, class_labels=label)
    torch.testing.assert_close(made(noisy, condition, timesteps, label, style), expected)


@pytest.mark.parametrize("index", range(5))
def test_every_input_counts(index):
    made, given = network(), list(inputs())
    before = made(*given)
    given[index] = given[index] + (1 if index in (2, 3) else 0.3 * torch.rand(given[index].shape))
    assert (made(*given) - before).abs().max() > 1e-3


def test_samples_of_a_batch_have_their_own_style_and_time():
    made = network()
    noisy, condition, _, _, _ = inputs(batch=2)
    timesteps, label, style = torch.tensor([3, 700]), torch.tensor([0, 1]), torch.tensor([[-0.2, 0.5], [0.4, 0.1]])
    both = made(noisy, condition, timesteps, label, style)
    for one in range(2):
        part = slice(one, one + 1)
        alone = made(noisy[part], condition[part], timesteps[part], label[part], style[part])
        torch.testing.assert_close(both[part], alone, atol=1e-4, rtol=1e-4)


def test_sizes_that_do_not_divide_are_padded_with_their_edge_and_cropped():
    made, (noisy, condition, *rest) = network(), inputs((9, 8, 11))
    out = made(noisy, condition, *rest)
    assert out.shape == noisy.shape
    wide = [functional.pad(volume, (0, 1, 0, 0, 0, 3), "replicate") for volume in (noisy, condition)]
    torch.testing.assert_close(out, made(*wide, *rest)[:, :, :9, :8, :11])


@pytest.mark.parametrize("heads", [[0, 0, 4], 4])
def test_arguments_make_the_same_network_from_json(heads):
    made = network(num_head_channels=heads)
    assert made.arguments["num_head_channels"] == heads
    again = StyleUNet(**json.loads(json.dumps(made.arguments)))
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(again.eval()(*inputs()), made(*inputs()))


def test_nothing_of_a_pass_stays_in_the_network():
    made = network()
    made(*inputs(mean=0.9)).sum().backward()
    torch.testing.assert_close(copy.deepcopy(made)(*inputs()), made(*inputs()))
    with pytest.raises(RuntimeError, match="no style"):
        made.network(torch.rand(1, 2, 8, 8, 8), torch.tensor([1]), class_labels=torch.tensor([0]))


def test_scaling_goes_back_and_is_refused_twice():
    volume = torch.rand(1, 1, 4, 4, 4)
    torch.testing.assert_close(from_signed(to_signed(volume)), volume, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="scaled only once"):
        to_signed(to_signed(volume))
