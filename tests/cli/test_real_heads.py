"""The app as it is, networks and all, on a real head of two protocols, and on a scan of the sample."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from tiny import mmh

from mmh_bids.simulate import tissues
from mmh_bids.simulate.unified import unified_tissues

pytestmark = pytest.mark.slow


def assert_harmonized(source, out, root):
    """The output has the input's grid, a brain of plausible size, and the sidecar says so; returns its facts."""
    stem, sequence = source.name.removesuffix(".nii.gz").rsplit("_", 1)
    result = out / source.parent.relative_to(root) / f"{stem}_desc-harmonized_{sequence}.nii.gz"
    before, after = nib.load(source), nib.load(result)
    assert after.shape == before.shape
    assert after.affine.tobytes() == before.affine.tobytes()
    data = np.asanyarray(after.dataobj)
    assert np.isfinite(data).all()
    assert data.min() == 0
    facts = json.loads(result.with_name(f"{stem}_desc-harmonized_{sequence}.json").read_text())["Harmonization"]
    assert 900 <= facts["BrainExtraction"]["Volume"] <= 1900
    assert facts["Registration"]["Dice"] > 0.93
    assert facts["QC"]["MappedGradientCorrelation"] > 0.95
    if facts["Method"] == "zscore":
        assert facts["QC"]["GradientCorrelation"] > 0.95
        assert facts["QC"]["ReferenceDistanceAfter"] < facts["QC"]["ReferenceDistanceBefore"]
    else:
        # the light network aims at tissues, not at a histogram: people have fluid in different amounts
        values = unified_tissues(sequence)
        # this spin-echo T1w has half of the unified look's contrast: edges and noise get other weights
        assert facts["QC"]["GradientCorrelation"] > 0.8
        white, grey = values[tissues.WHITE], values[tissues.GREY]
        assert abs(facts["QC"]["WhiteGreyContrastAfter"] - 2 * abs(white - grey) / (white + grey)) < 0.1
        assert facts["QC"]["ReferenceDistanceAfter"] < 0.1
    return facts


@pytest.mark.parametrize("method", ["mmh-light", "zscore"])
def test_a_real_head_with_both_sequences(shared_data, tmp_path, method):
    root, out = shared_data / "real-multisite", tmp_path / "mmh"
    words = ("--participant-label", "ljB", "--method", method, "-w", tmp_path / "work")
    call = mmh(root, out, "participant", *words)
    assert call.code == 0, call
    anat = root / "sub-ljB" / "ses-1" / "anat"
    facts = [assert_harmonized(source, out, root) for source in sorted(anat.glob("*.nii.gz"))]
    assert [one["BrainExtraction"]["Method"].split()[0] for one in facts] == ["deepbet", "T1w"]
    assert facts[1]["BrainExtraction"]["DiceWithT1w"] >= 0.93


def test_a_t2w_without_a_t1w(repo_root, tmp_path):
    root, out = tmp_path / "raw", tmp_path / "mmh"
    shutil.copytree(repo_root / "data" / "ds-sample", root)
    call = mmh(root, out, "participant", "--participant-label", "04", "-w", tmp_path / "work")
    assert call.code == 0, call
    facts = assert_harmonized(root / "sub-04" / "anat" / "sub-04_T2w.nii.gz", out, root)
    assert facts["BrainExtraction"]["Method"] == "deepbet"
