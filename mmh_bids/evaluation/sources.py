"""Which files are compared: a dataset's images, and what each folder of derivatives has of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmh_bids.bids.derivatives import OutputPaths, read_sidecar, sidecar_path
from mmh_bids.bids.names import IMAGE_EXTENSIONS, split_name, strip_prefix
from mmh_bids.bids.run import Run
from mmh_bids.bids.tsv import present, read_tsv
from mmh_bids.errors import ImageError, UsageError
from mmh_bids.evaluation.features import FORMAT_VERSION, output_scale

#: Controls, always measured: the raw image, the image without its bias field, and that blurred.
IDENTITY, PREPROCESSING, BLUR = "identity", "preprocessing", "blur"
CONTROLS = (IDENTITY, PREPROCESSING, BLUR)
#: The method of rows about brain masks alone.
MASK_ONLY = "mask only"
#: Width of the blur, full width at half maximum, mm.
BLUR_FWHM = 3.0
#: Bumped when the way images are measured changes, so that what was kept is not used.
_MEASURE_VERSION = 1


@dataclass(frozen=True)
class Source:
    """An image of the dataset, with what is needed to look at it and at what methods made of it.

    Attributes
    ----------
    run
        The image, with its site.
    person
        Who it shows: the participant, or who the mapping file says.
    mask, xfm, preproc
        Brain mask, transform to the template, and image without its bias field, of the first folder by mmh.
    """

    run: Run
    person: str
    mask: Path
    xfm: Path
    preproc: Path

    @property
    def key(self) -> str:
        """Unique name of the image."""
        return self.run.key


@dataclass(frozen=True)
class Entry:
    """One method's image of a source.

    Attributes
    ----------
    method, path
        Its name, and the file.
    upper
        The intensity that is 1; None: by the image's own scale.
    fwhm
        Width of a blur that the control adds, mm.
    target
        What it was to look like (``unified``, ``site:LABEL``, ``image:PATH``), as its sidecar says.
    """

    method: str
    path: Path
    upper: float | None = None
    fwhm: float = 0.0
    target: str | None = None

    def kept_as(self, source: Source, work: Path, with_style: bool) -> Path:
        """Where what is measured of it is kept: another file where anything it depends on has changed."""
        facts = [str(_MEASURE_VERSION), str(FORMAT_VERSION), str(self.upper), str(self.fwhm), str(with_style)]
        for path in (self.path, source.mask, source.xfm):
            about = path.stat()
            facts += [os.fspath(path.absolute()), str(about.st_size), str(about.st_mtime_ns)]
        digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
        return work / self.method / f"{source.key}-{digest}.npz"


def read_people(path: Path) -> dict[str, str]:
    """Who is who: participant label to person, from a table with columns ``participant_id`` and ``person``.

    Raises
    ------
    UsageError
        The table cannot be read, or has no such columns, or names a participant twice.
    """
    columns, rows = read_tsv(path, "participant_id")
    if "person" not in columns:
        raise UsageError(f"--travelling {path}: no person column; give the columns participant_id and person")
    people: dict[str, str] = {}
    for row in rows:
        label, person = strip_prefix(row["participant_id"], "sub-"), present(row["person"])
        if label in people:
            raise UsageError(f"--travelling {path}: {row['participant_id']} comes twice; keep one row for it")
        if person is not None:
            people[label] = person
    return people


def sources_of(
    runs: Sequence[Run], folders: Mapping[str, Path], people: Mapping[str, str]
) -> tuple[list[Source], list[str]]:
    """The images that can be compared, and a line for each that cannot.

    Mask, transform and preprocessed image of each come from the first folder that has all three.
    """
    found, problems = [], []
    for run in runs:
        if run.action == "skip":
            continue
        if run.action == "fail":
            problems.append(f"{run.path}: {run.reason}")
            continue
        for folder in folders.values():
            paths = OutputPaths(folder, run)
            parts = paths.brain_mask, paths.transform(), paths.preproc
            if all(path.is_file() for path in parts):
                person = people.get(run.participant, f"sub-{run.participant}")
                found.append(Source(run, person, *parts))
                break
        else:
            problems.append(
                f"{run.path}: no folder of --methods has its brain mask, transform and preprocessed image; "
                "run mmh on it, and give that folder, too"
            )
    return found, problems


def entries_of(source: Source, folders: Mapping[str, Path]) -> tuple[list[Entry], list[str]]:
    """The controls' and methods' images of a source, and a line for each that is missing."""
    entries = [
        Entry(IDENTITY, source.run.path),
        Entry(PREPROCESSING, source.preproc),
        Entry(BLUR, source.preproc, fwhm=BLUR_FWHM),
    ]
    problems = []
    for method, folder in folders.items():
        path = image_of(folder, source.run)
        if path is None:
            problems.append(f"{folder}: no {source.run.sequence} of {source.run.stem}; run the method on it again")
        else:
            entries.append(Entry(method, path, **_facts(path)))
    return entries, problems


def image_of(folder: Path, run: Run) -> Path | None:
    """A method's image: ours by its name; else the one in the same place with the raw name, or with that and ``desc-``.

    Images in another space (``space-``) are not taken. None where there is none, or more than one.
    """
    ours = OutputPaths(folder, run).harmonized()
    if ours.is_file():
        return ours
    if not ours.parent.is_dir():
        return None
    found = []
    for path in sorted(ours.parent.iterdir()):
        if not path.name.endswith(IMAGE_EXTENSIONS):
            continue
        try:
            entities, suffix, _ = split_name(path)
        except ValueError:
            continue
        desc = entities.pop("desc", "")
        if suffix == run.sequence and entities == dict(run.entities) and desc not in ("preproc", "model"):
            found.append(path)
    return found[0] if len(found) == 1 else None


def _facts(path: Path) -> dict[str, Any]:
    """The image's scale and target by its sidecar; None where there is none that can be read, or it does not say."""
    try:
        sidecar = read_sidecar(sidecar_path(path))
    except ImageError:
        return {}
    facts = sidecar.get("Harmonization")
    target = facts.get("Target") if isinstance(facts, dict) else None
    return {"upper": output_scale(sidecar), "target": target if isinstance(target, str) else None}
