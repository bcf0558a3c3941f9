from __future__ import annotations

import psutil
import pytest
import torch

from mmh_bids.models import memory
from mmh_bids.models.memory import _left_in_groups, _own_groups, _weights, free_gb, inference_gb, training_gb
from mmh_bids.models.unet import StyleUNet

SMALL = {"channels": [8, 16, 32, 32], "num_res_blocks": 2, "attention_levels": [False, False, True, True]}
WIDE = {"channels": [16, 32, 64, 64], "num_res_blocks": 1, "attention_levels": [False, False, False, True]}
PAPER = {"channels": [32, 64, 256, 256], "num_res_blocks": 2, "attention_levels": [False, False, True, True]}


@pytest.mark.parametrize(
    ("network", "shape", "planes", "measured"),
    # peaks of the resident set of a process that ran `SlabUNet` once: one CPU thread, torch 2.13
    [
        (SMALL, (48, 64, 64), 8, 0.50),
        (SMALL, (72, 96, 96), 8, 0.62),
        (WIDE, (48, 64, 64), 8, 0.55),
        (WIDE, (72, 96, 96), 8, 0.77),
        (WIDE, (72, 92, 92), 8, 0.79),
        (WIDE, (72, 92, 92), None, 0.98),
        (WIDE, (144, 184, 184), 8, 2.32),
        (PAPER, (48, 64, 64), 8, 0.91),
    ],
)
def test_estimates_of_inference_agree_with_measured_peaks(network, shape, planes, measured):
    assert inference_gb(network, shape, planes) == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(
    ("network", "shape", "measured"),
    # likewise, of one optimizer step; the last is an older figure of MONAI's plain network
    [
        (SMALL, (48, 64, 64), 1.17),
        (SMALL, (72, 96, 96), 2.41),
        (WIDE, (48, 64, 64), 1.38),
        (WIDE, (72, 96, 96), 2.67),
        (PAPER, (32, 48, 48), 2.09),
    ],
)
def test_estimates_of_training_agree_with_measured_peaks(network, shape, measured):
    assert training_gb(network, shape) == pytest.approx(measured, rel=0.3)


def test_need_grows_with_the_batch_and_shrinks_in_mixed_precision():
    one = training_gb(SMALL, (72, 96, 96))
    assert training_gb(SMALL, (72, 96, 96), batch=3) > 2 * one
    assert training_gb(SMALL, (72, 96, 96), mixed=True) < one


def test_inference_needs_less_by_slabs_in_half_precision_and_with_one_network():
    grid = (144, 184, 184)
    slabs = inference_gb(PAPER, grid)
    assert slabs < 0.6 * inference_gb(PAPER, grid, None)
    assert inference_gb(PAPER, grid, number_bytes=2) < 0.6 * slabs
    assert inference_gb(PAPER, grid, networks=2) == pytest.approx(slabs + 0.25, abs=0.11)
    # attention over all voxels of the finest level takes more than the slabs save
    everywhere = PAPER | {"attention_levels": [True] * 4}
    assert inference_gb(everywhere, grid) > slabs + 1


def test_the_finer_levels_skips_are_held_while_a_deeper_level_takes_most():
    # at the second level: 3 x 8 skips above it; 3 x 8 of its own, 512 from below, 8 out, 3 x 520 in work, at an eighth
    held = 3 * 8 + (3 * 8 + 512 + 8 + 3 * 520) / 8
    deep = {"channels": [8, 8, 512], "attention_levels": [False] * 3}
    assert inference_gb(deep, (1000, 1000, 1000), None) == pytest.approx(4 * held, rel=1e-3)


@pytest.mark.parametrize(("sizes", "heads", "groups"), [(SMALL, 16, 8), (PAPER, 32, 16)])
def test_weights_are_counted_about_right(sizes, heads, groups):
    with torch.device("meta"):
        network = StyleUNet(**sizes, num_head_channels=[0, 0, heads, heads], norm_num_groups=groups)
    assert _weights(sizes) == pytest.approx(sum(part.numel() for part in network.parameters()), rel=0.25)


def group(folder, limit, used, stat, names=("memory.max", "memory.current")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip((*names, "memory.stat"), (limit, used, stat), strict=True):
        (folder / name).write_text(f"{value}\n")


def test_what_a_control_group_and_those_around_it_leave(tmp_path):
    group(tmp_path / "slurm" / "job_7", 1000, 400, "anon 300\ninactive_file 100")
    group(tmp_path / "slurm", 5000, 4500, "inactive_file 0")
    group(tmp_path, "max", 9000, "inactive_file 0")
    assert sorted(_left_in_groups(tmp_path, ["/slurm/job_7"])) == [500, 700]
    assert sorted(_left_in_groups(tmp_path, ["/slurm", "/gone", ""])) == [500]
    old = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path / "memory" / "lxc", 2000, 500, "total_inactive_file 50", old)
    assert list(_left_in_groups(tmp_path, ["memory/lxc"])) == [1550]


def test_the_process_is_found_in_the_groups_of_both_versions(tmp_path):
    (tmp_path / "cgroup").write_text("9:cpu,memory:/lxc/7\n8:cpuset:/\n0::/user.slice/job\n")
    found = _own_groups(tmp_path / "cgroup")
    assert "/user.slice/job" in found and "memory/lxc/7" in found
    assert _own_groups(tmp_path / "none") == [""]


def test_free_memory_is_that_of_the_machine_or_of_the_group_if_less(tmp_path, monkeypatch):
    assert 0 < free_gb() <= psutil.virtual_memory().total / 1e9
    group(tmp_path, 10**8, 4 * 10**7, "inactive_file 0")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    assert free_gb("cpu") == 0.06
