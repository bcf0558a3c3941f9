"""Model-grid images as tensors for the training of networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmh_bids.errors import ImageError
from mmh_bids.models.gradient import gradient_condition
from mmh_bids.models.shrink import shrink
from mmh_bids.models.unet import SEQUENCE_CLASS, to_signed
from mmh_bids.training.standards import Sample

_AGAIN = "make it again with mmh --method none"


@dataclass(frozen=True)
class Volume:
    """A volume ready for the network, or a batch of them.

    Attributes
    ----------
    image
        (B, 1, X, Y, Z) in [-1, 1], -1 outside the brain.
    condition
        (B, 1, X, Y, Z), the gradient condition of the whole image.
    mask
        (B, 1, X, Y, Z) bool, the brain.
    label
        (B,) class of the sequence.
    """

    image: torch.Tensor
    condition: torch.Tensor
    mask: torch.Tensor
    label: torch.Tensor

    @classmethod
    def stack(cls, volumes: list[Volume], device: torch.device | str = "cpu") -> Volume:
        """Join volumes of one shape to a batch on a device."""
        names = ("image", "condition", "mask", "label")
        return cls(*(torch.cat([getattr(one, name) for one in volumes]).to(device) for name in names))

    def cropped(self, size: int | None, rng: np.random.Generator) -> Volume:
        """Cut a cube of edge `size` (or less, where the volume is smaller) around a random voxel of the brain."""
        if size is None:
            return self
        inside = self.mask[0, 0].nonzero()
        centre = inside[int(rng.integers(len(inside)))]
        box = []
        for place, extent in zip(centre.tolist(), self.mask.shape[2:], strict=True):
            start = min(max(0, place - size // 2), max(0, extent - size))
            box.append(slice(start, start + size))
        x, y, z = box
        where = (..., x, y, z)
        return Volume(self.image[where], self.condition[where], self.mask[where], self.label)


def read_volume(path: Path) -> torch.Tensor:
    """Read a model-grid image: (1, 1, X, Y, Z) float32 in [0, 1].

    Raises
    ------
    ImageError
        An unreadable file, not in [0, 1.5], NaN, or no brain in it; names the file.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        data = nib.Nifti1Image.from_filename(path).get_fdata(dtype=np.float32)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read ({error}); {_AGAIN}") from None
    if data.ndim != 3 or not (data.min() >= 0 and data.max() <= 1.5):
        raise ImageError(f"{path}: no model-grid image in [0, 1]; {_AGAIN}")
    if not data.any():
        raise ImageError(f"{path}: is zero everywhere, so there is no brain in it; {_AGAIN}")
    return torch.from_numpy(np.ascontiguousarray(data))[None, None]


def prepare(sample: Sample, factor: int = 1) -> Volume:
    """Read, shrink, scale (once) and derive the condition of one training image."""
    volume, mask = shrink(read_volume(sample.path), factor)
    if not mask.any():
        raise ImageError(f"{sample.path}: its brain vanishes when shrunk by {factor}; {_AGAIN}")
    image = to_signed(volume)
    return Volume(image, gradient_condition(image), mask, torch.tensor([SEQUENCE_CLASS[sample.sequence]]))
