"""Every way in which a dataset, a folder or an image can be unusable: exit code, message, nothing half done."""

import csv
import gzip

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
    "forms": ("failed", ("qform and sform disagree", "fslorient")),
    "rgb": ("failed", ("RGB", "convert")),
}
GOOD = ("good", "spurious", "slope")


def _write_bad(root, brain):
    data, affine = brain
    fine = image(data * 800, affine)
    path = {label: root / f"sub-{label}/anat/sub-{label}_T1w.nii.gz" for label in (*BAD, *GOOD)}
    save(fine, path["good"])
    save(image(data * 800, affine, "LPS", slope=0.25), path["slope"])
    whole = save(fine, path["truncated"]).read_bytes()
    path["truncated"].write_bytes(whole[: len(whole) // 2])
    path["text"].parent.mkdir(parents=True)
    path["text"].write_text("This is no image.\n" * 100)
    save(image(data * 0, affine), path["zeros"])
    save(image(np.where(data > 0.9, np.nan, data * 800), affine, dtype=np.float32), path["nan"])
    save(image(np.stack([data * 800] * 5, -1), affine), path["fourd"])
    save(image((data * 800)[..., None], affine), path["spurious"])
    save(image(data[:, :, 20:21] * 800, affine), path["slice"])
    _edit_header(save(fine, path["voxelzero"]), pixdim=0.0)
    moved = image(data * 800, affine)
    moved.set_qform(affine @ np.diag([-1, 1, 1, 1]), 1)
    save(moved, path["forms"])
    colour = np.zeros(data.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["R"] = data * 255
    save(nib.Nifti1Image(colour, affine), path["rgb"])
    return path


def _edit_header(path, pixdim):
    """Set the first voxel size in the file itself; nibabel would mend it."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[80:84] = np.float32(pixdim).tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))


def _table(path, key):
    with path.open() as stream:
        return {row[key]: row for row in csv.DictReader(stream, delimiter="\t")}


@pytest.fixture(scope="module")
def study(tmp_path_factory, brain, quick):
    """One call on a dataset of bad images among good ones: (root, out, call, paths)."""
    base = tmp_path_factory.mktemp("bad")
    root, out = describe(base / "raw"), base / "out"
    paths = _write_bad(root, brain)
    known = known_transforms(root, base / "known")
    call = mmh(root, out, "participant", "-w", base / "work", "-d", known, *quick)
    return root, out, call, paths


def test_the_call_fails_and_says_so_once(study):
    _, _, call, _ = study
    assert call.code == 1
    assert call.err.rstrip().splitlines()[-1].startswith("mmh: ends with exit code 1")
    assert "Traceback" not in call.err + call.out
    assert "3 image(s) harmonized, 8 failed, 1 skipped" in call.err


@pytest.mark.parametrize("label", BAD)
def test_bad_image_is_named_with_reason_and_remedy_everywhere(study, label):
    _, out, call, paths = study
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


def test_stored_numbers_are_scaled_by_slope_and_intercept(study):
    _, out, _, _ = study
    made = {
        label: np.asanyarray(
            nib.as_closest_canonical(nib.load(out / f"sub-{label}/anat/sub-{label}_desc-preproc_T1w.nii.gz")).dataobj
        )
        for label in ("good", "slope")
    }
    # the same head, once rounded to 1 and once to 0.25: after the same bias correction they still differ by rounding
    inside = made["good"] > 0
    assert inside.sum() > 20000
    assert np.median(np.abs(made["slope"] - made["good"])[inside]) < 1.0


def test_nothing_half_written_is_left(study):
    _, out, _, _ = study
    assert leftovers(out) == []


def test_crash_files_lie_with_their_participant(study):
    _, out, _, _ = study
    crashed = {path.parents[2].name for path in out.glob("sub-*/log/*/crash-*.txt")}
    assert crashed == {"sub-truncated", "sub-zeros", "sub-nan"}
