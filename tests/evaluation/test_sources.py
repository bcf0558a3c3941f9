"""Which file is a method's image, what is measured of it, and when that is measured again."""

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from simulated_study import SITES, atlas, make_study, scans

from mmh_bids.bids.run import Run
from mmh_bids.errors import UsageError
from mmh_bids.evaluation.features import OWN_SCALE
from mmh_bids.evaluation.measure import Task, kept_features, kept_grid, measure
from mmh_bids.evaluation.sources import (
    BLUR_FWHM,
    CONTROLS,
    Entry,
    Source,
    entries_of,
    image_of,
    read_people,
    sources_of,
)

STEM = "sub-00_ses-A_run-1"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    make_study(root, methods=("nothing", "perfect"), singles=1, travellers=0)
    return root


def run_of(root):
    scan = scans(1, 0)[0]
    path = root / "raw" / scan.folder / f"{scan.stem}_T1w.nii.gz"
    return Run(path, "T1w", {"sub": "00", "ses": "A", "run": "1"}, site=next(iter(SITES)))


def source_of(root):
    (source,), problems = sources_of([run_of(root)], {"nothing": root / "nothing"}, {})
    assert problems == []
    return source


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"{STEM}_T1w.nii.gz"], f"{STEM}_T1w.nii.gz"),
        ([f"{STEM}_desc-combat_T1w.nii"], f"{STEM}_desc-combat_T1w.nii"),
        ([f"{STEM}_desc-harmonized_T1w.nii.gz", f"{STEM}_T1w.nii.gz"], f"{STEM}_desc-harmonized_T1w.nii.gz"),
        ([f"{STEM}_desc-a_T1w.nii.gz", f"{STEM}_desc-b_T1w.nii.gz"], None),
        ([f"{STEM}_space-MNI_desc-a_T1w.nii.gz"], None),
        ([f"{STEM}_desc-preproc_T1w.nii.gz"], None),
        ([f"{STEM}_desc-a_T2w.nii.gz", "sub-00_ses-A_run-2_T1w.nii.gz", "notes_x.nii.gz"], None),
        ([], None),
    ],
)
def test_a_methods_image_goes_by_its_name(tmp_path, names, expected):
    folder = tmp_path / "sub-00" / "ses-A" / "anat"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    found = image_of(tmp_path, run_of(tmp_path))
    assert (found and found.name) == expected


def test_mask_and_transform_come_from_the_first_folder_that_has_all(study):
    folders = {"perfect": study / "perfect", "nothing": study / "nothing"}
    (source,), problems = sources_of([run_of(study)], folders, {"00": "somebody"})
    assert problems == [] and source.person == "somebody" and "nothing" in source.mask.parts
    none, problems = sources_of([run_of(study)], {"perfect": study / "perfect"}, {})
    assert none == [] and "run mmh on it" in problems[0]
    entries, problems = entries_of(source, folders | {"empty": study})
    assert [entry.method for entry in entries] == [*CONTROLS, "perfect", "nothing"]
    assert [entry.fwhm for entry in entries[:3]] == [0, 0, BLUR_FWHM]
    assert entries[3].upper == 1000.0 and entries[0].upper is None
    assert entries[3].target == "unified" and entries[0].target is None
    assert len(problems) == 1 and "no T1w of sub-00_ses-A_run-1" in problems[0]


def test_axes_and_grid_of_a_file_make_no_difference(study, tmp_path):
    source = source_of(study)
    path = image_of(study / "perfect", source.run)
    turned = nib.load(path).as_reoriented(nib.orientations.axcodes2ornt(("P", "I", "L")))
    turned.to_filename(tmp_path / "turned.nii.gz")
    # as many voxels, but elsewhere in the world: the mask goes by places, not by indices
    shift = np.eye(4)
    shift[0, 3] = -1
    moved = np.roll(np.asarray(nib.load(path).dataobj), 1, axis=0)
    nib.Nifti1Image(moved, atlas()[1] @ shift).to_filename(tmp_path / "moved.nii.gz")
    entries = tuple(Entry(one.stem[:1], one, 1000.0) for one in (path, *sorted(tmp_path.glob("*.nii.gz"))))
    assert measure(Task(source, entries, tmp_path / "work")) == []
    plain, *others = (kept_features(entry.kept_as(source, tmp_path / "work", False)) for entry in entries)
    assert len(others) == 2
    for other in others:
        np.testing.assert_allclose(plain.quantiles, other.quantiles, atol=2e-3)
    grids = [kept_grid(entry.kept_as(source, tmp_path / "work", False)) for entry in entries]
    assert (grids[0][1] == grids[1][1]).mean() > 0.999
    np.testing.assert_allclose(grids[0][0][grids[0][1]].mean(), grids[1][0][grids[1][1]].mean(), rtol=1e-3)


def test_only_what_changed_is_measured_again(study, tmp_path):
    source = source_of(study)
    path = tmp_path / "image.nii.gz"
    shutil.copyfile(image_of(study / "perfect", source.run), path)
    entry = Entry("a", path, 1000.0)
    task = Task(source, (entry,), tmp_path / "work")
    assert measure(task) == []
    first = entry.kept_as(source, task.work, False)
    before = first.stat().st_mtime_ns
    assert measure(task) == [] and first.stat().st_mtime_ns == before
    os.utime(path, ns=(1, 1))
    assert entry.kept_as(source, task.work, False) != first
    assert Entry("a", path, 500.0).kept_as(source, task.work, False) != entry.kept_as(source, task.work, False)


def test_an_image_without_a_scale_says_so_and_bad_ones_are_named(study, tmp_path):
    source = source_of(study)
    good, flat, far = (tmp_path / f"{name}.nii.gz" for name in ("good", "flat", "far"))
    data = np.asarray(nib.load(source.preproc).dataobj)
    nib.Nifti1Image(data, atlas()[1]).to_filename(good)
    nib.Nifti1Image(np.where(data > 0, 5.0, 0).astype(np.float32), atlas()[1]).to_filename(flat)
    affine = atlas()[1].copy()
    affine[:3, 3] += 900
    nib.Nifti1Image(data, affine).to_filename(far)
    entries = tuple(Entry("a", path) for path in (good, flat, far, tmp_path / "gone.nii.gz"))
    problems = measure(Task(source, entries, tmp_path / "work"))
    assert len(problems) == 3
    assert all(name in line for name, line in zip(("flat", "far", "gone"), problems, strict=True)), problems
    assert kept_features(entries[0].kept_as(source, tmp_path / "work", False)).note == OWN_SCALE


def test_a_broken_sidecar_is_no_scale(study):
    source = source_of(study)
    path = image_of(study / "perfect", source.run)
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    content = sidecar.read_text()
    try:
        for text in ("{", "[]", json.dumps({"Harmonization": None})):
            sidecar.write_text(text)
            entry = entries_of(source, {"perfect": study / "perfect"})[0][-1]
            assert entry.upper is None and entry.target is None
    finally:
        sidecar.write_text(content)


def test_who_is_who_is_read_and_wrong_tables_are_refused(tmp_path):
    table = tmp_path / "who.tsv"
    table.write_text("participant_id\tperson\nsub-01\tÅsa\n02\tÅsa\nsub-03\tn/a\n", encoding="utf-8")
    assert read_people(table) == {"01": "Åsa", "02": "Åsa"}
    table.write_text("participant_id\tperson\nsub-01\ta\n01\tb\n")
    with pytest.raises(UsageError, match="comes twice"):
        read_people(table)
    with pytest.raises(UsageError, match="cannot be read"):
        read_people(tmp_path / "none.tsv")


def test_a_source_is_known_by_its_image(study):
    source = source_of(study)
    assert isinstance(source, Source) and source.key == f"{STEM}_T1w"
