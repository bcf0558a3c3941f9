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
    usual = group_probes.PERMUTATIONS
    group_probes.PERMUTATIONS = {"before": 9, "after": 9}  # an example need not wait for a null
    try:
        assert run_group(dataclasses.replace(settings, modalities=("T1w",))) == 0
    finally:
        group_probes.PERMUTATIONS = usual
    return folder / "out" / "group_T1w.html"


def make_evaluation_page(folder: Path) -> Path:
    """An evaluation of a method of each kind on T1w, and of data that cannot tell much on T2w."""
    # here, as the page of an evaluation needs what no other page does
    from mmh_bids.bids.derivatives import plain
    from mmh_bids.evaluation.assess import Assessment
    from mmh_bids.evaluation.sample import Row
    from mmh_bids.evaluation.study import Evaluation, Request, to_json
    from mmh_bids.evaluation.verdicts import EffectChange, Facts, Ratio, flags_of, ranking
    from mmh_bids.reports.evaluation import write_evaluation_page

    lost = (EffectChange("age", 0.7, 0.1, -0.9, -0.3),)
    same = Ratio(1.0, 1.0, 1.0)
    facts = {
        "identity": Facts(0.02, 1.0, 1.0, 1.0, Ratio(1.05, 1.01, 1.1), True, told=True),
        "preprocessing": Facts(0.0, 1.0, 1.0, 1.0, same, True, told=True),
        "blur": Facts(0.14, 0.86, 0.91, 0.9, Ratio(0.7, 0.6, 0.8), True, told=True),
        "mmh-light": Facts(0.08, 1.01, 0.98, 0.9, Ratio(0.45, 0.4, 0.5), True, told=False, told_before=True),
        "a-method-with-a-very-long-name_2": Facts(0.3, 1.0, 0.9, 0.8, Ratio(0.3, 0.2, 0.4), True, lost, False),
        "template": Facts(0.6, 0.8, 0.02, 0.1, Ratio(0.0, 0.0, 0.0), True, told=False),
    }
    rows = []
    for place, (name, one) in enumerate(facts.items()):
        error = one.sites.value / 3
        rows += [
            Row(name, "T1w", "travelling.MAE", error, 0.8 * error, 1.2 * error, 8, "24 pairs"),
            Row(name, "T1w", "rescan.MAE", 0.08 + place / 100, 0.06, 0.16, 8, "8 pairs"),
            Row(name, "T1w", "sites.regions.ratio", one.sites.value, one.sites.low, one.sites.high, 8),
            Row(name, "T1w", "probe.regions.linear SVM", 0.9 if one.told else 0.4, 0.2, 0.5, 40, "p = 0.01"),
            Row(name, "T1w", "effect.age", 0.7 - place / 10, 0.5 - place / 10, 0.8, 40, "correlation"),
        ]
    cannot = "cannot say: needs two sites with 4 people each at least; there are Zürich (2), Graz (1)"
    few = {name: Facts(change=facts[name].change, own_share=facts[name].own_share) for name in facts}
    assessments = {
        sequence: Assessment(
            sequence, own, known, (flags := {name: flags_of(one) for name, one in known.items()}), ranking(known, flags)
        )
        for sequence, own, known in (
            ("T1w", rows, facts),
            ("T2w", [Row("mmh-light", "T2w", "probe.regions", float("nan"), note=cannot)], few),
        )
    }
    names = ("mmh-light", "a-method-with-a-very-long-name_2", "template")
    found = Evaluation(
        Request(folder, folder, {name: folder / name for name in names}),
        assessments,
        {"T1w": 40, "T2w": 3},
        {"T1w": 24, "T2w": 3},
        {"T1w": ["Zürich", "Graz"], "T2w": ["Zürich", "Graz"]},
        {"T1w": ["template: 3 of 40 images are missing or cannot be read"], "T2w": []},
        ["out/template: no T1w of sub-07_ses-B; run the method on it again"],
    )
    return write_evaluation_page(folder / "evaluation.html", plain(to_json(found)))
