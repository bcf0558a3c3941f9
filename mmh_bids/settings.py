"""All that a run of ``mmh`` was asked to do, in one frozen object with a TOML round trip."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from mmh_bids.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Settings:
    """One field a flag of ``mmh``; see ``mmh --help`` for what each means.

    Labels carry no ``sub-``/``ses-`` prefix. `model` empty = the shipped bundle of the method. `mem_gb` None = what the
    machine has. `derivatives`: (name, path) pairs.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: tuple[str, ...] = ("participant",)
    # selection
    participant_label: tuple[str, ...] = ()
    failed_only: bool = False
    session_label: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ("T1w", "T2w")
    bids_filter_file: Path | None = None
    skip_bids_validation: bool = False
    bids_database_dir: Path | None = None
    derivatives: tuple[tuple[str, str], ...] = ()
    site_from: str = "auto"
    site_column: str = "site"
    # processing
    method: str = "mmh-light"
    model: str = ""
    target: str = "unified"
    skull_strip: str = "auto"
    skull: str = "strip"
    bias_correction: str = "n4"
    output_spaces: tuple[str, ...] = ()
    bids_mirror: Path | None = None
    bids_mirror_files: str = "auto"
    random_seed: int = 0
    sloppy: bool = False
    # resources
    nprocs: int = 1
    omp_nthreads: int = 1
    mem_gb: float | None = None
    low_mem: bool = False
    device: str = "auto"
    nipype_plugin_file: Path | None = None
    use_plugin: str | None = None
    # flow
    qc_fail: str = "warn"
    work_dir: Path = Path("work")
    clean_workdir: bool = False
    dry_run: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    stop_on_first_crash: bool = False
    resource_monitor: bool = False
    write_graph: bool = False
    verbose: int = 0

    #: What decides the bytes of an image's outputs; the fingerprint is taken over these.
    DECISIVE = (
        "method", "model", "target", "skull_strip", "skull", "bias_correction", "output_spaces", "random_seed",
        "sloppy", "derivatives",
    )  # fmt: skip

    def fingerprint(self, **extra: str) -> str:
        """Hash of the settings that decide an image's output, and of `extra` (bundle hash, version ...)."""
        chosen = {name: getattr(self, name) for name in self.DECISIVE} | extra
        return hashlib.sha256(json.dumps(chosen, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        """The settings as TOML; fields that are None are left out."""
        values = {}
        for field in dataclasses.fields(self):
            value = _plain(getattr(self, field.name))
            if value is not None:
                values[field.name] = value
        return tomli_w.dumps(values)

    @classmethod
    def from_toml(cls, text: str) -> Settings:
        """Read what `to_toml` wrote; UsageError names unknown keys.

        >>> asked = Settings(Path("/data"), Path("/out"), participant_label=("01",))
        >>> Settings.from_toml(asked.to_toml()) == asked
        True
        """
        values = cls.toml_values(text)
        return cls(**values)

    @classmethod
    def toml_values(cls, text: str) -> dict[str, Any]:
        """Parse TOML into keyword arguments of the class (also a partial file, as ``--config-file`` takes)."""
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"--config-file: not valid TOML: {error}") from None
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(raw) - set(fields))
        if unknown:
            raise UsageError(
                f"--config-file: unknown setting(s) {', '.join(unknown)}; known are {', '.join(sorted(fields))}"
            )
        return {name: _typed(value, str(fields[name].type)) for name, value in raw.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _typed(value: Any, annotation: str) -> Any:
    if annotation.startswith("Path"):
        return Path(value)
    if isinstance(value, list):
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return value
