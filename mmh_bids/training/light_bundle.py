"""Write a trained light network as a model bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mmh_bids.harmonizers.light import WEIGHTS_FILE, MmhLight
from mmh_bids.harmonizers.standard import STANDARDS_FILE, Standard
from mmh_bids.image.grid import MODEL_AFFINE, MODEL_SHAPE
from mmh_bids.image.levels import tissue_levels
from mmh_bids.models.bundle import Bundle, card_head, write_bundle
from mmh_bids.models.light import SEQUENCES
from mmh_bids.simulate.modelhead import load_head
from mmh_bids.training.light_pairs import unified_volume

OUTPUT_MAX = 1000


def write_light(
    output: Path,
    name: str,
    network: nn.Module,
    arguments: Mapping[str, Any],
    heads: Sequence[Path],
    recipe: Mapping[str, Any],
    data: str,
    metrics: Mapping[str, float],
    overwrite: bool = False,
) -> Bundle:
    """Write the bundle.

    Parameters
    ----------
    output, name, overwrite
        See `mmh_bids.models.bundle.write_bundle`.
    network, arguments
        A `LightNetwork` and what it was built with, JSON-ready. Weights are stored as float16.
    heads
        Files of the training heads: the unified look is described by their brains' intensities and
        tissue levels.
    recipe, data
        For the card: how it was trained, and on what.
    metrics
        Measured on heads and scanners that were not trained on.
    """
    standards = {sequence: _standard(heads, sequence) for sequence in SEQUENCES}
    levels = {sequence: _levels(heads, sequence) for sequence in SEQUENCES}
    text = (
        "A small network to the unified look: a curve of intensity of bounded slope, curves that vary over the brain, "
        "gains of second differences, a small change at full resolution; before and after it the field by which "
        "tissues differ over the brain is taken off, after it what it would still change in its own output; at last "
        "one curve to the tissues' levels."
    )
    papers = [
        "Wu, Sun, Wang, Yap, Liu. Unified Multi-Site Multi-Sequence Brain MRI Harmonization Enriched by "
        "Biomedical Semantic Style. arXiv 2601.08193 (2026).",
        "Chen J, Paris S, Durand F. Real-time edge-aware image processing with the bilateral grid. "
        "ACM Trans Graph 2007;26:103.",
    ]
    card = card_head(name, text, data, papers) | {
        "methods": [MmhLight.name],
        "network": dict(arguments),
        "sampler": {"name": "two passes", "steps": 2},
        "grid": {"shape": list(MODEL_SHAPE), "affine": MODEL_AFFINE.tolist()},
        "output_max": OUTPUT_MAX,
        "targets": ["unified"],
        "sequences": {
            sequence: {
                "targets": {
                    "unified": {
                        "images": len(heads),
                        "zscore": _short(standard.zscore),
                        "levels": _short(levels[sequence]),
                    }
                }
            }
            for sequence, standard in standards.items()
        },
        "training": {"data": data, "recipe": dict(recipe)},
        "metrics": {key: float(f"{value:.4g}") for key, value in metrics.items()},
    }
    arrays: dict[str, Any] = {}
    for sequence, standard in standards.items():
        arrays |= standard.arrays(f"{sequence}/unified")
    weights = {key: value.half().cpu().numpy() for key, value in network.state_dict().items()}
    return write_bundle(output, card, {WEIGHTS_FILE: weights, STANDARDS_FILE: arrays}, overwrite=overwrite)


def _standard(heads: Sequence[Path], sequence: str) -> Standard:
    """The unified look's statistics, a mean over heads."""
    found = []
    for path in heads:
        truth, brain = unified_volume(load_head(path), sequence)
        found.append(Standard.measure(np.where(brain, truth, 0), brain, sequence))
    return Standard.average(found)


def _levels(heads: Sequence[Path], sequence: str) -> NDArray[np.float64]:
    """The unified look's tissue levels, medians over heads."""
    found = []
    for path in heads:
        truth, brain = unified_volume(load_head(path), sequence)
        found.append(tissue_levels(np.where(brain, truth, 0).astype(np.float32), brain, MODEL_AFFINE))
    return np.median(found, axis=0)


def _short(values: Any) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
