"""Every way in which a dataset, a folder or an image can be unusable: exit code, message, nothing half done."""

import csv
import gzip
import json
import os
import re
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from tiny import describe, image, known_transforms, leftovers, mmh, save

#: Participant label to what its T1w is, what its message must say of it, and what became of it.
BAD = {
    "truncated": ("failed", ("truncated", "again")),
    "text": ("failed", ("not a gzip file", "convert")),
    "zeros": ("failed", ("empty", "convert it again")),
    "nan": ("failed", ("NaN", "replace them")),
    "fourd": ("skipped", ("4D", "only 3D images")),
    "slice": ("failed", ("slice", "--bids-filter-file")),
    "voxelzero": ("failed", ("voxel size", "convert")),
    "offset": ("failed", ("begin at byte 16", "convert it again")),
    "extension": ("failed", ("not a NIfTI file", "convert it again")),
    "forms": ("failed", ("qform and sform disagree", "fslorient")),
    "rgb": ("failed", ("RGB", "convert")),
    "closed": ("failed", ("no permission to read", "change the file's permissions")),
}
UNBOUND = "permissions do not count for root, and setpriv is not here to make them"
GOOD = ("spurious",)


def _write_bad(root, brain):
    data, affine = brain
    fine = image(data * 800, affine)
    path = {label: root / f"sub-{label}/anat/sub-{label}_T1w.nii.gz" for label in (*BAD, *GOOD)}
    whole = save(fine, path["truncated"]).read_bytes()
    path["truncated"].write_bytes(whole[: len(whole) // 2])
    path["text"].parent.mkdir(parents=True)
    path["text"].write_text("This is no image.\n" * 100)
    save(image(data * 0, affine), path["zeros"])
    save(image(np.where(data > 0.9, np.nan, data * 800), affine, dtype=np.float32), path["nan"])
    save(image(np.stack([data * 800] * 5, -1), affine), path["fourd"])
    save(image((data * 800)[..., None], affine), path["spurious"])
    save(image(data[:, :, 20:21] * 800, affine), path["slice"])
    _edit_header(save(fine, path["voxelzero"]), 80, np.float32(0))  # pixdim[1]
    _edit_header(save(fine, path["offset"]), 108, np.float32(16))  # vox_offset
    extended = image(data * 800, affine)
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"some words"))
    _edit_header(save(extended, path["extension"]), 352, np.int32(-16))  # the extension's size
    moved = image(data * 800, affine)
    moved.set_qform(affine @ np.diag([-1, 1, 1, 1]), 1)
    save(moved, path["forms"])
    colour = np.zeros(data.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["R"] = data * 255
    save(nib.Nifti1Image(colour, affine), path["rgb"])
    save(fine, path["closed"]).chmod(0)
    save(image(data * 0, affine), root / "sub-lone/anat/sub-lone_T1w.nii.gz")
    save(image(np.where(data > 0, 1.2 - data, 0) * 500, affine), root / "sub-lone/anat/sub-lone_T2w.nii.gz")
    return path


def _edit_header(path, place, value):
    """Set a header's field in the file itself; nibabel would mend it."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[place : place + value.nbytes] = value.tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))


def _table(path, key):
    with path.open() as stream:
        return {row[key]: row for row in csv.DictReader(stream, delimiter="\t")}


@pytest.fixture(scope="module")
def bound():
    """Words before a command that make permissions count for it, as they do not for root; None where there are none."""
    if os.geteuid() != 0:
        return ()
    words = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--")
    if not shutil.which("setpriv") or subprocess.run([*words, "true"], check=False).returncode:
        return None
    return words


@pytest.fixture(scope="module")
def study(tmp_path_factory, brain, quick, bound):
    """One call on a dataset of bad images among good ones: (root, out, call, paths)."""
    base = tmp_path_factory.mktemp("bad")
    root, out = describe(base / "raw"), base / "out"
    paths = _write_bad(root, brain)
    if bound is None:
        shutil.rmtree(root / "sub-closed")
    known = known_transforms(root, base / "known")
    call = mmh(root, out, "participant", "-w", base / "work", "-d", known, *quick, before=bound or ())
    return root, out, call, paths


def test_the_call_fails_and_says_so(study, bound):
    _, _, call, _ = study
    n_failed = sum(status == "failed" for status, _ in BAD.values()) + 1 - (bound is None)
    assert call.code == 1
    assert call.err.rstrip().splitlines()[-1].startswith("mmh: ends with exit code 1")
    assert "Traceback" not in call.err + call.out
    assert f"2 image(s) harmonized, {n_failed} failed, 1 skipped" in call.err


@pytest.mark.parametrize("label", BAD)
def test_bad_image_is_named_with_reason_and_remedy_everywhere(study, label, bound):
    _, out, call, paths = study
    if label == "closed" and bound is None:
        pytest.skip(UNBOUND)
    status, words = BAD[label]
    line = next(
        line
        for line in call.err.splitlines()
        if line.startswith(f"sub-{label}_T1w: {status}".replace("failed", "FAILED"))
    )
    message = line.split(": ", 2)[2]
    assert paths[label].name in message
    assert all(word in message for word in words), message
    row = _table(out / "participants.tsv", "participant_id")[f"sub-{label}"]
    assert (row["status"], row["n_images"], row["message"]) == (status, "0", message)
    row = _table(out / "logs/images.tsv", "image")[f"sub-{label}/anat/{paths[label].name}"]
    assert (row["status"], row["message"]) == (status, message)
    page = (out / f"sub-{label}.html").read_text()
    assert words[0] in page and paths[label].name in page
    assert not list(out.glob(f"sub-{label}/**/*.nii.gz"))
    assert not list(out.glob(f"sub-{label}/**/*.json"))


@pytest.mark.parametrize("label", GOOD)
def test_other_images_are_done(study, label):
    _, out, _, paths = study
    source = nib.load(paths[label])
    made = nib.load(out / f"sub-{label}/anat/sub-{label}_desc-harmonized_T1w.nii.gz")
    assert made.shape == source.shape[:3]
    assert (made.affine == source.affine).all()
    assert _table(out / "participants.tsv", "participant_id")[f"sub-{label}"]["status"] == "done"


def test_t2w_goes_on_alone_when_its_t1w_fails(study, here, brain, quick):
    root, out, call, _ = study
    assert "sub-lone_T1w: FAILED: " in call.err and "sub-lone_T2w: FAILED" not in call.err
    row = _table(out / "participants.tsv", "participant_id")["sub-lone"]
    assert (row["status"], row["n_images"]) == ("partial", "1") and "every voxel is 0" in row["message"]
    facts = json.loads((out / "sub-lone/anat/sub-lone_desc-harmonized_T2w.json").read_text())["Harmonization"]
    assert "DiceWithT1w" not in facts["BrainExtraction"]
    # until the T1w is mended the T2w stays as it is; then it is done again, as it can borrow from it
    words = (root, out, "participant", "-w", out.parent / "work", "-d", out.parent / "known", *quick, "--dry-run")
    actions = [line.split("\t")[5].strip() for line in here(*words, "--participant-label", "lone").out.splitlines()]
    assert actions == ["action", "harmonize", "done"]
    data, affine = brain
    save(image(data * 500, affine), root / "sub-lone/anat/sub-lone_T1w.nii.gz")
    actions = [line.split("\t")[5].strip() for line in here(*words, "--participant-label", "lone").out.splitlines()]
    assert actions == ["action", "harmonize", "harmonize"]


def test_nothing_half_written_is_left(study):
    _, out, _, _ = study
    assert leftovers(out) == []


def test_crash_files_lie_with_their_participant(study):
    _, out, _, _ = study
    crashed = {path.parents[2].name for path in out.glob("sub-*/log/*/crash-*.txt")}
    assert crashed == {"sub-truncated", "sub-zeros", "sub-nan", "sub-lone", "sub-extension"}


# ---- the call as a whole ------------------------------------------------------------------------------------


def _rejected(call, code, *words):
    """Call the command by `call`; return its one line of complaint."""
    call = call(*words)
    assert call.code == code, call.err
    lines = call.err.strip().splitlines()
    assert len(lines) == 2, call.err
    assert lines[1].startswith(f"mmh: ends with exit code {code}")
    return lines[0]


@pytest.fixture
def dataset(tmp_path, brain):
    """A dataset with one good T1w."""
    data, affine = brain
    root = describe(tmp_path / "raw")
    save(image(data * 800, affine), root / "sub-01/anat/sub-01_T1w.nii.gz")
    return root


def _tree(root):
    return sorted(path.relative_to(root) for path in root.rglob("*"))


def test_dataset_that_is_a_file(tmp_path, here):
    file = tmp_path / "raw.zip"
    file.write_text("x")
    line = _rejected(here, 2, file, tmp_path / "out", "participant", "-w", tmp_path / "work")
    assert f"{file}: is not a directory" in line and "give the root of a BIDS dataset" in line
    assert not (tmp_path / "out").exists()


def test_dataset_that_does_not_exist(tmp_path, here):
    line = _rejected(here, 2, tmp_path / "raw", tmp_path / "out", "participant", "-w", tmp_path / "work")
    assert "raw: does not exist" in line and not (tmp_path / "out").exists()


def test_no_dataset_description(dataset, tmp_path, here):
    (dataset / "dataset_description.json").unlink()
    line = _rejected(here, 2, dataset, tmp_path / "out", "participant", "-w", tmp_path / "work")
    assert f"{dataset}: no dataset_description.json" in line and '"BIDSVersion"' in line
    assert not (tmp_path / "out").exists()


def test_no_t1w_or_t2w(dataset, tmp_path, here):
    (dataset / "sub-01/anat/sub-01_T1w.nii.gz").rename(dataset / "sub-01/anat/sub-01_FLAIR.nii.gz")
    line = _rejected(here, 3, dataset, tmp_path / "out", "participant", "-w", tmp_path / "work")
    assert f"{dataset}: no image found" in line and "looked for sub-*/[ses-*/]anat/*_T1w.nii[.gz]" in line


def test_nothing_but_a_4d_image(dataset, tmp_path, brain, here):
    data, affine = brain
    save(image(np.stack([data] * 3, -1) * 800, affine), dataset / "sub-01/anat/sub-01_T1w.nii.gz")
    call = here(dataset, tmp_path / "out", "participant", "-w", tmp_path / "work")
    assert call.code == 3
    assert "sub-01_T1w.nii.gz: 4D image (49 x 58 x 47 x 3)" in call.err
    row = _table(tmp_path / "out/participants.tsv", "participant_id")["sub-01"]
    assert row["status"] == "skipped" and "4D image" in row["message"]
    assert "4D image" in (tmp_path / "out/sub-01.html").read_text()


def test_unknown_participant_names_the_nearest(dataset, tmp_path, here):
    words = (dataset, tmp_path / "out", "participant", "-w", tmp_path / "work", "--participant-label", "1")
    line = _rejected(here, 2, *words)
    assert "--participant-label 1: not in" in line and line.endswith("nearest: 01")


@pytest.mark.parametrize("place", ["", "out", "sub-01/anat", "derivatives"])
def test_output_inside_the_dataset(dataset, tmp_path, place, here):
    before = _tree(dataset)
    line = _rejected(here, 2, dataset, dataset / place, "participant", "-w", tmp_path / "work")
    assert "lies inside the dataset" in line and str(dataset / "derivatives" / "mmh") in line
    assert _tree(dataset) == before


def test_output_inside_the_dataset_through_a_link(dataset, tmp_path, here):
    (tmp_path / "link").symlink_to(dataset)
    line = _rejected(here, 2, dataset, tmp_path / "link" / "out", "participant", "-w", tmp_path / "work")
    assert "lies inside the dataset" in line


def test_output_under_derivatives_is_allowed(dataset, tmp_path, here):
    call = here(dataset, dataset / "derivatives/mmh", "participant", "-w", tmp_path / "work", "--boilerplate-only")
    assert call.code == 0, call.err
    assert (dataset / "derivatives/mmh/logs/CITATION.md").is_file()


def test_work_directory_inside_the_dataset(dataset, tmp_path, here, monkeypatch):
    before = _tree(dataset)
    line = _rejected(here, 2, dataset, tmp_path / "out", "participant", "-w", dataset / "work")
    assert f"--work-dir {dataset / 'work'}: lies inside the dataset" in line and "outside" in line
    monkeypatch.chdir(dataset)
    line = _rejected(here, 2, dataset, tmp_path / "out", "participant")
    assert "lies inside the dataset" in line
    assert _tree(dataset) == before


def test_work_directory_is_the_output_folder(dataset, tmp_path, here):
    line = _rejected(here, 2, dataset, tmp_path / "out", "participant", "-w", tmp_path / "out")
    assert "choose another" in line and not (tmp_path / "out").exists()


def test_output_that_is_a_file_or_holds_another_dataset(dataset, tmp_path, here):
    (tmp_path / "out").write_text("x")
    line = _rejected(here, 2, dataset, tmp_path / "out", "participant", "-w", tmp_path / "work")
    assert f"{tmp_path / 'out'}: cannot be written" in line and "choose another output folder" in line
    other = describe(tmp_path / "other", GeneratedBy=[{"Name": "fMRIPrep"}])
    line = _rejected(here, 2, dataset, other, "participant", "-w", tmp_path / "work")
    assert "holds the dataset of fMRIPrep" in line
    assert [path.name for path in other.iterdir() if path.name != "logs"] == ["dataset_description.json"]


# ---- permissions and full disks: what only root can set up --------------------------------------------------


@pytest.fixture
def bound_call(bound):
    """``mmh`` by a user whom permissions bind."""
    if bound is None:
        pytest.skip(UNBOUND)
    return lambda *words: mmh(*words, before=bound)


def test_no_permission_to_write_the_output_or_the_work_directory(dataset, tmp_path, bound_call):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    line = _rejected(bound_call, 2, dataset, closed / "out", "participant", "-w", tmp_path / "work")
    assert f"{closed / 'out'}: cannot be written (Permission denied); choose another output folder" in line
    line = _rejected(bound_call, 2, dataset, tmp_path / "out", "participant", "-w", closed / "work")
    assert f"--work-dir {closed / 'work'}: cannot be written (Permission denied)" in line


@pytest.mark.parametrize("shut_away", ["dataset", "bundle"])
def test_a_folder_that_cannot_be_looked_into_is_wrong_usage(dataset, tmp_path, bound_call, shut_away):
    """What lies in it is not known to be there or not; in a container it is most often the wrong user."""
    shut = tmp_path / "shut"
    shut.mkdir(mode=0)
    asked = [dataset, tmp_path / "out", "participant", "-w", tmp_path / "work"]
    if shut_away == "dataset":
        asked[0] = shut / "dataset"
    else:
        asked += ["--model", shut / "bundle"]
    try:
        line = _rejected(bound_call, 2, *asked)
    finally:
        shut.chmod(0o755)
    assert f"{shut / shut_away}: " in line and "give the user that mmh runs as permission there" in line


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(kilobytes)``: a folder on a disk of that size."""
    mounted = []

    def mount(kilobytes):
        if os.geteuid() != 0:
            pytest.skip("only root can mount a small disk")
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, brain):
    """Two participants with known transforms: (root, known)."""
    data, affine = brain
    base = tmp_path_factory.mktemp("pair")
    root = describe(base / "raw")
    for label in ("01", "02"):
        save(image(data * 800, affine), root / f"sub-{label}/anat/sub-{label}_T1w.nii.gz")
    return root, known_transforms(root, base / "known")


def _kilobytes(paths):
    """Space that files take on a disk with blocks of 4 kB."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in paths if path.is_file())


def _first_done_second_failed(call, out, words):
    assert call.code == 1, call.err
    assert "Traceback" not in call.err
    failed = [line for line in call.err.splitlines() if ": FAILED: " in line]
    assert len(failed) == 1 and failed[0].startswith("sub-02_T1w: FAILED: "), call.err
    assert all(word in failed[0] for word in ("No space left on device; free space there", *words)), call.err
    assert "1 image(s) harmonized, 1 failed, 0 skipped" in call.err
    assert (out / "sub-01/anat/sub-01_desc-harmonized_T1w.json").is_file()
    assert not (out / "sub-02/anat/sub-02_desc-harmonized_T1w.json").exists()
    assert leftovers(out) == []


def test_disk_of_the_output_is_full(study, pair, small_disk, tmp_path, quick):
    (_, made, _, _), (root, known) = study, pair
    out = small_disk(int(1.4 * _kilobytes(made.glob("sub-spurious/**/*"))) + 60) / "out"
    call = mmh(root, out, "participant", "-w", tmp_path / "work", "-d", known, *quick, "--nprocs", 1)
    _first_done_second_failed(call, out, [str(out / "sub-02")])
    # figures and derivatives are written by steps of their own: each has an error that names the place
    crashes = [path.read_text() for path in (tmp_path / "work").glob("crashes/*/crash-*")]
    assert crashes and all(re.search(rf"errors.ImageError: {out}/sub-02/.*: No space left", text) for text in crashes)


@pytest.mark.slow
def test_disk_of_the_work_directory_is_full(study, pair, small_disk, tmp_path, quick):
    (_, made, _, _), (root, known) = study, pair
    work = made.parent / "work"
    one = _kilobytes([*work.glob("mmh_wf/sub_spurious_T1w_wf/**/*"), *work.glob("caches/**/*")])
    disk, out = small_disk(int(1.3 * one) + 100), tmp_path / "out"
    call = mmh(root, out, "participant", "-w", disk, "-d", known, *quick, "--nprocs", 1)
    _first_done_second_failed(call, out, [str(disk), "--work-dir"])
    rows = _table(out / "participants.tsv", "participant_id")
    assert rows["sub-01"]["status"] == "done"
    assert str(disk) in rows["sub-02"]["message"]
