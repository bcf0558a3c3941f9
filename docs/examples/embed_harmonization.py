"""Harmonize inside a workflow of one's own: what fMRIPrep's anatomical workflow hands on goes in, a next step follows.

As a program it runs that workflow on three files, for example of fMRIPrep's derivatives:

    python embed_harmonization.py sub-01_desc-preproc_T1w.nii.gz sub-01_desc-brain_mask.nii.gz \\
        sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5 --out results
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nipype.interfaces import io
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from mmh_bids.workflows.harmonize import init_harmonize_anat_wf


def brain_mean(in_file: str, mask_file: str) -> float:
    """The next step: mean intensity of the brain. Nipype runs it alone, so that it imports what it needs itself."""
    import nibabel as nib
    import numpy as np

    data, mask = (np.asanyarray(nib.load(file).dataobj) for file in (in_file, mask_file))
    return float(data[mask > 0].mean())


def init_my_anat_wf(out_dir: str, method: str = "mmh-light", model: str = "", name: str = "my_anat_wf") -> pe.Workflow:
    """A workflow whose ``inputnode`` has the names of fMRIPrep's outputs.

    Inputs
    ------
    t1w_preproc, t1w_mask, anat2std_xfm
        As the outputnode of sMRIPrep's anatomical workflow has them.

    Outputs
    -------
    t1w_harmonized
        The T1w image with the unified look, on the grid of ``t1w_preproc``.
    mean
        Its mean in the brain.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(["t1w_preproc", "t1w_mask", "anat2std_xfm"]), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(["t1w_harmonized", "mean"]), name="outputnode")
    harmonize_anat_wf = init_harmonize_anat_wf(sequence="T1w", method=method, model=model)
    mean = pe.Node(niu.Function(function=brain_mean, output_names=["out"]), name="mean")
    sink = pe.Node(io.DataSink(base_directory=out_dir, parameterization=False), name="sink")
    workflow.connect([
        (inputnode, harmonize_anat_wf, [
            ("t1w_preproc", "inputnode.anat_preproc"),
            ("t1w_mask", "inputnode.anat_mask"),
            ("anat2std_xfm", "inputnode.anat2std_xfm"),
        ]),
        (inputnode, mean, [("t1w_mask", "mask_file")]),
        (harmonize_anat_wf, mean, [("outputnode.anat_harmonized", "in_file")]),
        (harmonize_anat_wf, sink, [("outputnode.anat_harmonized", "anat.@image"), ("outputnode.qc_file", "anat.@qc")]),
        (harmonize_anat_wf, outputnode, [("outputnode.anat_harmonized", "t1w_harmonized")]),
        (mean, outputnode, [("out", "mean")]),
    ])  # fmt: skip
    return workflow


def main(argv: list[str] | None = None) -> float:
    """Run the workflow on three files; results lie in ``OUT/anat``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("t1w_preproc", "t1w_mask", "anat2std_xfm"):
        parser.add_argument(name, type=lambda text: str(Path(text).resolve()))
    parser.add_argument("--out", type=lambda text: str(Path(text).resolve()), required=True)
    parser.add_argument("--method", default="mmh-light")
    parser.add_argument("--model", default="", help="bundle; the one shipped for the method if not given")
    asked = parser.parse_args(argv)
    workflow = init_my_anat_wf(asked.out, asked.method, asked.model)
    workflow.base_dir = str(Path(asked.out) / "work")
    for name in ("t1w_preproc", "t1w_mask", "anat2std_xfm"):
        setattr(workflow.inputs.inputnode, name, getattr(asked, name))
    graph = workflow.run()
    value = next(node for node in graph.nodes() if node.name == "mean").result.outputs.out
    print(f"mean of the harmonized brain: {value:.1f}")
    return value


if __name__ == "__main__":
    main()
