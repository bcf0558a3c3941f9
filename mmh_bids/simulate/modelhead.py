"""Label-map heads laid into the model grid, ready for simulation in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from scipy import ndimage

from mmh_bids.files import atomic_path
from mmh_bids.image.grid import MODEL_AFFINE, box_affine, load_template
from mmh_bids.image.grid import bounding_box as box_around
from mmh_bids.image.registration import Volume, register_affine
from mmh_bids.simulate.phantom import Head, head_from_labels
from mmh_bids.simulate.tissues import INDEX
from mmh_bids.simulate.unified import unified_truth

#: Tissue kept around the brain, voxels of the head's grid: blurring and a shifted mask reach into it.
_MARGIN = 12
#: Fluid at most this far (mm) from the brain's surface is what a brain mask may miss.
_RIM = 4.0


@dataclass(frozen=True)
class ModelHead:
    """A head as tensors, and how it lies in the model grid.

    Attributes
    ----------
    tissue
        (X, Y, Z) uint8 indices into `tissues.NAMES`, cropped to the brain's surroundings.
    texture
        (X, Y, Z) float32, as in `phantom.Head`.
    mask
        (X, Y, Z) bool, brain.
    rim
        (X, Y, Z) bool, fluid near the brain's surface.
    inside
        (N,) int64, flat indices of the brain's voxels.
    from_model
        (4, 4) model-grid voxel to voxel of these arrays, as the app's registration would find it.
    centre
        (3,) voxel, middle of the brain's bounding box.
    spacing
        Millimetres per voxel.
    name
        File of the label map.
    """

    tissue: torch.Tensor
    texture: torch.Tensor
    mask: torch.Tensor
    rim: torch.Tensor
    inside: torch.Tensor
    from_model: torch.Tensor
    centre: torch.Tensor
    spacing: float
    name: str

    def to(self, device: torch.device) -> ModelHead:
        """Return the same head on another device."""
        moved = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return ModelHead(**{**vars(self), **moved})


def make_heads(
    labels: Sequence[Path], folder: Path, seed: int, workers: int, say: Callable[[str], None] = print
) -> list[Path]:
    """Register each label map's brain to the template and store it; files that are there are kept.

    Of several processes that ask for the same, the first does it, and says so; the others wait.

    Returns
    -------
    Files for `load_head`, in the order of `labels`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = [(path, seed, folder / f"{path.name.split('_')[0]}_model.npz") for path in labels]
    with FileLock(folder / ".lock"):
        missing = [one for one in asked if not one[2].exists()]
        if missing:
            say(f"{len(missing)} label maps are laid into the model grid")
            with ProcessPoolExecutor(workers) as pool:
                list(pool.map(_make, missing))
    return [target for _, _, target in asked]


def load_head(path: Path) -> ModelHead:
    """Read what `make_heads` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    tensors = {key: torch.from_numpy(arrays[key]) for key in ("tissue", "mask", "rim")}
    for key in ("texture", "from_model", "centre"):
        tensors[key] = torch.from_numpy(arrays[key]).float()
    tensors["inside"] = tensors["mask"].flatten().nonzero()[:, 0]
    return ModelHead(**tensors, spacing=float(arrays["spacing"]), name=path.name)


def model_head(head: Head) -> dict[str, NDArray[Any]]:
    """Arrays of a `ModelHead` by name, as stored."""
    box = box_around(head.mask, _MARGIN)
    affine = box_affine(head.affine, box)
    spacing = float(np.linalg.norm(affine[:3, :3], axis=0).mean())
    template = load_template()
    brain = np.asanyarray(template.dataobj)
    look = np.where(head.mask, unified_truth(head, "T1w"), 0)[box]
    moving = Volume(look.astype(np.float32), head.mask[box], affine)
    to_head, _ = register_affine(Volume(brain, brain > 0, template.affine), moving)
    mask = head.mask[box]
    depth = ndimage.distance_transform_edt(mask) * spacing
    return {
        "tissue": head.first[box],
        "texture": head.texture[box].astype(np.float16),
        "mask": mask,
        "rim": mask & (depth <= _RIM) & (head.first[box] == INDEX["fluid"]),
        "from_model": np.linalg.inv(affine) @ to_head @ MODEL_AFFINE,
        "centre": np.array([(side.start + side.stop - 1) / 2 for side in box_around(mask)]),
        "spacing": np.array(spacing),
    }


def _make(asked: tuple[Path, int, Path]) -> None:
    path, seed, target = asked
    # One texture a head is enough: its scale and the person's tissue properties are drawn anew at every step.
    arrays: dict[str, Any] = model_head(head_from_labels(path, seed, person_spread=False))
    with atomic_path(target) as temporary:
        np.savez(temporary, **arrays)
