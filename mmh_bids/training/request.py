"""What all trainings ask of a request: numbers, names, folders; and what a training's log says in the end."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmh_bids.errors import UsageError


def check_numbers(request: Any, counts: Iterable[str]) -> None:
    """Raise UsageError for numbers that no training can have.

    Parameters
    ----------
    request
        Has ``learning_rate``, ``seed`` and all of `counts`; None is what the method has by default.
    counts
        Names of flags, with underscores, that must be 1 or more.
    """
    for flag in counts:
        value = getattr(request, flag)
        if value is not None and value < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {value}: must be 1 or more")
    if request.seed < 0 or (request.learning_rate is not None and request.learning_rate <= 0):
        raise UsageError("--learning-rate must be above 0, --seed 0 or more")


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise UsageError before a training whose bundle could not be written."""
    if folder.exists() and not overwrite:
        raise UsageError(f"--output {folder}: exists already; choose another folder or give --overwrite")


def split(held_out: Sequence[str], items: Sequence[Any], names: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """What is trained on, and what is held out; UsageError if a name is unknown or a part is empty."""
    unknown = sorted(set(held_out) - set(names))
    if unknown:
        raise UsageError(f"--held-out {' '.join(unknown)}: unknown; there are {', '.join(sorted(set(names)))}")
    train = [item for item, name in zip(items, names, strict=True) if name not in held_out]
    validation = [item for item, name in zip(items, names, strict=True) if name in held_out]
    if not train or not validation:
        raise UsageError("--held-out: name some, and not all, of what was given: the rest is trained on")
    return train, validation


def head_names(labels: Sequence[Path]) -> list[str]:
    """Names of label maps, ``head-04`` of ``head-04_dseg.nii.gz``; UsageError if two have the same."""
    names = [path.name.split("_")[0].split(".")[0] for path in labels]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"{', '.join(twice)}: several label maps begin so; name each file differently up to the first _"
        )
    return names


def participant(path: Path) -> str:
    """The participant a file's name begins with, ``sub-03``; the whole name if it begins with none."""
    found = re.match(r"sub-[A-Za-z0-9]+", path.name)
    return found[0] if found else path.name


def last_validation(path: Path) -> dict[str, float]:
    """The last validation in a training's ``log.csv``, by name; empty if there is none."""
    if not path.is_file():
        return {}
    with open(path, newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["name"].startswith("validation/")]
    last = max((int(row["step"]) for row in rows), default=0)
    return {row["name"].removeprefix("validation/"): float(row["value"]) for row in rows if int(row["step"]) == last}
