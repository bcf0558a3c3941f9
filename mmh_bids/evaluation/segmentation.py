"""One fixed segmentation by intensity, applied the same way to every image, against the true tissue.

A Gaussian mixture of three classes on the lightly smoothed image. It has no prior, so that it shows what a change of
contrast, noise or detail does to tissue volumes; it is no anatomical segmentation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmh_bids.errors import ImageError
from mmh_bids.evaluation.smoothing import smooth_inside
from mmh_bids.image.intensity import quantile_function
from mmh_bids.image.tissue import CLASSES, DARK_TO_BRIGHT
from mmh_bids.simulate.tissues import INDEX, NAMES

#: Width of the smoothing before, millimetres: enough to calm noise, too little to close a sulcus.
SMOOTHING_FWHM = 1.5
#: In no class: vessels, lesions and the pallidum look like several.
NO_CLASS = 255
_TISSUES = {
    "CSF": ("fluid",),
    "GM": ("cortex", "deep_grey", "cerebellar_cortex"),
    "WM": ("white_matter", "cerebellar_white", "brainstem"),
}
#: Quantiles of the brain at which the means of the three classes start, dark to bright: as common in T1w, in T2w,
#: and classes of one size. The likeliest result is taken.
_STARTS = ((0.08, 0.4, 0.8), (0.2, 0.6, 0.95), (1 / 6, 1 / 2, 5 / 6))
_N_SAMPLE = 5_000


def true_classes(tissue: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Class of each true tissue: index into `image.tissue.CLASSES`, or `NO_CLASS`.

    Parameters
    ----------
    tissue
        Any shape, indices into `simulate.tissues.NAMES`.

    Examples
    --------
    >>> true_classes(np.array([INDEX["fluid"], INDEX["cortex"], INDEX["brainstem"], INDEX["vein"]]))
    array([  0,   1,   2, 255], dtype=uint8)
    """
    table = np.full(len(NAMES), NO_CLASS, np.uint8)
    for name, members in _TISSUES.items():
        table[[INDEX[member] for member in members]] = CLASSES.index(name)
    return table[tissue]


def segment_brain(
    image: NDArray[np.float32], mask: NDArray[np.bool_], sequence: str, zooms: ArrayLike = (1.0, 1.0, 1.0)
) -> NDArray[np.uint8]:
    """Smooth inside the mask and split in three classes.

    Parameters
    ----------
    image
        (X, Y, Z), any units.
    mask
        (X, Y, Z) bool, N voxels true.
    sequence
        ``"T1w"`` or ``"T2w"``.
    zooms
        (3,) voxel size, millimetres.

    Returns
    -------
    (N,) uint8, index into `image.tissue.CLASSES`, in the order of ``image[mask]``.

    Raises
    ------
    ImageError
        If the brain has one and the same intensity all over.
    """
    return classify(smooth_inside(image, mask, SMOOTHING_FWHM, zooms)[mask], sequence)


def classify(values: NDArray[Any], sequence: str) -> NDArray[np.uint8]:
    """Three classes of a Gaussian mixture, told apart by two thresholds.

    The mixture is fitted to 5,000 quantiles, which are the same distribution, from three fixed sets of starting
    means. All three classes have one width: with widths of their own, two of them share one tissue where noise is
    low and partial volume lies between. The thresholds lie where neighbouring classes are equally likely. T2w
    intensities above zero are compared by their logarithm.

    Parameters
    ----------
    values
        (N,) finite intensities in the brain, any units.
    sequence
        ``"T1w"`` (CSF darkest) or ``"T2w"`` (CSF brightest).

    Returns
    -------
    (N,) uint8, index into `image.tissue.CLASSES`.

    Raises
    ------
    ImageError
        If the values are constant.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> values = np.repeat([0.2, 0.5, 0.8], [1500, 4500, 4000]) + rng.normal(0, 0.04, 10_000)
    >>> np.bincount(classify(values, "T1w")).tolist(), np.bincount(classify(values + 1, "T2w")).tolist()
    ([1500, 4500, 4000], [4000, 4500, 1500])
    """
    first, second = _thresholds(values, sequence)
    rank = (values > first).astype(np.uint8) + (values > second)
    order = np.array([CLASSES.index(name) for name in DARK_TO_BRIGHT[sequence]], np.uint8)
    return order[rank]


def _thresholds(values: NDArray[Any], sequence: str) -> tuple[float, float]:
    """The two intensities between the classes, ascending."""
    from sklearn.mixture import GaussianMixture

    sample = quantile_function(values, _N_SAMPLE)
    low, high = np.quantile(sample, (0.02, 0.98))
    if not high > low:
        raise ImageError("the brain has one and the same intensity all over: no tissue can be told apart")
    sample = np.clip(sample, low, high)
    # In T2w fluid lies so far from the rest that grey and white matter would share one class of that width.
    logarithmic = sequence == "T2w" and low > 0
    if logarithmic:
        sample, low, high = np.log(sample), np.log(low), np.log(high)
    # the unit range makes the mixture's floor of the variance the same for every image
    unit = (sample - low) / (high - low)
    mixtures = [
        GaussianMixture(3, covariance_type="tied", means_init=start, max_iter=500, tol=1e-4, reg_covar=1e-3,
                        random_state=0).fit(unit[:, None])
        for start in np.quantile(unit, _STARTS)[..., None]
    ]  # fmt: skip
    mixture = max(mixtures, key=lambda one: one.lower_bound_)
    order = np.argsort(mixture.means_[:, 0])
    means, weights, variance = mixture.means_[order, 0], mixture.weights_[order], float(mixture.covariances_[0, 0])
    first, second = (low + (high - low) * _crossing(means[k : k + 2], weights[k : k + 2], variance) for k in (0, 1))
    return (float(np.exp(first)), float(np.exp(second))) if logarithmic else (float(first), float(second))


def _crossing(means: NDArray, weights: NDArray, variance: float) -> float:
    """Where two Gaussians of one width are equally likely, kept between their means.

    >>> round(_crossing(np.array([0.2, 0.6]), np.array([0.5, 0.5]), 0.01), 9)
    0.4
    """
    distance = means[1] - means[0]
    shift = variance * np.log(weights[0] / weights[1]) / distance if distance > 0 else 0.0
    return float(np.clip(means.mean() + shift, means[0], means[1]))


def class_dice(found: NDArray[np.uint8], true: NDArray[np.uint8]) -> float:
    """Dice coefficient with the truth, mean of the three classes, over the voxels whose true class is known.

    Examples
    --------
    >>> class_dice(np.array([0, 1, 2, 2, 1]), np.array([0, 1, 2, 2, NO_CLASS]))
    1.0
    """
    known = true != NO_CLASS
    found, true = found[known], true[known]
    scores = []
    for index in range(len(CLASSES)):
        a, b = found == index, true == index
        total = int(a.sum() + b.sum())
        scores.append(2 * int((a & b).sum()) / total if total else 1.0)
    return float(np.mean(scores))


def class_volumes(found: NDArray[np.uint8], voxel_ml: float) -> NDArray[np.float64]:
    """Volume of each class in the order of `image.tissue.CLASSES`, (3,), mL.

    Examples
    --------
    >>> class_volumes(np.array([0, 2, 2]), 0.5).tolist()
    [0.5, 0.0, 1.0]
    """
    return np.bincount(found, minlength=len(CLASSES)).astype(np.float64) * voxel_ml
