"""Write a trained stage 1 of MMH as a model bundle for `mmh_bids.harmonizers.mmh`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import UsageError
from mmh_bids.harmonizers.mmh import WEIGHTS_FILE, Mmh
from mmh_bids.models.bundle import Bundle, card_head, write_bundle
from mmh_bids.models.unet import SEQUENCE_CLASS
from mmh_bids.training.diffusion import DiffusionRecipe, StageOne
from mmh_bids.training.standards import OUTPUT_MAX


def write_stage_one(
    folder: Path,
    name: str,
    network: StageOne,
    recipe: DiffusionRecipe,
    data: str,
    metrics: Mapping[str, float],
    overwrite: bool = False,
    plan: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write network, sampler and running statistics as the bundle `name`.

    Parameters
    ----------
    folder
        Made here; it must not exist unless `overwrite`.
    network
        What `loop.fit` returned, on the CPU.
    recipe
        What it was trained by: gives the grid, the sampler and the list of images.
    data
        Where the images come from, for the card.
    metrics
        Measured on images that were not trained on.
    plan
        How long and how fast it was trained, JSON-ready, for the card.

    Raises
    ------
    UsageError
        No image was trained on yet, or `folder` cannot be written.
    """
    statistics = network.statistics
    sequences = {sequence: label for sequence, label in SEQUENCE_CLASS.items() if statistics.seen[label]}
    if not sequences:
        raise UsageError(f"{folder}: the network was trained on no image yet; train it first")
    shape, affine = shrunk_grid(recipe)
    text = "Stage 1 of MMH: diffusion network, from any site to the unified look."
    paper = (
        "Wu M et al. Unified Multi-Site Multi-Sequence Brain MRI Harmonization Enriched by Biomedical Semantic Style. "
        "arXiv 2601.08193, 2026."
    )
    card = card_head(name, text, data, [paper]) | {
        "methods": [Mmh.name],
        "network": network.unet.arguments,
        "sampler": recipe.facts["sampler"],
        "grid": {"shape": list(shape), "affine": affine.tolist()},
        "output_max": OUTPUT_MAX,
        "targets": ["unified"],
        "sequences": {
            sequence: {
                "targets": {
                    "unified": {
                        "mean": float(statistics.mean[label]),
                        "std": float(statistics.std[label]),
                        "histogram": [float(f"{share:.6g}") for share in statistics.histogram[label].tolist()],
                        "images": sum(sample.sequence == sequence for sample in recipe.train),
                    }
                }
            }
            for sequence, label in sequences.items()
        },
        "training": {"data": data, "recipe": recipe.facts, **({"plan": dict(plan)} if plan else {})},
        "metrics": dict(metrics),
    }  # fmt: skip
    arrays = {key: value.numpy() for key, value in network.unet.state_dict().items()}
    return write_bundle(folder, card, {WEIGHTS_FILE: arrays}, overwrite=overwrite)


def shrunk_grid(recipe: DiffusionRecipe) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine of the grid the network sees: the images', cubes of `factor` voxels joined to one."""
    image = nib.Nifti1Image.from_filename(recipe.train[0].path)
    scale = np.diag([recipe.factor, recipe.factor, recipe.factor, 1.0])
    scale[:3, 3] = (recipe.factor - 1) / 2
    return tuple(size // recipe.factor for size in image.shape[:3]), image.affine @ scale
