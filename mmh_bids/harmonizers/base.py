"""What every harmonization method offers, and how one is found by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import UsageError
from mmh_bids.models.bundle import Bundle

SEQUENCES = ("T1w", "T2w")


@dataclass(frozen=True)
class Reference:
    """A reference image on the model grid, for ``image:`` targets.

    Attributes
    ----------
    volume
        (1, X, Y, Z) float32 in [0, 1].
    mask
        (X, Y, Z) bool, the brain.
    """

    volume: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Result:
    """What a harmonizer returns for one volume.

    Attributes
    ----------
    volume
        (1, X, Y, Z) float32. In [0, 1] of the target's scale, unless `keeps_input_scale`.
    keeps_input_scale
        True if intensities stay in the input's own scale (no harmonization took place); otherwise the
        transport multiplies by the bundle's `output_max` to get the units written to file.
    details
        JSON-ready facts for the sidecar (sampler, landmarks, warnings ...).
    """

    volume: NDArray[np.float32]
    keeps_input_scale: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Harmonizer(Protocol):
    """A method, loaded and ready. Deterministic for a seed; nothing is fitted to more than the one image."""

    name: str
    sequences: tuple[str, ...]
    mem_gb: float

    @classmethod
    def load(cls, bundle: Bundle, device: str) -> Harmonizer:
        """Make the harmonizer from an opened bundle; `device` is ``"cpu"`` or ``"cuda[:N]"``."""
        ...

    def check_target(self, target: str, sequence: str) -> None:
        """Raise UsageError, naming the targets there are, if `target` cannot be reached."""
        ...

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
        """Harmonize one volume of the model grid.

        Parameters
        ----------
        volume
            (1, X, Y, Z) float32 in [0, 1], brain only (zero outside `mask`).
        mask
            (X, Y, Z) bool.
        sequence
            ``"T1w"`` or ``"T2w"``.
        target
            ``unified``, ``site:<label>`` or ``image:<path>``; with the last one `reference` is given.
        seed
            Seed of every random draw.
        site
            Label of the site that the image comes from; None where it is not known. A method that has no use for it
            leaves it alone.
        """
        ...


def check_known(method: str, bundle: Bundle, known: Sequence[str], target: str, sequence: str) -> None:
    """Raise UsageError unless the bundle's card lists `target` for `sequence`, one of the `known` sequences.

    Any reference image (``image:<path>``) is a target.
    """
    if sequence not in known:
        raise UsageError(f"model {bundle.name} knows {', '.join(known)} only; drop the {sequence} images")
    if target.startswith("image:") and len(target) > len("image:"):
        return
    targets = bundle.targets(sequence)
    if target not in targets:
        raise UsageError(
            f"--target {target}: unknown to model {bundle.name} for {sequence}; --method {method} with it knows "
            f"{', '.join(targets)} and image:<path>; mmh-train target makes a bundle that knows a site of yours"
        )


def check_shapes(volume: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the mask as bool; ValueError unless volume is (1, X, Y, Z) of the mask's (X, Y, Z)."""
    if volume.shape != (1, *mask.shape):
        raise ValueError(f"volume {volume.shape} must be (1, X, Y, Z) of the mask's shape {mask.shape}")
    return np.asarray(mask, dtype=bool)


def method_names() -> list[str]:
    """Names of the installed methods, from the entry point group ``mmh_bids.harmonizers``."""
    return sorted(point.name for point in entry_points(group="mmh_bids.harmonizers"))


def find_method(name: str) -> type[Harmonizer]:
    """Return the class registered under `name`; UsageError with the known names otherwise."""
    for point in entry_points(group="mmh_bids.harmonizers"):
        if point.name == name:
            return point.load()
    raise UsageError(f"--method {name}: unknown; installed methods are {', '.join(method_names())}")
