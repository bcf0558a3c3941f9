"""The unified look: what every scan would show on one ideal scanner, the target of the simulated training pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmh_bids.simulate import tissues
from mmh_bids.simulate.acquire import signal_volume
from mmh_bids.simulate.phantom import Head
from mmh_bids.simulate.sampling import voxel_average
from mmh_bids.simulate.scanner import Protocol, Scanner

#: Value of an average person's white matter in the unified look, on the model's scale of 0 to 1. The brightest
#: tissue (T1w: white matter, T2w: fluid) stays below 1 with its partial volumes and its spread.
WHITE_LEVEL = {"T1w": 0.75, "T2w": 0.22}

_VOXEL = (1.0, 1.0, 1.0)
#: 3 T, no receive field, no transmit field, no noise. MPRAGE with a strong contrast of grey and white matter;
#: a fast spin echo of long repetition time.
IDEAL = Scanner(
    "U",
    "None",
    "Ideal",
    "None",
    3.0,
    0.0,
    0.0,
    {
        "T1w": Protocol("mprage", 2.3, 0.003, 9.0, _VOXEL, ti=0.95, echo_spacing=0.007, echoes=176, dtype="float32"),
        "T2w": Protocol("fast_spin_echo", 5.0, 0.09, 160.0, _VOXEL, echo_spacing=0.009, echoes=20, dtype="float32"),
    },
)


def unified_tissues(sequence: str) -> NDArray[np.float64]:
    """Value of each tissue of an average person in the unified look, (T,) in the order of `tissues.NAMES`.

    Examples
    --------
    >>> t1w, t2w = unified_tissues("T1w"), unified_tissues("T2w")
    >>> white, grey, fluid = tissues.WHITE, tissues.GREY, tissues.INDEX["fluid"]
    >>> bool(t1w[white] > t1w[grey] > t1w[fluid]), bool(t2w[white] < t2w[grey] < t2w[fluid] < 1)
    (True, True)
    """
    signals = IDEAL.protocol(sequence).signals(tissues.relaxation(IDEAL.field))
    return signals * WHITE_LEVEL[sequence] / signals[tissues.WHITE]


def unified_truth(head: Head, sequence: str) -> NDArray[np.float32]:
    """The head in the unified look, on its own grid, skull included.

    Parameters
    ----------
    head
        Anatomy with the person's own tissue properties, which the unified look keeps.
    sequence
        ``"T1w"`` or ``"T2w"``.

    Returns
    -------
    (X, Y, Z) float32, white matter at `WHITE_LEVEL`, cut at 1.
    """
    volume, white = signal_volume(head, IDEAL, IDEAL.protocol(sequence))
    return np.clip(volume * np.float32(WHITE_LEVEL[sequence] / white), 0, 1, out=volume)


def unified_on_grid(
    head: Head, sequence: str, shape: tuple[int, ...], affine: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The unified look of a placed head on a scanner's grid: partial volumes and slice thickness are the scanner's.

    Parameters
    ----------
    head
        Anatomy, placed where it lies in the scanner.
    sequence
        ``"T1w"`` or ``"T2w"``.
    shape, affine
        Size and (4, 4) voxel to world, millimetres, of the grid.

    Returns
    -------
    float32 of that shape, 0 to 1, zero outside the head's grid.
    """
    return voxel_average(unified_truth(head, sequence), head.affine, shape, affine)
