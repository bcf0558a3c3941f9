"""What the group level compares, measured while the image is at hand."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits


class _FeaturesInput(BaseInterfaceInputSpec):
    run = traits.Dict(mandatory=True, desc="fields of bids.run.Run, JSON-ready")
    output_dir = traits.Str(mandatory=True)
    harmonized = File(exists=True, mandatory=True, desc="the derivative: it says that all others are there")


class _FeaturesOutput(TraitedSpec):
    out_file = traits.Str(desc="npz file of features")


class MeasureFeatures(SimpleInterface):
    """Measure an image's derivatives as the group level does where it finds no features: the same bytes either way."""

    input_spec = _FeaturesInput
    output_spec = _FeaturesOutput
    _always_run = True  # the output folder may have been emptied since

    def _run_interface(self, runtime):
        from mmh_bids.bids.derivatives import OutputPaths
        from mmh_bids.bids.run import Run
        from mmh_bids.evaluation.features import save_features
        from mmh_bids.evaluation.measured import measure_features
        from mmh_bids.interfaces.outputs import no_output

        run = Run(**{**self.inputs.run, "path": Path(self.inputs.run["path"])})
        paths = OutputPaths(Path(self.inputs.output_dir), run)
        measured = measure_features(paths)
        try:
            self._results["out_file"] = str(save_features(paths.features, measured))
        except OSError as error:
            raise no_output(error, paths.features.parent) from None
        return runtime
