"""Simulated images as BIDS datasets: the sample, and travelling subjects out of label maps."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmh_bids import __version__
from mmh_bids.errors import UsageError
from mmh_bids.simulate.acquire import NECK, Acquisition, acquire
from mmh_bids.simulate.files import save_image, write_json, write_text, write_tsv
from mmh_bids.simulate.icbm import head_from_template
from mmh_bids.simulate.phantom import Head, head_from_labels, random_affine, transform_head
from mmh_bids.simulate.scanner import Scanner
from mmh_bids.simulate.truth import BIDSIGNORE, write_pose, write_truth

BIDS_VERSION = "1.10.0"
Say = Callable[[str], None]

#: What the sample changes: coarse voxels with the low noise they have, and few bits, to stay under 10 MB.
_SAMPLE_CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "A": {
        "T1w": {"voxel": (1.9, 1.9, 1.9), "level": 220, "snr": 70},
        "T2w": {"voxel": (1.9, 1.9, 1.9), "level": 150, "snr": 45},
    },
    "B": {
        "T1w": {"voxel": (1.8, 1.8, 2.2), "level": 190, "snr": 55},
        "T2w": {"voxel": (1.7, 1.7, 3.0), "level": 190, "snr": 50},
    },
    "C": {
        "T1w": {"voxel": (1.9, 1.9, 2.0), "level": 170, "snr": 46, "slope": 5.3},
        "T2w": {"voxel": (1.8, 2.4, 1.8), "level": 50, "snr": 40},
    },
}


@dataclass(frozen=True)
class _Visit:
    """Which sequences of one participant are taken on which scanner."""

    participant: str
    scanner: str
    sequences: tuple[str, ...]
    session: str | None = None


_SAMPLE_VISITS = (
    _Visit("01", "A", ("T1w", "T2w"), "A"),
    _Visit("01", "B", ("T1w", "T2w"), "B"),
    _Visit("01", "C", ("T1w", "T2w"), "C"),
    _Visit("02", "A", ("T1w", "T2w")),
    _Visit("03", "B", ("T1w",)),
    _Visit("04", "C", ("T2w",)),
)
#: participant_id, age, sex, site: made up. sub-01 travels, its site is in its sessions file.
_SAMPLE_PEOPLE = (
    ("sub-01", "34", "F", "n/a"),
    ("sub-02", "51", "M", "A"),
    ("sub-03", "27", "F", "B"),
    ("sub-04", "68", "M", "C"),
)
_SITE_COLUMN = {"Description": "Simulated scanner that the images were taken on; n/a: see the sessions file"}
_PEOPLE_COLUMNS = {
    "age": {"Description": "Age, made up: nobody was scanned", "Units": "year"},
    "sex": {"Description": "Sex, made up: nobody was scanned", "Levels": {"F": "female", "M": "male"}},
    "site": _SITE_COLUMN,
}
_SESSION_COLUMNS = {"site": {"Description": "Simulated scanner that the session took place on"}}


def write_sample(out: Path, scanners: Mapping[str, Scanner], seed: int = 0, say: Say = print) -> None:
    """Write the sample dataset: 3 sites, 4 participants, 10 images; the same bytes for the same seed and
    libraries.

    Parameters
    ----------
    out
        Folder to write into; should be empty.
    scanners
        Must hold ``A``, ``B`` and ``C``; their voxels are replaced by coarser ones.
    seed
        Seed of everything random.
    say
        Told one line an image.
    """
    missing = sorted(set(_SAMPLE_CHANGES) - set(scanners))
    if missing:
        raise UsageError(f"sample: scanner(s) {', '.join(missing)} missing from the scanner file; add them")
    coarse = {name: scanners[name].changed(changes) for name, changes in _SAMPLE_CHANGES.items()}
    _write_description(out, "Simulated sample of mmh_bids: three scanners, four heads", "raw")
    write_text(out / "README", _SAMPLE_README)
    write_tsv(out / "participants.tsv", [("participant_id", "age", "sex", "site"), *_SAMPLE_PEOPLE])
    write_json(out / "participants.json", _PEOPLE_COLUMNS)
    for participant in dict.fromkeys(visit.participant for visit in _SAMPLE_VISITS):
        visits = [visit for visit in _SAMPLE_VISITS if visit.participant == participant]
        person = seed * 1000 + int(participant)
        _write_visits(out, None, head_from_template(person), visits, coarse, person, 30.0, say)


def write_heads(
    out: Path,
    labels: Sequence[Path],
    scanners: Sequence[Scanner],
    *,
    sequences: Sequence[str] = ("T1w", "T2w"),
    seed: int = 0,
    truth: Path | None = None,
    rescan: bool = False,
    say: Say = print,
) -> None:
    """Write travelling subjects: every label map on every scanner, sessions as sites, the truth beside them.

    Parameters
    ----------
    out
        Folder to write into; should be empty.
    labels
        Label maps; the first becomes sub-01.
    scanners
        Each is one session, named after it.
    sequences
        Which of T1w and T2w to take; a scanner without a protocol for one is left out for it.
    seed
        Seed of everything random.
    truth
        Folder of the derivative dataset with the truth (see `truth`); None = ``derivatives/truth`` in `out`.
    rescan
        Take everything twice (``run-1``, ``run-2``) in one session: same pose and fields, other noise.
    say
        Told one line an image.
    """
    truth = truth or out / "derivatives" / "truth"
    _write_description(out, "Simulated travelling subjects", "raw")
    write_text(out / "README", _HEADS_README)
    _write_description(truth, "Truth of simulated travelling subjects", "derivative")
    write_text(truth / "README", _TRUTH_README)
    write_text(truth / ".bidsignore", BIDSIGNORE)
    rows = [(f"sub-{number:02d}", "n/a") for number in range(1, len(labels) + 1)]
    write_tsv(out / "participants.tsv", [("participant_id", "site"), *rows])
    write_json(out / "participants.json", {"site": _SITE_COLUMN})
    known = {scanner.name: scanner for scanner in scanners}
    for number, path in enumerate(labels, start=1):
        visits = [
            _Visit(f"{number:02d}", name, tuple(s for s in sequences if s in scanner.protocols), name)
            for name, scanner in known.items()
        ]
        person = seed * 1000 + number
        head = head_from_labels(path, person)
        _write_visits(out, truth, head, visits, known, person, NECK, say, rescan)


def pose(head: Head, seed: int) -> Head:
    """Lay the head into a scanner as a careful operator would: up to 6 degrees and 8 mm off, not scaled."""
    move = random_affine(np.random.default_rng([seed, 3]), head.brain_centre, 6.0, 8.0, 0.0)
    return transform_head(head, move)


def _write_visits(
    out: Path,
    truth: Path | None,
    head: Head,
    visits: Iterable[_Visit],
    scanners: Mapping[str, Scanner],
    person: int,
    neck: float,
    say: Say,
    rescan: bool = False,
) -> None:
    sessions = []
    for visit in visits:
        sub = f"sub-{visit.participant}"
        parts = [sub] + ([f"ses-{visit.session}"] if visit.session else [])
        # Pose, fields and noise depend on the scanner's name, not on the order of the command line.
        place = zlib.crc32(f"{person} {visit.scanner}".encode())
        placed = pose(head, place)
        if truth:
            write_pose(truth.joinpath(*parts, "anat"), "_".join(parts), head, placed)
        for sequence, run in itertools.product(visit.sequences, (1, 2) if rescan else (0,)):
            stem = "_".join(parts + ([f"run-{run}"] if run else []))
            scan = acquire(placed, scanners[visit.scanner], sequence, place, neck, noise_seed=run)
            _write_scan(out.joinpath(*parts, "anat"), stem, sequence, scan)
            if truth:
                write_truth(truth.joinpath(*parts, "anat"), stem, sequence, placed, scan)
            shape = " x ".join(map(str, scan.image.shape))
            say(f"{stem}_{sequence}: {shape} voxels, scanner {visit.scanner}")
        if visit.session:
            sessions.append((f"ses-{visit.session}", visit.scanner))
    if sessions:
        write_tsv(out / sub / f"{sub}_sessions.tsv", [("session_id", "site"), *sessions])
        write_json(out / sub / f"{sub}_sessions.json", _SESSION_COLUMNS)


def _write_scan(folder: Path, stem: str, sequence: str, scan: Acquisition) -> None:
    save_image(scan.image, folder / f"{stem}_{sequence}.nii.gz")
    write_json(folder / f"{stem}_{sequence}.json", scan.metadata)


def _write_description(folder: Path, name: str, kind: str) -> None:
    description: dict[str, Any] = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": kind,
        "License": "CC0",
        "Authors": ["The mmh_bids team"],
        "HowToAcknowledge": "Simulated images; nobody was scanned.",
    }
    if kind == "raw":
        description["GeneratedBy"] = [{"Name": "mmh-simulate"}]
    else:
        description["GeneratedBy"] = [{"Name": "truth", "Version": __version__, "Description": "mmh-simulate heads"}]
        description["SourceDatasets"] = [{"URL": "../.."}]
    write_json(folder / "dataset_description.json", description)


_SAMPLE_README = """\
# Simulated sample of mmh_bids

Four heads that never lived, on three scanners that do not exist: T1w and T2w images computed from signal
equations. Brains come from the ICBM152 2009a tissue maps (deformed at random), skull and scalp are geometry.
Everything about the participants is made up.

- sub-01 travelled to all three scanners; its sessions are sites (A, B, C).
- sub-02 has a T1w and a T2w image, sub-03 a T1w image only, sub-04 a T2w image only.

Voxels are coarse (1.6 to 3 mm) to keep the files small. Made by `mmh-simulate sample`.
"""

_HEADS_README = """\
# Simulated travelling subjects

Every participant is one label map, scanned on every simulated scanner; sessions are sites. Made by
`mmh-simulate heads`.
"""

_TRUTH_README = """\
# Truth of simulated travelling subjects

For each image, on its grid (`*` is `T1w` or `T2w`):

- `desc-brain*_mask`: true brain mask (brain and the fluid around it);
- `desc-tissue*_dseg`: main tissue of each voxel, named in the sidecar;
- `desc-regions*_dseg`: codes of the participant's label map (FreeSurfer's; above 500 outside the brain);
- `desc-noisefree_*`: the image before noise and rounding, with the scanner's contrast, fields and ghosts;
- `desc-unified_*`: the same anatomy in the unified look, 0 to 1, the same contrast for every scanner: no fields, no
  ghosts, no noise, but this grid's partial volumes.

For each session `from-scanner_to-head_mode-image_desc-pose_xfm.json`: `Matrix` (4 x 4, RAS+ millimetres) takes world
coordinates of the session's images to those of the label map, the same for all sessions of a participant. A point p
of session P lies in session Q at inverse(Matrix of Q) x (Matrix of P) x p.
"""
