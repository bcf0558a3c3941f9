"""The app among other pipelines: inside a workflow, after fMRIPrep, before it, and after itself."""

import importlib.util
import json

import nibabel as nib
import numpy as np
import pytest
from tiny import TRANSFORM, image, save

from mmh_bids.image.grid import open_nifti
from mmh_bids.workflows.harmonize import init_harmonize_anat_wf


@pytest.fixture(scope="module")
def example(repo_root):
    """The example of docs/pipelines.md as a module."""
    path = repo_root / "docs" / "examples" / "embed_harmonization.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs(folder, brain, axes="RAS"):
    """Files that fMRIPrep's anatomical workflow would hand on."""
    data, affine = brain
    folder.mkdir()
    (folder / "xfm.txt").write_text(TRANSFORM)
    return [
        save(image(data * 800, affine, axes, np.float32), folder / "t1w.nii.gz"),
        save(image((data > 0) * 1.0, affine, axes, np.uint8), folder / "mask.nii.gz"),
        folder / "xfm.txt",
    ]


def test_the_example_embeds_the_harmonization(tmp_path, brain, bundle, example, capsys):
    files = inputs(tmp_path / "in", brain)
    words = ["--out", str(tmp_path / "out"), "--method", "zscore", "--model", str(bundle)]
    value = example.main([*map(str, files), *words])
    made = open_nifti(tmp_path / "out" / "anat" / "harmonized.nii")
    source = open_nifti(files[0])
    assert made.shape == source.shape
    np.testing.assert_allclose(made.affine, source.affine, atol=1e-5)
    data, inside = np.asanyarray(made.dataobj), np.asanyarray(open_nifti(files[1]).dataobj) > 0
    assert (data[~inside] == 0).all() and data[inside].mean() == pytest.approx(value)
    assert f"mean of the harmonized brain: {value:.1f}" in capsys.readouterr().out
    qc = json.loads((tmp_path / "out" / "anat" / "qc.json").read_text())["qc"]
    assert qc["Finite"] and qc["NonNegative"]


def test_the_axes_of_the_embedding_workflow_do_not_matter(tmp_path, brain, bundle):
    """The app hands RAS+ on; others hand on what they have."""
    made = []
    for axes in ("RAS", "PIL"):
        t1w, mask, xfm = inputs(tmp_path / axes, brain, axes)
        workflow = init_harmonize_anat_wf(sequence="T1w", method="zscore", model=str(bundle), name=f"{axes}_wf")
        workflow.base_dir = str(tmp_path / "work")
        workflow.inputs.inputnode.anat_preproc = str(t1w)
        workflow.inputs.inputnode.anat_mask = str(mask)
        workflow.inputs.inputnode.anat2std_xfm = str(xfm)
        done = next(node for node in workflow.run().nodes() if node.name == "transport").result.outputs.out_file
        made.append(np.asanyarray(nib.as_closest_canonical(open_nifti(done)).dataobj))
    assert made[0].max() > 0
    for other in made[1:]:
        np.testing.assert_allclose(other, made[0], atol=0.02 * made[0].max())
