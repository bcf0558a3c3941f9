"""Method ``mmh-light``: MMH's stage 1 in one pass of a small network, for a laptop.

torch is imported when the first image comes: the command line loads a harmonizer only to ask what it can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import BundleError, ImageError
from mmh_bids.harmonizers.base import SEQUENCES, Reference, Result, check_shapes, check_unified
from mmh_bids.harmonizers.standard import brain_values
from mmh_bids.models.bundle import Bundle

if TYPE_CHECKING:
    from mmh_bids.models.light import LightNetwork

WEIGHTS_FILE = "light.safetensors"
#: The brightest value given out; the unified look itself ends at 1.
CEILING = 1.25
#: Room around the brain, voxels, and what corner and sizes of the network's box divide by.
_MARGIN, _DIVISOR = 8, 8
_AGAIN = "train it again with mmh-train global, or choose another with --model"


class MmhLight:
    """One pass of `mmh_bids.models.light.LightNetwork`. Nothing is drawn at random: the seed makes no difference."""

    name = "mmh-light"
    mem_gb = 2.5

    def __init__(self, bundle: Bundle, device: str) -> None:
        self.bundle = bundle
        self.device = device
        self.sequences = tuple(sequence for sequence in SEQUENCES if sequence in bundle.sequences)
        self._network: LightNetwork | None = None

    @classmethod
    def load(cls, bundle: Bundle, device: str) -> MmhLight:
        """Check the card; the weights are read with the first image."""
        bundle.require(cls.name)
        if not isinstance(bundle.card.get("network"), dict) or WEIGHTS_FILE not in bundle.card["files"]:
            raise BundleError(f"--model {bundle.name}: has no network or no {WEIGHTS_FILE}; {_AGAIN}")
        return cls(bundle, device)

    def check_target(self, target: str, sequence: str) -> None:
        """Raise UsageError unless `target` is ``unified`` and the bundle knows `sequence`."""
        check_unified(self.name, self.bundle.name, self.sequences, target, sequence)

    def harmonize(
        self,
        volume: NDArray[np.float32],
        mask: NDArray[np.bool_],
        sequence: str,
        target: str,
        seed: int,
        reference: Reference | None = None,
    ) -> Result:
        """Bring the brain to its sequence's unified look; see `mmh_bids.harmonizers.base.Harmonizer`.

        Returns
        -------
        `Result` whose volume is zero outside `mask` and in [0, 1.25].

        Raises
        ------
        BundleError
            Weights and network of the bundle do not go together.
        ImageError
            An empty or tiny mask, no contrast, values that are not finite, or no memory left on the GPU.
        """
        import torch

        self.check_target(target, sequence)
        mask = check_shapes(volume, mask)
        values = brain_values(volume[0], mask)
        if float(np.ptp(values)) <= 1e-6 * float(np.abs(values).max()):
            raise ImageError("the brain has one and the same intensity all over, so there is no contrast to harmonize")
        try:
            out, mean, std = self._run(volume[0], mask, values, sequence)
        except torch.OutOfMemoryError:
            raise ImageError(f"the GPU has too little memory for model {self.bundle.name}; use --device cpu") from None
        details = {"Sampler": "one pass", "Steps": 1, "DType": "float32", "BrainMean": mean, "BrainStd": std}
        return Result(out[np.newaxis], details=details)

    def _run(
        self, volume: NDArray[np.float32], mask: NDArray[np.bool_], values: NDArray[np.float32], sequence: str
    ) -> tuple[NDArray[np.float32], float, float]:
        import torch

        from mmh_bids.models.light import measure_style, place_in_grid

        box = network_box(mask)
        half = tuple(slice(side.start // 2, side.stop // 2) for side in box)
        style = measure_style(torch.from_numpy(np.ascontiguousarray(values)).to(self.device), sequence)
        place = place_in_grid(mask.shape)[(slice(None), *half)]
        arrays = (np.where(mask, volume, 0)[box], mask[box].astype(np.float32))
        image, brain = (torch.from_numpy(np.ascontiguousarray(values))[None, None] for values in arrays)
        with torch.no_grad():
            inside = self._loaded()(image.to(self.device), brain.to(self.device), place[None].to(self.device), style)
        out = np.zeros(mask.shape, np.float32)
        out[box] = inside[0, 0].clamp(0, CEILING).cpu().numpy()
        return out, round(float(style.mean), 6), round(float(style.std), 6)

    def _loaded(self) -> LightNetwork:
        """The network with the bundle's weights, on the device."""
        if self._network is None:
            import torch

            from mmh_bids.models.light import LightNetwork

            weights = {key: torch.from_numpy(value).float() for key, value in self.bundle.arrays(WEIGHTS_FILE).items()}
            try:
                network = LightNetwork(**self.bundle.card["network"])
                network.load_state_dict(weights)
            except (RuntimeError, TypeError) as error:
                first = str(error).splitlines()[0]
                raise BundleError(
                    f"--model {self.bundle.name}: weights and network differ ({first}); {_AGAIN}"
                ) from None
            self._network = network.eval().requires_grad_(False).to(self.device)
        return self._network


def network_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The part of a volume that the network is shown: the brain with some room, sides that divide by 8.

    Raises
    ------
    ImageError
        The grid's sizes do not divide by 8, so that no such box fits.

    Examples
    --------
    >>> mask = np.zeros((32, 40, 48), bool)
    >>> mask[12:20, 12:30, 20:22] = True
    >>> network_box(mask)
    (slice(0, 32, None), slice(0, 40, None), slice(8, 32, None))
    """
    box = []
    for axis, size in enumerate(mask.shape):
        if size % _DIVISOR:
            raise ImageError(f"the model grid {mask.shape} does not divide by {_DIVISOR}; choose another with --model")
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        first = max(0, int(hit[0]) - _MARGIN) // _DIVISOR * _DIVISOR
        last = min(size, -(-(int(hit[-1]) + 1 + _MARGIN) // _DIVISOR) * _DIVISOR)
        box.append(slice(first, last))
    return box[0], box[1], box[2]
