"""``benchmarks/paper_scale.py`` on a network that is none: both ways agree, and the page says what was run."""

import numpy as np
import pytest
import torch

TINY = {
    "channels": [4, 8],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "num_head_channels": [0, 4],
    "norm_num_groups": 4,
    "style_hidden": 8,
}
CASE = {
    "shape": [8, 12, 8], "network": TINY,
    "sampler": {"name": "paper", "schedule_steps": 6, "invert_steps": 4, "denoise_steps": 3},
}  # fmt: skip


@pytest.fixture
def paper_scale(benchmark_module):
    return benchmark_module("paper_scale")


def test_operations_are_counted_not_assumed(paper_scale):
    layer = torch.nn.Conv3d(3, 5, 3, padding=1, device="meta")
    volume = torch.empty(1, 3, 6, 7, 8, device="meta")
    assert paper_scale.flops_of(lambda: layer(volume)) == 2 * 27 * 3 * 5 * 6 * 7 * 8
    assert paper_scale.flops_of_pass({}, paper_scale.FULL["shape"]) == pytest.approx(43.8e12, rel=0.01)
    narrow, wide = (paper_scale.flops_of_pass(TINY, [8, 12, size]) for size in (8, 16))
    assert 2 * narrow < wide < 4 * narrow  # attention grows with the square


def test_both_ways_give_the_same_and_the_page_says_so(paper_scale, tmp_path):
    found = {"flops": paper_scale.flops_of_pass(TINY, CASE["shape"]), "ceilings": {"product of matrices": 3e10}}
    for part in ("published", *paper_scale.variants("cpu", False), paper_scale.TOGETHER):
        found[part] = paper_scale.measure(part, CASE, "cpu", False, tmp_path)
    outs = {path.stem: np.load(path) for path in tmp_path.glob("*.npy")}
    volume = paper_scale.make_volume(CASE["shape"])[0]
    assert np.abs(outs["published"] - volume).max() > 0.01
    for part in ("ours", "ours, the whole volume at once", paper_scale.TOGETHER):
        np.testing.assert_allclose(outs[part], outs["published"], atol=1e-5)
        found[part]["error"] = 1.5e-6
    assert not found["published"]["flash"]
    assert (found["ours"]["DType"], found["ours"]["Slabs"]) == ("float32", 8)
    for row, seconds in (("published", 8.0), ("ours", 2.0)):
        found[row]["seconds"]["processor"] = seconds
    text = paper_scale.page(found, CASE, "cpu", 1)
    assert "**Not run on a GPU: there was none.**" in text
    assert "3 passes up and 3 down" in text
    speed = found["flops"] * 6 / 2.0 / 1e12
    assert (
        f"| ours | 2 | {speed:.3g} | {found['ours']['gb']:.2f} | 4.00 | 1.5e-06 | float32, slabs of 8 planes |" in text
    )
    assert "| product of matrices | 0.03 |" in text


def test_on_a_gpu_the_published_size_is_run_in_more_than_one_way(paper_scale):
    assert paper_scale.FULL["shape"] == [144, 184, 184]
    assert set(paper_scale.variants("cuda", True)) > {"ours", "ours, bfloat16", "ours, compiled", paper_scale.TOGETHER}
