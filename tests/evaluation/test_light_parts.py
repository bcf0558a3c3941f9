"""The benchmark of the parts of mmh-light goes through the method's own steps."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

pytest.importorskip("torch")

from mmh_bids.harmonizers.light import MmhLight  # noqa: E402
from mmh_bids.image.grid import load_template, resample  # noqa: E402
from mmh_bids.models.bundle import open_bundle  # noqa: E402


@pytest.fixture(scope="module")
def bench(benchmark_module):
    return benchmark_module("light_parts")


def test_the_last_part_is_what_the_method_gives_out(bench):
    bundle = open_bundle("mmh-light")
    grid = {"shape": [72, 96, 96], "affine": (bundle.affine @ np.diag([2.0, 2, 2, 1])).tolist()}
    method = MmhLight.load(dataclasses.replace(bundle, card={**bundle.card, "grid": grid}), "cpu")
    template = load_template()
    brain = resample(np.asanyarray(template.dataobj), template.affine, method.bundle.shape, method.bundle.affine)
    mask = brain > 0
    volume = np.where(mask, 0.2 + 0.8 * brain / brain.max(), 0).astype(np.float32)
    image = bench.ModelImage(volume, method.bundle.affine, np.eye(4))
    made = dict(bench.parts(method, image, "T1w"))
    assert tuple(made) == bench.PARTS
    whole = method.harmonize(volume[None], mask, "T1w", "unified", 0)
    assert np.array_equal(made["levels: as shipped"], whole.volume[0])
    # every part does something
    for one, other in itertools.pairwise(bench.PARTS[:6]):
        assert not np.allclose(made[one], made[other], atol=1e-3)
    for without in bench.PARTS[6:]:
        assert not np.allclose(made[without], made["levels: as shipped"], atol=1e-3)


def test_the_page_has_a_table_for_each_head_and_sequence(bench, tmp_path):
    asked = bench.parser().parse_args(["--work", str(tmp_path), "--heads", "4"])
    rows = dict.fromkeys(bench.PARTS, [0.1, 0.2, 0.03, 0.9, 0.05, float("nan")])
    page = bench.page(bench.study_of(asked), "mmh-light", {(4, "T1w"): rows, (4, "T2w"): rows})
    assert page.count("## Head 4") == 2 and page.count("| 0.1000 | 0.2000 | 0.0300 | 0.9000 | 0.0500 | – |") == 16
