"""Brain masks: the support of an image, and whether the image is a brain without its skull already."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Plausible volume (mL) of a stripped brain, generous on both sides.
STRIPPED_ML = (500.0, 2200.0)
#: Share of voxels that are exact background in a stripped image.
STRIPPED_BACKGROUND = 0.3
#: Depths below the brain's surface, in units of the brain's extent: cortex with its sulci, and white matter.
SHALLOW, DEEP = (0.015, 0.06), 0.1
#: Dice between the image's support and the network's brain from which on the support is the brain.
STRIPPED_DICE = 0.88


def volume_ml(mask: NDArray[np.bool_], affine: NDArray) -> float:
    """Volume of the mask in millilitres.

    >>> round(volume_ml(np.ones((10, 10, 10), bool), np.diag([2.0, 2, 2, 1])), 6)
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


def fluid_is_dark(data: NDArray, brain: NDArray[np.bool_]) -> bool:
    """Whether the contrast is T1w's (fluid darkest, white matter brightest) rather than T2w's.

    White matter lies deep, cortex with its sulci shallow; the medians of the two depths tell which is
    brighter. A head whose white matter is not myelinated yet counts as not dark.

    Parameters
    ----------
    data
        (X, Y, Z), any unit.
    brain
        (X, Y, Z) bool, roughly the brain; the voxels need not be cubes, for depth is measured in units of the
        brain's extent along each axis.

    Returns
    -------
    False also where the mask is empty or too thin to have a depth.

    >>> z, y, x = np.mgrid[-20:21, -20:21, -20:21] / 18
    >>> radius = np.sqrt(x**2 + y**2 + z**2)
    >>> fluid_is_dark(2 - radius, radius < 1), fluid_is_dark(1 + radius, radius < 1)
    (True, False)
    """
    from scipy.ndimage import distance_transform_edt

    if not brain.any():
        return False
    corners = [np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    box = tuple(slice(int(first), int(last) + 1) for first, last in corners)
    # the border of padding is outside: a brain cut by the field of view has a surface there too
    padded = np.pad(brain[box], 1)
    depth = distance_transform_edt(padded, sampling=[1 / (n - 2) for n in padded.shape])[1:-1, 1:-1, 1:-1]
    values = data[box]
    shallow, deep = values[(depth > SHALLOW[0]) & (depth < SHALLOW[1])], values[depth > DEEP]
    return bool(shallow.size and deep.size and np.median(deep) > np.median(shallow))
