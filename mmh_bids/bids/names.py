"""BIDS file names: taken apart, and ordered as people count."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import PurePath

IMAGE_EXTENSIONS = (".nii.gz", ".nii")


def split_name(path: PurePath | str) -> tuple[dict[str, str], str, str]:
    """Take a file name apart.

    Returns
    -------
    entities, suffix, extension
        Entities in the order of the name with labels exactly as spelled, the suffix without underscore, the
        extension with dots.

    Raises
    ------
    ValueError
        With one line that says which part is not ``key-label`` or comes twice.

    Examples
    --------
    >>> split_name("sub-007_ses-A_run-01_T1w.nii.gz")
    ({'sub': '007', 'ses': 'A', 'run': '01'}, 'T1w', '.nii.gz')
    >>> split_name("T1w.json")
    ({}, 'T1w', '.json')
    >>> split_name("sub-01_brain_T1w.nii")
    Traceback (most recent call last):
    ValueError: 'brain' is not a key-label pair
    """
    name, dot, rest = PurePath(path).name.partition(".")
    *parts, suffix = name.split("_")
    entities: dict[str, str] = {}
    for part in parts:
        match = re.fullmatch(r"([A-Za-z]+)-(\w[\w+.]*)", part)
        if match is None:
            raise ValueError(f"{part!r} is not a key-label pair")
        key, label = match.groups()
        if key in entities:
            raise ValueError(f"{key}- comes twice")
        entities[key] = label
    return entities, suffix, dot + rest


def natural_key(text: str) -> tuple[tuple[int, str, int], ...]:
    """Sort key under which 2 comes before 10.

    >>> sorted(["sub-10", "sub-2", "sub-A"], key=natural_key)
    ['sub-2', 'sub-10', 'sub-A']
    """
    parts = re.split(r"([0-9]+)", text)
    return tuple((0, "", int(part)) if part.isdecimal() else (1, part, 0) for part in parts if part)


def strip_prefix(label: str, prefix: str) -> str:
    """`label` without a leading ``sub-`` or ``ses-``.

    >>> strip_prefix("sub-01", "sub-"), strip_prefix("01", "sub-")
    ('01', '01')
    """
    return label[len(prefix) :] if label.startswith(prefix) else label


def nearest(label: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Labels most like `label`: those that differ in leading zeros or case first, then by spelling.

    >>> nearest("1", ["01", "02", "11"])
    ['01', '11']
    """
    known = sorted(known, key=natural_key)
    folded = label.casefold().lstrip("0")
    same = [other for other in known if other.casefold().lstrip("0") == folded]
    alike = difflib.get_close_matches(label, known, n=count, cutoff=0.5)
    return list(dict.fromkeys(same + alike))[:count]
