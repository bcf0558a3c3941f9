"""For all tests: no cache of the user is read or written, one thread, no network lookups; and shared fixtures."""

import json
import os
import shutil
import tempfile
from pathlib import Path

_SANDBOX = "MMH_TEST_SANDBOX"
_OUTSIDE = "MMH_TEST_OUTSIDE"
_CACHES = (
    "HOME", "MPLCONFIGDIR", "TEMPLATEFLOW_HOME", "NIPYPE_CONFIG_DIR", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME",
    "TMPDIR",
)  # fmt: skip
_REPO = Path(__file__).resolve().parents[1]


def _enter_sandbox() -> bool:
    """Point HOME and every cache into one temporary folder; True for the process that made (and removes) it.

    Runs while this file is imported: nipype, matplotlib and templateflow look at these variables once, when they are
    imported themselves. Worker processes of pytest-xdist inherit the folder of the process that started them.
    """
    if _SANDBOX in os.environ:
        return False
    folder = Path(tempfile.mkdtemp(prefix="mmh-tests-"))
    # what tests leave of their own (tmp_path) stays to be looked at; what libraries leave goes with the sandbox
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder.parent))
    os.environ[_SANDBOX] = str(folder)
    os.environ[_OUTSIDE] = json.dumps({name: os.environ[name] for name in _CACHES if name in os.environ})
    for name in _CACHES:
        place = folder / name.lower()
        place.mkdir()
        os.environ[name] = str(place)
    tempfile.tempdir = None
    os.environ.update(
        OMP_NUM_THREADS="1",
        NIPYPE_NO_ET="1",
        NO_ET="1",
        HF_HUB_OFFLINE="1",
        TEMPLATEFLOW_AUTOUPDATE="0",
        MPLBACKEND="Agg",
    )
    return True


_OWNER = _enter_sandbox()

# `--doctest-modules` would import every conftest.py as a module of the same name
collect_ignore_glob = ["*conftest.py"]

import nibabel as nib  # noqa: E402 (after the sandbox)
import numpy as np  # noqa: E402
import pytest  # noqa: E402


def pytest_unconfigure():
    """Remove the sandbox."""
    if _OWNER:
        shutil.rmtree(os.environ.pop(_SANDBOX), ignore_errors=True)


@pytest.fixture(scope="session")
def users_environment():
    """The environment as it was before the tests moved HOME and caches away, for programs that keep things there."""
    kept = {name: value for name, value in os.environ.items() if name not in _CACHES}
    return kept | json.loads(os.environ[_OUTSIDE])


@pytest.fixture(scope="session")
def open_to_all():
    """``open_to_all(folder)``: make a folder below pytest's own that any user may write to and reach; the folder."""
    top = Path(os.environ["PYTEST_DEBUG_TEMPROOT"])

    def opened(folder):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        for parent in folder.parents:
            if top in parent.parents:
                parent.chmod(parent.stat().st_mode | 0o055)
        return folder

    return opened


@pytest.fixture(scope="session")
def repo_root():
    """The checkout."""
    return _REPO


@pytest.fixture(scope="session")
def shared_data():
    """Folder with ``labelmaps`` and ``real-multisite``: in MMH_SHARED, or in ``shared`` beside the checkout."""
    folder = Path(os.environ.get("MMH_SHARED") or _REPO.parent / "shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set MMH_SHARED)")
    return folder


@pytest.fixture
def make_nifti(tmp_path):
    """``make_nifti(path, shape, dtype, affine, data)``: a NIfTI file, by default of ones; relative to `tmp_path`."""

    def make(path="image.nii.gz", shape=(8, 9, 10), dtype=np.int16, affine=None, data=None):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.ones(shape, dtype) if data is None else np.asarray(data, dtype)
        nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
        return path

    return make
