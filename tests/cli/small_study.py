"""The small dataset that the tests of the app share, and looks at what a call wrote."""

import csv
import hashlib
import json
import re

import numpy as np
from tiny import describe, image, save

SOURCES = (
    "sub-01/ses-A/anat/sub-01_ses-A_T1w.nii.gz",
    "sub-01/ses-A/anat/sub-01_ses-A_T2w.nii.gz",
    "sub-01/ses-B/anat/sub-01_ses-B_acq-fast_run-02_T1w.nii.gz",
    "sub-02/anat/sub-02_T2w.nii.gz",
)


def write_dataset(root, brain):
    data, affine = brain
    describe(root)
    t2w = np.where(data > 0, 1.2 - data, 0)
    save(image(data * 800, affine, "LPS", np.int16, slope=0.5), root / SOURCES[0])
    save(image(t2w * 250, affine, "RAS", np.uint8), root / SOURCES[1])
    save(image(data * 3000, affine, "PIR", np.uint16), root / SOURCES[2])
    save(image(t2w * 1.5, affine, "ASL", np.float64), root / SOURCES[3])
    (root / "participants.tsv").write_text("participant_id\tsite\nsub-01\tA\nsub-02\tB\n")
    (root / "T1w.json").write_text(json.dumps({"MagneticFieldStrength": 3, "EchoTime": 0.003, "SliceTiming": [0]}))
    return root


def files(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def hashes(out, under=""):
    """Hash by name of all derivatives; the logs of each call differ."""
    return {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest()
        for name in files(out)
        if not name.startswith("logs/") and "/log/" not in name and name.startswith(under)
    }


def times(out):
    return {name: (out / name).stat().st_mtime_ns for name in files(out) if not name.startswith("logs/")}


def harmonized(out, source):
    return out / re.sub(r"_(T[12]w)\.nii\.gz$", r"_desc-harmonized_\1.nii.gz", source)


def sidecar(out, source):
    return json.loads(sidecar_of(harmonized(out, source)))


def sidecar_of(path):
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json").read_text()


def rows(call):
    return [
        {name.strip(): cell.strip() for name, cell in row.items()}
        for row in csv.DictReader(call.out.splitlines(), delimiter="\t")
    ]
