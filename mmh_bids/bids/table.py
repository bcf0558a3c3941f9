"""The dry run's table: one row an image, for people and for ``cut``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mmh_bids.bids.run import Run
from mmh_bids.bids.tsv import cell

COLUMNS = ("file", "sequence", "session", "site", "site_from", "action", "reason")


def dry_run_table(runs: Iterable[Run], costs: Mapping[str, tuple[float | None, float]] | None = None) -> str:
    """One row an image, aligned with spaces, columns split by tabs; ends with a line break.

    Empty cells read ``n/a``, as in BIDS tables. The file is given by its name.

    Parameters
    ----------
    costs
        Minutes (None where nobody knows) and GB of one process, by the key of each image that is to be made. With it
        the table has the columns ``minutes`` and ``mem_gb``.
    """
    rows: list[Sequence[str]] = [COLUMNS if costs is None else (*COLUMNS[:-1], "minutes", "mem_gb", COLUMNS[-1])]
    for run in runs:
        cells = [run.path.name, run.sequence, run.session, run.site, run.site_source, run.action, run.reason]
        if costs is not None:
            minutes, gb = costs.get(run.key, (None, None))
            cells[-1:-1] = [None if number is None else f"{number:.1f}" for number in (minutes, gb)]
        rows.append(list(map(cell, cells)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("\t".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)
