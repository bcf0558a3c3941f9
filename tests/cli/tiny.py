"""A tiny BIDS dataset (brains of 4 mm voxels) and the command, run in a process of its own as a user runs it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from identity import TRANSFORM

INTERCEPT = -8.0


@dataclass(frozen=True)
class Call:
    """What a call of the command came to."""

    code: int
    out: str
    err: str


def mmh(*words, env=None, before=(), **options):
    """Run ``mmh`` with `words`, after the words `before`; options go to `subprocess.run`."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "mmh_bids.cli.run", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | (env or {}),
        **options,
    )
    return Call(done.returncode, done.stdout, done.stderr)


def image(data, affine, axes="RAS", dtype=np.int16, slope=None):
    """An image with its voxels in the order `axes`, stored as `dtype`, with slope and intercept if `slope`."""
    flip = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(axes))
    )
    turned = nib.orientations.apply_orientation(data, flip)
    affine = affine @ nib.orientations.inv_ornt_aff(flip, data.shape)
    if slope:
        turned = (turned - INTERCEPT) / slope
    if np.issubdtype(dtype, np.integer):
        turned = np.rint(turned)
    made = nib.Nifti1Image(turned.astype(dtype), affine, dtype=dtype)
    made.set_qform(affine, 1)
    made.set_sform(affine, 2)
    if slope:
        made.header.set_slope_inter(slope, INTERCEPT)  # nibabel stores the numbers as they are then
    return made


def save(made, path):
    """Write an image; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.to_filename(path)
    return path


def describe(root, **extra):
    """Make `root` a dataset."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "Tiny", "BIDSVersion": "1.10.0"} | extra))
    return root


def known_transforms(root, folder):
    """Derivatives with the identity as every image's transform: the tiny brains lie in template space."""
    for path in root.glob("sub-*/**/*_T?w.nii.gz"):
        stem, sequence = path.name.removesuffix(".nii.gz").rsplit("_", 1)
        target = folder / path.parent.relative_to(root)
        target.mkdir(parents=True, exist_ok=True)
        name = f"{stem}_from-{sequence}_to-MNI152NLin2009aSym_mode-image_xfm.txt"
        (target / name).write_text(TRANSFORM)
    return folder


def leftovers(folder):
    """Files in `folder` that no user should find there: temporary ones, and images that cannot be read to the end."""
    bad = [path for path in Path(folder).rglob("*") if path.name.startswith(".tmp") or path.name.endswith(".part")]
    for path in Path(folder).rglob("*.nii.gz"):
        try:
            np.asanyarray(nib.load(path).dataobj)
        except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
            bad.append(path)
    bad += [path for path in Path(folder).rglob("*") if path.is_file() and path.stat().st_size == 0]
    return [path for path in bad if path.suffix != ".lock"]
