"""Read and write BIDS ``.tsv`` tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path

from mmh_bids.errors import UsageError

_MISSING = frozenset({"", "n/a", "na", "nan", "none", "null"})


def read_tsv(path: Path, index: str) -> tuple[list[str], list[dict[str, str]]]:
    """Read a tab-separated table with a column named `index`.

    A byte order mark is dropped, cells are stripped, rows that are too short are filled with empty cells, and
    rows that are empty are left out.

    Returns
    -------
    columns, rows
        The column names in order; one dict a row.

    Raises
    ------
    UsageError
        Not readable, not UTF-8, no `index` column, a column name twice, or a row longer than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give read permission") from None
    except csv.Error as error:
        raise UsageError(f"{path}: not a table ({error}); correct it") from None
    lines = [[cell.strip() for cell in line] for line in lines]
    columns = lines[0] if lines else []
    if index not in columns:
        raise UsageError(f"{path}: no {index} column; the first line must name the columns, separated by tabs")
    if len(set(columns)) < len(columns):
        raise UsageError(f"{path}: a column name comes twice; rename one")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not any(line):
            continue
        if len(line) > len(columns):
            raise UsageError(f"{path}: line {number} has {len(line)} cells for {len(columns)} columns; correct it")
        rows.append(dict(zip(columns, line + [""] * (len(columns) - len(line)), strict=True)))
    return columns, rows


def tsv_text(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table as text: names of the columns, then one line a row, cells by `cell`.

    >>> tsv_text(["site", "n"], [["Genève", 3], [None, 0.5]])
    'site\\tn\\nGenève\\t3\\nn/a\\t0.5\\n'
    """
    return "".join("\t".join(map(cell, row)) + "\n" for row in [columns, *rows])


def cell(value: object) -> str:
    """A value as a cell: six significant digits, ``n/a`` for what is missing, no tab or line break to shift cells.

    >>> cell(0.123456789), cell(True), cell(None), cell(float("nan")), cell(" a\\tb ")
    ('0.123457', 'true', 'n/a', 'n/a', 'a b')
    """
    if hasattr(value, "item"):
        value = value.item()  # a number of NumPy's
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "n/a"
    return " ".join(str("" if value is None else value).split()) or "n/a"


def present(value: object) -> str | None:
    """The text of a cell or sidecar field, or None where it says that there is nothing.

    >>> present(" Genève "), present("n/a"), present(None), present(3.0)
    ('Genève', None, None, '3.0')
    """
    text = "" if value is None else " ".join(str(value).split())
    return None if text.lower() in _MISSING else text
