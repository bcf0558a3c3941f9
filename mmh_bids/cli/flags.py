"""The flags of ``mmh`` as JSON, for a program that prepares its command line: ``python -m mmh_bids.cli.flags``.

``docker/mmh-docker`` asks an image of any version so which words of a command line are paths of the host.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from mmh_bids.cli import paths
from mmh_bids.cli.parser import build_parser

#: Of the JSON; a reader that knows another number gives up.
FORMAT = 1

#: What a value is to a program that has to mount it: read only, written, a name or NAME=PATH, a folder if there is one
#: of that name, a path after ``image:``.
PATH_KINDS: dict[Any, str] = {
    paths.input_path: "read",
    paths.output_path: "write",
    paths.derivative: "named",
    paths.model: "folder",
    paths.target: "image",
}


def describe(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """What is needed to read a command line as `parser` does, and to find the paths in it.

    >>> made = describe(build_parser())
    >>> next(item for item in made["arguments"] if item["name"] == "work_dir")
    {'name': 'work_dir', 'flags': ['-w', '--work-dir'], 'action': 'store', 'nargs': None, 'path': 'write'}
    """
    arguments = [
        {
            "name": action.dest,
            "flags": list(action.option_strings),
            "action": _kind(action),
            "nargs": action.nargs if action.nargs != 0 else None,
            "path": PATH_KINDS.get(action.type),
        }
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    return {"format": FORMAT, "arguments": arguments}


def _kind(action: argparse.Action) -> str:
    """The word that ``add_argument`` takes for an action."""
    known = {
        argparse._StoreAction: "store",
        argparse._StoreTrueAction: "store_true",
        argparse._CountAction: "count",
        argparse._VersionAction: "version",
    }
    return known[type(action)]


def main() -> int:
    """Print the flags."""
    json.dump(describe(build_parser()), sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
