"""Scans, truth and outputs for `target.py`: a folder a head, ``raw`` (with the truth) and ``none`` (preprocessing)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from travelling_data import label_map, person

from mmh_bids.image.grid import open_nifti
from mmh_bids.image.registration import read_matrix
from mmh_bids.image.transport import ModelVolumes, Scale, transport
from mmh_bids.simulate import tissues
from mmh_bids.simulate.acquire import signal_volume
from mmh_bids.simulate.dataset import write_heads
from mmh_bids.simulate.phantom import Head, head_from_labels, transform_head
from mmh_bids.simulate.sampling import voxel_average
from mmh_bids.simulate.scanner import load_scanners

SUBJECT = "sub-01"
SPACE = "space-MNI152NLin2009aSym"


def prepare(folder: Path, label: Path, seed: int, scanners: Sequence[str], say: Callable[[str], None]) -> None:
    """Simulate a head on all scanners and preprocess; what is there already is left alone."""
    raw, known = folder / "raw", load_scanners()
    missing = [known[name] for name in scanners if not (raw / SUBJECT / f"ses-{name}").is_dir()]
    if missing:
        # all at once: the list of sessions is written with them
        write_heads(raw, [label], [known[name] for name in scanners], seed=seed, say=say)
    command = [sys.executable, "-m", "mmh_bids.cli.run", str(raw), str(folder / "none"), "participant"]
    command += ["--method", "none", "-w", str(folder / "app"), "--nprocs", "1", "--omp-nthreads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mmh --method none ended with {done.returncode}:\n{done.stderr[-3000:]}")


@dataclass(frozen=True)
class Scan:
    """One simulated scan with its truth and what preprocessing made of it; arrays with RAS+ axes."""

    folder: Path
    head: Head
    scanner: str
    sequence: str
    subject: str = SUBJECT

    @classmethod
    def of(cls, folder: Path, number: int, scanner: str, sequence: str) -> Scan:
        """A scan of the benchmark's head `number`, in its folder."""
        return cls(folder, head_from_labels(label_map(number), person(number)), scanner, sequence)

    def _anat(self, root: str) -> tuple[Path, str]:
        session = f"ses-{self.scanner}"
        return self.folder / root / self.subject / session / "anat", f"{self.subject}_{session}"

    def _image(self, root: str, name: str) -> nib.Nifti1Image:
        anat, stem = self._anat(root)
        return nib.as_closest_canonical(open_nifti(anat / f"{stem}_{name}.nii.gz"))

    def _truth(self, name: str) -> NDArray:
        return np.asanyarray(self._image("raw/derivatives/truth", name).dataobj)

    @property
    def labels(self) -> NDArray[np.int16]:
        return self._truth(f"desc-regions{self.sequence}_dseg")

    @property
    def tissue(self) -> NDArray[np.uint8]:
        return self._truth(f"desc-tissue{self.sequence}_dseg")

    @property
    def affine(self) -> NDArray[np.float64]:
        return self._image("none", f"desc-preproc_{self.sequence}").affine

    @property
    def scale(self) -> Scale:
        anat, stem = self._anat("none")
        facts = json.loads((anat / f"{stem}_desc-harmonized_{self.sequence}.json").read_text())["Harmonization"]
        return Scale(*facts["InputScale"])

    @property
    def preprocessed(self) -> NDArray[np.float32]:
        return self._image("none", f"desc-preproc_{self.sequence}").get_fdata(dtype=np.float32)

    @property
    def brain(self) -> NDArray[np.bool_]:
        """The brain mask that the app found."""
        name = "desc-brain_mask" if self.sequence == "T1w" else "desc-brainT2w_mask"
        return np.asanyarray(self._image("none", name).dataobj) > 0

    @property
    def true_brain(self) -> NDArray[np.bool_]:
        return self._truth(f"desc-brain{self.sequence}_mask") > 0

    @property
    def model(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The brain on the model grid, [0, 1], and the grid's affine."""
        image = self._image("none", f"{SPACE}_desc-model_{self.sequence}")
        return image.get_fdata(dtype=np.float32), image.affine

    def look_of(self, scanner: str) -> NDArray[np.float32]:
        """What this scan's own voxels show of the head with another scanner's contrast: no field, noise or ghosts.

        Units of an average person's white matter there.
        """
        target = replace(load_scanners()[scanner], transmit=0.0)
        anat, stem = self._anat("raw/derivatives/truth")
        pose = json.loads((anat / f"{stem}_from-scanner_to-head_mode-image_desc-pose_xfm.json").read_text())
        placed = transform_head(self.head, np.linalg.inv(np.array(pose["Matrix"])))
        protocol = target.protocol(self.sequence)
        volume, _ = signal_volume(placed, target, protocol)
        white = protocol.signals(tissues.relaxation(target.field))[tissues.WHITE]
        seen = voxel_average(volume / np.float32(white), placed.affine, self.brain.shape, self.affine)
        return np.where(self.true_brain, seen, 0).astype(np.float32)

    def carried(self, after: NDArray[np.float32], kept_scale: bool = False) -> NDArray[np.float32]:
        """A harmonizer's output on the model grid carried to the scan's own grid, [0, 1], as the app does it."""
        before, grid = self.model
        anat, stem = self._anat("none")
        matrix = read_matrix(anat / f"{stem}_from-{self.sequence}_to-MNI152NLin2009aSym_mode-image_xfm.txt")
        model = ModelVolumes(before, after, before > 0, grid, np.linalg.inv(matrix))
        scale = self.scale
        out, _ = transport(
            self.preprocessed, self.affine, self.brain, model, scale, scale if kept_scale else Scale(0.0, 1.0)
        )
        return out
