"""Slabs against the whole network: no seam, because nothing but rounding differs anywhere."""

from __future__ import annotations

import copy
from itertools import accumulate

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch.profiler import ProfilerActivity, profile

from mmh_bids.models.memory import INFERENCE_BASE_GB, SLAB_PLANES, inference_gb
from mmh_bids.models.slabs import SlabUNet
from mmh_bids.models.unet import StyleUNet

TINY = {
    "channels": [4, 8, 8],
    "num_res_blocks": 1,
    "attention_levels": [False, False, True],
    "num_head_channels": [0, 0, 4],
    "norm_num_groups": 4,
    "style_hidden": 6,
}
#: Attention at every level, two blocks a level, groups of the normalisation that straddle what is joined.
ATTENTIVE = TINY | {
    "channels": [4, 8],
    "num_res_blocks": 2,
    "attention_levels": [True, True],
    "num_head_channels": 4,
    "norm_num_groups": 2,
}
#: Wide enough for the features to be what takes memory.
WIDE = TINY | {"channels": [16, 32], "attention_levels": [False, False], "num_head_channels": [0, 8]}


def network(arguments=TINY, dtype=torch.float32):
    """A network whose weights are all random: a new one predicts zero everywhere."""
    torch.manual_seed(0)
    made = StyleUNet(**arguments)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval().to(dtype)


def inputs(shape, batch=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    noisy, condition = torch.randn(2, batch, 1, *shape, generator=generator, dtype=torch.float64).to(dtype)
    style = torch.tensor([[-0.2, 0.5], [0.3, 0.2]], dtype=dtype)[:batch]
    return noisy, condition, torch.tensor([3, 400])[:batch], torch.tensor([0, 1])[:batch], style


def error(found, expected):
    """Largest difference over the spread of what is expected."""
    return float((found - expected).abs().max() / expected.std())


@torch.no_grad()
def run(arguments, shape, thickness, dtype=torch.float32, **options):
    given = inputs(shape, dtype=dtype)
    return SlabUNet(network(arguments, dtype), thickness, dtype=dtype, **options)(*given)


@torch.no_grad()
@pytest.mark.parametrize("thickness", [None, 1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize(("arguments", "shape"), [(TINY, (18, 9, 11)), (ATTENTIVE, (12, 10, 8))])
def test_slabs_give_what_the_whole_network_gives(arguments, shape, thickness):
    given = inputs(shape, batch=2, dtype=torch.float64)
    made = network(arguments, torch.float64)
    expected = made(*given)
    assert error(SlabUNet(made, thickness, dtype=torch.float64)(*given), expected) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("channels_last", [True, False])
def test_in_float32_only_rounding_differs(channels_last):
    expected = network()(*inputs((24, 16, 16)))
    found = run(TINY, (24, 16, 16), 4, channels_last=channels_last)
    assert found.dtype == torch.float32
    assert error(found, expected) < 1e-5
    assert torch.equal(found, run(TINY, (24, 16, 16), 4, channels_last=channels_last))


@torch.no_grad()
def test_what_differs_is_no_larger_at_the_borders_of_slabs_than_elsewhere():
    """And the measure finds the seams and the change that blended patches leave, in the same network."""
    shape, thickness = (48, 16, 16), 8
    made, given = network(), inputs(shape)
    expected = network(dtype=torch.float64)(*inputs(shape, dtype=torch.float64))
    border = torch.tensor([plane % thickness in (0, thickness - 1) for plane in range(shape[0])])
    border[[0, -1]] = False  # of the volume

    def energy(found):
        planes = (found.double() - expected).square().mean(dim=(0, 1, 3, 4))
        return float(planes[border].mean() / planes[~border].mean())

    slabs = SlabUNet(made, thickness)(*given)
    assert error(slabs, expected) < 1e-5
    assert energy(slabs) < 1.5

    def patch(both):
        return made(both[:, :1], both[:, 1:], *given[2:])

    patches = sliding_window_inference(
        torch.cat(given[:2], dim=1), (16, 16, 16), 1, patch, overlap=0.5, mode="gaussian"
    )
    assert error(patches, expected) > 0.05
    assert energy(patches) > 1.1


@torch.no_grad()
def test_each_of_a_batch_has_statistics_of_its_own():
    made = SlabUNet(network(), 4)
    given = inputs((16, 8, 8), batch=2)
    both = made(*given)
    for one in range(2):
        alone = made(*(part[one : one + 1] for part in given))
        assert error(both[one : one + 1], alone) < 1e-5


def live_peak(function):
    """Most bytes of tensors alive at once while `function` runs, beside those that were there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        function()
    events = [one for one in found.profiler.kineto_results.events() if one.name() == "[memory]"]
    events.sort(key=lambda one: one.start_ns())
    return max(accumulate(one.nbytes() for one in events))


@pytest.mark.slow
@torch.no_grad()
def test_slabs_take_half_of_the_memory_and_no_more_than_is_reckoned():
    shape, given = (48, 32, 32), inputs((48, 32, 32))
    made = network(WIDE)
    whole = live_peak(lambda: made(*given))
    for planes, share in ((SLAB_PLANES, 0.55), (None, 0.9)):
        slabs = SlabUNet(made, planes)
        peak = live_peak(lambda slabs=slabs: slabs(*given))
        assert peak < share * whole
        # several volumes' worth, so that the estimate's rounding to 0.1 GB does not count
        large = [10 * shape[0], 10 * shape[1], shape[2]]
        planes = None if planes is None else 10 * planes
        reckoned = (inference_gb(WIDE, large, planes) - INFERENCE_BASE_GB) / 100
        assert peak / 1e9 == pytest.approx(reckoned, rel=0.3)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bar"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_half_precision_stays_near(dtype, bar):
    given = inputs((8, 8, 8))
    found = SlabUNet(network(), dtype=dtype)(*given)
    assert found.dtype == dtype
    expected = network()(*given)
    assert float((found.float() - expected).norm() / expected.norm()) < bar


@torch.no_grad()
def test_statistics_of_half_precision_are_not_rounded_to_it():
    """Brightness far from zero: mean and deviation in float16 would lose the signal."""
    from mmh_bids.models.slabs import _moments

    values = (100 + torch.randn(1, 3, 6, 20, 20, generator=torch.Generator().manual_seed(0))).half()
    mean, variance = _moments(values, 4)
    exact = values.double()
    torch.testing.assert_close(mean, exact.mean(dim=(2, 3, 4)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, exact.var(dim=(2, 3, 4), correction=0), rtol=2e-3, atol=0)


@pytest.mark.slow
@torch.no_grad()
def test_it_compiles_as_one_graph_for_all_steps():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    made = SlabUNet(network(WIDE | {"channels": [4, 8]}), 4)
    compiled = torch.compile(made, backend=backend, fullgraph=True)
    given = list(inputs((8, 4, 4)))
    for step in (3, 40, 900):
        given[2] = torch.tensor([step])
        assert error(compiled(*given), made(*given)) < 1e-5
    assert len(graphs) == 1
    torch.compiler.reset()


def test_the_network_it_was_made_of_stays_usable():
    made = network()
    plain = copy.deepcopy(made)
    SlabUNet(made, 2)
    with torch.no_grad():
        assert error(made(*inputs((8, 8, 8))), plain(*inputs((8, 8, 8)))) < 1e-5


def test_a_thickness_of_nothing_is_refused():
    with pytest.raises(ValueError, match="thickness 0"):
        SlabUNet(network(), 0)
