"""How much memory a node needs, from the size of its image."""

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
