"""Files of simulated datasets: their bytes depend on the content only, and none is ever half written."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib

from mmh_bids.simulate.acquire import stored_bytes


def save_image(image: nib.Nifti1Image, path: Path, level: int = 9) -> None:
    """Write a .nii.gz whose bytes depend on the content only: no time, no name.

    Parameters
    ----------
    image
        Image of `acquire`.
    path
        Ends in ``.nii.gz``; folders are made.
    level
        Of gzip, 1 (fast) to 9 (small).
    """
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=level, fileobj=buffer, mtime=0) as packed:
        packed.write(stored_bytes(image))
    _write_bytes(path, buffer.getvalue())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an indented JSON object."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_tsv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows, the first of them the header, as tab-separated values."""
    write_text(path, "".join("\t".join(row) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    _write_bytes(path, text.encode())


def _write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(data)
    temporary.replace(path)
