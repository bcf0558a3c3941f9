"""``--config-file``: settings of an earlier call, read as if they had been typed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmh_bids.errors import UsageError
from mmh_bids.settings import Settings


def of_config(parser: argparse.ArgumentParser, config: Path, folders: Sequence[str]) -> dict[str, Any]:
    """Values of a configuration file, checked as if they had been typed as flags."""
    words: list[str] = []
    try:
        for name, value in Settings.toml_values(config.read_text(encoding="utf-8")).items():
            if name not in ("bids_dir", "output_dir", "analysis_level"):
                words += _words(name, value)
        return vars(parser.parse_args([*folders, *words]))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"--config-file {config}: cannot be read ({reason}); give a TOML file") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"--config-file {config}: a value is of the wrong kind ({error}); correct it") from None
    except UsageError as error:
        raise UsageError(f"--config-file {config}: {str(error).removeprefix('--config-file: ')}") from None


def _words(name: str, value: Any) -> list[str]:
    """A setting as it would be typed.

    >>> _words("modalities", ("T1w", "T2w")), _words("mem_gb", 8.0), _words("sloppy", False)
    (['--modalities', 'T1w', 'T2w'], ['--mem=8.000000G'], [])
    """
    flag = "--mem" if name == "mem_gb" else f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    if name == "verbose":
        return [flag] * int(value)
    if name == "derivatives":
        return [flag, *("=".join(pair) for pair in value)] if value else []
    if isinstance(value, tuple):
        return [flag, *map(str, value)] if value else []
    return [f"{flag}={value:f}G" if name == "mem_gb" else f"{flag}={value}"]
