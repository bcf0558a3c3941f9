"""``--bids-mirror``: the files about the mirror as a whole, and whether a folder can be one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmh_bids import __version__
from mmh_bids.bids.dataset import SLOPPY, dataset_lock, is_sloppy
from mmh_bids.bids.derivatives import plain
from mmh_bids.bids.mirror import files_below, links_of, place_text_or_data
from mmh_bids.bids.names import natural_key
from mmh_bids.bids.tsv import read_tsv, tsv_text
from mmh_bids.errors import UsageError
from mmh_bids.files import atomic_write
from mmh_bids.settings import Settings

#: Which T1w and T2w images of the mirror are harmonized, and why the others are not.
TABLE = "mmh_images.tsv"
#: Folders of a raw dataset beside the participants'; ``derivatives``, ``sourcedata`` and ``code`` are not mirrored.
_FOLDERS = ("phenotype", "stimuli")
_READMES = ("README", "README.md", "README.rst", "README.txt")
_NOTE = f"""\
This is the dataset "{{name}}" once more, with T1w and T2w images harmonized across sites by
mmh {__version__}: whole heads, under their own names and on their own grids. `{TABLE}` lists them, and those
that are the original images, with the reason. All other files are those of the original dataset.
"""


def check_mirror(settings: Settings) -> None:
    """Raise UsageError if ``--bids-mirror`` names a folder that would clash with another, or holds something else."""
    if settings.bids_mirror is None:
        return
    flag, mirror = f"--bids-mirror {settings.bids_mirror}", settings.bids_mirror.resolve()
    if "participant" not in settings.analysis_level:
        raise UsageError(f"{flag}: is written by the level participant; add it, or leave the flag out")
    others = {
        "the dataset": settings.bids_dir, "the output folder": settings.output_dir,
        "the work directory": settings.work_dir,
    }  # fmt: skip
    for what, folder in others.items():
        other = folder.resolve()
        if mirror == other or other in mirror.parents or mirror in other.parents:
            how = "is" if mirror == other else "lies inside" if other in mirror.parents else "holds"
            raise UsageError(f"{flag}: {how} {what} {folder}; choose a folder of its own")
    if mirror.exists() and not is_mirror(mirror) and not (mirror.is_dir() and _is_empty(mirror)):
        raise UsageError(f"{flag}: is there and holds no mirror of mmh; choose a new or empty folder")


def _is_empty(folder: Path) -> bool:
    return all(path.name.startswith(".tmp-") for path in folder.iterdir())


def is_mirror(folder: Path) -> bool:
    """Whether `folder` is a raw-style dataset that mmh wrote."""
    try:
        description = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8"))
        return description["DatasetType"] == "raw" and description["GeneratedBy"][0]["Name"] == "mmh"
    except (OSError, ValueError, LookupError, TypeError):
        return False


def start_mirror(settings: Settings, mirror: Path) -> None:
    """Write what belongs to no participant: the description first, so that the folder is known for what it is."""
    root = settings.bids_dir
    source = json.loads((root / "dataset_description.json").read_text(encoding="utf-8-sig"))
    with dataset_lock(settings.output_dir):
        for leftover in mirror.glob(".tmp-*"):  # of a job that was killed
            leftover.unlink(missing_ok=True)
        _write(mirror / "dataset_description.json", _json(description_of(settings, mirror, source)))
        _write(mirror / ".bidsignore", _bidsignore(root))
        name, text = _readme(root)
        _write(mirror / name, f"{_NOTE.format(name=source.get('Name') or root.name)}\n{text}".rstrip() + "\n")
        known = ("dataset_description.json", TABLE, *_READMES)
        for name in sorted(os.listdir(root)):
            if not name.startswith((".", "sub-")) and name not in known and (root / name).is_file():
                place_text_or_data(root / name, mirror / name, settings.bids_mirror_files)
    for folder in _FOLDERS:
        for path in files_below(root / folder):
            if path.exists():
                place_text_or_data(path, mirror / path.relative_to(root), settings.bids_mirror_files)


def description_of(settings: Settings, mirror: Path, source: Mapping[str, Any]) -> dict[str, Any]:
    """Content of the mirror's dataset_description.json: what the source's says, and what was done to it.

    ``DatasetType`` is raw: that is how programs shall take it, and derivatives must not have the names of raw data.
    The source's DOI is not the mirror's, and goes to ``SourceDatasets``.
    """
    own = {name: value for name, value in source.items() if name != "DatasetDOI"}
    what = "T1w and T2w images harmonized across sites"
    if is_sloppy(settings.output_dir):
        what = f"{what}. {SLOPPY}"
    origin = {
        "URL": _relative(settings.bids_dir, mirror), "DOI": source.get("DatasetDOI"),
        "Version": source.get("DatasetVersion"),
    }  # fmt: skip
    return own | {
        "Name": f"{source.get('Name') or settings.bids_dir.name} (T1w and T2w harmonized)",
        "BIDSVersion": source.get("BIDSVersion") or "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [
            {"Name": "mmh", "Version": __version__, "Description": what},
            *(item for item in _list(source, "GeneratedBy") if item.get("Name") != "mmh"),
        ],
        "SourceDatasets": [
            {name: value for name, value in origin.items() if value}, *_list(source, "SourceDatasets"),
        ],
        "DatasetLinks": _moved(source.get("DatasetLinks"), settings.bids_dir, mirror)
        | {name: _relative(path, mirror) for name, path in links_of(settings).items()},
    }  # fmt: skip


def record_mirrored(settings: Settings, mirror: Path, images: Mapping[str, str]) -> None:
    """Merge images, with the reason why they are original or an empty text, into the mirror's table."""
    path = mirror / TABLE
    with dataset_lock(settings.output_dir):
        rows = {row["filename"]: row["reason"] for row in (read_tsv(path, "filename")[1] if path.exists() else [])}
        # only of the participants at hand: to look for everybody's images would take a while on a network's file system
        touched = {name.split("/")[0] for name in images}
        gone = [name for name in rows if name.split("/")[0] in touched and not os.path.lexists(mirror / name)]
        rows = {name: reason for name, reason in rows.items() if name not in gone}
        rows |= {name: reason or "n/a" for name, reason in images.items()}
        cells = [
            (name, "harmonized" if rows[name] == "n/a" else "original", rows[name])
            for name in sorted(rows, key=natural_key)
        ]
        _write(path, tsv_text(("filename", "image", "reason"), cells))


def _bidsignore(root: Path) -> str:
    path = root / ".bidsignore"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return "\n".join([*(line for line in lines if line != TABLE), TABLE]) + "\n"


def _readme(root: Path) -> tuple[str, str]:
    """Name and text of the source's README; BIDS allows one only."""
    for name in _READMES:
        if (root / name).is_file():
            return name, (root / name).read_text(encoding="utf-8", errors="replace")
    return "README.md", ""


def _list(source: Mapping[str, Any], name: str) -> Iterable[dict[str, Any]]:
    items = source.get(name)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _moved(links: Any, root: Path, mirror: Path) -> dict[str, str]:
    """The source's ``DatasetLinks``, those that are relative seen from the mirror."""
    links = links if isinstance(links, dict) else {}
    return {
        str(name): value if ":" in str(value) else _relative(root / str(value), mirror) for name, value in links.items()
    }


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(os.path.abspath(path), os.path.abspath(start))).as_posix()


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Leave a file that says the same already alone."""
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
        atomic_write(path, text)
