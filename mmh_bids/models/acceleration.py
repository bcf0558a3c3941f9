"""How the passes of a noise predictor are computed on a device: precision, layout of the features, slabs, compiling.

Decided here for all who harmonize. On a CPU it depends on nothing but the device, so that a rerun gives the same bytes.
torch is imported when a network is prepared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmh_bids.errors import ImageError
from mmh_bids.models.memory import INFERENCE_BASE_GB, SLAB_PLANES, free_gb, inference_gb

if TYPE_CHECKING:
    from torch import nn

    from mmh_bids.models.unet import StyleUNet

#: Oldest GPUs (compute capability) that are fast in half precision.
_TENSOR_CORES = (7, 0)
#: What torch's allocator and the convolutions of a GPU take beside the features. Reckoned, not measured.
_GPU_MARGIN = 1.2
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Acceleration:
    """How passes are computed.

    Attributes
    ----------
    dtype
        ``float32``, ``float16`` or ``bfloat16``, of features and convolutions; the latents stay float32.
    planes
        Thickness of the slabs, None for the whole volume at once; see `mmh_bids.models.slabs`.
    channels_last
        Layout of the features.
    compiled
        By ``torch.compile``: minutes for the first pass, of every process. Nobody chooses it for you, as one image is
        one process.
    """

    dtype: str = "float32"
    planes: int | None = SLAB_PLANES
    channels_last: bool = True
    compiled: bool = False

    def prepared(self, network: StyleUNet, device: str) -> nn.Module:
        """The network on its device, in evaluation mode; takes what it took, and gives its noise in `dtype`."""
        import torch

        from mmh_bids.models.slabs import SlabUNet

        dtype = getattr(torch, self.dtype)
        made = SlabUNet(network.eval().to(device), self.planes, self.channels_last, dtype).eval()
        return torch.compile(made) if self.compiled else made  # type: ignore[return-value]


def choose_acceleration(
    network: Mapping[str, Any], shape: Sequence[int], device: str, model: str, networks: int = 1
) -> Acceleration:
    """What pays on a device, and fits into the memory it has left.

    A CPU computes in float32 by slabs, which is faster there than the whole volume. A GPU computes in half precision:
    float16, whose relative error after 59 passes is an eighth of bfloat16's (docs/paper-scale.md). It takes the whole
    volume where that fits, else slabs.

    Parameters
    ----------
    network, shape, networks
        See `mmh_bids.models.memory.inference_gb`.
    device
        ``cpu`` or ``cuda[:N]``.
    model
        Name of the bundle, for the message.

    Raises
    ------
    ImageError
        Slabs do not fit either; the message says what to change.
    """
    free = free_gb(device)
    if device == "cpu":
        options, margin, where = [Acceleration()], 1.0, "this machine"
        remedy = "lower --nprocs or --mem so that less runs beside it, give the job more memory, or choose a smaller "
        remedy += "bundle with --model"
    else:
        dtype, margin, where = gpu_dtype(device), _GPU_MARGIN, f"--device {device}"
        options = [Acceleration(dtype, planes, dtype != "float32") for planes in (None, SLAB_PLANES)]
        remedy = "use --device cpu, or choose a smaller bundle with --model"
    for option in options:
        needed = inference_gb(network, shape, option.planes, _BYTES[option.dtype], networks)
        needed = margin * (needed - INFERENCE_BASE_GB)  # torch is there already
        if needed <= free:
            return option
    raise ImageError(
        f"model {model} needs about {needed:.1f} GB even slab by slab, {where} has {free:.1f} GB left: {remedy}"
    )


def gpu_dtype(device: str) -> str:
    """Half precision where the GPU has tensor cores."""
    import torch

    return "float16" if torch.cuda.get_device_capability(device) >= _TENSOR_CORES else "float32"
