"""Harmonization of one preprocessed image: to the model grid, through the method, back to its own grid."""

from __future__ import annotations

from collections.abc import Sequence

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from mmh_bids.interfaces.harmonize import Harmonize, Transport
from mmh_bids.interfaces.preprocess import ModelGrid
from mmh_bids.workflows.resources import node_gb


def init_harmonize_anat_wf(
    *,
    source_file: str,
    sequence: str,
    method: str,
    model: str,
    bundle_sha256: str,
    shape: Sequence[int],
    affine: Sequence[Sequence[float]],
    target: str = "unified",
    site: str | None = None,
    seed: int = 0,
    output_max: float = 1000.0,
    reference_quantiles: Sequence[float] | None = None,
    skull: str = "strip",
    with_reference: bool = False,
    method_gb: float = 0.5,
    device: str = "cpu",
    lock_dir: str = ".",
    volume_gb: float = 0.07,
    name: str = "harmonize_anat_wf",
) -> pe.Workflow:
    """Build the harmonization graph of one image.

    Parameters
    ----------
    sequence
        ``T1w`` or ``T2w``.
    method, model, bundle_sha256
        Method name, bundle name or folder, and the bundle's hash.
    shape, affine
        The model grid.
    target, seed
        What the method is asked for.
    site
        Label of the site that the image comes from, where it is known.
    output_max
        Value written for 1 of the target's scale.
    reference_quantiles
        Of the target, model units: for the distance before and after.
    skull
        ``strip`` zeroes, ``keep`` maps what lies outside the brain.
    with_reference
        ``image:`` targets: the inputnode's ``reference`` and ``reference_mask`` are connected.

    Inputs
    ------
    corrected, mask, xfm
        Outputs of `init_anat_preproc_wf`.
    reference, reference_mask
        Reference image on the model grid.

    Outputs
    -------
    harmonized
        Harmonized image, own grid, RAS+ axes.
    model_before, model_mask
        What the method got.
    qc_file
        JSON: QC scalars, intensity map, details of the method.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["corrected", "mask", "xfm", "reference", "reference_mask"]),
        name="inputnode",
    )
    outputnode = pe.Node(
        niu.IdentityInterface(fields=["harmonized", "model_before", "model_mask", "qc_file"]),
        name="outputnode",
    )
    model_grid = pe.Node(
        ModelGrid(shape=tuple(int(n) for n in shape), affine=[[float(v) for v in row] for row in affine]),
        name="model_grid",
        mem_gb=node_gb(5, volume_gb),
    )
    harmonize = pe.Node(
        Harmonize(
            source_file=source_file, sequence=sequence, method=method, model=model, bundle_sha256=bundle_sha256,
            target=target, seed=seed, device=device, lock_dir=lock_dir,
        ),
        name="harmonize",
        mem_gb=method_gb,
    )  # fmt: skip
    if site:
        harmonize.inputs.site = site
    transport = pe.Node(
        Transport(sequence=sequence, skull=skull, output_max=output_max),
        name="transport",
        mem_gb=node_gb(6, volume_gb, base=0.5),
    )
    if reference_quantiles is not None:
        transport.inputs.reference_quantiles = [float(value) for value in reference_quantiles]
    workflow.connect([
        (inputnode, model_grid, [("corrected", "in_file"), ("mask", "mask_file"), ("xfm", "xfm_file")]),
        (model_grid, harmonize, [("out_file", "in_file"), ("mask_file", "mask_file")]),
        (inputnode, transport, [("corrected", "in_file"), ("mask", "mask_file"), ("xfm", "xfm_file")]),
        (model_grid, transport, [
            ("out_file", "before_file"), ("mask_file", "model_mask"), ("facts_file", "grid_file"),
        ]),
        (harmonize, transport, [("out_file", "after_file"), ("facts_file", "harmonize_file")]),
        (model_grid, outputnode, [("out_file", "model_before"), ("mask_file", "model_mask")]),
        (transport, outputnode, [("out_file", "harmonized"), ("qc_file", "qc_file")]),
    ])  # fmt: skip
    if with_reference:
        workflow.connect(inputnode, "reference", harmonize, "reference_file")
        workflow.connect(inputnode, "reference_mask", harmonize, "reference_mask")
    return workflow
