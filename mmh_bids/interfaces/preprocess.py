"""From the source image to the model grid: check, brain mask, bias field, registration, resampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from mmh_bids import __version__
from mmh_bids.errors import ImageError
from mmh_bids.interfaces.child import run_child
from mmh_bids.interfaces.files import load, save, save_json


class _CheckInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="the source image")
    version = traits.Str(__version__, usedefault=True, desc="part of the hash: a new version runs every step again")


class _CheckOutput(TraitedSpec):
    out_file = File(desc="float32, 3-D, axes in RAS+ order, otherwise as it was")


class CheckImage(SimpleInterface):
    """Read the whole source image, refuse what cannot be harmonized, and bring its axes to RAS+."""

    input_spec = _CheckInput
    output_spec = _CheckOutput

    def _run_interface(self, runtime):
        from mmh_bids.image.headers import check_header
        from mmh_bids.image.volume import canonical, read_image

        source = Path(self.inputs.in_file)
        problem = check_header(source)
        if problem:
            raise ImageError(problem)
        image = canonical(read_image(source))
        self._results["out_file"] = save(
            np.asanyarray(image.dataobj), image.affine, Path(runtime.cwd) / "canonical.nii"
        )
        return runtime


class _BrainInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="canonical image")
    source_file = traits.Str(mandatory=True, desc="the source image, for messages")
    mode = traits.Enum("auto", "skip", "force", usedefault=True)
    device = traits.Str("cpu", usedefault=True, nohash=True)
    threads = traits.Int(1, usedefault=True, nohash=True)
    lock_dir = traits.Str(".", usedefault=True, nohash=True)


class _MaskOutput(TraitedSpec):
    mask_file = File(desc="uint8 brain mask on the image's grid")
    facts = traits.Dict(desc="Method, Volume (mL), InputSkullStripped")


class ExtractBrain(SimpleInterface):
    """Brain mask: deepbet in a child process, or the support of an image that is stripped already."""

    input_spec = _BrainInput
    output_spec = _MaskOutput

    def _run_interface(self, runtime):
        from mmh_bids.image.brainmask import is_stripped, looks_stripped, support, volume_ml

        data, affine = load(self.inputs.in_file)
        mode, method = self.inputs.mode, "deepbet"
        candidate = support(data) if mode != "force" else None
        if mode == "skip":
            mask, method = candidate, "support of the image (--skull-strip skip)"
        else:
            mask = self._network(runtime, optional=candidate is not None and looks_stripped(candidate, affine))
            if candidate is not None and is_stripped(candidate, mask, affine):
                mask, method = candidate, "support of the image (recognised as skull-stripped)"
        if mask is None or not mask.any():
            raise ImageError(f"{self.inputs.source_file}: no brain was found; give a mask with --derivatives NAME=PATH")
        self._results["mask_file"] = save(mask, affine, Path(runtime.cwd) / "mask.nii")
        self._results["facts"] = {
            "Method": method,
            "Volume": round(volume_ml(mask, affine), 1),
            "InputSkullStripped": not method.startswith("deepbet"),
        }
        return runtime

    def _network(self, runtime, optional: bool):
        out_file = Path(runtime.cwd) / "deepbet.nii"
        request = {
            "in_file": self.inputs.in_file,
            "out_file": str(out_file),
            "device": self.inputs.device,
            "threads": self.inputs.threads,
            "lock_dir": self.inputs.lock_dir,
        }
        try:
            run_child("brain", request, Path(runtime.cwd))
        except ImageError as error:
            # a stripped image can leave the network without a head to find
            if optional and "no brain" in str(error):
                return None
            raise ImageError(f"{self.inputs.source_file}: {error}") from None
        return load(out_file, bool)[0]


class _ReuseMaskInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="canonical image")
    mask_file = File(exists=True, mandatory=True, desc="brain mask of another pipeline, any grid of the same space")
    xfm_file = File(exists=True, desc="transform from the image to the mask's space (fMRIPrep's from-orig_to-T1w)")


class ReuseMask(SimpleInterface):
    """Bring the brain mask of another pipeline to the image's grid."""

    input_spec = _ReuseMaskInput
    output_spec = _MaskOutput

    def _run_interface(self, runtime):
        from mmh_bids.image.brainmask import volume_ml
        from mmh_bids.image.grid import resample
        from mmh_bids.image.registration import read_matrix

        data, affine = load(self.inputs.in_file)
        given, given_affine = load(self.inputs.mask_file, bool)
        # an ITK file from-orig_to-T1w maps points of T1w to orig; here the way from the image to the mask is needed
        to_mask = np.linalg.inv(read_matrix(self.inputs.xfm_file)) if isdefined(self.inputs.xfm_file) else None
        mask = resample(given.astype(np.float32), given_affine, data.shape, affine, to_mask) > 0.5
        if not mask.any():
            raise ImageError(f"{self.inputs.mask_file}: does not overlap the image; check --derivatives")
        self._results["mask_file"] = save(mask, affine, Path(runtime.cwd) / "mask.nii")
        self._results["facts"] = {
            "Method": f"reused: {Path(self.inputs.mask_file).name}",
            "Volume": round(volume_ml(mask, affine), 1),
            "InputSkullStripped": False,
        }
        return runtime


class _BiasInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True)
    mask_file = File(exists=True, mandatory=True)
    method = traits.Enum("n4", "none", usedefault=True)
    sloppy = traits.Bool(False, usedefault=True)


class _BiasOutput(TraitedSpec):
    out_file = File(desc="bias-corrected image, same units")


class CorrectBias(SimpleInterface):
    """N4 inside the brain mask."""

    input_spec = _BiasInput
    output_spec = _BiasOutput

    def _run_interface(self, runtime):
        if self.inputs.method == "none":
            self._results["out_file"] = self.inputs.in_file
            return runtime
        from mmh_bids.image.bias import n4

        data, affine = load(self.inputs.in_file)
        mask, _ = load(self.inputs.mask_file, bool)
        corrected = n4(data, mask, affine, self.inputs.sloppy)
        self._results["out_file"] = save(corrected, affine, Path(runtime.cwd) / "corrected.nii")
        return runtime


class _CoregisterInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="canonical T2w")
    mask_file = File(exists=True, mandatory=True, desc="the T2w's own mask")
    t1w_file = File(exists=True, mandatory=True, desc="bias-corrected T1w")
    t1w_mask = File(exists=True, mandatory=True)
    t1w_xfm = File(exists=True, mandatory=True, desc="T1w to template, ITK")
    facts = traits.Dict(desc="of the own mask")


class _CoregisterOutput(TraitedSpec):
    mask_file = File(desc="the T1w's mask on the T2w's grid, or the T2w's own where the registration measures badly")
    candidate_xfm = traits.Either(None, File(), desc="T2w to template through the T1w; None where it measures badly")
    facts = traits.Dict()


class CoregisterT2w(SimpleInterface):
    """Rigid registration to the T1w of the same session, so that the T2w can borrow its mask and transform."""

    input_spec = _CoregisterInput
    output_spec = _CoregisterOutput

    #: Dice of the two brains below which the registration is not believed.
    LEAST_DICE = 0.90

    def _run_interface(self, runtime):
        import SimpleITK as sitk  # noqa: N813

        from mmh_bids.image.brainmask import volume_ml
        from mmh_bids.image.grid import resample
        from mmh_bids.image.registration import Volume, itk_affine, read_matrix, register_rigid

        t2w, affine = load(self.inputs.in_file)
        own, _ = load(self.inputs.mask_file, bool)
        t1w, t1w_affine = load(self.inputs.t1w_file)
        t1w_mask, _ = load(self.inputs.t1w_mask, bool)
        to_t1w, quality = register_rigid(
            Volume(np.where(own, t2w, 0), own, affine),
            Volume(np.where(t1w_mask, t1w, 0), t1w_mask, t1w_affine),
        )
        facts = dict(self.inputs.facts) | {"DiceWithT1w": quality["Dice"]}
        self._results.update(mask_file=self.inputs.mask_file, candidate_xfm=None, facts=facts)
        moved = resample(t1w_mask.astype(np.float32), t1w_affine, t2w.shape, affine, to_t1w) > 0.5
        # the support of a stripped image is its brain, and a mask that was given is what the user wants
        keep_own = facts["InputSkullStripped"] or facts["Method"].startswith("reused")
        if quality["Dice"] >= self.LEAST_DICE and moved.any():
            # template -> T1w, then T1w -> T2w
            matrix = np.linalg.inv(to_t1w) @ read_matrix(self.inputs.t1w_xfm)
            path = Path(runtime.cwd) / "candidate_xfm.txt"
            sitk.WriteTransform(itk_affine(matrix), str(path))
            self._results["candidate_xfm"] = str(path)
            if not keep_own:
                facts.update(Method="T1w mask through a rigid registration", Volume=round(volume_ml(moved, affine), 1))
                self._results["mask_file"] = save(moved, affine, Path(runtime.cwd) / "mask.nii")
        return runtime


class _RegisterInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected image")
    mask_file = File(exists=True, mandatory=True)
    candidate_xfm = traits.Either(None, File(exists=True), desc="a transform to prefer if it measures as well")
    template_file = File(exists=True, desc="brain-only template; nilearn's ICBM152 2009a if not given")
    sloppy = traits.Bool(False, usedefault=True)


class _RegisterOutput(TraitedSpec):
    xfm_file = File(desc="ITK affine: from the image to the template")
    facts = traits.Dict(desc="Dice, MutualInformation, Starts, Method")


class RegisterToTemplate(SimpleInterface):
    """Affine registration to the brain of a template."""

    input_spec = _RegisterInput
    output_spec = _RegisterOutput

    def _run_interface(self, runtime):
        import SimpleITK as sitk  # noqa: N813

        from mmh_bids.image.registration import itk_affine

        matrix, facts = self._matrix()
        path = Path(runtime.cwd) / "to_template_xfm.txt"
        sitk.WriteTransform(itk_affine(matrix), str(path))
        self._results.update(xfm_file=str(path), facts=facts)
        return runtime

    def _matrix(self):
        from mmh_bids.image.grid import load_template
        from mmh_bids.image.registration import Volume, read_matrix, register_affine, similarity

        if isdefined(self.inputs.template_file):
            brain, grid = load(self.inputs.template_file)
        else:
            template = load_template()
            brain, grid = np.asanyarray(template.dataobj), template.affine
        fixed = Volume(brain, brain > 0, grid)
        data, affine = load(self.inputs.in_file)
        mask, _ = load(self.inputs.mask_file, bool)
        moving = Volume(np.where(mask, data, 0), mask, affine)
        matrix, facts = register_affine(fixed, moving, self.inputs.sloppy)
        facts["Method"] = "affine, own registration"
        candidate = self.inputs.candidate_xfm
        if isdefined(candidate) and candidate:
            borrowed = read_matrix(candidate)
            value = similarity(fixed.reduced(2.0), moving.reduced(2.0), borrowed)
            facts["MutualInformationThroughT1w"] = round(value, 4)
            # a T1w fits the T1w template best: its transform wins unless the T2w's own is clearly more similar
            if value >= facts["MutualInformation"] - 0.01:
                return borrowed, facts | {"Method": "T1w's transform through a rigid registration"}
        return matrix, facts


class _ReuseTransformInput(_RegisterInput):
    reused_xfm = File(exists=True, mandatory=True, desc="a transform of another pipeline, image to template, ITK")
    reused_orig = File(exists=True, desc="transform from the image to where reused_xfm begins (from-orig_to-T1w)")


class ReuseTransform(RegisterToTemplate):
    """Take the affine of another pipeline's transform; only a file that holds none is replaced by a registration."""

    input_spec = _ReuseTransformInput

    def _matrix(self):
        from mmh_bids.image.registration import read_affine_part, read_matrix

        name = Path(self.inputs.reused_xfm).name
        matrix = read_affine_part(self.inputs.reused_xfm)
        if matrix is None:
            matrix, facts = super()._matrix()
            return matrix, facts | {"NotReused": f"{name}: holds a warp without the affine that comes before it"}
        if isdefined(self.inputs.reused_orig):
            # ITK files map points the other way: template -> T1w space, then T1w space -> image
            matrix = read_matrix(self.inputs.reused_orig) @ matrix
        return matrix, {"Method": f"reused: {name}{' (its affine)' if name.endswith('.h5') else ''}"}


class _GridInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected image")
    mask_file = File(exists=True, mandatory=True)
    xfm_file = File(exists=True, mandatory=True)
    shape = traits.Tuple(traits.Int, traits.Int, traits.Int, mandatory=True)
    affine = traits.List(traits.List(traits.Float), mandatory=True)


class _GridOutput(TraitedSpec):
    out_file = File(desc="brain on the model grid, [0, 1]")
    mask_file = File(desc="mask on the model grid")
    facts_file = File(desc="JSON: scale (low, high) and coverage")


class ModelGrid(SimpleInterface):
    """Resample the brain to the model grid and scale it to [0, 1]."""

    input_spec = _GridInput
    output_spec = _GridOutput

    def _run_interface(self, runtime):
        from mmh_bids.image.grid import antialias, resample, voxel_map
        from mmh_bids.image.intensity import robust_scale
        from mmh_bids.image.registration import read_matrix

        data, affine = load(self.inputs.in_file)
        mask, _ = load(self.inputs.mask_file, bool)
        to_native, grid = read_matrix(self.inputs.xfm_file), np.array(self.inputs.affine)
        low, high = robust_scale(data[mask])
        smooth = antialias(data, affine, grid)
        volume = resample(smooth, affine, self.inputs.shape, grid, to_native)
        model_mask = resample(mask.astype(np.float32), affine, self.inputs.shape, grid, to_native) > 0.5
        if not model_mask.any():
            raise ImageError(
                "the transform to the template carries the brain out of the model's grid: check the image's "
                "orientation and its mask, or the transform that --derivatives gave"
            )
        volume = np.where(model_mask, np.clip((volume - low) / (high - low), 0, 1), 0).astype(np.float32)
        inside = np.abs(np.linalg.det(voxel_map(affine, grid, to_native)[:3, :3])) * model_mask.sum() / mask.sum()
        cwd = Path(runtime.cwd)
        facts: dict[str, Any] = {"low": low, "high": high, "GridCoverage": round(min(1.0, float(inside)), 4)}
        self._results.update(
            out_file=save(volume, grid, cwd / "model.nii"),
            mask_file=save(model_mask, grid, cwd / "model_mask.nii"),
            facts_file=save_json(facts, cwd / "model.json"),
        )
        return runtime
