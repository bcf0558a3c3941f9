"""The average person of each site."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402

from mmh_bids.training.people import site_tissues  # noqa: E402
from mmh_bids.training.standards import Sample  # noqa: E402

LEVELS = {"T2w": [0.65, 0.33, 0.22], "T1w": [0.16, 0.5, 0.75]}


@pytest.fixture
def scan(tmp_path):
    """Write a pair whose image is the unified look times a gain; its sample and file."""
    made = []

    def write(person, session, site, gain, sequence="T2w"):
        removed = torch.linspace(0.1, 0.9, 4096).reshape(1, 1, 16, 16, 16)
        file = tmp_path / f"{len(made)}.safetensors"
        save_file({"image": removed * gain, "removed": removed, "mask": torch.ones_like(removed).byte()}, file)
        folder = Path("none") / person / session / "anat"
        made.append((Sample(folder / f"{person}_{session}_desc-model_{sequence}.nii.gz", sequence, site), file))
        return made[-1]

    return write


def test_a_site_is_the_mean_of_its_people_each_once(scan):
    files = dict([
        scan("sub-01", "ses-1", "A", 1.0), scan("sub-01", "ses-2", "A", 1.0), scan("sub-02", "ses-1", "A", 0.8),
        scan("sub-03", "ses-1", "A", 0.5), scan("sub-01", "ses-3", "B", 2.0), scan("sub-02", "ses-2", "B", 2.0),
        scan("sub-04", "ses-1", None, 2.0),
    ])  # fmt: skip
    found = site_tissues(files, LEVELS)
    mean = (np.log(1.0) + np.log(0.8) + np.log(0.5)) / 3
    assert set(found) == {"T2w"} and set(found["T2w"]) == {"A"}  # B has two people
    assert found["T2w"]["A"]["people"] == 3
    assert found["T2w"]["A"]["tissues"] == pytest.approx(np.log([0.33, 0.22]) + mean, abs=2e-3)


def test_a_sequence_with_dark_fluid_is_left_alone(scan):
    files = dict(scan(f"sub-0{n}", "ses-1", "A", 1.0, "T1w") for n in (1, 2, 3))
    assert site_tissues(files, LEVELS) == {}
