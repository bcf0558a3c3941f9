"""A simple, fixed three-class segmentation by intensity, to compare an image before and after a change.

It is no anatomical segmentation: it answers whether the same recipe finds the same tissue in both images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError

CLASSES = ("CSF", "GM", "WM")
#: Classes from dark to bright.
DARK_TO_BRIGHT = {"T1w": ("CSF", "GM", "WM"), "T2w": ("WM", "GM", "CSF")}
_BINS = 256
# Few very bright voxels (vessels, fat) must not widen the histogram and push both thresholds up.
_CLIP = (2, 98)


@dataclass(frozen=True)
class Tissue:
    """Three intensity classes.

    Attributes
    ----------
    labels
        (N,) uint8, an index into `CLASSES` for each value.
    means
        Mean intensity of CSF, grey and white matter, in the units of the values.
    thresholds
        The two intensities between the classes, ascending; a class includes its upper threshold.
    """

    labels: NDArray[np.uint8]
    means: dict[str, float]
    thresholds: tuple[float, float]

    def share(self, *classes: str) -> float:
        """Share of the values that lie in these classes."""
        counts = np.bincount(self.labels, minlength=len(CLASSES))
        return float(sum(counts[CLASSES.index(name)] for name in classes) / self.labels.size)

    @property
    def white_grey_contrast(self) -> float:
        """Difference of the white and grey means divided by their average, >= 0, no unit."""
        white, grey = self.means["WM"], self.means["GM"]
        middle = (abs(white) + abs(grey)) / 2
        return abs(white - grey) / middle if middle > 0 else 0.0


def segment(values: NDArray[Any], sequence: str) -> Tissue:
    """Split the brain's intensities in three classes by Otsu's method (Otsu 1979), 256 bins.

    The histogram is taken of the values clipped to their 2nd and 98th percentile. No smoothing, no prior, no
    random start: the same values give the same classes.

    Parameters
    ----------
    values
        (N,) finite intensities in the brain, any units.
    sequence
        ``"T1w"`` (CSF darkest) or ``"T2w"`` (CSF brightest).

    Raises
    ------
    ImageError
        The values hold no three classes: too few of them, or constant.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> values = np.repeat([0.2, 0.5, 0.8], [100, 500, 400]) + rng.normal(0, 0.02, 1000)
    >>> tissue = segment(values, "T1w")
    >>> {name: round(mean, 1) for name, mean in tissue.means.items()}
    {'CSF': 0.2, 'GM': 0.5, 'WM': 0.8}
    >>> segment(values, "T2w").share("WM"), tissue.share("GM", "WM")
    (0.1, 0.9)
    """
    import SimpleITK as sitk  # noqa: N813

    values = np.asarray(values, dtype=np.float32).ravel()
    low, high = np.percentile(values, _CLIP) if values.size else (0.0, 0.0)
    if not high > low:
        raise ImageError("the brain has one and the same intensity all over: no tissue can be told apart")
    # Otsu's choice does not depend on the units, but ITK's bins do, by rounding: the unit range mends it.
    unit = (np.clip(values, low, high) - low) / (high - low)
    otsu = sitk.OtsuMultipleThresholdsImageFilter()
    otsu.SetNumberOfThresholds(len(CLASSES) - 1)
    otsu.SetNumberOfHistogramBins(_BINS)
    otsu.Execute(sitk.GetImageFromArray(unit[np.newaxis]))
    first, second = (low + (high - low) * float(threshold) for threshold in otsu.GetThresholds())
    rank = (values > first).astype(np.uint8) + (values > second)
    order = DARK_TO_BRIGHT[sequence]
    if np.bincount(rank, minlength=len(order)).min() == 0:
        raise ImageError("the brain's histogram does not split in three: no tissue can be told apart")
    labels = np.array([CLASSES.index(name) for name in order], dtype=np.uint8)[rank]
    means = {name: float(values[labels == index].mean(dtype=np.float64)) for index, name in enumerate(CLASSES)}
    return Tissue(labels, means, (float(first), float(second)))
