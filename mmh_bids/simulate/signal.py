"""Signal equations of the pulse sequences: relaxation times and proton density in, transverse magnetisation
out.

All times are in seconds, angles in degrees; arguments broadcast as NumPy arrays. Signals are in units of the
fully relaxed magnetisation of a tissue with proton density 1 and never take coil, gain or noise into
account. A protocol that no scanner could play out (a negative delay, an echo outside its train) raises
UsageError.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmh_bids.errors import UsageError

Array = NDArray[np.float64]
#: Seconds by which a sum of times may miss zero.
_ROUNDING = 1e-9


def spoiled_gradient_echo(
    t1: ArrayLike, t2star: ArrayLike, pd: ArrayLike, *, tr: float, te: float, flip: ArrayLike
) -> Array:
    """Steady state of a spoiled gradient echo (FLASH, SPGR, T1-FFE).

    Parameters
    ----------
    t1, t2star
        Relaxation times, seconds, above 0.
    pd
        Proton density, 0 to 1 (water at body temperature = 1).
    tr, te
        Repetition and echo time, seconds, 0 < te < tr.
    flip
        Flip angle, degrees; an array gives a transmit field.

    Returns
    -------
    numpy.ndarray
        Signal at the echo, broadcast shape of the arguments.

    Raises
    ------
    UsageError
        If the echo does not fit into the repetition time.

    Notes
    -----
    Ernst and Anderson, Rev Sci Instrum 1966;37:93; Haase et al., J Magn Reson 1986;67:258.

    Examples
    --------
    The Ernst angle gives the largest signal:

    >>> ernst = float(np.degrees(np.arccos(np.exp(-0.02 / 1.0))))
    >>> angles = np.array([ernst - 2, ernst, ernst + 2])
    >>> int(np.argmax(spoiled_gradient_echo(1.0, 0.05, 1.0, tr=0.02, te=0.005, flip=angles)))
    1
    """
    _check(0 < te < tr, f"spoiled gradient echo: EchoTime {te} s must lie between 0 and RepetitionTime {tr} s")
    angle = np.deg2rad(flip)
    recovery = np.exp(-tr / np.asarray(t1, float))
    steady = np.sin(angle) * (1 - recovery) / (1 - np.cos(angle) * recovery)
    return np.asarray(pd, float) * steady * np.exp(-te / np.asarray(t2star, float))


def mprage(
    t1: ArrayLike,
    t2star: ArrayLike,
    pd: ArrayLike,
    *,
    tr: float,
    ti: float,
    te: float,
    flip: ArrayLike,
    echo_spacing: float,
    echoes: int,
    inversion_efficiency: float = 0.96,
) -> Array:
    """Magnitude at the centre of k-space of a magnetisation-prepared rapid gradient echo in its steady state.

    Each cycle of `tr` seconds: inversion, recovery, `echoes` low-angle excitations `echo_spacing` apart with
    perfect spoiling, recovery. The centre of k-space is the middle excitation, `ti` seconds after the
    inversion.

    Parameters
    ----------
    t1, t2star, pd
        As in `spoiled_gradient_echo`.
    tr
        Time from inversion to inversion, seconds.
    ti
        Time from the inversion to the middle excitation, seconds.
    te
        Echo time, seconds, below `echo_spacing`.
    flip
        Flip angle of the excitations, degrees.
    echo_spacing, echoes
        Seconds between excitations and how many follow one inversion.
    inversion_efficiency
        1 is a perfect inversion; 0.96 is usual for adiabatic pulses.

    Returns
    -------
    numpy.ndarray
        Absolute signal, broadcast shape of the arguments.

    Raises
    ------
    UsageError
        If a delay before or after the train would be negative.

    Notes
    -----
    Mugler and Brookeman, Magn Reson Med 1990;15:152; closed form as in Deichmann et al., NeuroImage
    2000;12:112. Longitudinal magnetisation goes through affine maps M -> a M + b, so the steady state is b /
    (1 - a) of a cycle.

    Examples
    --------
    At 3 T white matter (T1 0.83 s) is brighter than grey (1.33 s), and that than fluid (4 s):

    >>> out = mprage([0.83, 1.33, 4.0], 0.05, [0.72, 0.84, 1.0], tr=2.3, ti=0.9, te=0.003, flip=9,
    ...              echo_spacing=0.0075, echoes=176)
    >>> bool(out[0] > out[1] > out[2])
    True
    >>> mprage(1.0, 0.05, 1.0, tr=2.3, ti=0.4, te=0.003, flip=9, echo_spacing=0.0075, echoes=176)
    Traceback (most recent call last):
    mmh_bids.errors.UsageError: mprage: InversionTime 0.4 s is too short for half a train of 176 x 0.0075 s
    """
    before = echoes // 2
    wait = ti - before * echo_spacing
    rest = tr - ti - (echoes - before) * echo_spacing
    _check(
        echoes >= 1 and 0 < te < echo_spacing,
        f"mprage: EchoTime {te} s must lie between 0 and {echo_spacing} s",
    )
    train = f"half a train of {echoes} x {echo_spacing} s"
    _check(wait > -_ROUNDING, f"mprage: InversionTime {ti} s is too short for {train}")
    _check(rest > -_ROUNDING, f"mprage: RepetitionTime {tr} s is too short for InversionTime {ti} s and {train}")
    t1, angle = np.asarray(t1, float), np.deg2rad(flip)
    one_echo = _excite_and_recover(np.cos(angle), echo_spacing, t1)
    to_centre = _chain(_recover(max(wait, 0.0), t1), _repeat(one_echo, before))
    from_centre = _chain(_repeat(one_echo, echoes - before), _recover(max(rest, 0.0), t1))
    slope, offset = _chain(to_centre, from_centre)
    start = -inversion_efficiency * offset / (1 + inversion_efficiency * slope)
    centre = to_centre[0] * start + to_centre[1]
    return np.abs(np.asarray(pd, float) * centre * np.sin(angle) * np.exp(-te / np.asarray(t2star, float)))


def spin_echo(t1: ArrayLike, t2: ArrayLike, pd: ArrayLike, *, tr: float, te: float) -> Array:
    """Spin echo after 90 and 180 degree pulses.

    Parameters
    ----------
    t1, t2, pd
        Relaxation times in seconds and proton density, 0 to 1.
    tr, te
        Repetition and echo time, seconds, 0 < te < tr.

    Returns
    -------
    numpy.ndarray
        Signal at the echo.

    Raises
    ------
    UsageError
        If the echo does not fit into the repetition time.

    Notes
    -----
    Solution of the Bloch equations with the refocusing pulse at te / 2; e.g. Haacke et al., Magnetic
    Resonance Imaging: Physical Principles and Sequence Design, Wiley 1999, chapter 8.

    Examples
    --------
    >>> round(float(spin_echo(1.0, 0.1, 1.0, tr=100.0, te=0.1)), 4)
    0.3679
    """
    _check(0 < te < tr, f"spin echo: EchoTime {te} s must lie between 0 and RepetitionTime {tr} s")
    t1, t2 = np.asarray(t1, float), np.asarray(t2, float)
    longitudinal = 1 - 2 * np.exp(-(tr - te / 2) / t1) + np.exp(-tr / t1)
    return np.asarray(pd, float) * np.abs(longitudinal) * np.exp(-te / t2)


def fast_spin_echo(
    t1: ArrayLike, t2: ArrayLike, pd: ArrayLike, *, tr: float, te: float, echo_spacing: float, echoes: int
) -> Array:
    """Fast (turbo) spin echo with full refocusing: recovery starts after the last echo, contrast is that of
    `te`.

    Parameters
    ----------
    t1, t2, pd
        As in `spin_echo`.
    tr
        Repetition time, seconds.
    te
        Effective echo time (of the echo at the centre of k-space), seconds. For trains of variable flip
        angles give the contrast-equivalent echo time.
    echo_spacing, echoes
        Seconds between echoes and length of the train.

    Returns
    -------
    numpy.ndarray
        Signal at the effective echo.

    Raises
    ------
    UsageError
        If the train does not fit into `tr`, or `te` lies outside the train.

    Notes
    -----
    Hennig et al., Magn Reson Med 1986;3:823. No stimulated echoes, no magnetisation transfer.

    Examples
    --------
    >>> train = {"tr": 6.0, "te": 0.1, "echo_spacing": 0.01, "echoes": 16}
    >>> fluid, white = fast_spin_echo([4.0, 0.83], [2.0, 0.08], [1.0, 0.72], **train)
    >>> bool(fluid > 2 * white)
    True
    """
    train = echo_spacing * echoes
    _check(
        echoes >= 1 and echo_spacing > 0,
        "fast spin echo: a train needs at least one echo and a spacing above 0 s",
    )
    _check(
        train < tr,
        f"fast spin echo: a train of {echoes} x {echo_spacing} s does not fit into RepetitionTime {tr} s",
    )
    inside = echo_spacing * 0.999 <= te <= train * 1.001
    _check(inside, f"fast spin echo: EchoTime {te} s is outside the train of {echoes} x {echo_spacing} s")
    t1, t2 = np.asarray(t1, float), np.asarray(t2, float)
    return np.asarray(pd, float) * (1 - np.exp(-(tr - train) / t1)) * np.exp(-te / t2)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


def _recover(seconds: float, t1: Array) -> tuple[Array, Array]:
    decay = np.exp(-seconds / t1)
    return decay, 1 - decay


def _excite_and_recover(cosine: Any, seconds: float, t1: Array) -> tuple[Array, Array]:
    slope, offset = _recover(seconds, t1)
    return slope * cosine, offset


def _repeat(step: tuple[Array, Array], times: int) -> tuple[Array, Array]:
    """The affine map applied `times` times: a geometric series, as |slope| < 1."""
    slope = step[0] ** times
    return slope, step[1] * (1 - slope) / (1 - step[0])


def _chain(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
    return then[0] * first[0], then[0] * first[1] + then[1]
