"""What is checked before any image is read: method, bundle, target, templates."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmh_bids.bids.run import Run
from mmh_bids.errors import BundleError, UsageError
from mmh_bids.image.grid import template_path
from mmh_bids.settings import Settings
from mmh_bids.workflows.study import Study, check_reference, find_space

NAME = "MNI152NLin6Asym"


@pytest.fixture
def asked(tmp_path):
    return Settings(tmp_path / "raw", tmp_path / "out", work_dir=tmp_path / "work")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A TemplateFlow home; ``home(name, value)`` puts a small image of `value` there."""
    root = tmp_path / "templateflow"
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(root))

    def put(name, value=1.0, content=None):
        path = root / f"tpl-{NAME}" / f"tpl-{NAME}_{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = np.zeros((9, 10, 11), np.float32)
        data[2:7, 2:7, 2:7] = value
        data[3, 3, 3] = 2 * value
        if content is None:
            nib.Nifti1Image(data, np.eye(4)).to_filename(path)
        else:
            path.write_bytes(content)
        return path

    put.root = root
    return put


def test_nilearns_own_template_is_always_there(tmp_path):
    for name in ("MNI152NLin2009aSym", "MNI152NLin2009aSym:res-1"):
        space = find_space(name, tmp_path)
        assert (space.name, space.grid, space.brain) == ("MNI152NLin2009aSym:res-1", template_path(), None)


@pytest.mark.parametrize(("asked_for", "res"), [(NAME, "1"), (f"{NAME}:res-2", "2"), (f"{NAME}:res-02", "02")])
def test_a_brain_of_templateflow(home, tmp_path, asked_for, res):
    path = home(f"res-0{int(res)}_desc-brain_T1w.nii.gz")
    space = find_space(asked_for, tmp_path)
    assert (space.name, space.grid, space.brain) == (f"{NAME}:res-{res}", path, path)


def test_a_head_and_its_mask(home, tmp_path):
    head, mask = home("res-01_T1w.nii.gz", 5.0), home("res-01_desc-brain_mask.nii.gz")
    space = find_space(NAME, tmp_path / "work")
    assert space.grid == head
    brain = nib.load(space.brain)
    inside = np.asanyarray(nib.load(mask).dataobj) > 0
    np.testing.assert_array_equal(np.asanyarray(brain.dataobj), np.where(inside, nib.load(head).get_fdata(), 0))
    before = space.brain.stat().st_mtime_ns
    assert find_space(NAME, tmp_path / "work").brain.stat().st_mtime_ns == before
    home("res-01_T1w.nii.gz", 7.0)
    later = space.brain.stat().st_mtime + 10
    os.utime(head, (later, later))
    assert nib.load(find_space(NAME, tmp_path / "work").brain).get_fdata().max() == 14


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"res-01_desc-brain_T1w.nii.gz": b""},
        {"res-01_T1w.nii.gz": None},
        {"res-01_T1w.nii.gz": None, "res-01_desc-brain_mask.nii.gz": b""},
        {"res-01_T1w.nii.gz": b"", "res-01_desc-brain_mask.nii.gz": None},
        {"res-02_desc-brain_T1w.nii.gz": None},
    ],
)
def test_a_template_that_is_not_here(home, tmp_path, files):
    for name, content in files.items():
        home(name, content=content)
    with pytest.raises(UsageError, match=f"--output-spaces {NAME}: .*fetch it once.*TEMPLATEFLOW_HOME") as error:
        find_space(NAME, tmp_path)
    assert str(home.root) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_template(home, tmp_path):
    home("res-01_desc-brain_T1w.nii.gz", content=b"an HTML page that says 404")
    with pytest.raises(UsageError, match=f"--output-spaces {NAME}: .*res-01_desc-brain_T1w"):
        find_space(NAME, tmp_path)


def test_a_template_truncated_in_the_middle(home, tmp_path):
    rng = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    head = home("res-01_T1w.nii.gz")
    nib.Nifti1Image(rng, np.eye(4)).to_filename(head)
    head.write_bytes(head.read_bytes()[:9000])
    home("res-01_desc-brain_mask.nii.gz")
    with pytest.raises(UsageError, match=f"--output-spaces {NAME}: .*damaged"):
        find_space(NAME, tmp_path / "work")


def test_without_a_home_the_work_directory_has_the_cache(tmp_path, monkeypatch):
    for empty in (None, ""):
        monkeypatch.delenv("TEMPLATEFLOW_HOME", raising=False)
        if empty is not None:
            monkeypatch.setenv("TEMPLATEFLOW_HOME", empty)
        with pytest.raises(UsageError, match=str(tmp_path / "caches" / "templateflow")):
            find_space(NAME, tmp_path)


def test_prepare(asked):
    study = Study.prepare(dataclasses.replace(asked, output_spaces=("MNI152NLin2009aSym",)))
    assert study.bundle.name == "mmh-light"
    assert [space.name for space in study.spaces] == ["MNI152NLin2009aSym:res-1"]
    assert set(study.quantiles) == {"T1w", "T2w"}
    for values in study.quantiles.values():
        assert (np.diff(values) >= 0).all()
    assert study.method_gb > 0
    assert Study.prepare(dataclasses.replace(asked, modalities=("T2w",))).quantiles.keys() == {"T2w"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "zscor"}, "--method zscor.*zscore"),
        ({"target": "site:Nowhere"}, "Nowhere"),
        ({"target": "image:/not/there.nii.gz"}, "not/there.nii.gz"),
        ({"output_spaces": ("OASIS30ANTs",)}, "--output-spaces OASIS30ANTs"),
        ({"method": "none", "target": "site:A"}, "--target site:A"),
    ],
)
def test_what_cannot_be_done_is_said_before_it_starts(asked, change, says):
    with pytest.raises(UsageError, match=says) as error:
        Study.prepare(dataclasses.replace(asked, **change))
    assert "\n" not in str(error.value)


def test_a_bundle_that_is_not_there(asked, tmp_path):
    with pytest.raises(BundleError, match="nothing-here"):
        Study.prepare(dataclasses.replace(asked, model=str(tmp_path / "nothing-here")))


@pytest.mark.parametrize("shape", [(9, 9, 9, 3), (9, 9, 1)])
def test_references_that_are_no_3d_image(tmp_path, shape):
    nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(UsageError, match=r"--target image:.*a\.nii\.gz"):
        check_reference(f"image:{tmp_path / 'a.nii.gz'}")


def test_fingerprints_follow_the_files(asked, tmp_path):
    """Source, partner, site, bundle, a reused mask and the reference image each count with their content."""
    mask = tmp_path / "deriv" / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"one")
    reference = tmp_path / "reference.nii.gz"
    settings = dataclasses.replace(
        asked, derivatives=(("d", str(tmp_path / "deriv")),), target=f"image:{reference}", method="histmatch"
    )

    def mark(site="A", source="s", partner="", value=1.0):
        run = Run(Path("/raw/sub-01_T1w.nii.gz"), "T1w", {"sub": "01"}, site=site)
        data = np.zeros((9, 9, 9), np.float32)
        data[4] = value
        nib.Nifti1Image(data, np.eye(4)).to_filename(reference)
        return Study.prepare(settings).fingerprint(run, source, partner)

    first = mark()
    assert mark() == first
    others = [mark(source="t"), mark(partner="sub-01_T1w 12"), mark(site="B"), mark(value=2.0)]
    mask.write_bytes(b"two")
    others.append(mark())
    assert len({first, *others}) == 6


def test_everybody_queues_in_a_folder_of_their_own(asked, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mine = Study.prepare(asked).lock_dir
    assert mine.parent == tmp_path
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    assert Study.prepare(asked).lock_dir != mine
