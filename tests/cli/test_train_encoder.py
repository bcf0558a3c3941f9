"""Tests of ``mmh-train encoder``: from label maps to a style encoder that loads."""

import json
import os
import signal

import numpy as np
import pytest

import mmh_bids.training  # noqa: F401 (mends torchvision, which Lightning imports)

pytest.importorskip("lightning.fabric")

import torch  # noqa: E402

from mmh_bids.cli.train import main  # noqa: E402
from mmh_bids.models.encoders import CARD, WEIGHTS_FILE, read_small  # noqa: E402
from mmh_bids.simulate.tissues import INDEX  # noqa: E402
from mmh_bids.training.contrast import ContrastRecipe  # noqa: E402


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Names of four label maps; that heads are made of them is tested with ``mmh-train global``."""
    folder = tmp_path_factory.mktemp("labels")
    return [folder / f"ball-{number}_dseg.nii.gz" for number in range(4)]


@pytest.fixture(scope="module")
def heads(labels, tmp_path_factory):
    """Their heads as the command keeps them: balls of white matter in grey matter in fluid in bone."""
    folder = tmp_path_factory.mktemp("heads")
    for number, path in enumerate(labels):
        radius = np.sqrt(((np.indices((44,) * 3) - 21.5) ** 2).sum(0)) * (1 + 0.02 * number)
        tissue = np.full(radius.shape, INDEX["cortical_bone"], np.uint8)
        for name, limit in (("fluid", 20), ("cortex", 17), ("white_matter", 12)):
            tissue[radius < limit] = INDEX[name]
        from_model = np.eye(4)
        from_model[:3, 3] = 21.5 - (np.array([144, 184, 184]) - 1) / 2
        np.savez(
            folder / path.name.replace("dseg.nii.gz", "model.npz"), tissue=tissue, mask=radius < 20,
            texture=np.random.default_rng(number).standard_normal(radius.shape).astype(np.float16),
            rim=(radius < 20) & (radius > 18), from_model=from_model, centre=np.full(3, 21.5), spacing=np.array(1.0),
        )  # fmt: skip
    return folder


def train(labels, folder, *more):
    return main([
        "encoder", *map(str, labels), "--held-out", "ball-2", "ball-3", "--output", str(folder / "encoder"),
        "--work", str(folder / "work"), "--scanners", "2", "--validation-scanners", "2", "--batch", "4",
        "--steps", "3", "--validate-every", "3", "--device", "cpu", *more,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def trained(labels, heads, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "work").mkdir()
    (folder / "work" / "heads").symlink_to(heads)
    assert train(labels, folder) == 0
    return folder


@pytest.mark.slow
def test_the_encoder_loads_and_knows_what_it_is(trained):
    encoder = read_small(trained / "encoder")
    card = json.loads((trained / "encoder" / CARD).read_text())
    assert encoder.card["name"] == card["name"] == "encoder"
    assert card["training"]["train"] == ["ball-0_dseg.nii.gz", "ball-1_dseg.nii.gz"]
    assert card["training"]["validation"] == ["ball-2_dseg.nii.gz", "ball-3_dseg.nii.gz"]
    unseen = sorted((trained / "work" / "scans-validation").glob("*.safetensors"))
    recipe = ContrastRecipe([], unseen, card["network"])
    with torch.no_grad():
        measured = recipe.validate(encoder, torch.device("cpu"), trained, 3)
    assert card["metrics"] == pytest.approx({**measured, "chance": 0.5})
    assert (trained / "encoder" / WEIGHTS_FILE).stat().st_size < 1_000_000
    assert encoder(torch.rand(1, 1, 72, 92, 92), 2.0).shape == (1, 64)


@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_encoder(trained, labels, tmp_path, monkeypatch, capsys):
    calls, losses = [], ContrastRecipe.losses

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(self, *arguments)

    (tmp_path / "work").mkdir()
    for name in ("heads", "scans-train", "scans-validation"):
        (tmp_path / "work" / name).symlink_to(trained / "work" / name)
    monkeypatch.setattr(ContrastRecipe, "losses", interrupted)
    assert train(labels, tmp_path) == 75
    assert "stopped at step 2 of 3" in capsys.readouterr().err
    assert not (tmp_path / "encoder").exists()
    assert train(labels, tmp_path) == 0
    assert len(calls) == 3
    before, after = ((folder / "encoder" / WEIGHTS_FILE).read_bytes() for folder in (trained, tmp_path))
    assert before == after


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--held-out", "ball-9"], "--held-out ball-9: unknown; there are ball-0, ball-1, ball-2, ball-3"),
        (["--held-out", "ball-1"], "two label maps or more must be held out"),
        (["--held-out", "ball-1", "ball-2", "ball-3"], "two or more must be left"),
        (["--batch", "5"], "--batch 5: must be even"),
        (["--scanners", "1"], "--scanners 1: must be at least half of --batch 4"),
        (["--steps", "0"], "--steps 0: must be 1 or more"),
        (["--learning-rate", "0"], "--learning-rate must be above 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(labels, tmp_path, capsys, more, message):
    assert train(labels, tmp_path, *more) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "work").exists()


def test_another_folder_is_not_overwritten(labels, tmp_path, capsys):
    (tmp_path / "encoder").mkdir()
    assert train(labels, tmp_path, "--overwrite") == 2
    assert "exists already" in capsys.readouterr().err
