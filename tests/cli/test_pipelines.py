"""The app among other pipelines: inside a workflow, after fMRIPrep, before it, and after itself."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from identity import TRANSFORM
from releases import DESCRIPTIONS, RELEASES, placed
from small_study import SOURCES, hashes, sidecar
from tiny import describe, image, leftovers, mmh, save

from mmh_bids.bids.derivatives import OutputPaths, write_sidecar
from mmh_bids.bids.run import Run
from mmh_bids.cli.participant import say_not_reused
from mmh_bids.image.grid import open_nifti
from mmh_bids.settings import Settings
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
    (seen,) = (tmp_path / "out" / "work").rglob("model_grid/model.nii")
    assert open_nifti(seen).shape == (36, 46, 46)  # the bundle that was asked for


@pytest.mark.slow
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


def test_a_transform_that_was_not_used_is_named(tmp_path, caplog):
    """After the call, as the step that found out runs in another process."""
    settings = Settings(tmp_path / "raw", tmp_path / "out")
    runs = [Run(tmp_path / f"sub-{label}_T1w.nii.gz", "T1w", {"sub": label}) for label in ("01", "02")]
    for run, facts in zip(runs, ({"NotReused": "a.h5: holds a warp"}, {"Method": "reused: a.txt"}), strict=True):
        paths = OutputPaths(settings.output_dir, run)
        write_sidecar(paths.harmonized(), {"Harmonization": {"Registration": facts}})
    say_not_reused(settings, runs)
    assert [record.getMessage() for record in caplog.records] == ["sub-01_T1w: registered anew: a.h5: holds a warp"]


def graph_of(out):
    """Nodes of the graph that ``--write-graph`` left."""
    (file,) = [path for path in (out / "logs").glob("graph-*.dot") if "_detailed" not in path.name]
    return file.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("release", ["fMRIPrep 1.1", "fMRIPrep 23.2"])
def test_the_tree_of_fmriprep_spares_brain_extraction_and_registration(tmp_path, brain, bundle, release):
    """A head in air, so that only the given mask can tell the brain; its transform is a composite with a warp."""
    data, affine = brain
    root, out, other = describe(tmp_path / "raw"), tmp_path / "out", tmp_path / "given"
    source = "sub-01/ses-A/anat/sub-01_ses-A_run-01_T1w.nii.gz"
    save(image(np.where(data > 0, data, 0.1) * 800, affine, "LPS"), root / source)
    for name in placed(RELEASES[release][0], session="A"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(("sub-01_ses-A_desc-brain_mask.nii.gz", "sub-01_ses-A_T1w_brainmask.nii.gz")):
            save(image((data > 0.3) * 1.0, affine, "RAS", np.uint8), other / name)
        elif name.endswith("run-1_from-orig_to-T1w_mode-image_xfm.txt") or "space-orig_target-T1w" in name:
            (other / name).write_text(TRANSFORM)
        elif "from-T1w_to-MNI" in name or "T1w_target-MNI" in name:
            write_composite(other / name)
        else:
            (other / name).touch()
    (other / "dataset_description.json").write_text(json.dumps(DESCRIPTIONS[release]))
    call = mmh(root, out, "participant", "-d", f"fmriprep={other}", "--sloppy", "--device", "cpu", "--model", bundle,
               "-w", tmp_path / "work", "--write-graph")  # fmt: skip
    assert call.code == 0, call.err
    assert "--derivatives: brain masks for 1 of 1 image(s), transforms to a template for 1" in call.err
    assert "brain mask reused" in call.err and "transform to the template reused" in call.err
    assert "reuse_mask" in graph_of(out) and "reuse_xfm" in graph_of(out)
    assert "extract_brain" not in graph_of(out) and "register" not in graph_of(out)
    facts = sidecar(out, source)["Harmonization"]
    assert facts["Registration"]["Method"].endswith(".h5 (its affine)")
    mask = nib.as_closest_canonical(open_nifti(out / source.replace("T1w.nii", "desc-brain_mask.nii")))
    assert np.array_equal(np.asanyarray(mask.dataobj) > 0, data > 0.3)


def write_composite(path):
    """An affine (the identity: the tiny brains lie in template space) and a displacement field."""
    field = sitk.GetImageFromArray(np.zeros((20, 20, 20, 3)) + [1.0, -2.0, 2.0], isVector=True)
    field.SetSpacing([12.0] * 3)
    field.SetOrigin([-114.0] * 3)
    whole = sitk.CompositeTransform([sitk.AffineTransform(3), sitk.DisplacementFieldTransform(field)])
    sitk.WriteTransform(whole, str(path))


@pytest.mark.slow
def test_our_own_output_is_reused(study, tmp_path, bundle):
    """Every image, T2w too: no mask is made, nothing is registered, and the result is the same."""
    root, out, *_ = study
    again = tmp_path / "again"
    call = mmh(root, again, "participant", "-d", f"mmh={out}", "--sloppy", "--device", "cpu", "--model", bundle,
               "-w", tmp_path / "work", "--write-graph")  # fmt: skip
    assert call.code == 0, call.err
    assert not any(step in graph_of(again) for step in ("extract_brain", "register", "coregister"))
    for source in SOURCES:
        before, after = (sidecar(folder, source)["Harmonization"] for folder in (out, again))
        assert after["BrainExtraction"]["Method"].startswith("reused: ")
        assert after["Registration"]["Method"].startswith("reused: ")
        assert after["BrainExtraction"]["Volume"] == before["BrainExtraction"]["Volume"]
        one, other = (
            np.asanyarray(open_nifti(folder / source.replace("_T", "_desc-harmonized_T")).dataobj)
            for folder in (out, again)
        )
        np.testing.assert_allclose(other, one, atol=1e-3 * one.max())
    links = json.loads((again / "dataset_description.json").read_text())["DatasetLinks"]
    assert (again / links["mmh"]).resolve() == out.resolve()


@pytest.mark.slow
def test_what_others_ask_pybids_for_is_found_once(study):
    """One mask and one preprocessed image for a T1w, under the entities that sMRIPrep's queries name (from memory)."""
    from bids.layout import BIDSLayout, Query

    layout = BIDSLayout(study[1], config=["bids", "derivatives"], validate=False)
    common = {"subject": "01", "session": "A", "datatype": "anat", "space": Query.NONE, "extension": ".nii.gz"}
    (mask,) = layout.get(desc="brain", suffix="mask", return_type="filename", **common)
    (preproc,) = layout.get(desc="preproc", suffix="T1w", return_type="filename", **common)
    assert mask.endswith("ses-A_desc-brain_mask.nii.gz") and preproc.endswith("ses-A_desc-preproc_T1w.nii.gz")
    transform = {"suffix": "xfm", "from": "T1w", "to": "MNI152NLin2009aSym", "mode": "image"}
    (xfm,) = layout.get(subject="01", session="A", return_type="filename", **transform)
    assert xfm.endswith("from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt")


@pytest.mark.long
def test_jobs_that_share_output_and_mirror(study, tmp_path):
    """One job a session and participant, all at once, leave what one call leaves, byte for byte."""
    root, _, words, *_ = study
    mirrors = {}
    sub_01 = ("--participant-label", "01", "--session-label")
    jobs = {"one": [()], "many": [(*sub_01, "A"), (*sub_01, "B"), ("--participant-label", "02")]}
    for name, calls in jobs.items():
        folder = tmp_path / name
        base = [sys.executable, "-m", "mmh_bids.cli.run", root, folder / "out", *words]
        running = []
        for index, more in enumerate(calls):
            command = [*base, "--bids-mirror", folder / "mirror", *more, "-w", folder / f"work{index}"]
            running.append(subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True))
        for job in running:
            _, err = job.communicate(timeout=500)
            assert job.returncode == 0, err
        mirrors[name] = hashes(folder / "mirror")
        assert leftovers(folder / "mirror") == []
    for name in ("dataset_description.json", "mmh_images.tsv", *SOURCES):
        assert name in mirrors["many"]
    assert mirrors["many"] == mirrors["one"]
    rows = (tmp_path / "many" / "mirror" / "mmh_images.tsv").read_text().splitlines()[1:]
    assert len(rows) == len(SOURCES) and all("\tharmonized\t" in row for row in rows)


@pytest.mark.long
def test_the_mirror_of_the_sample(repo_root, tmp_path):
    """Valid for the BIDS validator and pybids; heads with their skulls on the raw grids; the raw data untouched."""
    from bids.layout import BIDSLayout

    root, mirror = repo_root / "data" / "ds-sample", tmp_path / "mirror"
    before = hashes(root)
    words = [root, tmp_path / "out", "participant", "--bids-mirror", mirror, "--method", "zscore", "--sloppy",
             "--device", "cpu", "-w", tmp_path / "work"]  # fmt: skip
    # ten brain extractions: longer than a call on tiny brains may take
    command = [sys.executable, "-m", "mmh_bids.cli.run", *map(str, words)]
    app = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    assert app.returncode == 0, app.stderr
    assert hashes(root) == before
    assert set(hashes(mirror)) == set(before) | {".bidsignore", "mmh_images.tsv"}
    validator = shutil.which("bids-validator-deno", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert validator, "bids-validator-deno is not installed"
    done = subprocess.run([validator, "--json", str(mirror)], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue.get("severity") == "error"] == [] and done.returncode == 0
    layout = BIDSLayout(mirror, validate=True)
    images = layout.get(suffix=["T1w", "T2w"], extension=".nii.gz", datatype="anat")
    assert len(images) == sum(name.endswith(".nii.gz") for name in before) == 10
    for found in images:
        source, made = (open_nifti(folder / Path(found.path).relative_to(mirror)) for folder in (root, mirror))
        assert made.shape == source.shape and np.array_equal(made.affine, source.affine)
        assert not found.get_metadata()["SkullStripped"]
        inside = open_nifti(brain_mask_of(tmp_path / "out", Path(found.path).relative_to(mirror)))
        outside = np.asanyarray(made.dataobj)[np.asanyarray(inside.dataobj) == 0]
        assert (outside > 0.3 * np.median(np.asanyarray(made.dataobj)[np.asanyarray(inside.dataobj) > 0])).mean() > 0.03


def brain_mask_of(out, image_path):
    """Our mask of an image that is given by its path in the dataset."""
    desc = "brain" if "_T1w" in image_path.name else "brainT2w"
    stem = image_path.name.rsplit("_", 1)[0]
    return out / image_path.parent / f"{stem}_desc-{desc}_mask.nii.gz"
