import re
from dataclasses import replace

import pytest

from mmh_bids.reports.boilerplate import (
    METHODS,
    MethodsFacts,
    bibliography,
    citations,
    methods_text,
    reference,
    write_citations,
)

FACTS = MethodsFacts(
    "nyul",
    "classic",
    bundle_sha256="ab" * 32,
    versions={"mmh_bids": "0.1.0", "SimpleITK": "2.5.7", "deepbet": "1.0.2"},
)


@pytest.mark.parametrize("method", [*sorted(METHODS), "a method of somebody else"])
def test_every_citation_of_every_method_is_in_the_bibliography(method):
    facts = replace(FACTS, method=method)
    text = methods_text(facts)
    cited = [key for group in re.findall(r"\[(@[^\]]+)\]", text) for key in re.findall(r"@(\w+)", group)]
    assert list(citations(facts)) == list(dict.fromkeys(cited))
    assert "{" not in text and "None" not in text


def test_no_entry_is_there_in_vain():
    used = {key for method in METHODS for key in citations(replace(FACTS, method=method))}
    assert used == set(bibliography())


def test_only_what_ran_is_told():
    full = methods_text(replace(FACTS, shared_transforms=True, brain_extraction=("deepbet", "input")))
    for words in ("N4", "*SimpleITK* 2.5.7", "*deepbet* 1.0.2 [@deepbet] or read off", "ICBM152"):
        assert words in full
    assert full.startswith("T1- and T2-weighted images") and "same person's" in full
    bare = replace(
        FACTS,
        sequences=("T2w",),
        brain_extraction=("derivatives",),
        bias_correction="none",
        registration="derivatives",
    )
    text = methods_text(bare)
    assert text.startswith("T2-weighted images were harmonized")
    for words in ("N4", "deepbet", "ICBM152", "T1", "same person", "sloppy"):
        assert words not in text
    assert not {"n4", "deepbet", "mattes", "icbm152_2009"} & set(citations(bare))
    assert "--sloppy" in methods_text(replace(bare, sloppy=True))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("unified", "the unified reference of the bundle"),
        ("site:Köln {x} @me", "the site *Köln {x} @me*"),
        ("image:/data/ref/a.nii.gz", "the reference image *a.nii.gz*"),
    ],
)
def test_targets(target, words):
    facts = replace(FACTS, target=target)
    assert f"The target was {words} (model bundle *classic*, sha256 abababababab)." in methods_text(facts)
    assert list(citations(facts)) == list(citations(FACTS))


@pytest.mark.parametrize(
    ("method", "target", "words"),
    [
        ("mmh-light", "site:Utrecht", "gave them the site's look"),
        ("mmh-diffusion", "site:Utrecht", "a network fine-tuned to the site"),
        ("mmh-light", "image:/data/a.nii.gz", "standard deviation of the reference's brain"),
        ("mmh-diffusion", "image:/data/a.nii.gz", "standard deviation of the reference's brain"),
    ],
)
def test_a_second_stage_is_told_where_there_was_one(method, target, words):
    assert words in methods_text(replace(FACTS, method=method, target=target))
    for other in (replace(FACTS, method=method), replace(FACTS, method="nyul", target=target)):
        assert words not in methods_text(other)


def test_references_are_plain_lines():
    lines = [reference(entry) for entry in bibliography().values()]
    assert not [line for line in lines if re.search(r"[{}\\\n]", line)]
    assert any(line.startswith("Nyúl LG, Udupa JK (1999). On standardizing") for line in lines)
    assert all(re.search(r" \((19|20)\d\d\)\. ", line) for line in lines)


def test_citation_files_agree_with_the_text(tmp_path):
    markdown, bib = write_citations(tmp_path / "logs", FACTS)
    text = markdown.read_text(encoding="utf-8")
    assert methods_text(FACTS).strip() in text
    keys = re.findall(r"^@\w+\{(\w+),", bib.read_text(encoding="utf-8"), re.MULTILINE)
    assert keys == list(citations(FACTS)) == re.findall(r"^- \[@(\w+)\]", text, re.MULTILINE)
    before = markdown.read_bytes(), bib.read_bytes()
    write_citations(tmp_path / "logs", FACTS)
    assert (markdown.read_bytes(), bib.read_bytes()) == before
