"""Values of flags that name files and folders; `mmh_bids.cli.flags` tells others which flags take them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def input_path(text: str) -> Path:
    """Absolute path of what is read; a user whose home nobody knows, as in a container, is named."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"'{text}': this home directory is not known here; write the path") from None


def output_path(text: str) -> Path:
    """Absolute path of a folder that is made or changed."""
    return input_path(text)


def derivative(text: str) -> tuple[str, str]:
    """``NAME=PATH`` or a bare path, whose folder name becomes the name."""
    name, _, path = text.rpartition("=")
    folder = input_path(path).resolve()
    return name or folder.name, str(folder)


def model(text: str) -> str:
    """A shipped bundle's name stays; a folder becomes absolute, as the steps run in folders of their own."""
    from mmh_bids.models.bundle import shipped_names

    return text if not text or text in shipped_names() or not input_path(text).is_dir() else str(input_path(text))


def target(text: str) -> str:
    """``unified``, ``site:LABEL`` or ``image:`` with an absolute path.

    >>> target("site:Utrecht"), target("image:/data/a.nii.gz")
    ('site:Utrecht', 'image:/data/a.nii.gz')
    """
    if not re.fullmatch(r"unified|site:.+|image:.+", text):
        raise argparse.ArgumentTypeError(f"'{text}': write unified, site:LABEL or image:PATH")
    kind, _, path = text.partition(":")
    return f"image:{input_path(path)}" if kind == "image" else text
