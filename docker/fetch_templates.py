"""Fill the folder TEMPLATEFLOW_HOME with templates: SPACE or SPACE:res-N as arguments. A part of the image's build.

mmh looks for the files themselves, so that the empty ones which TemplateFlow puts where nothing was fetched go again.
Needs a network where there is something to fetch; without arguments it makes an empty folder.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path


def fetch(name: str) -> list[Path]:
    """Fetch what ``mmh --output-spaces NAME`` looks for: the head, the brain, the brain's mask.

    Raises
    ------
    SystemExit
        The name is none, TemplateFlow has no such template, or it cannot be reached.
    """
    named = re.fullmatch(r"([A-Za-z0-9]+)(?::res-(\d+))?", name)
    if not named:
        raise SystemExit(f"{name}: write SPACE or SPACE:res-N, for example MNI152NLin2009cAsym:res-1")
    from templateflow import api

    found: list[Path] = []
    for wanted in (
        {"desc": None, "suffix": "T1w"},
        {"desc": "brain", "suffix": "T1w"},
        {"desc": "brain", "suffix": "mask"},
    ):
        try:
            got = api.get(named[1], resolution=int(named[2] or 1), extension=".nii.gz", **wanted)
        except Exception as error:  # noqa: BLE001  (TemplateFlow lets those of several libraries through)
            reason = " ".join(str(error).split())
            raise SystemExit(
                f"{name}: could not be fetched ({reason}); building with templates needs a network"
            ) from None
        found += got if isinstance(got, list) else [got]
    files = [path for path in found if path.stat().st_size]
    if not any(path.name.endswith("_T1w.nii.gz") for path in files):
        raise SystemExit(f"{name}: TemplateFlow has no T1w of it at this resolution")
    return files


def main() -> None:
    """Fetch all that is named, and print the files."""
    home = Path(os.environ["TEMPLATEFLOW_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:]:
        for path in fetch(name):
            print(path)
    for path in home.rglob("*"):
        if path.is_file() and not path.stat().st_size:
            path.unlink()


if __name__ == "__main__":
    main()
