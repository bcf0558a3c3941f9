"""A small study whose truth is known: warped brains on 4 mm voxels, three scanners, an age effect, six methods.

Some people were scanned once, some at all three sites, one of them twice at one site. The methods: one that does
nothing, one that blurs, one that swaps people, one that returns the template, one that erases what age does, and the
truth: everybody's own anatomy at one level a tissue.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import nibabel as nib
import numpy as np
from identity import TRANSFORM
from scipy.ndimage import gaussian_filter, map_coordinates

from mmh_bids.image.grid import load_template
from mmh_bids.image.priors import template_tissues

SITES = {"A": (0.20, 0.55, 0.90), "B": (0.32, 0.60, 0.84), "Zürich": (0.14, 0.66, 0.95)}
UNIFIED = (0.20, 0.60, 0.90)
VOXEL, SHAPE = 4, (49, 58, 47)
METHODS = ("nothing", "blurring", "swapping", "template", "ageless", "perfect")


@dataclass(frozen=True)
class Scan:
    """One image: whose, where, which."""

    person: int
    site: str
    run: int = 1

    @property
    def stem(self):
        site = "Z" if self.site == "Zürich" else self.site
        return f"sub-{self.person:02d}_ses-{site}_run-{self.run}"

    @property
    def folder(self):
        return "/".join(self.stem.split("_")[:2]) + "/anat"


def scans(singles=16, travellers=4):
    """Who was scanned where."""
    sites = list(SITES)
    out = [Scan(person, sites[person % 3]) for person in range(singles)]
    out += [Scan(person, site) for person in range(singles, singles + travellers) for site in sites]
    return [*out, *(Scan(person, "A", 2) for person in range(singles, singles + min(travellers, 2)))]


def age(person):
    """Years, 30 to 80, the same for a person always."""
    return 30 + 50 * ((person * 0.618) % 1)


@lru_cache(maxsize=1)
def atlas():
    """Fluid, grey and white matter of the template (3, X, Y, Z), and the affine."""
    affine = load_template().affine @ np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    affine[:3, 3] += (VOXEL - 1) / 2
    grey, white = template_tissues(SHAPE, affine, blur_mm=1.0)
    template = np.asanyarray(load_template().dataobj)[:196, :232, :188] > 0
    brain = template.reshape(49, 4, 58, 4, 47, 4).mean(axis=(1, 3, 5))
    return np.stack([np.clip(brain - grey - white, 0, 1), grey, white]), affine


@lru_cache(maxsize=64)
def anatomy(person, years):
    """Tissues (3, X, Y, Z) of a person of that age, or the template's for None."""
    tissues, _ = atlas()
    if person is not None:
        rng = np.random.default_rng(person)
        shift = [gaussian_filter(rng.normal(0, 1, SHAPE), 2.5) for _ in range(3)]
        places = [axis + 1.0 * one / one.std() for axis, one in zip(np.indices(SHAPE), shift, strict=True)]
        tissues = np.stack([map_coordinates(tissue, places, order=1) for tissue in tissues])
    # grey matter gives way to fluid with age
    lost = tissues[1] * 0.006 * (years - 30)
    return np.stack([tissues[0] + lost, tissues[1] - lost, tissues[2]])


def brain_of(person):
    """Mask of a person."""
    return anatomy(person, 50.0).sum(axis=0) > 0.5


def image(tissues, levels):
    """Intensities, 0 to 1."""
    return np.tensordot(levels, tissues, 1)


def scanned(scan):
    """What the scanner gives: own levels, own field, noise."""
    rng = np.random.default_rng(1000 * scan.person + 10 * list(SITES).index(scan.site) + scan.run)
    field = 1 + 0.05 * np.linspace(-1, 1, SHAPE[list(SITES).index(scan.site)])
    axis = list(SITES).index(scan.site)
    field = field.reshape([-1 if number == axis else 1 for number in range(3)])
    clean = image(anatomy(scan.person, age(scan.person)), SITES[scan.site]) * field
    return np.clip(clean + rng.normal(0, 0.008, SHAPE), 0, None)


def made(method, scan, people):
    """What a method makes of a scan, 0 to 1."""
    person = scan.person
    if method == "nothing":
        return scanned(scan)
    if method == "blurring":
        brain = brain_of(person).astype(float)
        return gaussian_filter(scanned(scan) * brain, 0.9) / np.maximum(gaussian_filter(brain, 0.9), 0.1)
    who = {"swapping": (person + 1) % people, "template": None}.get(method, person)
    years = 50.0 if method in ("template", "ageless") else age(who)
    return image(anatomy(who, years), UNIFIED)


def write(path, data, scan, mask):
    """Save an image of a scan, brain only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.where(mask, data, 0).astype(np.float32), atlas()[1]).to_filename(path)
    return path


def make_study(root, methods=METHODS, targets=None, **how):
    """Write the dataset to ``root/raw`` and methods to ``root/METHOD``; all have masks, the first is made by mmh.

    `targets` says by method what its images name as their target, if not the unified look.
    """
    targets = targets or {}
    everybody = scans(**how)
    people = len({scan.person for scan in everybody})
    raw = root / "raw"
    raw.mkdir(parents=True)
    (raw / "dataset_description.json").write_text('{"Name": "Simulated", "BIDSVersion": "1.10.0"}')
    rows = [f"sub-{person:02d}\t{age(person):.1f}" for person in range(people)]
    (raw / "participants.tsv").write_text("\n".join(["participant_id\tage", *rows]) + "\n")
    for person in range(people):
        own = {scan.stem.split("_")[1]: scan.site for scan in everybody if scan.person == person}
        table = "".join(f"{session}\t{site}\n" for session, site in own.items())
        folder = raw / f"sub-{person:02d}"
        folder.mkdir()
        (folder / f"{folder.name}_sessions.tsv").write_text("session_id\tsite\n" + table, encoding="utf-8")
    for scan in everybody:
        mask, seen = brain_of(scan.person), scanned(scan)
        gain = {"A": 900, "B": 250, "Zürich": 4000}[scan.site]
        write(raw / scan.folder / f"{scan.stem}_T1w.nii.gz", seen * gain, scan, mask)
        for place, method in enumerate(methods):
            folder = root / method / scan.folder
            target = folder / f"{scan.stem}_desc-harmonized_T1w.nii.gz"
            write(target, made(method, scan, people) * 1000, scan, mask)
            sidecar = {"Harmonization": {"OutputScale": [0.0, 1000.0], "Target": targets.get(method, "unified")}}
            (folder / f"{scan.stem}_desc-harmonized_T1w.json").write_text(json.dumps(sidecar))
            if place == 0:
                write(folder / f"{scan.stem}_desc-preproc_T1w.nii.gz", seen * gain, scan, mask)
                nib.Nifti1Image(mask.astype(np.uint8), atlas()[1]).to_filename(
                    folder / f"{scan.stem}_desc-brain_mask.nii.gz"
                )
                name = f"{scan.stem}_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt"
                (folder / name).write_text(TRANSFORM)
    return raw
