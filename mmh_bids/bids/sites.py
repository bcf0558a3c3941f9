"""Which site an image comes from, and how that is known: BIDS does not define sites."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmh_bids.bids.names import strip_prefix
from mmh_bids.bids.run import Run
from mmh_bids.bids.tsv import present, read_tsv
from mmh_bids.errors import UsageError
from mmh_bids.settings import Settings

WAYS = ("auto", "participants", "session", "sidecar", "dataset")

#: Sidecar fields that tell scanners apart, in the order of the label.
SIDECAR_FIELDS = (
    "Manufacturer",
    "ManufacturersModelName",
    "MagneticFieldStrength",
    "InstitutionName",
    "DeviceSerialNumber",
)

#: Nominal field strengths, T; systems report e.g. 2.89362 for a 3 T magnet.
_FIELD_STRENGTHS = (0.064, 0.2, 0.3, 0.35, 0.5, 0.55, 0.7, 1.0, 1.5, 3.0, 4.0, 4.7, 5.0, 7.0, 9.4, 10.5, 11.7)
_VENDORS = ("Siemens", "Philips", "GE", "Toshiba", "Canon", "Hitachi", "Fujifilm", "Hyperfine")

#: A site label (None: unknown) and where it came from.
Site = tuple[str | None, str]


def assign_sites(runs: Sequence[Run], settings: Settings, bids_root: Path) -> list[Run]:
    """Return `runs` with `site` and `site_source` filled in, in the same order.

    ``auto`` takes, for each image by itself (no selection changes a label): the site column of
    ``sub-X_sessions.tsv`` or ``participants.tsv`` where a table has one; else the scanner by its sidecar;
    else the whole dataset as one site. A site that cannot be told is None, never an error.

    Raises
    ------
    UsageError
        Unknown ``--site-from``; a table that cannot be read; a ``--site-column`` that no table has, where the
        column was asked for.
    """
    find = _finder(settings, bids_root)
    sites = [find(run) for run in runs]
    return [
        dataclasses.replace(run, site=site, site_source=source) for run, (site, source) in zip(runs, sites, strict=True)
    ]


def _finder(settings: Settings, root: Path) -> Callable[[Run], Site]:
    way = settings.site_from
    if way == "session":
        return lambda run: (run.session, "session" if run.session else "no session")
    if way == "sidecar":
        return lambda run: site_of_sidecar(run.metadata)
    whole = _site_of_dataset(root)
    if way == "dataset":
        return lambda run: whole
    if way not in WAYS:
        raise UsageError(f"--site-from {way}: unknown; choose from {', '.join(WAYS)}")

    tables = _Tables(root, settings.site_column)
    asked = way == "participants" or settings.site_column != Settings.site_column

    def find(run: Run) -> Site:
        site = tables.site(run)
        if site is not None:
            return site
        if asked and not tables.has_column:
            columns = ", ".join(tables.columns) or "none"
            raise UsageError(f"--site-column {settings.site_column}: no table has it; there are {columns}")
        if way == "participants":
            return None, f"no {settings.site_column} column for this participant"
        by_scanner = site_of_sidecar(run.metadata)
        return by_scanner if by_scanner[0] else whole

    return find


class _Tables:
    """The site column of participants.tsv and of the participants' sessions.tsv, each file read once."""

    def __init__(self, root: Path, column: str):
        self._root = root
        self._wanted = column
        self.columns: dict[str, None] = {}
        self.has_column = False
        self._read = functools.lru_cache(maxsize=None)(self._read_table)

    def site(self, run: Run) -> Site | None:
        """Site by the tables; None if no table for this image has the column."""
        folder = f"sub-{run.participant}"
        places = [
            (self._root / folder / f"{folder}_sessions.tsv", "session_id", run.session, "ses-"),
            (self._root / "participants.tsv", "participant_id", run.participant, "sub-"),
        ]
        missing: Site | None = None
        for path, index, label, prefix in places:
            column, sites = self._read(path, index, prefix)
            if column is None:
                continue
            source = f"{path.name}:{column}"
            if label is not None and label in sites:
                found = sites[label]
                if len(found) > 1:
                    raise UsageError(f"{path}: {prefix}{label} has more than one {column}; keep one row for it")
                if found[0] is not None:
                    return found[0], source
                missing = missing or (None, f"{source} is n/a")
            else:
                missing = missing or (None, f"{source} has no row {prefix}{label or '?'}")
        return missing

    def _read_table(self, path: Path, index: str, prefix: str) -> tuple[str | None, Mapping[str, list[str | None]]]:
        """The spelling of the site column (None without one) and the distinct sites of each label."""
        if not path.exists():
            return None, {}
        columns, rows = read_tsv(path, index)
        self.columns |= dict.fromkeys(name for name in columns if name != index)
        exact = [name for name in columns if name == self._wanted]
        column = next(iter(exact or [name for name in columns if name.lower() == self._wanted.lower()]), None)
        if column is None:
            return None, {}
        self.has_column = True
        sites: dict[str, list[str | None]] = {}
        for row in rows:
            found = sites.setdefault(strip_prefix(row[index], prefix), [])
            site = present(row[column])
            if site not in found:
                found.append(site)
        return column, sites


def site_of_sidecar(metadata: Mapping[str, Any]) -> Site:
    """A readable label of the scanner from the sidecar's fields.

    >>> site_of_sidecar({"Manufacturer": "SIEMENS", "ManufacturersModelName": "Prisma_fit",
    ...                  "MagneticFieldStrength": 2.89362, "InstitutionName": "Hôpital A"})[0]
    'Siemens_Prisma-fit_3T_Hôpital-A'
    >>> site_of_sidecar({"Manufacturer": "GE", "DeviceSerialNumber": "0042"})
    ('GE_0042', 'sidecar:Manufacturer,DeviceSerialNumber')
    >>> site_of_sidecar({"InstitutionName": "n/a"})
    (None, 'sidecar has no scanner fields')
    """
    values = {name: present(metadata.get(name)) for name in SIDECAR_FIELDS}
    used = {name: value for name, value in values.items() if value is not None}
    if not used:
        return None, "sidecar has no scanner fields"
    parts = []
    for name, value in used.items():
        if name == "Manufacturer":
            value = _vendor(value)
        elif name == "MagneticFieldStrength":
            value = _field_strength(value)
        parts.append(re.sub(r"[^\w.]+|_+", "-", value).strip("-"))
    return "_".join(part for part in parts if part) or None, f"sidecar:{','.join(used)}"


def _vendor(text: str) -> str:
    """One spelling a vendor: converters write SIEMENS, Siemens and Siemens Healthineers.

    >>> _vendor("GE MEDICAL SYSTEMS"), _vendor("SIEMENS"), _vendor("United Imaging"), _vendor("Genesis")
    ('GE', 'Siemens', 'United Imaging', 'Genesis')
    """
    words = re.split(r"\W+", text.lower())
    return next((vendor for vendor in _VENDORS if vendor.lower() in words), text)


def _field_strength(text: str) -> str:
    """The nominal field strength with its unit, if the reported one is within 5 % of it.

    >>> _field_strength("3"), _field_strength("2.89362"), _field_strength("1.494"), _field_strength("2")
    ('3T', '3T', '1.5T', '2T')
    """
    try:
        tesla = float(text.rstrip(" Tt"))
    except ValueError:
        return text
    nominal = min(_FIELD_STRENGTHS, key=lambda strength: abs(strength - tesla))
    return f"{nominal if abs(nominal - tesla) <= 0.05 * nominal else tesla:g}T"


def _site_of_dataset(root: Path) -> Site:
    """The dataset as one site, under its name, or its folder's where the description has none."""
    try:
        name = present(json.loads((root / "dataset_description.json").read_text(encoding="utf-8-sig")).get("Name"))
    except (OSError, ValueError, AttributeError):
        name = None
    return (name, "dataset:Name") if name else (root.name, "dataset folder")
