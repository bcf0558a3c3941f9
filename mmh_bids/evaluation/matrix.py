"""Features as a table without gaps and without more columns than images can carry; labels shuffled as is fair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Columns with a larger share of gaps are left out; smaller ones are filled with the column's mean.
MOST_GAPS = 0.2
#: Most principal components that are kept.
COMPONENTS = 20


class CannotSayError(ValueError):
    """The data cannot support a measure; the text says why, in words for the reader of a report."""


class LeakError(ValueError):
    """One person lies on both sides of a split: what a probe then finds is the person, not the site."""


def complete(features: ArrayLike) -> NDArray[np.float64]:
    """Features (N, F) without NaN and without constant columns.

    Columns with more than a fifth of gaps are left out, other gaps become the column's mean.

    Raises
    ------
    CannotSayError
        Nothing is left.

    Examples
    --------
    >>> gap = np.nan
    >>> complete([[1, 5, gap], [2, 5, gap], [3, 5, 1], [4, 5, 1], [5, 5, 1], [gap, 5, 1]])[:, 0].tolist()
    [1.0, 2.0, 3.0, 4.0, 5.0, 3.0]
    """
    table = np.array(features, np.float64, ndmin=2)
    gaps = ~np.isfinite(table)
    table = np.where(gaps, np.nan, table)[:, gaps.mean(axis=0) <= MOST_GAPS]
    if table.size:
        table = np.where(np.isnan(table), np.nanmean(table, axis=0), table)
        spread, size = np.ptp(table, axis=0), np.abs(table).max(axis=0)
        # what rounding leaves of a constant is no difference
        table = table[:, spread > 1e-6 * size]
    if not table.size:
        raise CannotSayError("the images do not differ in these features, or too much of them is missing")
    return table


def mean_row(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the rows of (N, F) without their gaps, (F,); NaN where there are only gaps.

    >>> mean_row(np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]]))
    array([ 2.,  5., nan])
    """
    count = np.isfinite(table).sum(axis=0)
    return np.where(count > 0, np.nansum(table, axis=0) / np.maximum(count, 1), np.nan)


def principal(features: ArrayLike, components: int = COMPONENTS) -> NDArray[np.float64]:
    """Principal components of features (N, F), most important first: (N, K), K at most `components`, N - 1 and F.

    No label is looked at, so components of all images may be used on both sides of a split: labels that are shuffled
    see the same ones.

    Examples
    --------
    >>> line = np.outer(np.arange(4.0), [3.0, 4.0])
    >>> principal(line).shape, np.round(np.abs(principal(line)[:, 0]), 6).tolist()
    ((4, 1), [7.5, 2.5, 2.5, 7.5])
    """
    from sklearn.decomposition import PCA

    found = PCA(svd_solver="full")
    scores = found.fit_transform(complete(features))
    keep = min(components, int((found.singular_values_ > 1e-9 * found.singular_values_[0]).sum()))
    # the sign of a component is the library's choice: the largest value is made positive
    scores = scores[:, :keep]
    return scores * np.sign(scores[np.abs(scores).argmax(axis=0), np.arange(keep)])


def shuffled(sites: ArrayLike, subjects: ArrayLike, rng: np.random.Generator) -> NDArray[Any]:
    """Site labels as they might as well be if scans of all sites looked alike.

    Who was scanned at one site only hands all labels to another such person; who was scanned at several sites changes
    them about among the own scans. Scans of one person are not independent, and this way they need not be.

    Parameters
    ----------
    sites, subjects
        (N,) labels.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> shuffled(["A", "A", "B", "B"], [1, 1, 2, 2], rng).tolist() in (["A", "A", "B", "B"], ["B", "B", "A", "A"])
    True
    >>> sorted(shuffled(["A", "B", "A", "B"], [1, 1, 2, 2], rng)[:2].tolist())
    ['A', 'B']
    """
    labels, people = np.asarray(sites), np.asarray(subjects)
    out = labels.copy()
    stay = []
    for person in np.unique(people):
        own = people == person
        if np.unique(labels[own]).size > 1:
            out[own] = rng.permutation(labels[own])
        else:
            stay.append((own, labels[own][0]))
    for (own, _), index in zip(stay, rng.permutation(len(stay)), strict=True):
        out[own] = stay[index][1]
    return out


def check_identities(features: ArrayLike, subjects: Sequence[Any]) -> None:
    """Raise LeakError if two people have the very same numbers: one person under two labels.

    Parameters
    ----------
    features
        (N, F) of the *inputs*: a method may well give everybody the same.
    subjects
        (N,) labels.

    Examples
    --------
    >>> check_identities([[1.0, 2.0], [1.0, 3.0]], ["01", "02"])
    >>> check_identities([[1.0, 2.0], [1.0, 2.0]], ["01", "02"])
    Traceback (most recent call last):
    mmh_bids.evaluation.matrix.LeakError: 01 and 02 have the very same image: one person under two labels; ...
    """
    seen: dict[bytes, Any] = {}
    for row, subject in zip(np.ascontiguousarray(features, np.float32), subjects, strict=True):
        other = seen.setdefault(row.tobytes(), subject)
        if other != subject:
            raise LeakError(
                f"{other} and {subject} have the very same image: one person under two labels; "
                "say so in a mapping file (--travelling), or leave one out"
            )
