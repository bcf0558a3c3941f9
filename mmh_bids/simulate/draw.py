"""Scanners drawn at random: physical protocols within the ranges that T1w and T2w imaging uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmh_bids.errors import UsageError
from mmh_bids.simulate.scanner import IMAGE_AXES, Protocol, Scanner
from mmh_bids.simulate.tissues import INDEX, relaxation

_AXES = ("RAS", "LPS", "PIR", "LAS", "RPI", "RIA")
#: Smallest contrast of white over grey matter (T1w; T2w: grey over white) relative to white that a protocol must have.
_CONTRAST = 0.12
#: The same of grey matter over fluid, relative to grey.
_FLUID = 0.35
_TRIES = 1000
#: Share of the images with thick slices, and how thick these are, millimetres.
_THICK, _THICKNESS = {"T1w": 0.35, "T2w": 0.75}, (1.4, 4.5)
#: Share of the images with motion.
_MOVING = 0.2


def draw_scanner(rng: np.random.Generator, name: str = "X") -> Scanner:
    """Draw a scanner with a T1w and a T2w protocol.

    Field strength, fields' strength, sequence, timing, voxel size, axes, tilt, noise and motion are independent of each
    other; a draw that no scanner could play out, or whose grey and white matter look alike, is drawn again.

    Parameters
    ----------
    rng
        Source of randomness.
    name
        Name of the scanner: letters and digits.

    Returns
    -------
    Scanner

    Examples
    --------
    >>> scanner = draw_scanner(np.random.default_rng(0))
    >>> sorted(scanner.protocols), 1 <= scanner.field <= 4
    (['T1w', 'T2w'], True)
    """
    field = float(rng.choice([1.5, 3.0]))
    protocols = {"T1w": _draw(rng, field, _t1w, "T1w"), "T2w": _draw(rng, field, _t2w, "T2w")}
    transmit = rng.uniform(0.02, 0.08) if field < 2 else rng.uniform(0.08, 0.25)
    scanner = Scanner(
        name, "Simulated", "Drawn at random", "None", field, float(rng.uniform(0.06, 0.35)), float(transmit), protocols
    )
    return scanner.changed({sequence: _motion(rng, protocol) for sequence, protocol in protocols.items()})


def _draw(rng: np.random.Generator, field: float, timing: Any, sequence: str) -> Protocol:
    """Draw protocols until one can be played out and shows grey and white matter apart."""
    average, sign = relaxation(field), 1.0 if sequence == "T1w" else -1.0
    for _ in range(_TRIES):
        protocol = Protocol(**timing(rng), **_grid(rng, _THICK[sequence]))
        try:
            signal = protocol.signals(average)
        except UsageError:
            continue
        white, grey, fluid = (signal[INDEX[name]] for name in ("white_matter", "cortex", "fluid"))
        # T1w: fluid darkest by far; T2w: brightest by far
        if sign * (white - grey) / white >= _CONTRAST and sign * (grey - fluid) / grey >= _FLUID:
            return protocol
    raise AssertionError("no valid protocol found")  # the ranges below hold thousands of them


def _t1w(rng: np.random.Generator) -> dict[str, Any]:
    kind = rng.random()
    if kind > 0.85:
        return {
            "sequence": "spin_echo",
            "tr": float(rng.uniform(0.4, 0.8)),
            "te": float(rng.uniform(0.008, 0.02)),
            "flip": 90.0,
        }
    if kind < 0.3:
        tr = float(rng.uniform(0.009, 0.03))
        te = float(rng.uniform(0.002, min(0.008, 0.6 * tr)))
        return {"sequence": "spoiled_gradient_echo", "tr": tr, "te": te, "flip": float(rng.uniform(15, 35))}
    spacing = float(rng.uniform(0.005, 0.0105))
    return {
        "sequence": "mprage",
        "tr": float(rng.uniform(1.6, 3.0)),
        "ti": float(rng.uniform(0.7, 1.15)),
        "te": float(rng.uniform(0.0018, min(0.0045, 0.6 * spacing))),
        "flip": float(rng.uniform(6, 13)),
        "echo_spacing": spacing,
        "echoes": int(rng.integers(110, 210)),
    }


def _t2w(rng: np.random.Generator) -> dict[str, Any]:
    te = float(rng.uniform(0.07, 0.125))
    if rng.random() < 0.2:
        return {"sequence": "spin_echo", "tr": float(rng.uniform(2.2, 5.0)), "te": te, "flip": 90.0}
    spacing = float(rng.uniform(0.0035, 0.015))
    return {
        "sequence": "fast_spin_echo",
        "tr": float(rng.uniform(2.5, 8.0)),
        "te": te,
        "flip": float(rng.uniform(100, 180)),
        "echo_spacing": spacing,
        "echoes": int(rng.integers(8, 200)),
    }


def _motion(rng: np.random.Generator, protocol: Protocol) -> dict[str, Any]:
    """Now and then mild ghosting, along one of the two axes within the slice."""
    thickest = int(np.argmax(protocol.voxel))
    axis = int(rng.choice([axis for axis in range(3) if axis != thickest]))
    moves, amount = rng.random() < _MOVING, float(rng.uniform(0.05, 0.4))
    return {"ghosting": amount, "phase_encoding": IMAGE_AXES[axis]} if moves else {}


def _grid(rng: np.random.Generator, thick: float) -> dict[str, Any]:
    voxel = [float(v) for v in rng.uniform(0.85, 1.25) * rng.uniform(0.95, 1.05, 3)]
    if rng.random() < thick:
        voxel[int(rng.integers(3))] = float(rng.uniform(*_THICKNESS))
    tilted = rng.random() < 0.4
    return {
        "voxel": tuple(voxel),
        "axes": str(rng.choice(_AXES)),
        "oblique": tuple(float(a) for a in rng.uniform(-12, 12, 3)) if tilted else (0.0, 0.0, 0.0),
        "dtype": "float32",
        "level": 400.0,
        "snr": float(np.exp(rng.uniform(np.log(14), np.log(70)))),
    }
