"""What every call of ``mmh`` that writes leaves behind: a copy of its settings and its log."""

from __future__ import annotations

import logging

from mmh_bids.errors import UsageError
from mmh_bids.files import atomic_write
from mmh_bids.settings import Settings

logger = logging.getLogger("mmh")


def keep_records(settings: Settings, run_id: str) -> None:
    """Write ``logs/config-<run>.toml`` and let what is said from now on go to ``logs/mmh-<run>.log`` too.

    Does nothing where a level before did it: both levels of one call share one log.

    Raises
    ------
    OSError
        The output folder cannot be written to; see `no_room`.
    """
    if any(isinstance(handler, logging.FileHandler) for handler in logger.handlers):
        return
    atomic_write(settings.output_dir / "logs" / f"config-{run_id}.toml", settings.to_toml())
    log = logging.FileHandler(settings.output_dir / "logs" / f"mmh-{run_id}.log", encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(log)


def no_room(settings: Settings, error: OSError) -> UsageError:
    """What to say when the output folder cannot be written to at the start."""
    return UsageError(
        f"{settings.output_dir}: cannot be written ({error.strerror or error}); choose another output folder, or "
        "make room and give yourself permission there"
    )
