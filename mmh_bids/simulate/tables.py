"""Signals of all tissues as small tables: what a lookup a voxel needs instead of an equation a voxel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmh_bids.simulate.scanner import Protocol
from mmh_bids.simulate.tissues import Relaxation

#: Step of the transmit field for the parabola through three signals.
_TRANSMIT_STEP = 0.15


def signal_tables(protocol: Protocol, own: Relaxation) -> NDArray[np.float32]:
    """Signal of every tissue as a plane in texture and a parabola in the transmit field.

    Exact enough for the few per cent that both vary.

    Parameters
    ----------
    protocol
        Sequence.
    own
        The person's tissue properties at the scanner's field.

    Returns
    -------
    (4, T) float32: signal, change a unit of texture, slope and curvature in (transmit field - 1). A voxel's signal is
    ``t[0] + t[1] * texture + t[2] * d + t[3] * d ** 2``.
    """
    base = protocol.signals(own)
    more = protocol.signals(own.scaled(1 + own.texture, 1 + own.texture))
    less = protocol.signals(own.scaled(1 - own.texture, 1 - own.texture))
    high, low = protocol.signals(own, 1 + _TRANSMIT_STEP), protocol.signals(own, 1 - _TRANSMIT_STEP)
    tables = [base, (more - less) / 2, (high - low) / (2 * _TRANSMIT_STEP)]
    tables.append((high + low - 2 * base) / (2 * _TRANSMIT_STEP**2))
    return np.array(tables, np.float32)
