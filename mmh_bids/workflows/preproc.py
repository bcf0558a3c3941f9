"""Preprocessing of one image: check, brain mask, bias field, affine to the template."""

from __future__ import annotations

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from mmh_bids.interfaces.preprocess import (
    CheckImage,
    CoregisterT2w,
    CorrectBias,
    ExtractBrain,
    RegisterToTemplate,
    ReuseMask,
    ReuseTransform,
)
from mmh_bids.workflows.resources import BASE_GB, NETWORK_GB, WARP_GB, node_gb


def init_anat_preproc_wf(
    *,
    source_file: str,
    volume_gb: float = 0.07,
    omp_nthreads: int = 1,
    skull_strip: str = "auto",
    bias_correction: str = "n4",
    device: str = "cpu",
    lock_dir: str = ".",
    sloppy: bool = False,
    through_t1w: bool = False,
    reuse_mask: bool = False,
    reuse_xfm: bool = False,
    name: str = "anat_preproc_wf",
) -> pe.Workflow:
    """Build the preprocessing graph of one T1w or T2w image.

    Parameters
    ----------
    source_file
        The source image's path as messages should name it.
    volume_gb
        Size of one float32 copy of the image.
    skull_strip
        ``auto`` recognises stripped images, ``skip`` takes the image's support, ``force`` always extracts.
    bias_correction
        ``n4`` or ``none``.
    through_t1w
        A T2w whose T1w is at hand: its mask and transform are borrowed through a rigid registration
        where that measures better.
    reuse_mask, reuse_xfm
        The inputnode's ``mask_file``/``xfm_file`` come from another pipeline: there is no ``extract_brain``, no
        ``register``. (A composite without an affine is told only by reading it: ``reuse_xfm`` then registers.)

    Inputs
    ------
    in_file
        Source image.
    t1w_corrected, t1w_mask, t1w_xfm
        The T1w's outputs of the same names, with `through_t1w`.
    mask_file, mask_xfm, xfm_file, xfm_orig
        Files of another pipeline, with `reuse_mask`/`reuse_xfm`: mask and transform to the template, and the
        transforms from the image to the space of each, where that is not the image's own.

    Outputs
    -------
    canonical, corrected
        Image with RAS+ axes, before and after bias correction.
    mask, mask_facts
        Brain mask on that grid; method and volume.
    xfm, xfm_facts
        ITK affine from the image to the template; how well the brains match.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(
            fields=[
                "in_file",
                "t1w_corrected",
                "t1w_mask",
                "t1w_xfm",
                "mask_file",
                "mask_xfm",
                "xfm_file",
                "xfm_orig",
            ]
        ),
        name="inputnode",
    )
    outputnode = pe.Node(
        niu.IdentityInterface(fields=["canonical", "corrected", "mask", "mask_facts", "xfm", "xfm_facts"]),
        name="outputnode",
    )
    # a float64 source is two float32 copies before it becomes one
    check = pe.Node(CheckImage(), name="check", mem_gb=node_gb(4, volume_gb))
    correct_bias = pe.Node(
        CorrectBias(method=bias_correction, sloppy=sloppy), name="correct_bias", mem_gb=node_gb(7, volume_gb)
    )
    register_gb = node_gb(4, volume_gb, base=0.4)
    if reuse_xfm:
        # a composite's displacement field comes with it
        register = pe.Node(ReuseTransform(sloppy=sloppy), name="reuse_xfm", mem_gb=register_gb + WARP_GB)
    else:
        register = pe.Node(RegisterToTemplate(sloppy=sloppy), name="register", mem_gb=register_gb)
    workflow.connect([
        (inputnode, check, [("in_file", "in_file")]),
        (check, correct_bias, [("out_file", "in_file")]),
        (check, outputnode, [("out_file", "canonical")]),
        (correct_bias, register, [("out_file", "in_file")]),
        (correct_bias, outputnode, [("out_file", "corrected")]),
        (register, outputnode, [("xfm_file", "xfm"), ("facts", "xfm_facts")]),
    ])  # fmt: skip
    if reuse_xfm:
        workflow.connect([(inputnode, register, [("xfm_file", "reused_xfm"), ("xfm_orig", "reused_orig")])])

    if reuse_mask:
        brain = pe.Node(ReuseMask(), name="reuse_mask", mem_gb=node_gb(3, volume_gb))
        workflow.connect(inputnode, "mask_file", brain, "mask_file")
        workflow.connect(inputnode, "mask_xfm", brain, "xfm_file")
    else:
        brain = pe.Node(
            ExtractBrain(
                source_file=source_file,
                mode=skull_strip,
                device=device,
                threads=omp_nthreads,
                lock_dir=lock_dir,
            ),
            name="extract_brain",
            mem_gb=node_gb(8, volume_gb, base=NETWORK_GB if skull_strip != "skip" else BASE_GB),
            n_procs=omp_nthreads if skull_strip != "skip" else 1,
        )
    workflow.connect(check, "out_file", brain, "in_file")

    mask_node = brain
    if through_t1w:
        coregister = pe.Node(CoregisterT2w(), name="coregister", mem_gb=node_gb(7, volume_gb, base=0.6))
        workflow.connect([
            (check, coregister, [("out_file", "in_file")]),
            (brain, coregister, [("mask_file", "mask_file"), ("facts", "facts")]),
            (inputnode, coregister, [("t1w_corrected", "t1w_file"), ("t1w_mask", "t1w_mask"), ("t1w_xfm", "t1w_xfm")]),
            (coregister, register, [("candidate_xfm", "candidate_xfm")]),
        ])  # fmt: skip
        mask_node = coregister
    workflow.connect([
        (mask_node, correct_bias, [("mask_file", "mask_file")]),
        (mask_node, register, [("mask_file", "mask_file")]),
        (mask_node, outputnode, [("mask_file", "mask"), ("facts", "mask_facts")]),
    ])  # fmt: skip
    return workflow
