"""How much memory a node needs, and how long an image takes, from the size of the image."""

from __future__ import annotations

import math
from pathlib import Path

from mmh_bids.image.grid import open_nifti
from mmh_bids.image.volume import CORRUPT

#: A Python process with numpy, nibabel and SimpleITK.
BASE_GB = 0.2
#: deepbet works on a fixed grid: its need hardly grows with the image.
NETWORK_GB = 1.3
#: The displacement field of a template with 1 mm voxels, as ITK holds it.
WARP_GB = 0.5


def volume_gb(path: Path) -> float:
    """Size of one float32 copy of the image in GB, from its header.

    A file that cannot be opened counts as a usual head: the check step says what is wrong with it.
    """
    try:
        shape = open_nifti(path).shape
    except CORRUPT:
        shape = (256, 256, 256)
    return math.prod(shape[:3]) * 4 / 1e9


def node_gb(copies: float, volume: float, base: float = BASE_GB) -> float:
    """Memory of a node that holds `copies` float32 copies of an image of `volume` GB.

    >>> round(node_gb(6, 0.067), 2)
    0.6
    """
    return round(base + copies * volume, 3)


#: Seconds of the steps whose grid is fixed (brain extraction, registration, reading of libraries), of a million voxels
#: in the others, of a T2w's way to its T1w, and of an output space. One thread; `make benchmark-time`.
_FIXED_SECONDS, _SECONDS_A_MILLION, _COREGISTRATION_SECONDS, _SPACE_SECONDS = 18.0, 1.3, 6.0, 10.0
#: Seconds of the harmonizer on a CPU. A method that is not here takes nobody knows how long.
METHOD_SECONDS = {"mmh-light": 25.0, "none": 1.0, "zscore": 3.0, "whitestripe": 3.0, "nyul": 3.0, "histmatch": 3.0}


def image_gb(volume: float, method_gb: float) -> float:
    """Memory that a process needs for an image of `volume` GB: that of the step that needs most.

    >>> image_gb(0.039, 2.5), image_gb(0.3, 0.5)
    (2.5, 3.7)
    """
    return max(node_gb(8, volume, NETWORK_GB), node_gb(7, volume, 0.6), method_gb)


def image_minutes(volume: float, method: str, sequence: str, spaces: int = 0) -> float | None:
    """About how long an image of `volume` GB takes one process; None where nobody knows.

    >>> image_minutes(0.039, "mmh-light", "T1w"), image_minutes(0.039, "mmh-diffusion", "T1w")
    (0.9, None)
    """
    harmonizer = METHOD_SECONDS.get(method)
    if harmonizer is None:
        return None
    seconds = _FIXED_SECONDS + _SECONDS_A_MILLION * volume * 1e9 / 4 / 1e6 + harmonizer + _SPACE_SECONDS * spaces
    return round((seconds + _COREGISTRATION_SECONDS * (sequence == "T2w")) / 60, 1)
