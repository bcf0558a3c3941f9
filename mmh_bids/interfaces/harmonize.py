"""From the model grid through the harmonizer and back to the image's own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from mmh_bids.errors import ImageError
from mmh_bids.interfaces.child import run_child
from mmh_bids.interfaces.files import load, load_json, save, save_json


class _HarmonizeInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="brain on the model grid, [0, 1]")
    mask_file = File(exists=True, mandatory=True)
    source_file = traits.Str(mandatory=True, desc="the source image, for messages")
    sequence = traits.Enum("T1w", "T2w", mandatory=True)
    method = traits.Str(mandatory=True)
    model = traits.Str(mandatory=True, desc="bundle name or folder")
    bundle_sha256 = traits.Str("", usedefault=True, desc="part of the hash, so that a changed bundle is run again")
    target = traits.Str("unified", usedefault=True)
    site = traits.Str(desc="of the image; not set where it is not known")
    seed = traits.Int(0, usedefault=True)
    reference_file = File(exists=True, desc="reference image on the model grid")
    reference_mask = File(exists=True)
    device = traits.Str("cpu", usedefault=True, nohash=True)
    lock_dir = traits.Str(".", usedefault=True, nohash=True)


class _HarmonizeOutput(TraitedSpec):
    out_file = File(desc="harmonized brain on the model grid")
    facts_file = File(desc="JSON: device, keeps_input_scale, details")


class Harmonize(SimpleInterface):
    """Apply the method to one model-grid volume, in a child process."""

    input_spec = _HarmonizeInput
    output_spec = _HarmonizeOutput

    def _run_interface(self, runtime):
        cwd, inputs = Path(runtime.cwd), self.inputs
        names = (
            "in_file",
            "mask_file",
            "sequence",
            "method",
            "model",
            "target",
            "seed",
            "device",
            "lock_dir",
        )
        request = {name: getattr(inputs, name) for name in names} | {"out_file": str(cwd / "harmonized.nii")}
        for name in ("reference_file", "reference_mask", "site"):
            if isdefined(getattr(inputs, name)):
                request[name] = getattr(inputs, name)
        try:
            answer = run_child("harmonize", request, cwd)
        except ImageError as error:
            raise ImageError(f"{inputs.source_file}: {error}") from None
        self._results["out_file"] = request["out_file"]
        self._results["facts_file"] = save_json(answer, cwd / "harmonize.json")
        return runtime


class _TransportInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected image, own grid, RAS+ axes")
    mask_file = File(exists=True, mandatory=True)
    xfm_file = File(exists=True, mandatory=True, desc="image to template, ITK")
    before_file = File(exists=True, mandatory=True, desc="model grid, what the harmonizer got")
    after_file = File(exists=True, mandatory=True, desc="model grid, what it returned")
    model_mask = File(exists=True, mandatory=True)
    grid_file = File(exists=True, mandatory=True, desc="JSON of ModelGrid")
    harmonize_file = File(exists=True, mandatory=True, desc="JSON of Harmonize")
    output_max = traits.Float(1000.0, usedefault=True, desc="written value of 1 on the target's scale")
    skull = traits.Enum("strip", "keep", usedefault=True)
    sequence = traits.Enum("T1w", "T2w", mandatory=True)
    reference_quantiles = traits.List(traits.Float, desc="of the target, in model units")


class _TransportOutput(TraitedSpec):
    out_file = File(desc="harmonized image, own grid, RAS+ axes")
    qc_file = File(desc="JSON: QC scalars, intensity map, grid and harmonizer facts")


class Transport(SimpleInterface):
    """Carry the change to the image's own grid and measure what it did there."""

    input_spec = _TransportInput
    output_spec = _TransportOutput

    def _run_interface(self, runtime):
        from mmh_bids.image.brainmask import volume_ml
        from mmh_bids.image.qc import image_qc
        from mmh_bids.image.registration import read_matrix
        from mmh_bids.image.transport import ModelVolumes, Scale, transport

        inputs = self.inputs
        native, affine = load(inputs.in_file)
        mask, _ = load(inputs.mask_file, bool)
        before, grid = load(inputs.before_file)
        model = ModelVolumes(
            before=before,
            after=load(inputs.after_file)[0],
            mask=load(inputs.model_mask, bool)[0],
            affine=grid,
            native_to_mni=np.linalg.inv(read_matrix(inputs.xfm_file)),
        )
        facts, answer = load_json(inputs.grid_file), load_json(inputs.harmonize_file)
        scale = Scale(facts["low"], facts["high"])
        target = scale if answer["keeps_input_scale"] else Scale(0.0, inputs.output_max)
        out, curve = transport(native, affine, mask, model, scale, target, inputs.skull)
        qc = image_qc(
            before=native,
            after=out,
            mask=mask,
            voxel_volume_ml=volume_ml(np.ones((1, 1, 1), bool), affine),
            sequence=inputs.sequence,
            intensity_map=curve,
            before_scale=(scale.low, scale.high),
            after_scale=(target.low, target.high),
            reference_quantiles=inputs.reference_quantiles if isdefined(inputs.reference_quantiles) else None,
        )
        qc["GridCoverage"] = facts["GridCoverage"]
        cwd = Path(runtime.cwd)
        self._results["out_file"] = save(out, affine, cwd / "harmonized.nii")
        result = {"qc": qc, "intensity_map": curve.to_json(), "grid": facts, "harmonizer": answer}
        result["scales"] = {"InputScale": [scale.low, scale.high], "OutputScale": [target.low, target.high]}
        self._results["qc_file"] = save_json(result, cwd / "qc.json")
        return runtime
