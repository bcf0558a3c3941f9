"""Fixtures around a tiny head; the functions that the tests call are in ``tiny.py``."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
from small_study import write_dataset
from tiny import Call, known_transforms, mmh

from mmh_bids.cli.run import main
from mmh_bids.image.grid import load_template
from mmh_bids.models.bundle import shipped_folder

VOXEL = 4


@pytest.fixture(scope="session")
def brain():
    """Template brain on 4 mm voxels, (49, 58, 47) float64 of 0 to 1 with some texture, and its RAS+ affine."""
    template = load_template()
    data = np.asanyarray(template.dataobj, dtype=np.float64)[:196, :232, :188]
    data = data.reshape(49, VOXEL, 58, VOXEL, 47, VOXEL).mean(axis=(1, 3, 5)) / data.max()
    texture = np.random.default_rng(0).normal(1, 0.02, data.shape)
    affine = template.affine @ np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    affine[:3, 3] += (VOXEL - 1) / 2
    return np.where(data > 0.2, np.clip(data * texture, 0.05, 1), 0), affine


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """The shipped bundle on a grid of 4 mm: the steps on the model grid then take no time."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    shutil.copytree(shipped_folder() / "classic", folder)
    card = json.loads((folder / "bundle.json").read_text())
    card["name"] = "tiny"
    card["grid"] = {
        "shape": [36, 46, 46],
        "affine": [[4.0, 0, 0, -70.0], [0, 4.0, 0, -107.5], [0, 0, 4.0, -83.5], [0, 0, 0, 1]],
    }
    (folder / "bundle.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def here(capsys, monkeypatch):
    """``mmh`` in this process, as `tiny.mmh`: for calls that end before anything is run."""
    environment, level = dict(os.environ), logging.getLogger().level
    monkeypatch.setattr(logging, "raiseExceptions", True)

    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Call(code, *capsys.readouterr())

    yield call
    os.environ.clear()
    os.environ.update(environment)
    logging.basicConfig(force=True, level=level, handlers=[logging.NullHandler()])


@pytest.fixture(scope="session")
def quick(bundle):
    """Flags under which no network runs and the model grid is coarse."""
    return ("--skull-strip", "skip", "--sloppy", "--device", "cpu", "--model", bundle, "--nprocs", 2)


@pytest.fixture(scope="session")
def study(tmp_path_factory, brain, quick):
    """Dataset, known transforms, the words of a quick call, and its output: (root, known, words, out, call)."""
    base = tmp_path_factory.mktemp("app")
    root = write_dataset(base / "raw", brain)
    words = ("participant", "-d", f"known={known_transforms(root, base / 'known')}", *quick)
    out = base / "out"
    call = mmh(root, out, *words, "-w", base / "work")
    assert call.code == 0, call.err
    return root, out, words, base / "work", call
