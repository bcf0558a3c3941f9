"""The tissues of a head: relaxation times and proton density at 1.5 T and 3 T, and their spread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import UsageError

#: name: (T1 at 1.5 T, T1 at 3 T, T2 at 1.5 T, T2 at 3 T, T2* over T2, proton density, texture),
#: milliseconds. Rounded values within the range of what was measured, chosen after: brain T1 and T2 at 3 T:
#: Wansapura et al., J Magn Reson Imaging 1999;9:531; T1 at 1.5 T, deep grey matter against cortex, fluid:
#: Rooney et al., Magn Reson Med 2007;57:308; T2 at 1.5 T, optic nerve, cord, blood, muscle: Stanisz et al.,
#: Magn Reson Med 2005;54:507; fat and marrow: de Bazelaire et al., Radiology 2004;230:652; proton densities:
#: Kwan et al., IEEE Trans Med Imaging 1999;18:1085. Cortical bone is nearly invisible at these echo times:
#: water content and T2 after Techawiboonwong et al., Radiology 2008;248:824. Skin, mucosa, eye, dura: set
#: between the above by what they are made of. `texture` is the relative standard deviation of T1 and T2
#: inside the tissue.
_TABLE: dict[str, tuple[float, float, float, float, float, float, float]] = {
    "air": (1000, 1000, 50, 50, 0.5, 0.0, 0.0),
    "white_matter": (660, 840, 76, 74, 0.7, 0.73, 0.025),
    "cortex": (1180, 1380, 95, 98, 0.6, 0.83, 0.035),
    "deep_grey": (1000, 1180, 84, 80, 0.5, 0.81, 0.04),
    "pallidum": (780, 960, 68, 62, 0.4, 0.76, 0.03),
    "cerebellar_cortex": (1100, 1300, 92, 94, 0.6, 0.83, 0.04),
    "cerebellar_white": (680, 860, 78, 76, 0.7, 0.74, 0.025),
    "brainstem": (760, 950, 80, 78, 0.6, 0.76, 0.035),
    "fluid": (4200, 4300, 1800, 1700, 0.5, 1.0, 0.02),
    "lesion": (1250, 1500, 130, 130, 0.6, 0.88, 0.05),
    "artery": (1440, 1900, 250, 200, 0.3, 0.35, 0.1),
    "vein": (1440, 1900, 180, 90, 0.3, 0.6, 0.1),
    "dura": (900, 1050, 35, 32, 0.4, 0.6, 0.08),
    "cortical_bone": (250, 260, 1.5, 1.5, 0.8, 0.2, 0.2),
    "marrow": (480, 520, 52, 50, 0.35, 0.65, 0.15),
    "fat": (340, 380, 68, 70, 0.6, 0.9, 0.06),
    "muscle": (950, 1300, 40, 38, 0.6, 0.8, 0.06),
    "skin": (900, 1100, 38, 36, 0.5, 0.75, 0.08),
    "mucosa": (1100, 1350, 85, 80, 0.4, 0.85, 0.1),
    "eye": (3600, 3900, 900, 800, 0.6, 1.0, 0.01),
    "optic_nerve": (815, 1080, 77, 78, 0.6, 0.74, 0.03),
    "cord": (745, 950, 74, 76, 0.6, 0.74, 0.04),
}

NAMES: tuple[str, ...] = tuple(_TABLE)
INDEX: dict[str, int] = {name: number for number, name in enumerate(NAMES)}
#: What counts as white and grey matter where a contrast is asked for.
WHITE, GREY = INDEX["white_matter"], INDEX["cortex"]

#: Relative standard deviation between healthy adults of T1, T2 and proton density (order of the spread that
#: the above sources report between their volunteers).
PERSON_SPREAD = (0.03, 0.04, 0.015)


@dataclass(frozen=True)
class Relaxation:
    """Properties of every tissue in the order of `NAMES`.

    Attributes
    ----------
    t1, t2, t2star
        (T,) seconds.
    pd
        (T,) proton density, 0 (air) to 1 (water).
    texture
        (T,) relative standard deviation of T1 and T2 from place to place inside the tissue.
    """

    t1: NDArray[np.float64]
    t2: NDArray[np.float64]
    t2star: NDArray[np.float64]
    pd: NDArray[np.float64]
    texture: NDArray[np.float64]

    def scaled(self, t1: float | NDArray, t2: float | NDArray, pd: float | NDArray = 1.0) -> Relaxation:
        """The same tissues with times and density multiplied; T2* follows T2."""
        return Relaxation(self.t1 * t1, self.t2 * t2, self.t2star * t2, np.clip(self.pd * pd, 0, 1), self.texture)


def relaxation(field: float) -> Relaxation:
    """Tissue properties at a field strength.

    Parameters
    ----------
    field
        Tesla, 1 to 4; between and beyond 1.5 T and 3 T times are interpolated in the logarithm of the field
        (T1 grows with about its cube root, Bottomley et al., Med Phys 1984;11:425).

    Returns
    -------
    Relaxation

    Raises
    ------
    UsageError
        For a field outside 1 to 4 T.

    Examples
    --------
    >>> bool(relaxation(1.5).t1[WHITE] < relaxation(3.0).t1[WHITE] < relaxation(3.0).t1[GREY])
    True
    """
    if not 1 <= field <= 4:
        raise UsageError(f"MagneticFieldStrength {field} T: tissue properties are known from 1 to 4 T only")
    table = np.array(list(_TABLE.values()))
    position = np.log(field / 1.5) / np.log(2.0)
    t1 = table[:, 0] * (table[:, 1] / table[:, 0]) ** position * 1e-3
    t2 = table[:, 2] * (table[:, 3] / table[:, 2]) ** position * 1e-3
    return Relaxation(t1, t2, t2 * table[:, 4], table[:, 5], table[:, 6])


def person_scales(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw one person's deviation from the table: (3, T) factors for T1, T2 and proton density.

    Half of the variance is common to all tissues of the person, half belongs to each tissue. Factors lie
    within three standard deviations.

    Examples
    --------
    >>> person_scales(np.random.default_rng(0)).shape == (3, len(NAMES))
    True
    """
    spread = np.array(PERSON_SPREAD)[:, None]
    common, own = rng.standard_normal((3, 1)), rng.standard_normal((3, len(NAMES)))
    return 1 + spread * np.clip(np.sqrt(0.5) * (common + own), -3, 3)
