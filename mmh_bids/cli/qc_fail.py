"""``--qc-fail``: what becomes of harmonized images whose quality values are beyond use.

With ``warn`` they stay, and a line says so. With ``exclude`` and ``error`` the harmonized images (in the output
spaces too) are removed, so that no later analysis picks them up by mistake; the preprocessed image, the mask, the
transform and the figures stay. What the sidecar said goes into ``sub-X/log/..._desc-excluded_<sequence>.json``: by
it the report tells why, and a later call knows that the image is done. A call with ``--qc-fail warn`` makes the
image again. The decision is `mmh_bids.reports.flags.unusable`; docs/qc.md says where its thresholds come from.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from mmh_bids.bids.derivatives import OutputPaths, harmonization_on_disk, sidecar_path, split_space, write_json
from mmh_bids.bids.run import Run
from mmh_bids.reports.flags import label, unusable
from mmh_bids.settings import Settings

logger = logging.getLogger("mmh")


def why_unusable(qc: Mapping[str, Any]) -> str:
    """The quality values beyond use, one after the other; empty where there are none.

    >>> why_unusable({"Finite": False, "GridCoverage": 0.97})
    'All output values are finite: no (usable: yes)'
    """
    return "; ".join(f"{label(flag.key)}: {flag.value} (usable: {flag.usable})" for flag in unusable(qc))


def set_aside_unusable(settings: Settings, runs: Iterable[Run]) -> dict[str, str]:
    """Remove the harmonized images that ``--qc-fail`` does not let through; return why, by image.

    Parameters
    ----------
    runs
        Images of which the outputs are there, or were set aside before.
    """
    reasons = {}
    for run in runs:
        paths = OutputPaths(settings.output_dir, run)
        facts = harmonization_on_disk(paths)
        why = why_unusable(facts.get("QC") or {})
        if settings.qc_fail == "warn" or not why:
            paths.excluded.unlink(missing_ok=True)
            if why:
                logger.warning("%s: look at it before you use it: %s", run.key, why)
            continue
        reasons[run.key] = (
            f"{run.path.name}: not kept, as a quality value is beyond use: {why}; see {paths.report.name}"
        )
        # the note first: a call that dies in between is taken up where it stopped
        write_json(paths.excluded, {"Reason": reasons[run.key], "Harmonization": facts})
        for path in (paths.harmonized(), *(paths.harmonized(*split_space(space)) for space in settings.output_spaces)):
            path.unlink(missing_ok=True)
            sidecar_path(path).unlink(missing_ok=True)
        if settings.qc_fail == "exclude":
            logger.warning("%s: EXCLUDED: %s", run.key, reasons[run.key])
    return reasons


def is_set_aside(paths: OutputPaths, qc_fail: str) -> bool:
    """Whether the harmonized image was not kept, and would not be kept now either."""
    if qc_fail == "warn" or paths.harmonized().exists() or not paths.excluded.is_file():
        return False
    return bool(unusable(harmonization_on_disk(paths).get("QC") or {}))


def reason_on_disk(paths: OutputPaths) -> str:
    """Why the harmonized image was not kept."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(paths.excluded.read_text(encoding="utf-8"))["Reason"])
    return "not kept, as a quality value is beyond use"
