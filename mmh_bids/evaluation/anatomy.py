"""Is the anatomy in a method's image that of its own input? And is it as sharp?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmh_bids.evaluation.placement import VOXEL_MM, Placed
from mmh_bids.evaluation.smoothing import smooth_inside
from mmh_bids.image.edges import gradient_magnitude, pearson

#: Width of the blur that `detail` compares with, full width at half maximum, mm.
COARSE_MM = 8.0
#: Other people's inputs that an image is compared with.
OTHERS = 4


@dataclass(frozen=True, eq=False)
class Edges:
    """Where an image has edges.

    Attributes
    ----------
    strength
        (X, Y, Z) float32 length of the gradient by central differences, in the image's units a voxel.
    inner
        (X, Y, Z) bool: the brain eroded by one voxel, so that its outline, which a mask may have cut, does not count.
    """

    strength: NDArray[np.float32]
    inner: NDArray[np.bool_]

    @classmethod
    def of(cls, image: Placed) -> Edges:
        """Edges of values (X, Y, Z) in a brain (X, Y, Z) bool, of `placement.on_grid`."""
        from scipy.ndimage import binary_erosion

        values, inside = image
        return cls(gradient_magnitude(values), binary_erosion(inside))


def detail(image: Placed) -> float:
    """Mean gradient magnitude of an image over that of its blurred self: falls when an image is blurred.

    Unlike `ImageFeatures.sharpness`, which goes by the standard deviation, it hardly depends on a receive field or on
    how far fluid is from the rest.

    Parameters
    ----------
    image
        (X, Y, Z) values and (X, Y, Z) bool, brain, of `placement.on_grid`.

    Returns
    -------
    Above 0; 0 for a flat image.

    Examples
    --------
    >>> inside = np.ones((12, 12, 12), bool)
    >>> noise = np.random.default_rng(0).random(inside.shape, np.float32)
    >>> ramp = np.cumsum(np.ones_like(noise), axis=0)
    >>> detail((noise, inside)) > 3 > detail((ramp, inside)) >= 1, detail((0 * noise, inside))
    (True, 0.0)
    """
    values, inside = image
    fine = Edges.of(image)
    coarse = Edges.of((smooth_inside(values, inside, COARSE_MM, (VOXEL_MM,) * 3), inside))
    if not fine.inner.any():
        return 0.0
    below = float(coarse.strength[fine.inner].mean(dtype=np.float64))
    return float(fine.strength[fine.inner].mean(dtype=np.float64)) / below if below > 0 else 0.0


def choose_others(people: Sequence[str], index: int, count: int = OTHERS) -> list[int]:
    """Images of the next other people in a circle, one of each; always the same.

    >>> choose_others(["a", "a", "b", "c", "a"], 1), choose_others(["a", "a"], 0)
    ([2, 3], [])
    """
    chosen: dict[str, int] = {}
    for step in range(1, len(people)):
        other = (index + step) % len(people)
        if people[other] != people[index]:
            chosen.setdefault(people[other], other)
        if len(chosen) == count:
            break
    return list(chosen.values())


def own_edges(after: Edges, before: Edges) -> float:
    """Correlation of the gradient magnitudes of an image and an input, in the inner brain of both.

    Returns
    -------
    -1 to 1; 0 where there is no brain in common or no edge in one of them.
    """
    both = after.inner & before.inner
    if not both.any():
        return 0.0
    found = pearson(after.strength[both], before.strength[both])
    return 0.0 if np.isnan(found) else found


def own_share(after: Edges, before: Edges, others: Sequence[Edges]) -> float:
    """How much more an image's edges are those of its own input than of other people's.

    Parameters
    ----------
    after, before
        Of the image and its input.
    others
        Of inputs of other people, at least one.

    Returns
    -------
    (own - others) / (1 - others), of the correlations with the own and, mean, with other people's inputs: 1 for the
    input itself, 0 for somebody else or for what is nobody in particular, such as a template.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> inside = np.ones((9, 9, 9), bool)
    >>> mine, yours, hers = (Edges.of((rng.random((9, 9, 9), np.float32), inside)) for _ in range(3))
    >>> round(own_share(mine, mine, [yours, hers]), 6), abs(own_share(yours, mine, [hers])) < 0.2
    (1.0, True)
    """
    if not others:
        raise ValueError("whose the anatomy is cannot be told without other people's images")
    own = own_edges(after, before)
    other = float(np.mean([own_edges(after, one) for one in others]))
    return (own - other) / max(1 - other, 1e-6)
