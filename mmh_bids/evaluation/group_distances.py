"""What can only be said of an image beside the others: distances between sites, and who lies far from everybody.

Distances are in units of the median difference of white and grey matter of all images, before and after each by its
own: a method that flattens every image would else bring all sites together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmh_bids.evaluation.group_table import WHEN, GroupImage, number_of, stacked
from mmh_bids.image.tissue import CLASSES

#: Columns in which an image can be an outlier; those of the harmonized image, where all should be alike.
OUTLIER_COLUMNS = (
    "gm_mean_after", "wm_mean_after", "csf_mean_after", "sharpness_after", "mapped_gradient_correlation",
    "regional_distance_after", "distance_to_other_sites_after",
)  # fmt: skip
#: Modified z scores beyond 3.5 are outliers: Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993.
OUTLIER_Z = 3.5
#: A spread below this share of the median is none: levels that a method sets exactly differ by rounding.
_LEAST_SPREAD = 0.01
#: Fewer images have no usual spread.
OUTLIER_IMAGES = 8


def compare(images: Sequence[GroupImage]) -> list[GroupImage]:
    """The images with distances and outliers filled in; those that were not harmonized stay as they are."""
    done = [image for image in images if image.features]
    if not done:
        return list(images)
    sites = [image.site for image in done]
    found: list[dict[str, float]] = [{} for _ in done]
    for when in WHEN:
        unit = contrast_unit(done, when)
        between = distances_to_other_sites(stacked(done, when, "quantiles"), sites) / unit
        regional = regional_distances(stacked(done, when, "regions")) / unit
        for row, histogram, place in zip(found, between, regional, strict=True):
            row[f"distance_to_other_sites_{when}"] = float(histogram)
            row[f"regional_distance_{when}"] = float(place)
    measured = [dataclasses.replace(image, distances=row) for image, row in zip(done, found, strict=True)]
    marked = outliers(measured)
    compared = {
        image.source.key: dataclasses.replace(image, outlier_in=names)
        for image, names in zip(measured, marked, strict=True)
    }
    return [compared.get(image.source.key, image) for image in images]


def contrast_unit(images: Sequence[GroupImage], when: str) -> float:
    """Median difference of the means of white and grey matter; NaN where no image has three classes."""
    levels = stacked(images, when, "levels")
    difference = np.abs(levels[:, CLASSES.index("WM")] - levels[:, CLASSES.index("GM")])
    known = difference[np.isfinite(difference)]
    return float(np.median(known)) if known.size and np.median(known) > 0 else float("nan")


def distances_to_other_sites(quantiles: NDArray[np.float64], sites: Sequence[str | None]) -> NDArray[np.float64]:
    """Wasserstein-1 distance of each image's histogram to the mean of the other sites'.

    Parameters
    ----------
    quantiles
        (N, Q) quantile functions, at equal steps of probability.
    sites
        (N,) labels; an image whose site is not known counts for no site.

    Returns
    -------
    (N,) in the units of the quantiles; NaN where there is no other site, or the image's own is not known.

    Notes
    -----
    The mean of a site is the mean of its quantile functions, the barycentre in this distance (Agueh and Carlier 2011),
    and the sites' means count alike, however many images they have. In one dimension the distance is the mean
    difference of the quantile functions.

    Examples
    --------
    >>> quantiles = np.array([[0.0, 1.0], [0.0, 1.0], [0.5, 1.5]])
    >>> distances_to_other_sites(quantiles, ["A", "A", "B"])
    array([0.5, 0.5, 0.5])
    >>> distances_to_other_sites(quantiles, ["A", "A", "A"])
    array([nan, nan, nan])
    """
    means = site_means(quantiles, sites)
    out = np.full(len(sites), np.nan)
    for site in means:
        others = [mean for other, mean in means.items() if other != site]
        if others:
            own = np.array([label == site for label in sites])
            out[own] = np.abs(quantiles[own] - np.mean(others, axis=0)).mean(axis=1)
    return out


def site_means(values: NDArray[np.float64], sites: Sequence[str | None]) -> dict[str, NDArray[np.float64]]:
    """Mean row of each known site, by label, in the order of the labels."""
    labels = np.array([site or "" for site in sites], dtype=object)
    return {site: values[labels == site].mean(axis=0) for site in sorted({site for site in sites if site})}


def regional_distances(regions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) median absolute difference over regions to the median image; NaN regions (no brain there) do not count.

    >>> regional_distances(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, np.nan], [2.0, 3.0, 4.0]]))
    array([0., 0., 1.])
    """
    if not np.isfinite(regions).any():
        return np.full(len(regions), np.nan)
    seen = np.isfinite(regions).any(axis=0)
    difference = np.abs(regions[:, seen] - np.nanmedian(regions[:, seen], axis=0))
    known = np.isfinite(difference).any(axis=1)
    out = np.full(len(regions), np.nan)
    out[known] = np.nanmedian(difference[known], axis=1)
    return out


def outliers(images: Sequence[GroupImage]) -> list[tuple[str, ...]]:
    """For each image the columns of `OUTLIER_COLUMNS` in which it lies far from the others; none below eight images.

    Measured by the modified z score, 0.6745 (x - median) / MAD; of the logarithm for distances, whose tail is long by
    nature. Distances and correlations count on one side only: to be nearer to the others than usual is no fault.
    """
    marked: list[list[str]] = [[] for _ in images]
    if len(images) >= OUTLIER_IMAGES:
        for name in OUTLIER_COLUMNS:
            values = np.array([number_of(image, name) for image in images])
            if "distance" in name:
                values = np.log(np.maximum(values, 1e-9))
            for place in np.flatnonzero(_is_far(values, _SIDE.get(name, 0))):
                marked[place].append(name)
    return [tuple(names) for names in marked]


_SIDE: Mapping[str, int] = {
    "mapped_gradient_correlation": -1, "regional_distance_after": 1, "distance_to_other_sites_after": 1,
}  # fmt: skip


def _is_far(values: NDArray[np.float64], side: int) -> NDArray[np.bool_]:
    known = values[np.isfinite(values)]
    if known.size < OUTLIER_IMAGES:
        return np.zeros(values.shape, bool)
    middle = np.median(known)
    spread = max(float(np.median(np.abs(known - middle))), _LEAST_SPREAD * abs(float(middle)), 1e-9)
    score = 0.6745 * (np.nan_to_num(values, nan=middle) - middle) / spread
    return (np.abs(score) if side == 0 else side * score) > OUTLIER_Z
