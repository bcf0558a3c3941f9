"""The benchmark's conditions, tables and geometry."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mmh_bids.simulate.phantom import random_affine


@pytest.fixture(scope="module")
def bench(benchmark_module):
    """The benchmark's modules by name."""
    short = {"main": "travelling"} | {name: f"travelling_{name}" for name in ("bars", "data", "measure", "report")}
    return {name: benchmark_module(module) for name, module in short.items()}


GOOD = {
    "regional": [0.02, 0.03], "regional_rescan": [0.01, 0.01], "mae": [0.1, 0.1], "mae_rescan": [0.08, 0.08],
    "wasserstein": [0.02, 0.02], "contrast_spread": [0.02, 0.02], "dice": [0.9, 0.9], "volume_spread": [0.02, 0.02],
    "gradient": [0.97, 0.96], "change_foreign": [0.3, 0.3], "change_unified": [0.05, 0.05],
}  # fmt: skip
PLAIN = GOOD | {
    "regional": [0.2, 0.2], "wasserstein": [0.2, 0.2], "contrast_spread": [0.3, 0.3], "volume_spread": [0.05, 0.05]
}  # fmt: skip
CLASSIC = GOOD | {"regional": [0.06, 0.06], "mae": [0.12, 0.12], "contrast_spread": [0.05, 0.05]}
WORSE = CLASSIC | {"regional": [0.07, 0.07], "mae": [0.11, 0.11]}


def methods(candidate):
    return {"none": PLAIN, "zscore": CLASSIC, "nyul": WORSE, "mmh-light": candidate}


def test_a_method_that_does_all_passes_all(bench):
    bars = bench["bars"].candidate_bars(methods(GOOD), "mmh-light")
    assert len(bars) == 10 and all(bar.passed for bar in bars)
    regional, mae = bars[0], bars[1]
    assert regional.value == pytest.approx(0.025 / 0.06) and "zscore" in regional.text
    assert mae.value == pytest.approx(0.1 / 0.11) and "nyul" in mae.text


@pytest.mark.parametrize(
    ("measure", "values", "which"),
    [
        ("regional", [0.03, 0.031], 0),
        ("mae", [0.12, 0.12], 1),
        ("contrast_spread", [0.03, 0.03], 2),
        ("wasserstein", [0.06, 0.06], 3),
        ("dice", [0.9, 0.89], 4),
        ("volume_spread", [0.04, 0.04], 5),
        ("gradient", [0.94, 0.95], 6),
        ("mae_rescan", [0.09, 0.09], 7),
        ("regional_rescan", [0.012, 0.012], 8),
        ("change_unified", [0.1, 0.1], 9),
    ],
)
def test_each_condition_can_be_missed_alone(bench, measure, values, which):
    bars = bench["bars"].candidate_bars(methods(GOOD | {measure: values}), "mmh-light")
    assert [number for number, bar in enumerate(bars) if not bar.passed] == [which]


def test_without_a_classical_method_its_conditions_are_not_measured(bench):
    bars = bench["bars"].candidate_bars({"none": PLAIN, "mmh-light": GOOD}, "mmh-light")
    assert [bar.passed for bar in bars[:3]] == [None] * 3 and all(bar.passed for bar in bars[3:])


def test_blur_must_lose(bench):
    blurred = PLAIN | {"gradient": [0.6, 0.6], "dice": [0.7, 0.7]}
    assert [bar.passed for bar in bench["bars"].blur_bars({"none": PLAIN, "blur": blurred})] == [True, True]
    assert [bar.passed for bar in bench["bars"].blur_bars({"none": PLAIN, "blur": PLAIN})] == [False, False]
    assert bench["bars"].blur_bars({"none": PLAIN}) == []


def test_only_what_is_no_baseline_has_conditions(bench):
    found = bench["main"].conditions({**methods(GOOD), "blur": PLAIN})
    assert {bar.method for bar in found} == {"mmh-light", "blur"}


def test_tables_show_means_intervals_and_verdicts(bench):
    report, bars = bench["report"], bench["bars"]
    table = report.table(methods(GOOD))
    assert "| regional difference between scanners | 0.2000 [0.2000, 0.2000] |" in table
    assert "0.0250 [0.0200, 0.0300]" in table
    # rows that were not measured stay open
    assert "| PSNR to the unified truth, dB | - | - | - | - |" in table
    verdicts = report.bar_table(bars.candidate_bars(methods(GOOD | {"dice": [0.5, 0.5]}), "mmh-light"))
    assert verdicts.count("| pass |") == 9 and verdicts.count("| **FAIL** |") == 1


def test_psnr_is_after_one_line_for_all_heads_of_a_method(bench):
    from mmh_bids.evaluation.fidelity import LinearSums

    truth = np.random.default_rng(0).random(1000)
    noise = np.random.default_rng(1).normal(0, 0.1, 1000)
    heads = [{"sums": vars(LinearSums.of(7 * (truth + some * noise) + 2, truth))} for some in (0.2, 1.0)]
    bench["report"].add_psnr({"m": heads})
    assert heads[0]["psnr"] > heads[1]["psnr"] + 5 and heads[1]["psnr"] == pytest.approx(20, abs=2)


def study(bench, folder, **more):
    return bench["data"].Study(folder, (13,), ("P", "Q"), ("T1w",), ("none", "zscore", "blur"), **more)


def test_images_of_a_head_are_named_once(bench, tmp_path):
    one = study(bench, tmp_path)
    assert one.visits() == ("sub-01_ses-P_run-1", "sub-01_ses-Q")
    assert bench["measure"].stems(one) == (*one.visits(), "sub-01_ses-P_run-2", "sub-01_ses-U")
    assert one.app_methods == ("none", "zscore")


def test_json_of_the_run_can_be_read_back(bench, tmp_path):
    raw = {"T1w": {"none": [{"regional": 1 / 3, "by_pair": {"P Q": 0.5}}]}}
    bars = {"T1w": bench["bars"].blur_bars({"none": PLAIN, "blur": PLAIN})}
    values = json.loads(bench["report"].as_json(study(bench, tmp_path), raw, bars))
    assert values["measures"]["T1w"]["none"][0]["regional"] == 0.333333
    assert values["bars"]["T1w"][0]["passed"] is False and values["scanners"] == ["P", "Q"]


@pytest.mark.parametrize("words", [["--scanners", "P"], ["--scanners", "P", "nowhere"], ["--model", "mmh-light"]])
def test_impossible_studies_are_refused(bench, words):
    with pytest.raises(SystemExit, match="--"):
        bench["main"].study_of(bench["main"].parser().parse_args(words))


def test_default_study_uses_the_scanners_for_testing_and_preprocessing_only(bench):
    found = bench["main"].study_of(bench["main"].parser().parse_args(["--methods", "zscore"]))
    assert found.heads == (13, 14, 15, 16) and found.scanners == ("P", "Q", "R", "S")
    assert found.methods == ("none", "zscore")


def test_images_come_back_from_their_poses(bench):
    """A smooth head sampled on another grid in another pose, and back: the same, but for the interpolation."""
    module = bench["measure"]
    shape, centre = (30, 34, 28), np.array([14.5, 16.5, 13.5])

    def field(points):
        return np.exp(-(((points - centre) / np.array([6.0, 8.0, 5.0])) ** 2).sum(-1))

    scanner_to_head = random_affine(np.random.default_rng(3), centre, 6.0, 8.0, 0.0)
    affine = np.diag([0.8, 1.1, 0.9, 1.0])
    affine[:3, 3] = -12, -9, -10
    voxels = np.moveaxis(np.indices((70, 55, 60)), 0, -1) @ affine[:3, :3] + affine[:3, 3]
    scan = field(voxels @ scanner_to_head[:3, :3].T + scanner_to_head[:3, 3]).astype(np.float32)
    grid = module.Anatomy(np.eye(4), np.ones(shape, np.int16), np.ones(shape, np.uint8), np.ones(shape, bool))
    found = module.to_head(scan, affine, scanner_to_head, grid)
    wanted = field(np.moveaxis(np.indices(shape), 0, -1).astype(float))
    assert np.abs(found - wanted).max() < 0.02
    # the truth is not met where the pose is left out
    assert np.abs(module.to_head(scan, affine, np.eye(4), grid) - wanted).max() > 0.2


def test_two_calls_do_not_share_a_work_folder(bench, tmp_path, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr(sys, "argv", ["travelling.py", "--work", str(tmp_path), "--scanners", "P", "Q"])
    with FileLock(tmp_path / ".lock"), pytest.raises(SystemExit, match="another call"):
        bench["main"].main()


def test_simulated_sessions_are_written_once_whatever_is_asked_together(bench, tmp_path, monkeypatch):
    """Which sequences are asked for must not make the others' images stale."""
    data, written = bench["data"], []
    monkeypatch.setattr(data, "label_map", lambda head: Path(f"head-{head}_dseg.nii.gz"))
    monkeypatch.setattr(
        data, "write_heads", lambda *args, **more: written.append((args[2][0].name, *more["sequences"]))
    )
    both = data.Study(tmp_path, (13,), ("P", "Q"), ("T1w", "T2w"), ("none",))
    one = study(bench, tmp_path)
    data.simulate(one, 13, print)
    assert written == [("P", "T1w"), ("Q", "T1w"), ("U", "T1w")]
    data.simulate(both, 13, print)
    data.simulate(one, 13, print)
    assert written[3:] == [("P", "T2w"), ("Q", "T2w"), ("U", "T2w")]


def write_mask(bench, one, method, stem, mask):
    import nibabel as nib

    folder = bench["data"].anat(one, 13, method, stem)
    folder.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)).to_filename(folder / f"{stem}_desc-brain_mask.nii.gz")


def test_methods_on_other_masks_are_not_compared(bench, tmp_path):
    one, stem, mask = study(bench, tmp_path), "sub-01_ses-Q", np.ones((3, 3, 3), bool)
    for method in one.app_methods:
        write_mask(bench, one, method, stem, mask)
    bench["data"].check_masks(one, 13, "T1w", "zscore", [stem])
    bench["data"].check_masks(one, 13, "T1w", "blur", [stem])
    mask[0, 0, 0] = False
    write_mask(bench, one, "zscore", stem, mask)
    with pytest.raises(SystemExit, match="brain masks of none and zscore differ"):
        bench["data"].check_masks(one, 13, "T1w", "zscore", [stem])


def test_calls_with_one_sequence_have_outputs_of_their_own(bench, tmp_path):
    both = bench["data"].Study(tmp_path, (13,), ("P", "Q"), ("T1w", "T2w"), ("none",))
    assert both.of_app(13, "out") == tmp_path / "head-13" / "out"
    assert study(bench, tmp_path).of_app(13, "out") == tmp_path / "head-13" / "out-T1w"
