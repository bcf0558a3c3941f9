"""W3C PROV-JSON of a run: which file was made from which, by what, with which parameters."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prov.model import PROV, PROV_LABEL, PROV_TYPE, PROV_VALUE, ProvAgent, ProvDocument

from mmh_bids.files import atomic_write

#: Distributions whose version decides the bytes of an output, as their projects spell them.
DECISIVE_SOFTWARE = (
    "mmh_bids",
    "torch",
    "SimpleITK",
    "nibabel",
    "numpy",
    "scipy",
    "nipype",
    "deepbet",
    "intensity-normalization",
)


@dataclass(frozen=True)
class FileRecord:
    """A file at a moment: its BIDS URI (see `derivatives.bids_uri`) and the sha256 of its bytes in hex."""

    uri: str
    sha256: str


@dataclass(frozen=True)
class ActivityRecord:
    """One image's processing.

    Attributes
    ----------
    name
        Unique in the run, e.g. the image's key ``sub-01_T1w``.
    used, generated
        URIs among the inputs and the outputs of the run.
    parameters
        JSON-ready; nested values are stored as JSON text.
    started, ended
        With a time zone, or None.
    """

    name: str
    used: Sequence[str]
    generated: Sequence[str]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    started: datetime | None = None
    ended: datetime | None = None


def software_versions() -> dict[str, str]:
    """Versions of what decides the bytes of an output: libraries that are installed, Python, platform.

    >>> sorted(set(software_versions()) - set(DECISIVE_SOFTWARE))
    ['Platform', 'Python']
    """
    versions = {}
    for name in DECISIVE_SOFTWARE:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    versions["Python"] = platform.python_version()
    versions["Platform"] = f"{platform.system()} {platform.machine()}"
    return versions


def write_provenance(
    path: Path,
    run_id: str,
    settings_toml: str,
    inputs: Sequence[FileRecord],
    outputs: Sequence[FileRecord],
    activities: Sequence[ActivityRecord],
    software: Mapping[str, str],
    container: str | None,
    started: datetime,
    ended: datetime,
) -> Path:
    """Write the provenance of one run as PROV-JSON.

    Entities are the input and output files (identifier = BIDS URI, percent-encoded; label = as it is) and
    the settings (the plan). Activities are the run and one for each image. Agents are the software
    libraries: each activity was associated with mmh_bids following the plan, the run with every library.

    Raises
    ------
    ValueError
        An activity names a file that is neither input nor output, or a file was recorded twice with different
        hashes: the record would be wrong.
    """
    known = _hashes([*inputs, *outputs])
    for activity in activities:
        unknown = sorted((set(activity.used) | set(activity.generated)) - set(known))
        if unknown:
            raise ValueError(f"{activity.name}: no hash recorded for {', '.join(unknown)}")
    document = _new_document(known)
    for uri, digest in known.items():
        document.entity(
            _name(uri),
            {PROV_TYPE: document.valid_qualified_name("mmh:File"), PROV_LABEL: uri, "mmh:sha256": digest},
        )
    about: dict[Any, Any] = {
        PROV_TYPE: PROV["Plan"],
        PROV_LABEL: "Settings (TOML)",
        PROV_VALUE: settings_toml,
    }
    plan = document.entity(f"run:{run_id}/settings", about)
    run = document.activity(f"run:{run_id}", started, ended, {PROV_LABEL: f"mmh run {run_id}"})
    if container:
        run.add_attributes({"mmh:container": container})
    agents = _add_software(document, software)
    for agent in agents.values():
        document.wasAssociatedWith(run, agent, plan)
    for activity in activities:
        _add_activity(document, run_id, activity, agents.get("mmh_bids"), plan)
    # The library's own indentation depends on nothing, its key order on insertion: sort, for a stable text.
    content = json.loads(document.serialize(format="json") or "{}")
    return atomic_write(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _hashes(files: Sequence[FileRecord]) -> dict[str, str]:
    known: dict[str, str] = {}
    for record in files:
        if known.setdefault(record.uri, record.sha256) != record.sha256:
            raise ValueError(f"{record.uri}: recorded with two different hashes")
    return known


def _new_document(uris: Mapping[str, str]) -> ProvDocument:
    """A document whose prefixes make every qualified name expand to the BIDS URI it stands for."""
    document = ProvDocument()
    document.add_namespace("mmh", "urn:mmh_bids:terms:")
    document.add_namespace("run", "urn:mmh_bids:run:")
    document.add_namespace("software", "urn:mmh_bids:software:")
    for dataset in sorted({uri.split(":", 2)[1] for uri in uris}):
        document.add_namespace(_prefix(dataset), f"bids:{dataset}:")
    return document


def _prefix(dataset: str) -> str:
    return f"bids-{dataset}" if dataset else "bids-this"


def _name(uri: str) -> str:
    """Qualified name of a BIDS URI, other characters than those of BIDS names percent-encoded.

    >>> _name("bids:raw:sub-01/a.nii.gz"), _name("bids::sub-01/a b.json")
    ('bids-raw:sub-01/a.nii.gz', 'bids-this:sub-01/a%20b.json')
    """
    _, dataset, local = uri.split(":", 2)
    return f"{_prefix(dataset)}:{quote(local)}"


def _add_software(document: ProvDocument, software: Mapping[str, str]) -> dict[str, ProvAgent]:
    return {
        name: document.agent(
            f"software:{name}",
            {PROV_TYPE: PROV["SoftwareAgent"], PROV_LABEL: name, "mmh:version": software[name]},
        )
        for name in sorted(software)
    }


def _add_activity(
    document: ProvDocument, run_id: str, record: ActivityRecord, agent: ProvAgent | None, plan: Any
) -> None:
    attributes: dict[Any, Any] = {PROV_LABEL: record.name, "mmh:run": f"run:{run_id}"}
    for key, value in sorted(record.parameters.items()):
        if value is None:
            continue
        plain = isinstance(value, str | int | float | bool)
        attributes["mmh:" + quote(key, safe="")] = (
            value if plain else json.dumps(value, sort_keys=True, ensure_ascii=False)
        )
    activity = document.activity(f"run:{run_id}/{quote(record.name)}", record.started, record.ended, attributes)
    if agent is not None:
        document.wasAssociatedWith(activity, agent, plan)
    for uri in record.used:
        document.used(activity, _name(uri))
    for uri in record.generated:
        document.wasGeneratedBy(_name(uri), activity)
        for source in record.used:
            document.wasDerivedFrom(_name(uri), _name(source), activity)
