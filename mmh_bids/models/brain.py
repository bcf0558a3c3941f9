"""Brain extraction with deepbet's two networks (Fisch et al. 2024), on a plain array.

Importing this module imports torch and deepbet: do so in a child process only.
"""

from __future__ import annotations

import numpy as np
import torch
from deepbet.bet import BrainExtraction
from deepbet.utils import keep_largest_connected_component, normalize
from numpy.typing import NDArray
from torch.nn import functional

from mmh_bids.errors import ImageError
from mmh_bids.image.brainmask import fluid_is_dark

#: Shapes that the finder of the brain's box and the segmenter inside the box take.
_COARSE, _FINE = (128,) * 3, (256,) * 3
#: Quantiles of the image that become 0 and 1, and the room around the brain's box: deepbet's own.
_QUANTILES, _MARGIN = (0.005, 0.995), 0.1


def extract_brain(volume: NDArray[np.float32], device: str = "cpu", threads: int = 1) -> NDArray[np.bool_]:
    """Find the brain (with the fluid around it) in a head.

    A first network finds the brain's box, a second one segments the box, resampled to 256 voxels an axis. In a T1w
    image fluid is nearly as dark as bone, and deepbet as it is misses part of the outer fluid of shrunken brains.
    There (`fluid_is_dark` in the first network's brain) the second network sees the square root of the
    intensities, which sets fluid apart from bone. Any other contrast is segmented as deepbet does.

    Growing the mask into voxels of fluid's intensity was tried and left out: on simulated heads it finds more of
    the fluid, in real ones it leaks into clivus, orbit and neck.

    Parameters
    ----------
    volume
        (X, Y, Z) float32 in RAS+ orientation, any contrast that shows a head, any range; NaN counts as 0.
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
        If the networks see no head.
    """
    torch.set_num_threads(threads)
    network = BrainExtraction(no_gpu=device == "cpu")
    image = torch.nan_to_num(torch.from_numpy(np.array(volume, dtype=np.float32)))
    try:
        with torch.no_grad():
            probability = _probability(network, image.to(next(network.model.parameters()).device))
        return network.postprocess(probability > 0.5).astype(bool)
    except (AssertionError, ValueError) as error:
        # deepbet asserts on an empty box, numpy raises on the argmax of no component
        raise ImageError(f"no brain was found in the image ({error})") from None


def _probability(network: BrainExtraction, image: torch.Tensor) -> NDArray[np.float32]:
    """Probability of brain on the image's grid; leaves the box in ``network.bbox`` for deepbet's postprocessing."""
    small = _resized(image, _COARSE)
    low, high = (small.quantile(q) for q in _QUANTILES)
    found = network.bbox_model(normalize(small, low, high)[None, None])[0, 1] > 0.5
    coarse = keep_largest_connected_component(found.float().cpu().numpy())
    network.bbox = network.get_bbox_with_margin(torch.from_numpy(coarse), image.shape, _MARGIN)
    fine = _resized(image[network.bbox], _FINE)
    if fluid_is_dark(small.cpu().numpy(), coarse > 0):
        fine = ((fine - low) / (high - low)).clamp(0, 1).sqrt()
        low, high = torch.zeros_like(low), torch.ones_like(high)
    inside = network.model(normalize(fine, low, high)[None, None])[0, 1]
    probability = torch.zeros_like(image)
    probability[network.bbox] = _resized(inside, tuple(probability[network.bbox].shape))
    return probability.cpu().numpy()


def _resized(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return functional.interpolate(values[None, None], shape, mode="nearest-exact")[0, 0]
