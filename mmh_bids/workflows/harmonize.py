"""Harmonization of one preprocessed image: to the model grid, through the method, back to its own grid."""

from __future__ import annotations

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from mmh_bids.interfaces.harmonize import Harmonize, Transport
from mmh_bids.interfaces.preprocess import ModelGrid
from mmh_bids.workflows.resources import node_gb
from mmh_bids.workflows.study import MethodFacts, gpu_lock_dir, method_facts


def init_harmonize_anat_wf(
    *,
    sequence: str,
    method: str = "mmh-light",
    model: str = "",
    target: str = "unified",
    site: str | None = None,
    seed: int = 0,
    skull: str = "strip",
    with_reference: bool = False,
    source_file: str = "the image",
    device: str = "cpu",
    lock_dir: str = "",
    volume_gb: float = 0.07,
    facts: MethodFacts | None = None,
    name: str = "harmonize_anat_wf",
) -> pe.Workflow:
    """Build the harmonization graph of one image, on its own or inside another workflow (docs/pipelines.md).

    Parameters
    ----------
    sequence
        ``T1w`` or ``T2w``.
    method, model
        Method, and bundle by name or folder (the one shipped for the method if empty), as of ``mmh``.
    target, seed
        What the method is asked for: ``unified``, ``site:LABEL`` or, with `with_reference`, ``image:PATH``.
    site
        Label of the site that the image comes from, where it is known.
    skull
        ``strip`` zeroes, ``keep`` maps what lies outside the brain.
    with_reference
        ``image:`` targets: the inputnode's ``reference`` and ``reference_mask`` are connected.
    source_file
        What messages call the image.
    device, lock_dir
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; folder in which processes queue for a GPU.
    volume_gb
        Size of one float32 copy of the image: nodes declare their memory by it.
    facts
        What is known of the bundle; without it the bundle is opened.

    Inputs
    ------
    anat_preproc
        The image without its bias field, as fMRIPrep's ``t1w_preproc``; any grid and orientation.
    anat_mask
        Brain mask on the same grid.
    anat2std_xfm
        ITK transform from the image to an MNI152 template; of a composite with a warp only the affine is used.
    reference, reference_mask
        Reference image on the model grid.

    Outputs
    -------
    anat_harmonized
        The harmonized image on the grid of ``anat_preproc``, float32.
    model_before, model_mask
        What the method got.
    qc_file
        JSON: QC scalars, intensity map, details of the method.

    Raises
    ------
    UsageError
        Unknown method, unusable bundle, or a target or sequence that it does not know.
    """
    facts = facts or method_facts(method, model, target, sequence)
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["anat_preproc", "anat_mask", "anat2std_xfm", "reference", "reference_mask"]),
        name="inputnode",
    )
    outputnode = pe.Node(
        niu.IdentityInterface(fields=["anat_harmonized", "model_before", "model_mask", "qc_file"]),
        name="outputnode",
    )
    model_grid = pe.Node(
        ModelGrid(shape=facts.shape, affine=facts.affine),
        name="model_grid",
        mem_gb=node_gb(5, volume_gb),
    )
    harmonize = pe.Node(
        Harmonize(
            source_file=source_file, sequence=sequence, method=method, model=facts.model,
            bundle_sha256=facts.bundle_sha256, target=target, seed=seed, device=device,
            lock_dir=lock_dir or str(gpu_lock_dir()),
        ),
        name="harmonize",
        mem_gb=facts.method_gb,
    )  # fmt: skip
    if site:
        harmonize.inputs.site = site
    transport = pe.Node(
        Transport(sequence=sequence, skull=skull, output_max=facts.output_max),
        name="transport",
        mem_gb=node_gb(6, volume_gb, base=0.5),
    )
    if facts.reference_quantiles is not None:
        transport.inputs.reference_quantiles = facts.reference_quantiles
    workflow.connect([
        (inputnode, model_grid, [
            ("anat_preproc", "in_file"), ("anat_mask", "mask_file"), ("anat2std_xfm", "xfm_file"),
        ]),
        (model_grid, harmonize, [("out_file", "in_file"), ("mask_file", "mask_file")]),
        (inputnode, transport, [
            ("anat_preproc", "in_file"), ("anat_mask", "mask_file"), ("anat2std_xfm", "xfm_file"),
        ]),
        (model_grid, transport, [
            ("out_file", "before_file"), ("mask_file", "model_mask"), ("facts_file", "grid_file"),
        ]),
        (harmonize, transport, [("out_file", "after_file"), ("facts_file", "harmonize_file")]),
        (model_grid, outputnode, [("out_file", "model_before"), ("mask_file", "model_mask")]),
        (transport, outputnode, [("out_file", "anat_harmonized"), ("qc_file", "qc_file")]),
    ])  # fmt: skip
    if with_reference:
        workflow.connect(inputnode, "reference", harmonize, "reference_file")
        workflow.connect(inputnode, "reference_mask", harmonize, "reference_mask")
    return workflow
