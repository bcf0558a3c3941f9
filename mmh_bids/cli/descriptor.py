"""The Boutiques descriptor of ``mmh``, made from its own parser: ``python -m mmh_bids.cli.descriptor boutiques.json``.

Boutiques (https://boutiques.github.io) describes command lines for platforms such as CBRAIN. A test compares the
committed file with what this makes, so that a flag cannot be added to one and forgotten in the other.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mmh_bids import __version__
from mmh_bids.cli.parser import build_parser, positive
from mmh_bids.files import atomic_write

#: Where each positional argument comes from: its name for people.
_NAMES = {"bids_dir": "BIDS dataset", "output_dir": "Output folder", "analysis_level": "Levels of analysis"}
_EXIT_CODES = {
    1: "Some image or report failed; the others are done",
    2: "Wrong usage: nothing was started",
    3: "Nothing to do: no image fits the request",
    70: "Internal error",
}


def build_descriptor() -> dict[str, Any]:
    """The descriptor, in schema version 0.5, as JSON-ready values."""
    parser = build_parser()
    inputs = [_input(action) for action in parser._actions if not _ends_the_call(action)]
    return {
        "name": "mmh",
        "description": parser.description,
        "author": "The mmh_bids team",
        "tool-version": __version__,
        "schema-version": "0.5",
        "command-line": " ".join(["mmh", *(item["value-key"] for item in inputs)]),
        "inputs": inputs,
        "output-files": [
            {
                "id": "outputs",
                "name": "Outputs",
                "description": "Harmonized images with sidecars, reports, tables and logs",
                "path-template": "[OUTPUT_DIR]",
                "optional": False,
            }
        ],
        "error-codes": [{"code": code, "description": text} for code, text in _EXIT_CODES.items()],
        "suggested-resources": {"cpu-cores": 2, "ram": 4, "walltime-estimate": 600},
        "tags": {"domain": ["neuroinformatics", "mri"], "toolbox": "mmh_bids"},
    }


def _ends_the_call(action: argparse.Action) -> bool:
    return isinstance(action, argparse._HelpAction | argparse._VersionAction)


def _input(action: argparse.Action) -> dict[str, Any]:
    flag = next((word for word in action.option_strings if word.startswith("--")), None)
    fields: dict[str, Any] = {
        "id": action.dest,
        "name": _NAMES.get(action.dest) or (flag or action.dest).lstrip("-").replace("-", " ").capitalize(),
        "description": " ".join((action.help or "").split()),
        "value-key": f"[{action.dest.upper()}]",
        "optional": flag is not None,
        "type": _type(action),
    }
    if flag:
        fields["command-line-flag"] = flag
    if fields["type"] == "Number":
        fields["integer"] = True
        if action.type is positive:
            fields["minimum"] = 1
    if action.choices:
        fields["value-choices"] = list(action.choices)
    if action.nargs == "+":
        fields["list"] = True
        fields["min-list-entries"] = 1
    return fields


def _type(action: argparse.Action) -> str:
    """Boutiques' type: files are what is read; folders that need not exist yet are texts to it."""
    if action.nargs == 0:
        return "Flag"
    if action.dest == "bids_dir" or action.metavar == "FILE":
        return "File"
    return "Number" if action.type in (int, positive) else "String"


def main(path: str) -> None:
    """Write the descriptor to `path`."""
    atomic_write(Path(path), json.dumps(build_descriptor(), indent=4, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
