"""The whole graph of a call: one workflow an image, one a participant, one for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from mmh_bids.bids.dataset import dataset_links
from mmh_bids.bids.derivatives import OutputPaths
from mmh_bids.bids.reuse import Reusable, find_reusable
from mmh_bids.bids.run import Run
from mmh_bids.interfaces.features import MeasureFeatures
from mmh_bids.interfaces.outputs import DrawFigures, ToSpace, WriteDerivatives
from mmh_bids.interfaces.preprocess import ModelGrid, RegisterToTemplate
from mmh_bids.workflows.harmonize import init_harmonize_anat_wf
from mmh_bids.workflows.preproc import init_anat_preproc_wf
from mmh_bids.workflows.resources import node_gb, volume_gb
from mmh_bids.workflows.study import Study, check_reference


@dataclass(frozen=True)
class Job:
    """One image to process: its run, the T1w it may borrow from, the hash of all that decides its outputs."""

    run: Run
    fingerprint: str
    source_sha256: str
    partner: str | None = None


def init_mmh_wf(jobs: Sequence[Job], study: Study, name: str = "mmh_wf") -> pe.Workflow:
    """Build the graph of all `jobs`.

    A T2w whose partner is not among the jobs goes on alone.
    """
    workflow = pe.Workflow(name=name, base_dir=str(study.settings.work_dir))
    built: dict[str, pe.Workflow] = {}
    references = {} if not study.settings.target.startswith("image:") else {
        sequence: init_reference_wf(study, sequence) for sequence in sorted({job.run.sequence for job in jobs})
    }  # fmt: skip
    for job in sorted(jobs, key=lambda job: job.run.sequence):
        partner = built.get(job.partner) if job.partner and _has_to_borrow(job.run, study) else None
        image_wf = init_image_wf(job, study, through_t1w=partner is not None)
        built[job.run.key] = image_wf
        workflow.add_nodes([image_wf])
        if partner is not None:
            workflow.connect([(partner, image_wf, [
                ("outputnode.corrected", "inputnode.t1w_corrected"), ("outputnode.mask", "inputnode.t1w_mask"),
                ("outputnode.xfm", "inputnode.t1w_xfm"),
            ])])  # fmt: skip
        if references:
            reference = references[job.run.sequence]
            workflow.connect([(reference, image_wf, [
                ("model_grid.out_file", "inputnode.reference"), ("model_grid.mask_file", "inputnode.reference_mask"),
            ])])  # fmt: skip
    return workflow


def _has_to_borrow(run: Run, study: Study) -> bool:
    """Whether a T1w can give the run anything: not if another pipeline left it both a mask and a transform."""
    reusable = find_reusable(run, study.settings.derivatives)
    return reusable.mask is None or reusable.xfm is None


def init_reference_wf(study: Study, sequence: str) -> pe.Workflow:
    """Preprocess the reference image of an ``image:`` target up to the model grid."""
    path = check_reference(study.settings.target)
    workflow = pe.Workflow(name=f"reference_{sequence}_wf")
    preproc = _preproc(path, study, Reusable(), through_t1w=False)
    preproc.inputs.inputnode.in_file = str(path)
    grid = pe.Node(ModelGrid(**_grid(study)), name="model_grid", mem_gb=node_gb(5, volume_gb(path)))
    workflow.connect([
        (preproc, grid, [
            ("outputnode.corrected", "in_file"), ("outputnode.mask", "mask_file"), ("outputnode.xfm", "xfm_file"),
        ]),
    ])  # fmt: skip
    return workflow


def init_image_wf(job: Job, study: Study, through_t1w: bool = False) -> pe.Workflow:
    """Everything that happens to one image, from the source to its derivatives and pictures.

    Inputs
    ------
    t1w_corrected, t1w_mask, t1w_xfm
        Outputs of the session's T1w, with `through_t1w`.
    reference, reference_mask
        Reference image on the model grid, for ``image:`` targets.
    """
    run, settings = job.run, study.settings
    workflow = pe.Workflow(name=f"{run.node_name}_wf")
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["t1w_corrected", "t1w_mask", "t1w_xfm", "reference", "reference_mask"]),
        name="inputnode",
    )
    outputnode = pe.Node(niu.IdentityInterface(fields=["corrected", "mask", "xfm"]), name="outputnode")
    volume = volume_gb(run.path)
    reusable = find_reusable(run, settings.derivatives)
    preproc = _preproc(run.path, study, reusable, through_t1w)
    preproc.inputs.inputnode.in_file = str(run.path)
    harmonize = init_harmonize_anat_wf(
        sequence=run.sequence, method=settings.method, target=settings.target, site=run.site,
        seed=settings.random_seed, skull=settings.skull, with_reference=settings.target.startswith("image:"),
        source_file=str(run.path), device=settings.device, lock_dir=str(study.lock_dir), volume_gb=volume,
        facts=study.facts(run.sequence),
    )  # fmt: skip
    workflow.connect([
        (preproc, harmonize, [
            ("outputnode.corrected", "inputnode.anat_preproc"), ("outputnode.mask", "inputnode.anat_mask"),
            ("outputnode.xfm", "inputnode.anat2std_xfm"),
        ]),
        (preproc, outputnode, [
            ("outputnode.corrected", "corrected"), ("outputnode.mask", "mask"), ("outputnode.xfm", "xfm"),
        ]),
    ])  # fmt: skip
    if through_t1w:
        workflow.connect([(inputnode, preproc, [
            (name, f"inputnode.{name}") for name in ("t1w_corrected", "t1w_mask", "t1w_xfm")
        ])])  # fmt: skip
    if settings.target.startswith("image:"):
        workflow.connect([(inputnode, harmonize, [
            (name, f"inputnode.{name}") for name in ("reference", "reference_mask")
        ])])  # fmt: skip
    _connect_outputs(workflow, job, study, preproc, harmonize, volume)
    return workflow


def _connect_outputs(
    workflow: pe.Workflow, job: Job, study: Study, preproc: pe.Workflow, harmonize: pe.Workflow, volume: float
) -> None:
    """Output spaces, derivatives, features and pictures."""
    settings, run = study.settings, job.run
    paths = OutputPaths(settings.output_dir, run)
    write = pe.Node(
        WriteDerivatives(
            run=_run_fields(run), output_dir=str(settings.output_dir),
            links={name: str(path) for name, path in dataset_links(settings).items()},
            facts=_facts(job, study), skull=settings.skull, spaces=[space.name for space in study.spaces],
        ),
        name="write_derivatives",
        mem_gb=node_gb(5, volume),
    )  # fmt: skip
    workflow.connect([
        (preproc, write, [
            ("outputnode.corrected", "preproc"), ("outputnode.mask", "mask"), ("outputnode.xfm", "xfm"),
            ("outputnode.mask_facts", "mask_facts"), ("outputnode.xfm_facts", "xfm_facts"),
        ]),
        (harmonize, write, [("outputnode.anat_harmonized", "harmonized"), ("outputnode.qc_file", "qc_file")]),
    ])  # fmt: skip
    if settings.method == "none":
        workflow.connect(harmonize, "outputnode.model_before", write, "model_file")
    features = pe.Node(
        MeasureFeatures(run=_run_fields(run), output_dir=str(settings.output_dir)),
        name="measure_features",
        mem_gb=node_gb(4, volume, base=0.3),
    )
    workflow.connect(write, "harmonized", features, "harmonized")
    if study.spaces:
        merge = pe.Node(niu.Merge(len(study.spaces)), name="merge_spaces", run_without_submitting=True)
        workflow.connect(merge, "out", write, "space_files")
        for index, space in enumerate(study.spaces, start=1):
            _connect_space(workflow, index, space, preproc, harmonize, merge, volume)
    figures = pe.Node(
        DrawFigures(folder=str(paths.figures), stem=run.stem, sequence=run.sequence, sloppy=settings.sloppy),
        name="draw_figures",
        mem_gb=node_gb(4, volume, base=0.5),
    )
    if run.sequence in study.quantiles:
        figures.inputs.reference_quantiles = study.quantiles[run.sequence]
    workflow.connect([
        (preproc, figures, [("outputnode.corrected", "before"), ("outputnode.mask", "mask")]),
        (harmonize, figures, [
            ("outputnode.anat_harmonized", "after"), ("outputnode.qc_file", "qc_file"),
            ("outputnode.model_before", "registration"),
        ]),
    ])  # fmt: skip


def _connect_space(workflow, index, space, preproc, harmonize, merge, volume) -> None:
    to_space = pe.Node(ToSpace(template_file=str(space.grid)), name=f"to_space_{index}", mem_gb=node_gb(6, volume))
    workflow.connect(harmonize, "outputnode.anat_harmonized", to_space, "in_file")
    workflow.connect(to_space, "out_file", merge, f"in{index}")
    if space.brain is None:
        workflow.connect(preproc, "outputnode.xfm", to_space, "xfm_file")
        return
    register = pe.Node(
        RegisterToTemplate(template_file=str(space.brain)),
        name=f"register_space_{index}",
        mem_gb=node_gb(4, volume, base=0.4),
    )
    workflow.connect([
        (preproc, register, [("outputnode.corrected", "in_file"), ("outputnode.mask", "mask_file")]),
        (register, to_space, [("xfm_file", "xfm_file")]),
    ])  # fmt: skip


def _preproc(path: Path, study: Study, reusable: Reusable, through_t1w: bool) -> pe.Workflow:
    settings = study.settings
    workflow = init_anat_preproc_wf(
        source_file=str(path), volume_gb=volume_gb(path), omp_nthreads=settings.omp_nthreads,
        skull_strip=settings.skull_strip, bias_correction=settings.bias_correction, device=settings.device,
        lock_dir=str(study.lock_dir), sloppy=settings.sloppy, through_t1w=through_t1w,
        reuse_mask=reusable.mask is not None, reuse_xfm=reusable.xfm is not None,
    )  # fmt: skip
    given = {
        "mask_file": reusable.mask,
        "mask_xfm": reusable.mask_xfm,
        "xfm_file": reusable.xfm,
        "xfm_orig": reusable.xfm_orig,
    }
    for name, file in given.items():
        if file is not None:
            setattr(workflow.inputs.inputnode, name, str(file))
    return workflow


def _grid(study: Study) -> dict:
    return {"shape": tuple(study.bundle.shape), "affine": study.bundle.affine.tolist()}


def _run_fields(run: Run) -> dict:
    """The run as a dictionary that Nipype can hash and pickle."""
    fields = {name: getattr(run, name) for name in ("sequence", "site", "site_source", "action", "reason")}
    return fields | {"path": str(run.path), "entities": dict(run.entities), "metadata": dict(run.metadata)}


def _facts(job: Job, study: Study) -> dict:
    settings = study.settings
    return {
        "Method": settings.method,
        "Model": study.bundle.name,
        "ModelSHA256": study.bundle.sha256,
        "Target": settings.target,
        "Seed": settings.random_seed,
        "DType": "float32",
        "Skull": settings.skull,
        "BiasCorrection": settings.bias_correction,
        "Sloppy": settings.sloppy,
        "Fingerprint": job.fingerprint,
        "SourceSHA256": job.source_sha256,
    }


def without_partners(jobs: Iterable[Job], failed: set[str]) -> list[Job]:
    """The jobs, with partners that failed taken away: their T2w then goes on alone."""
    return [replace(job, partner=None) if job.partner in failed else job for job in jobs]
