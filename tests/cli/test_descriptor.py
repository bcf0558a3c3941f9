"""The Boutiques descriptor and the entry for the registry say what the app says."""

import json
import re

import pytest
import yaml

from mmh_bids.cli.descriptor import build_descriptor
from mmh_bids.cli.parser import LEVELS, build_parser, parse


@pytest.fixture(scope="module")
def committed(repo_root):
    """The descriptor as it is in the repository."""
    return json.loads((repo_root / "boutiques.json").read_text(encoding="utf-8"))


def test_the_committed_descriptor_is_that_of_the_parser(committed):
    assert committed == build_descriptor(), "make it again: make descriptor"


def test_every_flag_is_in_it_and_no_other(committed):
    flags = {word for action in build_parser()._actions for word in action.option_strings if word.startswith("--")}
    described = {item["command-line-flag"] for item in committed["inputs"] if item["optional"]}
    assert described == flags - {"--help", "--version", "--n-cpus"}  # --n-cpus is --nprocs by another name


def test_a_call_put_together_from_it_is_one_the_parser_takes(committed):
    """Its types, lists and choices are those of the flags."""
    samples = {"File": "/a/file", "String": "text", "Number": "3"}
    special = {"--mem": "4G", "--target": "unified", "--device": "cpu"}
    words = []
    for item in committed["inputs"]:
        flag = item.get("command-line-flag")
        value = special.get(flag) or (item.get("value-choices") or [samples.get(item["type"])])[-1]
        if flag != "--config-file":
            words += ([flag] if flag else []) + ([] if item["type"] == "Flag" else [value] * (1 + item.get("list", 0)))
    settings = parse(words)
    assert (settings.analysis_level, settings.bids_mirror_files) == ((LEVELS[-1],), "symlink")
    assert settings.derivatives == (("text", settings.derivatives[0][1]),) * 2 and settings.random_seed == 3
    assert settings.sloppy and settings.verbose == 1 and settings.nipype_plugin_file.as_posix() == "/a/file"


def test_boutiques_finds_it_valid(repo_root, committed, tmp_path):
    """``bosh validate``; boutiques is no part of the environment: pip install boutiques."""
    bosh = pytest.importorskip("boutiques.bosh").bosh
    bosh(["validate", str(repo_root / "boutiques.json")])
    broken = [item | {"type": "Folder"} for item in committed["inputs"]]
    (tmp_path / "broken.json").write_text(json.dumps(committed | {"inputs": broken}))
    with pytest.raises(Exception, match="Folder"):
        bosh(["validate", str(tmp_path / "broken.json")])


def test_the_entry_for_the_registry(repo_root, committed):
    (entry,) = yaml.safe_load((repo_root / "docs" / "bids-apps-registry.yml").read_text(encoding="utf-8"))
    assert " ".join(entry["description"].split()).startswith(committed["description"])
    assert re.fullmatch(r"[\w-]+/mmh_bids", entry["gh"])
    assert (entry["ds_type"], entry["datatype"]) == (["raw"], ["anat"])
