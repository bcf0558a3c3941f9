"""Mild motion ghosting: the head moves to and fro (breathing, pulsation) while the lines of k-space are taken.

A rigid displacement multiplies each line by a phase (Fourier's shift theorem), so an image of a moving head is put
together exactly, line by line, without resampling it. Periodic motion gives faint copies along the phase encoding:
Wood and Henkelman, Med Phys 1985;12:143.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

#: Periods of the motion from the first line to the last, relative to the number of lines: also how far away,
#: relative to the field of view, the first copy lies on either side.
_RATE = (0.08, 0.35)


def displacements(lines: int, amplitude: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Where the head is when each line of k-space is taken: a sine of random rate and phase.

    Parameters
    ----------
    lines
        Number of phase-encoding lines, 1 or more.
    amplitude
        Largest displacement, in any unit, 0 or more.
    rng
        Source of randomness.

    Returns
    -------
    numpy.ndarray
        (lines,) in the unit of `amplitude`, in order of time: from the most negative frequency to the highest.

    Examples
    --------
    >>> out = displacements(64, 0.5, np.random.default_rng(0))
    >>> out.shape, bool(np.abs(out).max() <= 0.5), bool(abs(out.mean()) < 0.1)
    ((64,), True, True)
    """
    rate, phase = rng.uniform(*_RATE), rng.uniform(0, 2 * np.pi)
    return amplitude * np.sin(2 * np.pi * rate * np.arange(lines) + phase)


def moved_during_scan(volume: NDArray[np.float32], axis: int, displacement: NDArray[np.float64]) -> NDArray[np.float32]:
    """Magnitude image of a volume that moved along the phase encoding while it was taken.

    Parameters
    ----------
    volume
        (X, Y, Z) real signal.
    axis
        Image axis of the phase encoding, 0 to 2; what leaves the field of view there comes in again.
    displacement
        (N,) displacement towards higher indices, voxels, for each of the N lines along `axis`, from the most
        negative frequency to the highest.

    Returns
    -------
    numpy.ndarray
        (X, Y, Z) float32, 0 or more.

    Examples
    --------
    A head that lies elsewhere all the time is shifted only:

    >>> line = np.array([0, 1, 5, 2, 0, 0], np.float32).reshape(1, 6, 1)
    >>> np.round(moved_during_scan(line, 1, np.full(6, 2.0)).ravel(), 4).tolist()
    [0.0, 0.0, 0.0, 1.0, 5.0, 2.0]
    """
    size = volume.shape[axis]
    frequency = fft.fftfreq(size)
    phase = np.exp(-2j * np.pi * frequency * fft.ifftshift(displacement)).astype(np.complex64)
    spectrum = fft.fft(np.asarray(volume, np.float32), axis=axis)
    spectrum *= phase.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.abs(fft.ifft(spectrum, axis=axis, overwrite_x=True))
