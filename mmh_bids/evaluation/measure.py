"""Measure one image as each method made it, and keep that: images are read one at a time, and once."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.evaluation.features import ImageFeatures, load_features, measure_brain, save_features
from mmh_bids.evaluation.placement import SHAPE, Placed, data_of, mask_on, matrix_of
from mmh_bids.evaluation.pool import KILLED, in_processes
from mmh_bids.evaluation.smoothing import smooth_inside
from mmh_bids.evaluation.sources import Entry, Source
from mmh_bids.files import atomic_path

_NAME = "image"


@dataclass(frozen=True)
class Task:
    """One source and its methods' images; a process may work on it alone."""

    source: Source
    entries: tuple[Entry, ...]
    work: Path
    with_style: bool = False


def measure(task: Task) -> list[str]:
    """Measure what is not kept yet; a line for each image that cannot be measured.

    The mask and the transform are read once, each image once. What is written: features (`features.save_features`), and
    beside them the image's brain on the grid of 2 mm, about a megabyte.
    """
    source, problems = task.source, []
    mask = matrix = None
    for entry in task.entries:
        try:
            path = entry.kept_as(source, task.work, task.with_style)
            if path.is_file() and _grid_path(path).is_file():
                continue
            if mask is None or matrix is None:
                matrix = matrix_of(source.xfm)
                mask = data_of(source.mask)
            _measure_one(entry, source, path, mask, matrix, task.with_style)
        except ImageError as error:
            text = str(error)
            problems.append(text if str(entry.path) in text else f"{entry.path}: {text}")
        except OSError as error:
            problems.append(f"{error.filename}: {error.strerror}; run the method on it again, or check the disk")
    return problems


def _measure_one(
    entry: Entry,
    source: Source,
    path: Path,
    mask: tuple[NDArray[Any], NDArray[np.float64]],
    matrix: NDArray[np.float64],
    with_style: bool,
) -> None:
    data, affine = data_of(entry.path)
    inside = mask_on(mask, data.shape, affine)
    if not inside.any():
        raise ImageError(f"{entry.path}: does not lie where its brain mask {source.mask.name} does")
    if entry.fwhm:
        data = smooth_inside(data, inside, entry.fwhm, np.linalg.norm(affine[:3, :3], axis=0))
    features, (values, brain) = measure_brain(
        (data, affine), inside, matrix, source.run.sequence, entry.upper, with_style
    )
    with atomic_path(_grid_path(path)) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, values=values[brain], inside=np.packbits(brain))
    # last: a file of features says that all is there
    save_features(path, {_NAME: features})


def kept_features(path: Path) -> ImageFeatures:
    """Features that `measure` kept; ImageError if they are damaged."""
    return load_features(path)[_NAME]


def kept_grid(path: Path) -> Placed:
    """The image on the grid that `measure` kept beside the features: values and brain, (72, 92, 92) each.

    Raises
    ------
    ImageError
        It is missing or damaged.
    """
    grid = _grid_path(path)
    try:
        with np.load(grid, allow_pickle=False) as file:
            inside = np.unpackbits(file["inside"], count=int(np.prod(SHAPE))).reshape(SHAPE).astype(bool)
            values = np.zeros(SHAPE, np.float32)
            values[inside] = file["values"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ImageError(f"{grid}: missing or damaged; delete the work folder and run again") from None
    return values, inside


def _grid_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".npz") + "_grid.npz")


def measure_all(tasks: Sequence[Task], nprocs: int) -> list[str]:
    """Measure all tasks, in `nprocs` processes; problems in the tasks' order.

    Memory is that of one image a process. A process that is killed costs the images of its source, with a line.
    """
    problems = {
        place: [f"{tasks[place].source.run.path}: {KILLED}"] if lines is None else lines
        for place, lines in in_processes(measure, tasks, nprocs)
    }
    return [line for place in sorted(problems) for line in problems[place]]
