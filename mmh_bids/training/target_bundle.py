"""Write what stage 2 learned of a site into a copy of stage 1's bundle."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.harmonizers.standard import STANDARDS_FILE, Standard
from mmh_bids.models.bundle import Bundle, target_order, write_bundle

Arrays = Mapping[str, NDArray[Any]]


def write_target(
    base: Bundle,
    folder: Path,
    name: str,
    target: str,
    facts: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, Arrays],
    standards: Mapping[str, Standard],
    training: Mapping[str, Any],
    metrics: Mapping[str, float],
    overwrite: bool = False,
    sites: Mapping[str, Mapping[str, Any]] | None = None,
) -> Bundle:
    """Write the bundle.

    Parameters
    ----------
    base
        Bundle of stage 1, which may know other sites already; nothing of it is lost but an older `target`.
    folder, name, overwrite
        See `mmh_bids.models.bundle.write_bundle`.
    target
        ``site:<label>``.
    facts
        Per sequence what the card is to say of the target.
    files
        Arrays by file; those of a file that is there already are added to it.
    standards
        Per sequence what the target's images look like: how far an image is from it is measured against these.
    training, metrics
        How it was trained, and what was measured on images that were not trained on.
    sites
        Per sequence and site its average person (`mmh_bids.training.people.site_tissues`); replaces what the base knows
        of these sites.
    """
    arrays = {one: dict(base.arrays(one)) for one in base.card["files"]}
    for one, new in files.items():
        arrays[one] = {**arrays.get(one, {}), **new}
    for sequence, standard in standards.items():
        arrays.setdefault(STANDARDS_FILE, {}).update(standard.arrays(f"{sequence}/{target}"))
    sequences = {sequence: {**one, "targets": dict(one["targets"])} for sequence, one in base.card["sequences"].items()}
    for sequence, values in facts.items():
        sequences[sequence]["targets"][target] = dict(values)
    for sequence, known in (sites or {}).items():
        sequences[sequence]["sites"] = {**sequences[sequence].get("sites", {}), **known}
    trained = {**base.card["training"].get("targets", {}), target: dict(training)}
    card = {key: value for key, value in base.card.items() if key not in ("format_version", "files")} | {
        "name": name,
        "targets": sorted({*base.card["targets"], target}, key=target_order),
        "sequences": sequences,
        "training": {**base.card["training"], "targets": trained},
        "metrics": {**base.card["metrics"], target: dict(metrics)},
    }
    return write_bundle(folder, card, arrays, overwrite=overwrite)


def weights_file(target: str) -> str:
    """Name of the file that holds the network of a target.

    >>> weights_file("site:Utrecht"), weights_file("site:St. Mary's")
    ('unet-site-Utrecht.safetensors', 'unet-site-St.-Mary-s-1ea53c3e.safetensors')
    """
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", target).strip("-")
    if plain.replace("site-", "site:", 1) != target:  # two labels may look alike without their signs
        plain += "-" + hashlib.sha256(target.encode()).hexdigest()[:8]
    return f"unet-{plain}.safetensors"


def short(values: Any) -> list[float]:
    """Six digits of each number, for the card."""
    return [float(f"{value:.6g}") for value in np.asarray(values).ravel()]
