"""The public workflow factories: what their docstrings promise is there."""

from __future__ import annotations

import inspect
import re

import pytest

from mmh_bids.workflows.harmonize import init_harmonize_anat_wf
from mmh_bids.workflows.preproc import init_anat_preproc_wf
from mmh_bids.workflows.resources import node_gb

HARMONIZE = {"sequence": "T1w", "method": "zscore"}
FACTORIES = {
    "preproc": (init_anat_preproc_wf, {"source_file": "a"}),
    "preproc of a T2w": (init_anat_preproc_wf, {"source_file": "a", "through_t1w": True, "name": "t2w_wf"}),
    "preproc with reuse": (init_anat_preproc_wf, {"source_file": "a", "reuse_mask": True, "reuse_xfm": True}),
    "harmonize": (init_harmonize_anat_wf, HARMONIZE),
    "harmonize to an image": (init_harmonize_anat_wf, HARMONIZE | {"with_reference": True}),
}


def documented(factory, section):
    """Field names that a NumPy docstring lists under `section`."""
    text = inspect.getdoc(factory)
    body = re.search(rf"^{section}\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", text, re.MULTILINE | re.DOTALL)[1]
    return {name.strip() for line in body.splitlines() if line[:1].strip() for name in line.split(",")}


@pytest.mark.parametrize("name", FACTORIES)
def test_documented_fields_exist_and_no_others(name):
    factory, arguments = FACTORIES[name]
    workflow = factory(**arguments)
    inputs = set(workflow.get_node("inputnode").interface._fields)
    outputs = set(workflow.get_node("outputnode").interface._fields)
    assert documented(factory, "Inputs") == inputs
    assert documented(factory, "Outputs") == outputs
    assert documented(factory, "Parameters") <= set(inspect.signature(factory).parameters)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_output_is_fed_and_every_input_is_used(name):
    factory, arguments = FACTORIES[name]
    workflow = factory(**arguments)
    graph = workflow._graph
    fed = {to for *_, data in graph.in_edges(workflow.get_node("outputnode"), data=True) for _, to in data["connect"]}
    assert fed == set(workflow.get_node("outputnode").interface._fields)
    used = {out for *_, data in graph.out_edges(workflow.get_node("inputnode"), data=True)
            for out, _ in data["connect"]}  # fmt: skip
    optional = {"t1w_corrected", "t1w_mask", "t1w_xfm"} if not arguments.get("through_t1w") else set()
    optional |= {"mask_file", "mask_xfm"} if not arguments.get("reuse_mask") else set()
    optional |= {"xfm_file", "xfm_orig"} if not arguments.get("reuse_xfm") else set()
    optional |= {"reference", "reference_mask"} if not arguments.get("with_reference") else set()
    assert used == set(workflow.get_node("inputnode").interface._fields) - optional


@pytest.mark.parametrize("name", FACTORIES)
def test_names_are_those_of_the_variables(name):
    """Whoever reads a node's name in a log finds the variable of that name in the factory."""
    factory, arguments = FACTORIES[name]
    source = inspect.getsource(factory)
    for node in factory(**arguments)._graph.nodes():
        made = re.search(rf'(\w+) = pe\.Node\((?:(?!pe\.Node).)*name="{node.name}"', source, re.DOTALL)
        assert made, node.name
        # a variable that holds either of two nodes has the name of neither
        assert made[1] in (node.name, "brain", "register"), node.name


@pytest.mark.parametrize("name", FACTORIES)
def test_keyword_only_and_named_after_what_they_are(name):
    factory, arguments = FACTORIES[name]
    kinds = {parameter.kind for parameter in inspect.signature(factory).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}
    assert re.fullmatch(r"init_\w+_wf", factory.__name__)
    assert factory(**arguments | {"name": "other_wf"}).name == "other_wf"


def test_memory_of_a_node_is_what_it_holds():
    assert node_gb(0, 1.0) == pytest.approx(0.2)
    assert node_gb(5, 0.067, base=1.0) == pytest.approx(1.335)
