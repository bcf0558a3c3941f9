"""Travelling subjects for `travelling.py`: simulated once, harmonized by the app, read back.

One folder a head below the work folder: ``raw`` (dataset with the truth), ``app`` (the app's work directory, shared by
all methods, so that preprocessing runs once) and ``out/METHOD``. All of it is kept and reused by the next call. A call
with one sequence has ``app-T1w`` and ``out-T1w`` of its own: with the T1w at hand a T2w borrows its brain mask.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from common import label_maps
from numpy.typing import NDArray

from mmh_bids import __version__
from mmh_bids.evaluation.smoothing import smooth_inside
from mmh_bids.image.grid import open_nifti
from mmh_bids.simulate.dataset import write_heads
from mmh_bids.simulate.files import write_json, write_tsv
from mmh_bids.simulate.scanner import Scanner, load_scanners
from mmh_bids.simulate.unified import IDEAL

#: Preprocessing only, what the benchmark makes of it itself, and what the simulator knows: the unified truth on each
#: image's own grid, with its slices. No method can be asked for more that leaves voxels as they are.
PLAIN, BLUR, TRUTH = "none", "blur", "truth"
MADE_HERE = (BLUR, TRUTH)
BLUR_FWHM = 4.0
#: The session of the unified look; noise of a scan averaged until it cannot be seen.
UNIFIED = IDEAL.name
_NO_NOISE = 1e4
SUBJECT = "sub-01"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """What is simulated and run."""

    work: Path
    heads: tuple[int, ...]
    scanners: tuple[str, ...]
    sequences: tuple[str, ...]
    methods: tuple[str, ...]
    models: Mapping[str, str] = field(default_factory=dict)
    nprocs: int = 1
    device: str | None = None

    @property
    def rescanned(self) -> str:
        """The scanner on which everybody is scanned twice."""
        return self.scanners[0]

    @property
    def app_methods(self) -> tuple[str, ...]:
        """What the app runs: preprocessing only first, as the others reuse its steps."""
        return (PLAIN, *(name for name in self.methods if name not in (PLAIN, *MADE_HERE)))

    def folder(self, head: int) -> Path:
        return self.work / f"head-{head:02d}"

    def of_app(self, head: int, name: str) -> Path:
        """``app`` or ``out`` of a head."""
        return self.folder(head) / (name if len(self.sequences) > 1 else f"{name}-{self.sequences[0]}")

    def visits(self) -> tuple[str, ...]:
        """Stems of one head's images that take part in the comparison between scanners."""
        return tuple(self.first(name) for name in self.scanners)

    def first(self, scanner: str) -> str:
        run = "_run-1" if scanner == self.rescanned else ""
        return f"{SUBJECT}_ses-{scanner}{run}"

    @property
    def rescan(self) -> str:
        return f"{SUBJECT}_ses-{self.rescanned}_run-2"

    @property
    def unified(self) -> str:
        return f"{SUBJECT}_ses-{UNIFIED}"


def label_map(head: int) -> Path:
    """The label map ``head-NN``."""
    for path in label_maps():
        if path.name.startswith(f"head-{head:02d}_"):
            return path
    raise SystemExit(f"no label map of head {head}")


def person(head: int) -> int:
    """Seed of a head, as `write_heads` makes it of its own seed for the first participant."""
    return head * 1000 + 1


def simulate(study: Study, head: int, say: Say) -> None:
    """Write what is not there yet: each scanner, the rescan, the unified look; sequence by sequence."""
    raw, known = study.folder(head) / "raw", load_scanners()
    ideal = IDEAL.changed({sequence: {"snr": _NO_NOISE} for sequence in IDEAL.protocols})
    scanners = [*(known[name] for name in study.scanners), ideal]
    for scanner in scanners:
        for sequence in study.sequences:
            _simulate_one(study, head, scanner, sequence, say)
    present = sorted(path.name.removeprefix("ses-") for path in (raw / SUBJECT).glob("ses-*"))
    rows = [(f"ses-{name}", name) for name in present]
    write_tsv(raw / SUBJECT / f"{SUBJECT}_sessions.tsv", [("session_id", "site"), *rows])


def _simulate_one(study: Study, head: int, scanner: Scanner, sequence: str, say: Say) -> None:
    """One sequence on one scanner, unless the very same was written before."""
    rescan = scanner.name == study.rescanned
    folder = study.folder(head)
    key = {"scanner": repr(scanner), "rescan": rescan, "head": label_map(head).name, "version": __version__}
    marker = folder / "simulated" / f"{scanner.name}_{sequence}.json"
    if marker.is_file() and json.loads(marker.read_text()) == key:
        return
    for root in ("raw", "raw/derivatives/truth"):
        for path in (folder / root / SUBJECT / f"ses-{scanner.name}" / "anat").glob(f"*{sequence}*"):
            path.unlink()
    write_heads(
        folder / "raw", [label_map(head)], [scanner], sequences=[sequence], seed=head, rescan=rescan,
        say=lambda line: say(f"head {head}: {line}"),
    )  # fmt: skip
    write_json(marker, key)


def run_app(study: Study, head: int, method: str) -> float:
    """Harmonize all images of a head; the app leaves alone what is done already. Returns seconds."""
    command = [sys.executable, "-m", "mmh_bids.cli.run", str(study.folder(head) / "raw")]
    command += [str(study.of_app(head, "out") / method), "participant", "-w", str(study.of_app(head, "app"))]
    command += ["--method", method, "--nprocs", str(study.nprocs)]
    command += ["--omp-nthreads", "1", "--modalities", *study.sequences]
    command += ["--session-label", *study.scanners, UNIFIED]
    if study.device:
        command += ["--device", study.device]
    if method in study.models:
        command += ["--model", study.models[method]]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mmh --method {method} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return time.perf_counter() - start


def anat(study: Study, head: int, method: str, stem: str) -> Path:
    """Folder of an image's derivatives."""
    session = stem.split("_")[1]
    return study.of_app(head, "out") / method / SUBJECT / session / "anat"


def sidecar(study: Study, head: int, method: str, stem: str, sequence: str) -> dict:
    """The `Harmonization` object of an output."""
    path = anat(study, head, method, stem) / f"{stem}_desc-harmonized_{sequence}.json"
    return json.loads(path.read_text())["Harmonization"]


def brain_mask(study: Study, head: int, stem: str, sequence: str, method: str = PLAIN) -> NDArray[np.bool_]:
    """The brain mask that the app found, on the image's grid; the same whatever the method."""
    desc = "brain" if sequence == "T1w" else f"brain{sequence}"
    path = anat(study, head, method, stem) / f"{stem}_desc-{desc}_mask.nii.gz"
    return np.asanyarray(open_nifti(path).dataobj) > 0


def check_masks(study: Study, head: int, sequence: str, method: str, stems: Iterable[str]) -> None:
    """Stop where a method's images were preprocessed in another way than those of preprocessing only.

    A T2w that is resumed when its T1w is done goes on without it, and has another mask then.
    """
    for stem in stems:
        plain = brain_mask(study, head, stem, sequence)
        if method not in MADE_HERE and not np.array_equal(plain, brain_mask(study, head, stem, sequence, method)):
            out = study.of_app(head, "out")
            raise SystemExit(
                f"{stem}_{sequence}: the brain masks of {PLAIN} and {method} differ; remove {out / PLAIN} and "
                f"{out / method} and run the same command again"
            )


def output(study: Study, head: int, method: str, stem: str, sequence: str) -> nib.Nifti1Image:
    """What a method made of an image, in units of its scale: 1 is about the brightest of the brain.

    Preprocessing only knows no common scale: there it is the image's own, as the app writes it in the sidecar.
    """
    if method == TRUTH:
        unified = truth(study, head, stem, f"desc-unified_{sequence}")
        inside = brain_mask(study, head, stem, sequence)
        return nib.Nifti1Image(np.where(inside, unified.get_fdata(dtype=np.float32), 0), unified.affine)
    source = PLAIN if method == BLUR else method
    image = open_nifti(anat(study, head, source, stem) / f"{stem}_desc-harmonized_{sequence}.nii.gz")
    low, high = sidecar(study, head, source, stem, sequence)["OutputScale"]
    data = (image.get_fdata(dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    if method == BLUR:
        zooms = np.linalg.norm(image.affine[:3, :3], axis=0)
        data = smooth_inside(data, brain_mask(study, head, stem, sequence), BLUR_FWHM, zooms)
    return nib.Nifti1Image(data, image.affine)


def truth(study: Study, head: int, stem: str, name: str) -> nib.Nifti1Image:
    """A truth file of `write_heads`, by what comes after the stem."""
    session = stem.split("_")[1]
    folder = study.folder(head) / "raw" / "derivatives" / "truth" / SUBJECT / session / "anat"
    return open_nifti(folder / f"{stem}_{name}.nii.gz")


def pose(study: Study, head: int, stem: str) -> NDArray[np.float64]:
    """Map from the world of a session's images to that of the label map, (4, 4)."""
    session = "_".join(stem.split("_")[:2])
    folder = study.folder(head) / "raw" / "derivatives" / "truth" / SUBJECT / stem.split("_")[1] / "anat"
    facts = json.loads((folder / f"{session}_from-scanner_to-head_mode-image_desc-pose_xfm.json").read_text())
    return np.array(facts["Matrix"], float)
