"""Files about the output dataset as a whole, which jobs that share an output folder write in turn."""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmh_bids import __version__
from mmh_bids.bids.derivatives import plain
from mmh_bids.bids.names import natural_key
from mmh_bids.bids.run import Run
from mmh_bids.bids.tsv import cell, present, read_tsv, tsv_text
from mmh_bids.errors import MmhError, UsageError
from mmh_bids.files import atomic_write
from mmh_bids.settings import Settings

Status = Literal["done", "excluded", "failed", "skipped"]

#: Ours that BIDS does not know; `work` is there after a call in our container image. No slash at the end:
#: bids-validator-deno 3.0.2 then misses folders of a participant.
BIDSIGNORE = "*.html\nlogs\nwork\nsub-*/log\nsub-*/figures\nsub-*/features\ngroup_*\n*_xfm.*\n"

README = """# Harmonized brain images

T1w and T2w images harmonized across sites with mmh, named after their source images. `desc-harmonized` is
the result; `descriptions.tsv` explains the other `desc-` labels, the JSON file beside each image how it was
made and how well that went, `sub-*.html` shows it, and `participants.tsv` lists what failed and why.
`group_*.html` and `group_*.tsv`, once the group level was run, say how sites and people compare. The source dataset is
the one called `raw` under DatasetLinks in `dataset_description.json`.
"""

DESCRIPTIONS = {
    "harmonized": "Image harmonized across sites, on the grid of the input unless space- says otherwise",
    "preproc": "Image after removal of the bias field, on the grid of the input",
    "model": "Preprocessed image on the grid of the harmonization model, scaled to 0 to 1",
    "brain": "Brain mask of the T1w image, on the grid of the input",
    "brainT2w": "Brain mask of the T2w image, on the grid of the input",
}

PARTICIPANTS_JSON = {
    "site": {"Description": "Site the images were taken to come from; 'multiple' if they come from several"},
    "status": {
        "Description": "What became of the participant's images",
        "Levels": {
            "done": "All were harmonized (those that are not for this program aside)",
            "partial": "Some were harmonized, some failed or were excluded",
            "excluded": "Quality values were beyond use: only preprocessed images were kept (--qc-fail exclude)",
            "failed": "None was harmonized, at least one failed",
            "skipped": "None was harmonized, none was meant to be",
        },
    },
    "n_images": {"Description": "Number of harmonized images"},
    "message": {"Description": "Why the first image that failed, was excluded or was skipped has no harmonized image"},
}

#: Stamp of what ``--sloppy`` made.
SLOPPY = "Made with --sloppy: fast settings for trying the program out, not fit for science"
_IMAGE_COLUMNS = (
    "image",
    "participant_id",
    "session_id",
    "sequence",
    "site",
    "site_from",
    "status",
    "message",
)
_LOCK_SECONDS = 600


@dataclass(frozen=True)
class ImageStatus:
    """What became of one image in one call of the program."""

    run: Run
    status: Status
    message: str = ""


@contextlib.contextmanager
def dataset_lock(output_dir: Path, name: str = "dataset", seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock under which files that jobs share are read, changed and written; not re-entrant."""
    from filelock import FileLock, Timeout

    folder = output_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{name}.lock", timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise MmhError(
            f"{lock.lock_file}: another job held this lock for {seconds:g} s; see whether it hangs"
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_output_dir(output_dir: Path) -> None:
    """Raise UsageError if `output_dir` holds the derivatives of another program (or raw data)."""
    description = _read_description(output_dir) if output_dir.is_dir() else None
    if description is None:
        return
    generators = description.get("GeneratedBy")
    first = generators[0] if isinstance(generators, list) and generators else {}
    name = first.get("Name") if isinstance(first, dict) else None
    if name != "mmh":
        raise UsageError(f"{output_dir}: holds the dataset of {name or 'another program'}; give a folder of its own")
    if description.get("DatasetType") == "raw":
        raise UsageError(f"{output_dir}: is a mirror that --bids-mirror wrote; give a folder of its own")


def write_dataset_files(settings: Settings) -> None:
    """Write the description, README, .bidsignore, descriptions.tsv and participants.json, where they change.

    Raises
    ------
    UsageError
        The folder holds another program's dataset.
    """
    output_dir = settings.output_dir
    with dataset_lock(output_dir):
        check_output_dir(output_dir)
        # Once sloppy images are in the folder, a later proper run does not make them better.
        sloppy = settings.sloppy or is_sloppy(output_dir)
        _write_if_changed(output_dir / "dataset_description.json", _json(dataset_description(settings, sloppy)))
        _write_if_changed(output_dir / ".bidsignore", BIDSIGNORE)
        _write_if_changed(output_dir / "README.md", README)
        _write_if_changed(output_dir / "participants.json", _json(PARTICIPANTS_JSON))
        rows = [(f"desc-{desc}", f"{text}. {SLOPPY}" if sloppy else text) for desc, text in DESCRIPTIONS.items()]
        _write_if_changed(output_dir / "descriptions.tsv", tsv_text(("desc_id", "description"), rows))


def update_bidsignore(output_dir: Path) -> None:
    """Let the .bidsignore of an output folder name all that this version writes; older ones named less."""
    with dataset_lock(output_dir):
        _write_if_changed(output_dir / ".bidsignore", BIDSIGNORE)


def dataset_links(settings: Settings) -> dict[str, Path]:
    """The datasets that ``Sources`` may point into, by name: ``raw`` and those of ``--derivatives``."""
    return {"raw": settings.bids_dir} | {name: Path(path) for name, path in settings.derivatives}


def dataset_description(settings: Settings, sloppy: bool = False) -> dict[str, Any]:
    """Content of dataset_description.json.

    Links are relative to the output folder, so that both can be moved together, and say the same on every
    machine.
    """
    source = _read_description(settings.bids_dir) or {}
    generator: dict[str, Any] = {"Name": "mmh", "Version": __version__}
    if sloppy:
        generator["Description"] = SLOPPY
    container = _container()
    if container:
        generator["Container"] = container
    links = {name: _relative(path, settings.output_dir) for name, path in dataset_links(settings).items()}
    origin = {"URL": links["raw"], "DOI": source.get("DatasetDOI"), "Version": source.get("DatasetVersion")}
    description = {
        "Name": f"Harmonized T1w and T2w images of {source.get('Name') or settings.bids_dir.name}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "License": source.get("License"),
        "GeneratedBy": [generator],
        "SourceDatasets": [{name: value for name, value in origin.items() if value}],
        "DatasetLinks": links,
    }
    return {name: value for name, value in description.items() if value}


def record_images(settings: Settings, statuses: Iterable[ImageStatus]) -> None:
    """Merge what became of some images into ``logs/images.tsv``, and make ``participants.tsv`` anew from it.

    One row an image, one row a participant; rows of other participants, sessions and earlier calls stay.
    Rows of the same participants whose source image is gone are dropped. Safe to call from several jobs at
    once.
    """
    statuses = list(statuses)
    path = settings.output_dir / "logs" / "images.tsv"
    touched = {f"sub-{status.run.participant}" for status in statuses}
    with dataset_lock(settings.output_dir):
        rows = {row["image"]: row for row in (read_tsv(path, "image")[1] if path.exists() else [])}
        for image, row in list(rows.items()):
            if row["participant_id"] in touched and not os.path.lexists(settings.bids_dir / image):
                del rows[image]
        for status in statuses:
            row = _image_row(status, settings.bids_dir)
            rows[row["image"]] = row
        ordered = sorted(rows.values(), key=lambda row: natural_key(row["image"]))
        _write_if_changed(path, tsv_text(_IMAGE_COLUMNS, ([row[name] for name in _IMAGE_COLUMNS] for row in ordered)))
        _write_if_changed(settings.output_dir / "participants.tsv", _participants_tsv(ordered))


def _image_row(status: ImageStatus, bids_dir: Path) -> dict[str, str]:
    run = status.run
    cells = (
        Path(os.path.relpath(run.path, bids_dir)).as_posix(),
        f"sub-{run.participant}",
        f"ses-{run.session}" if run.session else None,
        run.sequence,
        run.site,
        run.site_source,
        status.status,
        status.message or run.reason,
    )
    return dict(zip(_IMAGE_COLUMNS, map(cell, cells), strict=True))


def _participants_tsv(images: Iterable[Mapping[str, str]]) -> str:
    by_participant: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in images:
        by_participant[row["participant_id"]].append(row)
    rows = []
    for participant in sorted(by_participant, key=natural_key):
        own = by_participant[participant]
        by_status = {
            status: [row for row in own if row["status"] == status]
            for status in ("done", "excluded", "failed", "skipped")
        }
        sites = {site for row in by_status["done"] or own if (site := present(row["site"]))}
        messages = [row["message"] for row in by_status["failed"] + by_status["excluded"] + by_status["skipped"]]
        rows.append(
            (
                participant,
                "multiple" if len(sites) > 1 else next(iter(sites), "n/a"),
                _participant_status(*(bool(by_status[status]) for status in ("done", "failed", "excluded"))),
                str(len(by_status["done"])),
                messages[0] if messages else "n/a",
            )
        )
    return tsv_text(("participant_id", "site", "status", "n_images", "message"), rows)


def _participant_status(done: bool, failed: bool, excluded: bool) -> str:
    """One word for a participant.

    >>> [_participant_status(done, failed, False) for done in (True, False) for failed in (True, False)]
    ['partial', 'done', 'failed', 'skipped']
    >>> [_participant_status(done, failed, True) for done in (True, False) for failed in (True, False)]
    ['partial', 'partial', 'failed', 'excluded']
    """
    if failed or excluded:
        return "partial" if done else "failed" if failed else "excluded"
    return "done" if done else "skipped"


def _read_description(folder: Path) -> dict[str, Any] | None:
    path = folder / "dataset_description.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())}); correct or delete it") from None
    return content if isinstance(content, dict) else {}


def is_sloppy(output_dir: Path) -> bool:
    """Whether some image of the output folder was made with ``--sloppy``."""
    generators = (_read_description(output_dir) or {}).get("GeneratedBy") or [{}]
    return generators[0].get("Description") == SLOPPY


def _container() -> dict[str, str] | None:
    """The container this runs in, where its caller named it in ``CONTAINER`` (a tag).

    Our image does not: the same data give the same bytes in and outside a container, and the provenance has its name.
    """
    tag = os.environ.get("CONTAINER")
    if not tag:
        return None
    apptainer = any(name in os.environ for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"))
    return {"Type": "apptainer" if apptainer else "docker", "Tag": tag}


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(os.path.abspath(path), os.path.abspath(start))).as_posix()


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n"


def _write_if_changed(path: Path, text: str) -> None:
    """Leave a file that says the same already alone: its time stamp tells when it changed."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write(path, text)
