"""Graphs of synthetic layouts, built but not run: the nodes, links and needs that there should be."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import networkx as nx
import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.utility import IdentityInterface
from releases import DESCRIPTIONS, RELEASES, placed

from mmh_bids.bids.derivatives import OutputPaths
from mmh_bids.bids.discovery import discover
from mmh_bids.bids.run import Run
from mmh_bids.cli.plan import plan
from mmh_bids.settings import Settings
from mmh_bids.workflows.base import Job, init_image_wf, init_mmh_wf, without_partners
from mmh_bids.workflows.study import Space, Study

NEEDS_LITTLE = ("merge_spaces",)
EVERY_IMAGE = {
    "check", "extract_brain", "correct_bias", "register", "model_grid", "harmonize", "transport",
    "write_derivatives", "measure_features", "draw_figures",
}  # fmt: skip


def image(path, shape=(10, 11, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), np.eye(4)).to_filename(path)
    return path


@pytest.fixture
def layout(tmp_path):
    """``layout(*names, **settings)``: study, jobs and graph of a dataset with these images."""

    def make(*names, spaces=(), files=(), **changes):
        root = tmp_path / "raw"
        for name in names:
            folder = root.joinpath(*[part for part in name.split("_") if part.startswith(("sub-", "ses-"))], "anat")
            image(folder / f"{name}.nii.gz")
        (root / "dataset_description.json").write_text(json.dumps({"Name": "A", "BIDSVersion": "1.10.0"}))
        for file in files:
            (tmp_path / "deriv" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "deriv" / file).write_bytes(b"content")
        if files:
            changes["derivatives"] = (("deriv", str(tmp_path / "deriv")),)
        settings = Settings(root, tmp_path / "out", work_dir=tmp_path / "work", **changes)
        study = dataclasses.replace(Study.prepare(settings), spaces=tuple(spaces))
        jobs = plan(discover(settings), study)
        return study, jobs, init_mmh_wf(jobs, study)

    return make


def nodes_of(graph, key=None):
    """Working nodes by their name below the image's workflow (all without `key`)."""
    graph._generate_flatgraph()
    return {
        node.fullname.split(".", 2)[2] if key else node.fullname: node
        for node in graph._graph.nodes()
        if not isinstance(node.interface, IdentityInterface) and (key is None or f".{key}_wf." in f"{node.fullname}.")
    }


def steps_of(graph, key):
    return {name.split(".")[-1] for name in nodes_of(graph, key)}


def entry_of(graph):
    """The inputnode of the (only) preprocessing workflow."""
    flat = graph._create_flat_graph()
    return next(node for node in flat.nodes() if node.fullname.endswith("anat_preproc_wf.inputnode"))


def feeds(graph, source, field, target, entry):
    """Whether `field` of the node `source` reaches `entry` of `target`, through identity nodes if need be."""
    flat = graph._create_flat_graph()
    names = {node.fullname: node for node in flat.nodes()}
    todo = [(node, field) for name, node in names.items() if name.endswith(source)]
    while todo:
        node, out = todo.pop()
        for _, after, data in flat.out_edges(node, data=True):
            for left, right in data["connect"]:
                if left != out:
                    continue
                if after.fullname.endswith(target) and right == entry:
                    return True
                if isinstance(after.interface, IdentityInterface):
                    todo.append((after, right))
    return False


def test_a_t1w_alone(layout):
    _, jobs, graph = layout("sub-01_T1w")
    assert steps_of(graph, "sub_01_T1w") == EVERY_IMAGE
    for source, field, target, entry in (
        ("check", "out_file", "extract_brain", "in_file"),
        ("check", "out_file", "correct_bias", "in_file"),
        ("extract_brain", "mask_file", "correct_bias", "mask_file"),
        ("extract_brain", "mask_file", "register", "mask_file"),
        ("correct_bias", "out_file", "register", "in_file"),
        ("correct_bias", "out_file", "model_grid", "in_file"),
        ("correct_bias", "out_file", "transport", "in_file"),
        ("correct_bias", "out_file", "write_derivatives", "preproc"),
        ("extract_brain", "mask_file", "transport", "mask_file"),
        ("extract_brain", "mask_file", "write_derivatives", "mask"),
        ("extract_brain", "facts", "write_derivatives", "mask_facts"),
        ("register", "xfm_file", "model_grid", "xfm_file"),
        ("register", "xfm_file", "transport", "xfm_file"),
        ("register", "xfm_file", "write_derivatives", "xfm"),
        ("model_grid", "out_file", "harmonize", "in_file"),
        ("model_grid", "out_file", "transport", "before_file"),
        ("model_grid", "mask_file", "transport", "model_mask"),
        ("harmonize", "out_file", "transport", "after_file"),
        ("transport", "out_file", "write_derivatives", "harmonized"),
        ("transport", "qc_file", "write_derivatives", "qc_file"),
        ("transport", "out_file", "draw_figures", "after"),
        ("write_derivatives", "harmonized", "measure_features", "harmonized"),
        ("correct_bias", "out_file", "draw_figures", "before"),
    ):
        assert feeds(graph, source, field, target, entry), (source, target)
    assert not feeds(graph, "check", "out_file", "transport", "in_file")
    assert [job.partner for job in jobs] == [None]


def test_a_t2w_alone_is_treated_like_a_t1w(layout):
    _, _, graph = layout("sub-01_T2w")
    assert steps_of(graph, "sub_01_T2w") == EVERY_IMAGE
    nodes = nodes_of(graph, "sub_01_T2w")
    assert {node.interface.inputs.sequence for name, node in nodes.items() if name.endswith("transport")} == {"T2w"}


def test_a_t2w_borrows_from_the_t1w_of_its_session(layout):
    _, _, graph = layout("sub-01_T1w", "sub-01_T2w")
    assert steps_of(graph, "sub_01_T1w") == EVERY_IMAGE
    assert steps_of(graph, "sub_01_T2w") == EVERY_IMAGE | {"coregister"}
    own, other = "sub_01_T2w_wf.anat_preproc_wf", "sub_01_T1w_wf.anat_preproc_wf"
    for source, field, entry in (
        (f"{other}.correct_bias", "out_file", "t1w_file"),
        (f"{other}.extract_brain", "mask_file", "t1w_mask"),
        (f"{other}.register", "xfm_file", "t1w_xfm"),
        (f"{own}.extract_brain", "mask_file", "mask_file"),
        (f"{own}.extract_brain", "facts", "facts"),
        (f"{own}.check", "out_file", "in_file"),
    ):
        assert feeds(graph, source, field, f"{own}.coregister", entry), entry
    assert feeds(graph, f"{own}.coregister", "mask_file", f"{own}.correct_bias", "mask_file")
    assert feeds(graph, f"{own}.coregister", "candidate_xfm", f"{own}.register", "candidate_xfm")
    assert feeds(graph, f"{own}.coregister", "facts", "sub_01_T2w_wf.write_derivatives", "mask_facts")
    assert not feeds(graph, f"{own}.extract_brain", "mask_file", f"{own}.correct_bias", "mask_file")


def test_sessions_and_runs(layout):
    """Only a T1w of the same session lends; runs stay apart."""
    _, jobs, graph = layout(
        "sub-01_ses-A_T1w", "sub-01_ses-A_run-1_T2w", "sub-01_ses-A_run-2_T2w", "sub-01_ses-B_T2w",
        "sub-02_acq-x_T1w", "sub-02_acq-y_T1w", "sub-02_acq-y_T2w",
    )  # fmt: skip
    partners = {job.run.key: job.partner for job in jobs}
    assert partners == {
        "sub-01_ses-A_T1w": None,
        "sub-01_ses-A_run-1_T2w": "sub-01_ses-A_T1w",
        "sub-01_ses-A_run-2_T2w": "sub-01_ses-A_T1w",
        "sub-01_ses-B_T2w": None,
        "sub-02_acq-x_T1w": None,
        "sub-02_acq-y_T1w": None,
        "sub-02_acq-y_T2w": "sub-02_acq-y_T1w",
    }
    for job in jobs:
        assert ("coregister" in steps_of(graph, job.run.node_name)) == (job.partner is not None)
    lent = "sub_02_acq_y_T1w_wf.anat_preproc_wf.correct_bias"
    assert feeds(graph, lent, "out_file", "sub_02_acq_y_T2w_wf.anat_preproc_wf.coregister", "t1w_file")


def test_a_t2w_whose_t1w_failed_goes_on_alone(layout):
    study, jobs, _ = layout("sub-01_T1w", "sub-01_T2w")
    left = without_partners([job for job in jobs if job.run.sequence == "T2w"], {"sub-01_T1w"})
    assert steps_of(init_mmh_wf(left, study), "sub_01_T2w") == EVERY_IMAGE
    # also when nobody took its partner away
    alone = init_mmh_wf([job for job in jobs if job.partner], study)
    assert steps_of(alone, "sub_01_T2w") == EVERY_IMAGE


T1W_MASK = "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
T1W_XFM = "sub-01/anat/sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5"
ORIG = "sub-01/anat/sub-01_from-orig_to-T1w_mode-image_xfm.txt"


def test_a_reused_mask_replaces_the_network(layout):
    _, _, graph = layout("sub-01_T1w", files=[T1W_MASK, ORIG])
    assert steps_of(graph, "sub_01_T1w") == EVERY_IMAGE - {"extract_brain"} | {"reuse_mask"}
    entry = entry_of(graph)
    assert Path(entry.inputs.mask_file).name == Path(T1W_MASK).name
    assert Path(entry.inputs.mask_xfm).name == Path(ORIG).name
    assert feeds(graph, "anat_preproc_wf.inputnode", "mask_file", "reuse_mask", "mask_file")
    assert feeds(graph, "anat_preproc_wf.inputnode", "mask_xfm", "reuse_mask", "xfm_file")


def test_a_reused_transform_replaces_the_registration(layout):
    _, _, graph = layout("sub-01_T1w", files=[T1W_XFM, ORIG])
    assert steps_of(graph, "sub_01_T1w") == EVERY_IMAGE - {"register"} | {"reuse_xfm"}
    assert feeds(graph, "anat_preproc_wf.inputnode", "xfm_file", "anat_preproc_wf.reuse_xfm", "reused_xfm")
    assert feeds(graph, "anat_preproc_wf.inputnode", "xfm_orig", "anat_preproc_wf.reuse_xfm", "reused_orig")
    assert feeds(graph, "anat_preproc_wf.reuse_xfm", "xfm_file", "model_grid", "xfm_file")
    entry = entry_of(graph)
    assert Path(entry.inputs.xfm_file).name == Path(T1W_XFM).name
    assert Path(entry.inputs.xfm_orig).name == Path(ORIG).name


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("session", [None, "A"])
def test_no_brain_is_extracted_beside_the_tree_of_any_release(layout, release, session):
    """The tree of fMRIPrep or sMRIPrep as it is: neither deepbet nor a registration is in the graph."""
    prefix = f"sub-01_ses-{session}" if session else "sub-01"
    tree, expected = RELEASES[release]
    files = placed(tree, session) + ([f"{tree[0]}dataset_description.json"] if DESCRIPTIONS[release] else [])
    _, _, graph = layout(f"{prefix}_run-1_T1w", files=files)
    key = f"{prefix}_run-1_T1w".replace("-", "_")
    assert steps_of(graph, key) == EVERY_IMAGE - {"extract_brain", "register"} | {"reuse_mask", "reuse_xfm"}
    entry = entry_of(graph)
    for field, name in (("mask_file", "mask"), ("mask_xfm", "mask_xfm"), ("xfm_file", "xfm"), ("xfm_orig", "xfm_orig")):
        assert Path(getattr(entry.inputs, field)).name == expected[name].replace("PREFIX", prefix)


def test_only_the_t2w_looks_for_its_brain_beside_fmriprep(layout):
    """fMRIPrep leaves no mask of the T2w: its own brain is found, then the T1w's mask is borrowed as ever."""
    files = placed(RELEASES["fMRIPrep 23.2"][0])
    _, _, graph = layout("sub-01_run-1_T1w", "sub-01_T2w", files=files)
    assert not {"extract_brain", "register"} & steps_of(graph, "sub_01_run_1_T1w")
    assert steps_of(graph, "sub_01_T2w") == EVERY_IMAGE | {"coregister"}


def test_a_t2w_with_mask_and_transform_of_its_own_borrows_nothing(layout):
    own = [
        "sub-01/anat/sub-01_desc-brainT2w_mask.nii.gz",
        "sub-01/anat/sub-01_from-T2w_to-MNI152NLin2009aSym_mode-image_xfm.txt",
    ]
    _, _, graph = layout("sub-01_T1w", "sub-01_T2w", files=own)
    assert steps_of(graph, "sub_01_T2w") == EVERY_IMAGE - {"extract_brain", "register"} | {"reuse_mask", "reuse_xfm"}
    assert {"extract_brain", "register"} < steps_of(graph, "sub_01_T1w")


def test_skip_asks_for_no_network(layout):
    _, _, with_network = layout("sub-01_T1w", omp_nthreads=4)
    _, _, without = layout("sub-01_T1w", omp_nthreads=4, skull_strip="skip")
    (one,), (other,) = (
        [node for name, node in nodes_of(graph).items() if name.endswith("extract_brain")]
        for graph in (with_network, without)
    )
    assert one.mem_gb > other.mem_gb + 1
    assert (one.n_procs, other.n_procs) == (4, 1)
    assert other.interface.inputs.mode == "skip"


def test_settings_reach_the_nodes(layout):
    study, _, graph = layout(
        "sub-01_T1w", method="zscore", skull="keep", bias_correction="none", random_seed=11, sloppy=True,
        skull_strip="force", device="cuda:1",
    )  # fmt: skip
    by_name = {name.split(".")[-1]: node.interface.inputs for name, node in nodes_of(graph).items()}
    assert by_name["harmonize"].method == "zscore"
    assert by_name["harmonize"].seed == 11
    assert by_name["harmonize"].bundle_sha256 == study.bundle.sha256
    assert by_name["harmonize"].device == by_name["extract_brain"].device == "cuda:1"
    assert by_name["transport"].skull == by_name["write_derivatives"].skull == "keep"
    assert by_name["transport"].output_max == study.bundle.output_max
    assert by_name["transport"].reference_quantiles == study.quantiles["T1w"]
    assert by_name["correct_bias"].method == "none"
    assert by_name["correct_bias"].sloppy is by_name["register"].sloppy is True
    assert by_name["extract_brain"].mode == "force"
    assert by_name["model_grid"].shape == tuple(study.bundle.shape)
    np.testing.assert_array_equal(by_name["model_grid"].affine, study.bundle.affine)
    assert graph.base_dir == str(study.settings.work_dir)


def test_the_control_method_keeps_what_a_method_would_see(layout):
    _, _, graph = layout("sub-01_T1w", method="none")
    assert feeds(graph, "model_grid", "out_file", "write_derivatives", "model_file")
    _, _, other = layout("sub-01_T1w", method="zscore")
    assert not feeds(other, "model_grid", "out_file", "write_derivatives", "model_file")


def test_an_image_as_target_is_preprocessed_once_for_each_sequence(layout, tmp_path):
    reference = image(tmp_path / "reference_T1w.nii.gz")
    _, _, graph = layout("sub-01_T1w", "sub-02_T1w", "sub-02_T2w", method="histmatch", target=f"image:{reference}")
    for sequence, key in (("T1w", "sub_01_T1w"), ("T1w", "sub_02_T1w"), ("T2w", "sub_02_T2w")):
        source, target = f"reference_{sequence}_wf.model_grid", f"{key}_wf.harmonize_anat_wf.harmonize"
        assert feeds(graph, source, "out_file", target, "reference_file")
        assert feeds(graph, source, "mask_file", target, "reference_mask")
    entries = [node for name, node in nodes_of(graph).items() if "reference_" in name and name.endswith(".check")]
    assert len(entries) == 2
    starts = [n for n in graph._graph.nodes() if "reference_" in n.fullname and n.name == "inputnode"]
    assert {n.inputs.in_file for n in starts} == {str(reference)}


def test_output_spaces(layout, tmp_path):
    head, brain = image(tmp_path / "tpl_T1w.nii.gz"), image(tmp_path / "tpl_desc-brain_T1w.nii.gz")
    spaces = [Space("MNI152NLin2009aSym:res-1", head, None), Space("MNI152NLin6Asym:res-2", head, brain)]
    _, _, graph = layout("sub-01_T1w", spaces=spaces)
    extra = {"to_space_1", "to_space_2", "register_space_2", "merge_spaces"}
    assert steps_of(graph, "sub_01_T1w") == EVERY_IMAGE | extra
    assert feeds(graph, "anat_preproc_wf.register", "xfm_file", "to_space_1", "xfm_file")
    assert feeds(graph, "register_space_2", "xfm_file", "to_space_2", "xfm_file")
    assert not feeds(graph, "anat_preproc_wf.register", "xfm_file", "to_space_2", "xfm_file")
    assert feeds(graph, "to_space_1", "out_file", "merge_spaces", "in1")
    assert feeds(graph, "to_space_2", "out_file", "merge_spaces", "in2")
    assert feeds(graph, "merge_spaces", "out", "write_derivatives", "space_files")
    write = next(node for name, node in nodes_of(graph).items() if name.endswith("write_derivatives"))
    assert write.interface.inputs.spaces == [space.name for space in spaces]


BIG = ("sub-01_ses-A_T1w", "sub-01_ses-A_T2w", "sub-01_ses-B_T2w", "sub-02_run-1_T1w", "sub-02_run-2_T1w",
       "sub-02_acq-run1_T1w", "sub-02_T1w", "sub-02_T2w")  # fmt: skip


def test_every_heavy_node_says_what_it_needs(layout, tmp_path):
    spaces = [Space("MNI152NLin6Asym:res-2", template := image(tmp_path / "t.nii.gz"), template)]
    _, _, graph = layout(*BIG, spaces=spaces, omp_nthreads=3)
    default = 0.2
    for name, node in nodes_of(graph).items():
        if node.name in NEEDS_LITTLE:
            assert node.run_without_submitting, name
            continue
        assert node._mem_gb is not None, name
        assert node.mem_gb >= default, name
        assert node.n_procs == (3 if node.name == "extract_brain" else 1), name
        assert name.split(".")[-1] == node.name


def test_memory_grows_with_the_image(tmp_path):
    """Half-millimetre heads must be given more."""
    settings = Settings(tmp_path / "raw", tmp_path / "out", work_dir=tmp_path / "work")
    study, needs = Study.prepare(settings), []
    for size in (64, 256):
        path = tmp_path / f"sub-{size}_T1w.nii"
        header = nib.Nifti1Header()
        header.set_data_shape((size, size, size))
        path.write_bytes(header.binaryblock + bytes(4))
        graph = init_image_wf(Job(Run(path, "T1w", {"sub": str(size)}), "f", "s"), study)
        graph._generate_flatgraph()
        needs.append({node.name: node.mem_gb for node in graph._graph.nodes() if node.name in EVERY_IMAGE})
    for name in EVERY_IMAGE - {"harmonize"}:
        assert needs[1][name] >= needs[0][name] + 2 * (256**3 - 64**3) * 4 / 1e9, name


def test_no_two_nodes_share_a_folder_or_an_output(layout):
    study, jobs, graph = layout(*BIG)
    assert len(jobs) == len(BIG)
    names = list(nodes_of(graph))
    assert len(set(names)) == len(names)
    flat = graph._create_flat_graph()
    # half of the file systems in use do not tell upper from lower case
    assert len({str(node.output_dir()).casefold() for node in flat.nodes()}) == len(flat.nodes())
    outputs = []
    for job in jobs:
        paths = OutputPaths(study.settings.output_dir, job.run)
        outputs += [paths.harmonized(), paths.preproc, paths.brain_mask, paths.transform(), paths.model_grid]
        outputs += [paths.harmonized("MNI152NLin2009aSym", "1"), paths.figure("x")]
    assert len(set(outputs)) == len(outputs)


def test_the_graph_is_one_that_nipype_can_run_and_draw(layout, tmp_path):
    _, _, graph = layout(*BIG)
    flat = graph._create_flat_graph()
    assert nx.is_directed_acyclic_graph(flat)
    with contextlib.suppress(OSError):  # without graphviz the graph is written, but not drawn
        graph.write_graph(dotfilename=str(tmp_path / "graph.dot"), graph2use="colored", simple_form=True)
    text = (tmp_path / "graph.dot").read_text()
    assert all(name.replace("-", "_") in text for name in BIG)


@pytest.mark.parametrize("changed", ["sub-01_T1w", "sub-01_T2w"])
def test_jobs_know_what_they_were_made_from(layout, tmp_path, changed):
    """The fingerprint of a T2w follows the T1w it borrows from; not the other way round."""
    _, before, _ = layout("sub-01_T1w", "sub-01_T2w")
    image(tmp_path / "raw/sub-01/anat" / f"{changed}.nii.gz", (12, 11, 10))
    study, _, _ = layout()
    after = plan(discover(study.settings), study)
    differ = {a.run.key for a, b in zip(after, before, strict=True) if a.fingerprint != b.fingerprint}
    assert differ == ({"sub-01_T1w", "sub-01_T2w"} if changed == "sub-01_T1w" else {"sub-01_T2w"})
