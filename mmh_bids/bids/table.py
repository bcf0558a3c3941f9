"""The dry run's table: one row an image, for people and for ``cut``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmh_bids.bids.run import Run
from mmh_bids.bids.tsv import cell

COLUMNS = ("file", "sequence", "session", "site", "site_from", "action", "reason")


def dry_run_table(runs: Iterable[Run]) -> str:
    """One row an image, aligned with spaces, columns split by tabs; ends with a line break.

    Empty cells read ``n/a``, as in BIDS tables. The file is given by its name.
    """
    rows: list[Sequence[str]] = [COLUMNS]
    for run in runs:
        cells = (run.path.name, run.sequence, run.session, run.site, run.site_source, run.action, run.reason)
        rows.append(list(map(cell, cells)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ("\t".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)
