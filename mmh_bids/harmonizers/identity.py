"""Method ``none``: all of the pipeline but no harmonization, the control for the other methods."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import UsageError
from mmh_bids.harmonizers.base import SEQUENCES, Reference, Result
from mmh_bids.models.bundle import Bundle


class Identity:
    """Return the volume as it is, in the input's own intensity scale."""

    name = "none"
    sequences = SEQUENCES
    mem_gb = 0.2

    @classmethod
    def load(cls, bundle: Bundle, device: str) -> Identity:
        """Any bundle will do; nothing of it is used."""
        return cls()

    def check_target(self, target: str, sequence: str) -> None:
        """Only ``unified`` passes: nothing is brought to a site or an image."""
        if target != "unified":
            raise UsageError(f"--target {target}: --method none changes nothing; drop --target or choose a method")

    def harmonize(
        self,
        volume: NDArray[np.float32],
        mask: NDArray[np.bool_],
        sequence: str,
        target: str,
        seed: int,
        reference: Reference | None = None,
        site: str | None = None,
    ) -> Result:
        """Return `volume` itself, `keeps_input_scale` set."""
        return Result(volume, keeps_input_scale=True)
