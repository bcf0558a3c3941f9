"""Brain extraction with deepbet's network (Fisch et al. 2024), on a plain array.

Importing this module imports torch and deepbet: do so in a child process only.
"""

from __future__ import annotations

import numpy as np
import torch
from deepbet.bet import BrainExtraction
from numpy.typing import NDArray

from mmh_bids.errors import ImageError


def extract_brain(volume: NDArray[np.float32], device: str = "cpu", threads: int = 1) -> NDArray[np.bool_]:
    """Find the brain (with the fluid around it) in a head.

    Parameters
    ----------
    volume
        (X, Y, Z) float32 in RAS+ orientation, any contrast that shows a head, any positive range.
    device
        ``"cpu"`` or ``"cuda[:N]"``.
    threads
        CPU threads of torch.

    Returns
    -------
    (X, Y, Z) bool, one connected component without holes.

    Raises
    ------
    ImageError
        If the network sees no head.
    """
    torch.set_num_threads(threads)
    network = BrainExtraction(no_gpu=device == "cpu")
    try:
        probability = network.run_model(np.ascontiguousarray(volume, dtype=np.float32))
        return network.postprocess(probability > 0.5).astype(bool)
    except (AssertionError, ValueError) as error:
        # deepbet asserts on an empty box, numpy raises on the argmax of no component
        raise ImageError(f"no brain was found in the image ({error})") from None
