"""Example pages of every kind, for the tests in a browser: each function writes one page and returns its path."""

import dataclasses
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from mmh_bids.cli.group import run_group
from mmh_bids.evaluation import group_probes
from mmh_bids.reports.boilerplate import MethodsFacts, methods_text
from mmh_bids.reports.figures import draw_figures
from mmh_bids.reports.participant import ImageRecord, write_participant_report

QC = {
    "MappedGradientCorrelation": 0.992, "GradientCorrelation": 0.95, "RangeMin": 0.0, "RangeMax": 1183.4,
    "Finite": True, "NonNegative": True, "IntensityMapMonotone": True, "BrainMaskVolume": 1389.0,
    "ParenchymaVolumeBefore": 1115.0, "ParenchymaVolumeAfter": 1131.0, "ReferenceDistanceBefore": 0.08,
    "ReferenceDistanceAfter": 0.02, "GridCoverage": 0.9983, "TemplateDice": 0.9525,
}  # fmt: skip
HARMONIZATION = {
    "Method": "mmh-light", "Model": "mmh-light", "ModelSHA256": "0e895f278d0bb50f" * 4, "Target": "site:sim-A",
    "Seed": 0, "Skull": "strip", "BiasCorrection": "n4", "Device": "cpu",
    "Details": {"Stage": 2, "Sampler": "two passes", "Steps": 2},
    "BrainExtraction": {"Method": "deepbet"}, "Registration": {"Method": "affine, own registration", "Dice": 0.9525},
    "Warnings": ["The reference of this bundle was made from 30 people: look at the histograms."],
}  # fmt: skip
MAP = {
    "Input": [0.0, 0.5, 1.0], "Output": [0.0, 0.6, 1.0], "SlopeBelow": 1.0, "SlopeAbove": 1.0,
    "InputScale": [0.0, 1000.0], "OutputScale": [0.0, 100.0],
}  # fmt: skip


def make_participant_page(folder: Path) -> Path:
    """A participant with images that are done, to look at, beyond use, excluded, failed and skipped."""
    figures = _figures(folder, "sub-01_ses-A")
    done = {"sequence": "T1w", "figures": figures, "harmonization": HARMONIZATION, "site": "Köln"}
    made = (Path("sub-01/ses-A/anat/sub-01_ses-A_desc-preproc_T1w.nii.gz"),)
    records = [
        ImageRecord("sub-01_ses-A_T1w", qc=QC, outputs=made, **done),
        ImageRecord("sub-01_ses-B_T1w", qc=QC | {"GridCoverage": 0.97}, **done),
        ImageRecord("sub-01_ses-C_T1w", qc=QC | {"IntensityMapMonotone": False}, **done),
        ImageRecord(
            "sub-01_ses-D_acq-averylongnamethatnobodywouldchoose_rec-norm_run-01_T1w", status="excluded",
            reason="sub-01_ses-D_T1w.nii.gz: not kept, as a quality value is beyond use", qc=QC | {"GridCoverage": 0.5},
            **done,
        ),
        ImageRecord("sub-01_ses-E_T2w", "T2w", status="failed", reason="sub-01_ses-E_T2w.nii.gz: every voxel is 0"),
        ImageRecord("sub-01_ses-F_part-phase_T2w", "T2w", status="skipped", reason="a phase image"),
    ]  # fmt: skip
    facts = MethodsFacts("mmh-light", "mmh-light", "site:sim-A", versions={"mmh_bids": "0.1.0", "nipype": "1.11.0"})
    errors = ["sub-01_ses-E_T2w: every voxel is 0\nTraceback (most recent call last):\n  " + "long_line_" * 60]
    command = "mmh ds out participant --target site:sim-A --output-spaces MNI152NLin2009aSym:res-1"
    software = {"nibabel": "5.4.2", "torch": "2.13.0", "bids-validator-deno": "3.0.2"}
    return write_participant_report(
        folder, "01", records, methods_text(facts), errors, "0.1.0", command, software=software
    )


def make_clean_participant_page(folder: Path) -> Path:
    """A participant whose one image is done, and nothing stands out."""
    record = ImageRecord(
        "sub-02_T1w", "T1w", qc=QC, harmonization=HARMONIZATION, figures=_figures(folder, "sub-02_ses-A")
    )
    return write_participant_report(folder, "02", [record], "Methods [@x].", [], "0.1.0", "mmh a b participant")


def make_failed_participant_page(folder: Path) -> Path:
    """A participant whose only image failed, of a run with --sloppy."""
    record = ImageRecord("sub-03_T1w", "T1w", status="failed", reason="sub-03_T1w.nii.gz: truncated; copy it again")
    return write_participant_report(
        folder, "03", [record], "", ["sub-03_T1w: truncated"], "0.1.0", "mmh a b participant", sloppy=True
    )


def _figures(folder: Path, stem: str) -> tuple[Path, ...]:
    """All figures of a brain like an egg, brighter to the right and the front."""
    shape = (44, 54, 48)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    distance = (grid**2).sum(0)
    mask = distance < 0.5
    tissue = 500 + 250 * np.cos(9 * distance) + 100 * grid[0] + 80 * grid[1]
    before = np.where(mask, tissue + np.random.default_rng(0).normal(0, 20, shape), 0)
    after = np.where(mask, 100 * np.interp(before / 1000, MAP["Input"], MAP["Output"]) + 5 * grid[0], 0)
    affine = nib.affines.from_matvec(np.diag([3.6, 3.6, 3.6]), [-80, -110, -75])
    paths = []
    for name, data in (("before", before), ("after", after), ("mask", mask)):
        paths.append(folder / "images" / f"{name}.nii")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(data.astype(np.float32), affine).to_filename(paths[-1])
    return tuple(
        draw_figures(
            *paths, folder / "sub-01" / "figures", stem, "T1w", MAP, np.linspace(0.1, 0.9, 64), registration=paths[0]
        )
    )


def make_group_page(folder: Path) -> Path:
    """The report of a group of three sites, with travelling people, flagged and failed images."""
    benchmarks = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, benchmarks)
    try:
        from group_data import write_outputs
    finally:
        sys.path.remove(benchmarks)
    settings = write_outputs(
        folder / "out", folder / "raw", people=15, sites=("Utrecht", "Genève <1>", "北京"), travellers=2, flagged=2,
        failed=1,
    )  # fmt: skip
    usual, group_probes.PERMUTATIONS = group_probes.PERMUTATIONS, 9  # an example need not wait for a null
    try:
        assert run_group(dataclasses.replace(settings, modalities=("T1w",))) == 0
    finally:
        group_probes.PERMUTATIONS = usual
    return folder / "out" / "group_T1w.html"
