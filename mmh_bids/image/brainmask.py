"""Brain masks: the support of an image, and whether the image is a brain without its skull already."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Plausible volume (mL) of a stripped brain, generous on both sides.
STRIPPED_ML = (500.0, 2200.0)
#: Share of voxels that are exact background in a stripped image.
STRIPPED_BACKGROUND = 0.3
#: Dice between the image's support and the network's brain from which on the support is the brain.
STRIPPED_DICE = 0.88


def volume_ml(mask: NDArray[np.bool_], affine: NDArray) -> float:
    """Volume of the mask in millilitres.

    >>> volume_ml(np.ones((10, 10, 10), bool), np.diag([2.0, 2, 2, 1]))
    8.0
    """
    return float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


def support(data: NDArray) -> NDArray[np.bool_]:
    """Voxels that differ from the background (the most frequent corner value): largest component, holes filled.

    >>> head = np.pad(np.ones((4, 4, 4)), 2); head[4, 4, 4] = 0
    >>> int(support(head).sum())
    64
    """
    from scipy.ndimage import binary_fill_holes, label

    corners, counts = np.unique(
        data[:: data.shape[0] - 1, :: data.shape[1] - 1, :: data.shape[2] - 1], return_counts=True
    )
    labels, n = label(data != corners[counts.argmax()])
    if n == 0:
        return np.zeros(data.shape, bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return binary_fill_holes(labels == sizes.argmax())


def looks_stripped(candidate: NDArray[np.bool_], affine: NDArray) -> bool:
    """Whether the support has the size of a brain within an empty background. Cheap; `is_stripped` decides."""
    low, high = STRIPPED_ML
    return low <= volume_ml(candidate, affine) <= high and 1 - candidate.mean() >= STRIPPED_BACKGROUND


def is_stripped(candidate: NDArray[np.bool_], network: NDArray[np.bool_] | None, affine: NDArray) -> bool:
    """Whether the image is a brain already.

    Its support must have a brain's size, and the brain the network finds in it must fill it: a head cut by its field
    of view can be as small, but its brain fills half of it. A network that finds nothing (None) counts as agreeing.
    """
    if not looks_stripped(candidate, affine):
        return False
    if network is None or not network.any():
        return True
    dice = 2 * (candidate & network).sum() / (candidate.sum() + network.sum())
    return bool(dice >= STRIPPED_DICE)
