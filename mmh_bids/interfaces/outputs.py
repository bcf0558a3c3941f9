"""From working files to the derivative dataset: own grid, names, sidecars, pictures."""

from __future__ import annotations

import shutil
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
from mmh_bids.interfaces.files import load, load_json, save


def no_output(error: OSError, folder: Path) -> ImageError:
    """What to say when the output folder cannot be written to: the error itself often names no file."""
    place = Path(error.filename or folder)
    if place.name.startswith(".tmp-"):  # a name that means nothing to the user
        place = place.parent
    return ImageError(
        f"{place}: {error.strerror or error}; free space there or change its permissions, then run the same command "
        "again"
    )


class _SpaceInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="harmonized image, own grid, RAS+ axes")
    xfm_file = File(exists=True, mandatory=True, desc="image to template, ITK")
    template_file = File(exists=True, mandatory=True, desc="image that defines the grid")


class _SpaceOutput(TraitedSpec):
    out_file = File(desc="harmonized image on the template's grid")


class ToSpace(SimpleInterface):
    """Resample the harmonized image to a template's grid, once, with cubic splines kept within the image's range."""

    input_spec = _SpaceInput
    output_spec = _SpaceOutput

    def _run_interface(self, runtime):
        from mmh_bids.image.grid import antialias, open_nifti, resample
        from mmh_bids.image.registration import read_matrix

        data, affine = load(self.inputs.in_file)
        grid = open_nifti(self.inputs.template_file)
        smooth = antialias(data, affine, grid.affine)
        moved = resample(smooth, affine, grid.shape[:3], grid.affine, read_matrix(self.inputs.xfm_file), order=3)
        # splines overshoot at sharp edges: no halo, and zero stays zero outside the brain
        inside = resample(
            (data != 0).astype(np.float32),
            affine,
            grid.shape[:3],
            grid.affine,
            read_matrix(self.inputs.xfm_file),
        )
        moved = np.where(inside > 0.5, np.clip(moved, data.min(), data.max()), 0)
        self._results["out_file"] = save(moved.astype(np.float32), grid.affine, Path(runtime.cwd) / "space.nii")
        return runtime


class _WriteInput(BaseInterfaceInputSpec):
    run = traits.Dict(mandatory=True, desc="fields of bids.run.Run, JSON-ready")
    output_dir = traits.Str(mandatory=True)
    links = traits.Dict(mandatory=True, desc="DatasetLinks: name -> folder")
    facts = traits.Dict(
        mandatory=True, desc="what goes into the Harmonization object as it is: method, target, seed ..."
    )
    harmonized = File(exists=True, mandatory=True)
    preproc = File(exists=True, mandatory=True)
    mask = File(exists=True, mandatory=True)
    xfm = File(exists=True, mandatory=True)
    qc_file = File(exists=True, mandatory=True)
    mask_facts = traits.Dict()
    xfm_facts = traits.Dict()
    skull = traits.Enum("strip", "keep", usedefault=True)
    spaces = traits.List(
        traits.Str, desc="names of the output spaces, e.g. MNI152NLin2009aSym or MNI152NLin6Asym:res-2"
    )
    space_files = traits.List(File(exists=True), desc="one per space")
    model_file = File(exists=True, desc="model-grid image; written for method none")


class _WriteOutput(TraitedSpec):
    harmonized = File()
    preproc = File()
    mask = File()


class WriteDerivatives(SimpleInterface):
    """Write one image's derivatives with their sidecars; the sidecar of the harmonized image comes last.

    Whoever finds that sidecar can rely on everything else being there.
    """

    input_spec = _WriteInput
    output_spec = _WriteOutput
    _always_run = True  # the output folder may have been emptied since

    def _run_interface(self, runtime):
        from mmh_bids.bids.derivatives import OutputPaths
        from mmh_bids.bids.run import Run

        inputs = self.inputs
        run = Run(**{**inputs.run, "path": Path(inputs.run["path"])})
        paths = OutputPaths(Path(inputs.output_dir), run)
        try:
            self._write(run, paths)
        except OSError as error:
            raise no_output(error, paths.anat) from None
        self._results.update(harmonized=str(paths.harmonized()), preproc=str(paths.preproc), mask=str(paths.brain_mask))
        return runtime

    def _write(self, run, paths) -> None:
        from mmh_bids.bids.derivatives import mask_sidecar, split_space
        from mmh_bids.files import atomic_path

        inputs = self.inputs
        writer = _Writer(run, Path(inputs.output_dir), dict(inputs.links))
        already = bool(inputs.mask_facts["InputSkullStripped"])
        writer.own_grid(
            inputs.mask, paths.brain_mask, np.uint8, mask_sidecar(writer.sources, inputs.mask_facts["Method"])
        )
        writer.own_grid(inputs.preproc, paths.preproc, np.float32, writer.fields(already))
        with atomic_path(paths.transform()) as temporary:
            shutil.copyfile(inputs.xfm, temporary)
        harmonization = self._harmonization(run)
        stripped = inputs.skull == "strip" or already
        for space, file in zip(inputs.spaces, inputs.space_files if inputs.spaces else [], strict=True):
            name, res = split_space(space)
            resolution = f"The grid of the template {name}, res-{res}"
            writer.as_is(file, paths.harmonized(name, res), writer.fields(stripped, harmonization, resolution))
        if isdefined(inputs.model_file):
            writer.as_is(inputs.model_file, paths.model_grid, writer.fields(True, harmonization))
        writer.own_grid(inputs.harmonized, paths.harmonized(), np.float32, writer.fields(stripped, harmonization))

    def _harmonization(self, run):
        result = load_json(self.inputs.qc_file)
        qc = dict(result["qc"])
        if "Dice" in self.inputs.xfm_facts:
            qc["TemplateDice"] = self.inputs.xfm_facts["Dice"]
        answer = result["harmonizer"]
        return dict(self.inputs.facts) | {
            "Site": run.site,
            "SiteSource": run.site_source,
            "Device": answer["device"],
            "Details": answer["details"],
            **result["scales"],
            "IntensityMap": result["intensity_map"],
            "BrainExtraction": dict(self.inputs.mask_facts),
            "Registration": dict(self.inputs.xfm_facts),
            "QC": qc,
        }


class _Writer:
    """Writes images of one run with their sidecars."""

    def __init__(self, run, output_dir: Path, links: dict[str, str]):
        from mmh_bids.bids.derivatives import bids_uri
        from mmh_bids.image.grid import open_nifti

        self.run = run
        self.source = open_nifti(run.path)
        self.sources = [bids_uri(run.path, output_dir, {name: Path(path) for name, path in links.items()})]

    def fields(self, stripped: bool, harmonization: dict | None = None, resolution: str | None = None) -> dict:
        """Sidecar of one image."""
        from mmh_bids.bids.derivatives import sidecar

        return sidecar(
            self.run,
            self.sources,
            skull_stripped=stripped,
            harmonization=harmonization,
            resolution=resolution,
        )

    def own_grid(self, file: str, path: Path, dtype: type, fields: dict) -> None:
        """Write a RAS+ working file on the source's own grid, axes and header."""
        from mmh_bids.image.volume import image_like, to_own_axes

        data, _ = load(file, bool if dtype is np.uint8 else np.float32)
        self._write(image_like(to_own_axes(data, self.source), self.source, dtype), path, fields)

    def as_is(self, file: str, path: Path, fields: dict) -> None:
        """Write a working file on the grid it has."""
        from mmh_bids.image.grid import open_nifti

        self._write(open_nifti(file), path, fields)

    @staticmethod
    def _write(image, path: Path, fields: dict) -> None:
        from mmh_bids.bids.derivatives import write_sidecar
        from mmh_bids.files import atomic_path

        with atomic_path(path) as temporary:
            image.to_filename(temporary)
        write_sidecar(path, fields)


class _FiguresInput(BaseInterfaceInputSpec):
    before = File(exists=True, mandatory=True)
    after = File(exists=True, mandatory=True)
    mask = File(exists=True, mandatory=True)
    qc_file = File(exists=True, mandatory=True)
    registration = File(exists=True, desc="model-grid brain")
    folder = traits.Str(mandatory=True)
    stem = traits.Str(mandatory=True)
    sequence = traits.Str(mandatory=True)
    reference_quantiles = traits.List(traits.Float)
    sloppy = traits.Bool(False, usedefault=True)


class _FiguresOutput(TraitedSpec):
    out_files = traits.List(traits.Str)


class DrawFigures(SimpleInterface):
    """Pictures of the participant report."""

    input_spec = _FiguresInput
    output_spec = _FiguresOutput
    _always_run = True

    def _run_interface(self, runtime):
        from mmh_bids.reports.figures import draw_figures

        try:
            self._results["out_files"] = self._draw(draw_figures)
        except OSError as error:
            raise no_output(error, Path(self.inputs.folder)) from None
        return runtime

    def _draw(self, draw_figures) -> list[str]:
        inputs, result = self.inputs, load_json(self.inputs.qc_file)
        files = draw_figures(
            before=Path(inputs.before),
            after=Path(inputs.after),
            mask=Path(inputs.mask),
            folder=Path(inputs.folder),
            stem=inputs.stem,
            sequence=inputs.sequence,
            intensity_map=result["intensity_map"] | result["scales"],
            reference_quantiles=inputs.reference_quantiles if isdefined(inputs.reference_quantiles) else None,
            registration=Path(inputs.registration) if isdefined(inputs.registration) else None,
            sloppy=inputs.sloppy,
        )
        return [str(file) for file in files]
