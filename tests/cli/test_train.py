"""Tests of ``mmh-train global``: from label maps to a bundle that harmonizes."""

import json

import nibabel as nib
import numpy as np
import pytest

import mmh_bids.training  # noqa: F401 (mends torchvision, which Lightning imports)

pytest.importorskip("lightning.fabric")
pytestmark = pytest.mark.slow

from mmh_bids.cli.train import main  # noqa: E402
from mmh_bids.errors import UsageError  # noqa: E402
from mmh_bids.harmonizers.base import find_method  # noqa: E402
from mmh_bids.models.bundle import open_bundle  # noqa: E402
from mmh_bids.simulate.tissues import GREY, WHITE  # noqa: E402
from mmh_bids.simulate.unified import unified_tissues  # noqa: E402


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Three heads of 5 mm voxels: balls of white matter in grey matter in fluid in bone in skin."""
    folder = tmp_path_factory.mktemp("labels")
    for number in range(3):
        grid = (np.indices((36, 40, 36)).T - [17.5, 19.5, 17.5]) / [1, 1.1 + 0.03 * number, 1]
        radius = np.sqrt((grid**2).sum(-1)).T
        data = np.zeros(radius.shape, np.int16)
        for outer, code in ((17, 511), (16, 507), (15, 515), (14, 24), (13, 3), (9, 2)):
            data[radius <= outer] = code
        image = nib.Nifti1Image(data, np.diag([5.0, 5.0, 5.0, 1.0]))
        nib.save(image, folder / f"ball-{number}_dseg.nii.gz")
    return sorted(folder.iterdir())


def train(labels, folder, *more):
    return main([
        "global", *map(str, labels), "--held-out", "ball-2", "--output", str(folder / "bundle"),
        "--work", str(folder / "work"), "--steps", "4", "--patch", "32", "--filters", "4", "--validate-every", "4",
        "--device", "cpu", *more,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def trained(labels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert train(labels, folder) == 0
    return folder


def test_the_bundle_harmonizes(trained, capsys):
    bundle = open_bundle(trained / "bundle")
    assert bundle.methods == ("mmh-light",) and bundle.targets() == ("unified",)
    assert bundle.card["metrics"]["T1w_absolute"] > 0
    assert bundle.card["training"]["recipe"]["plan"]["steps"] == 4
    for sequence in ("T1w", "T2w"):
        # the balls' fluid shares every voxel with something brighter; their grey and white matter do not
        levels = bundle.card["sequences"][sequence]["targets"]["unified"]["levels"]
        assert levels[1:] == pytest.approx(unified_tissues(sequence)[[GREY, WHITE]].tolist(), abs=0.05)
    method = find_method("mmh-light").load(bundle, "cpu")
    mask = np.zeros(bundle.shape, bool)
    mask[60:90, 60:90, 60:90] = True
    volume = np.random.default_rng(0).uniform(0.2, 0.9, (1, *bundle.shape)).astype(np.float32) * mask
    result = method.harmonize(volume, mask, "T1w", "unified", 0)
    inside = result.volume[0][mask]
    assert np.isfinite(inside).all() and inside.min() >= 0 and inside.max() <= 1.25
    assert not result.volume[0][~mask].any()
    assert np.array_equal(result.volume, method.harmonize(volume, mask, "T1w", "unified", 1).volume)
    with pytest.raises(UsageError, match="unknown to model"):
        method.check_target("site:A", "T1w")


def test_log_and_pictures_are_written(trained):
    work = trained / "work"
    rows = (work / "log.csv").read_text().splitlines()
    assert any(row.startswith("4,validation/T2w_zscore_regional,") for row in rows)
    assert sorted(path.name for path in work.glob("*.png")) == ["step-000004_T1w.png", "step-000004_T2w.png"]


def test_interrupted_it_goes_on_to_the_same_bundle(trained, labels, tmp_path, monkeypatch, capsys):
    """Stopped by SIGTERM in its second step, the same command ends at the same bytes."""
    import os
    import signal

    from mmh_bids.training.light import LightRecipe

    calls, losses = [], LightRecipe.losses

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(self, *arguments)

    monkeypatch.setattr(LightRecipe, "losses", interrupted)
    assert train(labels, tmp_path) == 75
    assert "stopped at step 2 of 4" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
    assert train(labels, tmp_path) == 0
    assert len(calls) == 4
    for name in ("light.safetensors", "standards.safetensors"):
        assert (tmp_path / "bundle" / name).read_bytes() == (trained / "bundle" / name).read_bytes()


def test_it_begins_with_the_weights_of_another_bundle(trained, labels, tmp_path):
    """With no learning to speak of, what comes out is what went in."""
    start = trained / "bundle"
    assert train(labels, tmp_path, "--start", str(start), "--learning-rate", "1e-9") == 0
    before, after = (open_bundle(folder).arrays("light.safetensors") for folder in (start, tmp_path / "bundle"))
    assert all(np.allclose(before[name], after[name], atol=1e-6) for name in before)
    recipe = open_bundle(tmp_path / "bundle").card["training"]["recipe"]
    assert recipe["start"]["sha256"] == open_bundle(start).card["files"]["light.safetensors"]["sha256"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--held-out", "ball-9"], "--held-out ball-9: unknown; there are ball-0, ball-1, ball-2"),
        (["--held-out", "ball-0", "ball-1", "ball-2"], "name some, and not all"),
        (["--steps", "5"], "other plan"),
        (["--start", "mmh-light"], "--start mmh-light: has 16 filters; give --filters 16"),
        (["--start", "classic"], "--start classic: is not made for --method mmh-light"),
        (["--start", "nothing"], "--start nothing: neither a shipped bundle"),
        (["--steps", "0"], "--steps 0: must be 1 or more"),
        (["--patch", "30"], "--patch 30: must be a multiple of 8"),
        (["--method", "mmh-diffusion", "--sampler", "fast"], "--sampler fast: write paper"),
    ],
)
def test_what_cannot_be_trained_is_refused(trained, labels, tmp_path, capsys, more, message):
    output = ["--output", str(tmp_path / "new"), "--work", str(trained / "work")]
    assert train(labels, tmp_path, *output, *more) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1


def test_an_existing_bundle_is_not_overwritten(trained, labels, capsys):
    before = json.loads((trained / "bundle" / "bundle.json").read_text())
    assert train(labels, trained) == 2
    assert "exists already" in capsys.readouterr().err
    assert json.loads((trained / "bundle" / "bundle.json").read_text()) == before


def test_too_little_memory_is_said_before_anything_starts(labels, tmp_path, capsys):
    assert train(labels, tmp_path, "--batch", "100000") == 2
    err = capsys.readouterr().err
    assert "GB" in err and "--batch" in err
    assert not (tmp_path / "bundle").exists()


def test_two_label_maps_of_one_name_are_refused(labels, tmp_path, capsys):
    assert train([*labels, labels[0]], tmp_path) == 2
    assert "ball-0" in capsys.readouterr().err
