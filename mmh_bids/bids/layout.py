"""The dataset's files by pybids: only the asked folders are indexed, or a database made once is used."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mmh_bids.bids.names import IMAGE_EXTENSIONS
from mmh_bids.errors import UsageError

if TYPE_CHECKING:
    from bids.layout import BIDSLayout

_DATABASE_FILE = "layout_index.sqlite"
#: Terms of a filter file that pybids takes from file names; any other is a sidecar field.
_NAME_TERMS = frozenset(
    (
        "subject", "session", "sample", "task", "tracer", "acquisition", "ceagent", "staining",
        "reconstruction", "direction", "run", "proc", "modality", "echo", "flip", "inversion", "mtransfer",
        "part", "chunk",
        "hemisphere", "space", "resolution", "desc", "suffix", "datatype", "extension", "regex_search",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Outside:
    """What pybids must not index, in the form of a pattern (it only needs `search`).

    Paths are relative to the dataset's root and start with a slash. A folder that is refused is never
    listed, so that the start-up for one participant does not grow with the number of the others. Files at
    the root and in participant and session folders (sidecars to inherit from) stay in.

    >>> outside = Outside(frozenset({"01"}), frozenset({"A"}))
    >>> [outside.search(path) for path in ("/T1w.json", "/sub-01/ses-A/anat/x", "/sub-01/ses-A/func")]
    [False, False, True]
    >>> [outside.search(path) for path in ("/sub-02", "/sub-01/ses-B", "/derivatives", "/code", "/.git")]
    [True, True, True, True, True]
    """

    participants: Collection[str] | None = None
    sessions: Collection[str] | None = None

    def search(self, path: str) -> bool:
        """Whether `path` is to be left out."""
        parts = PurePosixPath(path).parts[1:]
        if not parts:
            return False
        first, *rest = parts
        if not first.startswith("sub-"):
            return bool(rest) or not first.endswith((".json", ".tsv"))
        if self.participants is not None and first[4:] not in self.participants:
            return True
        if rest and rest[0].startswith("ses-") and "." not in rest[0]:
            if self.sessions is not None and rest[0][4:] not in self.sessions:
                return True
            rest = rest[1:]
        # What remains is a file with sidecar fields, or the one datatype folder of interest.
        return bool(rest) and rest[0] != "anat" and (len(rest) > 1 or "." not in rest[0])


def open_layout(
    root: Path,
    participants: Collection[str] | None,
    sessions: Collection[str] | None,
    database: Path | None,
    with_metadata: bool,
) -> BIDSLayout:
    """Index the dataset at `root`.

    Parameters
    ----------
    root
        Absolute path of the dataset.
    participants, sessions
        Labels without prefix to which the index is limited; None for all. Not used with a database.
    database
        Folder of a pybids database: used if it holds one, else made from the whole dataset.
    with_metadata
        Whether sidecar fields are indexed, too.

    Raises
    ------
    UsageError
        The database is not one, is one of another dataset, or cannot be made.
    """
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    if database is not None:
        _check_or_make_database(root, database)
        return BIDSLayout(str(root), validate=False, database_path=str(database))
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=with_metadata, ignore=[Outside(participants, sessions)])
    return _index(BIDSLayout, root, indexer=indexer)


def _index(layout_class: type[BIDSLayout], root: Path, **arguments: Any) -> BIDSLayout:
    """Make a layout; the errors that a broken sidecar causes in pybids become one line."""
    from bids.exceptions import BIDSConflictingValuesError

    try:
        return layout_class(str(root), validate=False, **arguments)
    except (OSError, BIDSConflictingValuesError, TypeError, ValueError) as error:
        raise UsageError(f"{root}: indexing the sidecar files failed: {' '.join(str(error).split())}") from None


def _check_or_make_database(root: Path, database: Path) -> None:
    from filelock import FileLock

    if database.exists() and not database.is_dir():
        raise UsageError(f"--bids-database-dir {database}: is a file; give a folder, or one that does not exist yet")
    try:
        database.mkdir(parents=True, exist_ok=True)
        if not (database / _DATABASE_FILE).exists():
            with FileLock(database / f"{_DATABASE_FILE}.lock"):
                if not (database / _DATABASE_FILE).exists():  # another job of an array may have made it by now
                    _make_database(root, database)
    except OSError as error:
        raise UsageError(
            f"--bids-database-dir {database}: cannot be written ({error.strerror}); give a folder that can"
        ) from None
    indexed = _root_of_database(database)
    if os.path.realpath(indexed) != os.path.realpath(root):
        raise UsageError(
            f"--bids-database-dir {database}: is an index of {indexed}, not of {root}; give another folder"
        )


def _make_database(root: Path, database: Path) -> None:
    """Index everything, sidecar fields included: other pybids programs can use the database, too."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    part = Path(tempfile.mkdtemp(prefix=".tmp-", dir=database))
    try:
        layout = _index(
            BIDSLayout,
            root,
            indexer=BIDSLayoutIndexer(validate=False),
            database_path=str(part),
            reset_database=True,
        )
        layout.session.close()
        os.replace(part / _DATABASE_FILE, database / _DATABASE_FILE)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _root_of_database(database: Path) -> str:
    path = database / _DATABASE_FILE
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            row = connection.execute("SELECT root FROM layout_info").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UsageError(
            f"--bids-database-dir {database}: {_DATABASE_FILE} is not a pybids database ({error}); "
            "delete the folder and it is made anew"
        ) from None
    if row is None:
        raise UsageError(f"--bids-database-dir {database}: half-written; delete the folder and it is made anew")
    return str(row[0])


def read_filters(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read a ``--bids-filter-file`` in fMRIPrep's form: ``{"t1w": {"acquisition": "mprage"}, "t2w": {...}}``.

    Values are what pybids takes: a label, a list of labels; ``null`` or ``"Query.NONE"`` for "has no such
    entity", ``"*"`` or ``"Query.ANY"`` for "has one". Keys for other kinds of image (``bold`` ...) are left
    alone, so that one file serves several programs.

    Returns
    -------
    dict
        Terms for ``BIDSLayout.get`` under ``"T1w"`` and ``"T2w"``, where given.

    Raises
    ------
    UsageError
        Unreadable, not JSON, not of this form.
    """
    if path is None:
        return {}
    flag = f"--bids-filter-file {path}"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{flag}: cannot be read ({error.strerror}); check the path") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{flag}: not valid JSON ({error}); correct it") from None
    example = 'the form is {"t1w": {"acquisition": "mprage"}, "t2w": {"run": 1}}'
    if not isinstance(content, dict) or not all(isinstance(terms, dict) for terms in content.values()):
        raise UsageError(f"{flag}: not an object of objects; {example}")
    filters: dict[str, dict[str, Any]] = {}
    for key, terms in content.items():
        if key.lower() in ("t1w", "t2w"):
            sequence = key[:2].upper() + "w"
            filters[sequence] = {term: _query_value(value, flag) for term, value in terms.items()}
            if terms.get("suffix", sequence) != sequence:
                raise UsageError(f"{flag}: the suffix under {key!r} must be {sequence}; leave it out")
        elif key.lower().startswith(("t1", "t2")):
            raise UsageError(f"{flag}: unknown key {key!r}; did you mean 't1w' or 't2w'?")
    if not filters:
        raise UsageError(f"{flag}: has neither a 't1w' nor a 't2w' key; {example}")
    return filters


def _query_value(value: Any, flag: str) -> Any:
    from bids.layout import Query

    if isinstance(value, list):
        return [_query_value(item, flag) for item in value]
    if value is None:
        return Query.NONE
    if value == "*":
        return Query.ANY
    if isinstance(value, str) and value.startswith("Query."):
        name = value.removeprefix("Query.")
        if name not in Query.__members__:
            known = ", ".join(f"Query.{query}" for query in Query.__members__)
            raise UsageError(f"{flag}: {value} is unknown; there are {known}")
        return Query[name]
    return value


def needs_metadata(filters: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a filter asks for sidecar fields, which are then indexed.

    >>> needs_metadata({"T1w": {"acquisition": "a"}}), needs_metadata({"T1w": {"EchoTime": 0.003}})
    (False, True)
    """
    return any(term not in _NAME_TERMS for terms in filters.values() for term in terms)


def find_images(layout: BIDSLayout, sequence: str, terms: Mapping[str, Any]) -> list[Path]:
    """Absolute paths of the images of one sequence that fit the filter; UsageError for an unknown term."""
    query = {"datatype": "anat", "extension": list(IMAGE_EXTENSIONS), "suffix": sequence} | dict(terms)
    try:
        found = layout.get(return_type="filename", **query)
    except (ValueError, TypeError, AttributeError) as error:
        message = " ".join(str(error).split()).partition(" If you're sure")[0]
        raise UsageError(f"--bids-filter-file: {message}") from None
    return [Path(name) for name in found]


def find_sidecars(layout: BIDSLayout, sequences: Collection[str]) -> list[Path]:
    """Absolute paths of all JSON files that may hold fields of the `sequences`."""
    found = layout.get(return_type="filename", extension=".json", suffix=list(sequences))
    return [Path(name) for name in found]
