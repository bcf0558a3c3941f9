"""Is a known effect still there? Age, sex or a diagnosis told from features, cross-validated by person.

Each person is one row: the mean of the own images. What is known of people is compared before and after by the same
splits, and the difference is drawn again over people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmh_bids.evaluation.estimate import bootstrap
from mmh_bids.evaluation.matrix import CannotSayError, mean_row, principal
from mmh_bids.image.edges import pearson

#: Least people for an effect, and in each of its groups; more different numbers than this are a quantity.
LEAST_PEOPLE, LEAST_GROUP, MOST_GROUPS = 20, 6, 6
FOLDS = 5
SEEDS = 5
_ALPHAS = tuple(10.0**power for power in range(-3, 4))


@dataclass(frozen=True)
class Effect:
    """How well something known of people is told from their images.

    Attributes
    ----------
    name
        Column of participants.tsv.
    kind
        ``"number"`` (ridge regression) or ``"group"`` (logistic regression).
    score
        Correlation of told and true numbers, or area under the ROC curve (mean over groups, each against the rest).
    low, high
        95 % over people.
    r2, mae
        Of numbers, the mean absolute error in their units; NaN for groups.
    people, missing
        How many went in, and how many have no value.
    said
        (P, ...) what was told of each person, out of the folds, for `compare`.
    true
        (P,) what is so.
    """

    name: str
    kind: Literal["number", "group"]
    score: float
    low: float
    high: float
    r2: float
    mae: float
    people: int
    missing: int
    said: NDArray[np.float64]
    true: NDArray[Any]


def find_effect(
    name: str, features: ArrayLike, values: Sequence[str | None], people: Sequence[Any], seed: int = 0
) -> Effect:
    """Tell `values` of people from their images' features.

    Parameters
    ----------
    name
        For messages.
    features
        (N, F) one row an image; NaN are gaps.
    values
        (N,) cells of the table; None is missing. Numbers with more than six different values are a quantity.
    people
        (N,) whose each image is; the first value of a person counts.
    seed
        Of the splits and the bootstrap.

    Raises
    ------
    CannotSayError
        Too few people, or groups too small.
    """
    table, cells, missing = _people_rows(features, values, people)
    if len(cells) < LEAST_PEOPLE:
        raise CannotSayError(f"{name}: needs {LEAST_PEOPLE} people with a value at least; there are {len(cells)}")
    numbers = _as_numbers(cells)
    if numbers is not None and np.unique(numbers).size > MOST_GROUPS:
        kind: Literal["number", "group"] = "number"
        true: NDArray[Any] = numbers
        said = np.mean([_ridge(principal(table), numbers, seed + turn) for turn in range(SEEDS)], axis=0)
    else:
        kind, true = "group", np.array(cells)
        names, counts = np.unique(true, return_counts=True)
        if names.size < 2 or counts.min() < LEAST_GROUP:
            have = ", ".join(f"{value} ({count})" for value, count in zip(names, counts, strict=True))
            raise CannotSayError(f"{name}: needs two groups of {LEAST_GROUP} people each at least; there are {have}")
        said = np.mean([_logistic(principal(table), true, seed + turn) for turn in range(SEEDS)], axis=0)
    low, high = bootstrap(lambda drawn: score_of(said[drawn], true[drawn]), len(true), seed)
    r2 = mae = float("nan")
    if kind == "number":
        error = said - true
        r2, mae = float(1 - np.square(error).mean() / true.var()), float(np.abs(error).mean())
    return Effect(name, kind, score_of(said, true), low, high, r2, mae, len(true), missing, said, true)


def compare(before: Effect, after: Effect, seed: int = 0) -> tuple[float, float, float]:
    """Score after less score before, with its 95 % interval over the same people.

    Raises
    ------
    ValueError
        They are not of the same people.
    """
    if before.true.shape != after.true.shape or (before.true != after.true).any():
        raise ValueError("effects of other people cannot be compared pair by pair")

    def difference(drawn: NDArray[np.intp]) -> float:
        return score_of(after.said[drawn], after.true[drawn]) - score_of(before.said[drawn], before.true[drawn])

    low, high = bootstrap(difference, len(before.true), seed)
    return after.score - before.score, low, high


def score_of(said: NDArray[np.float64], true: NDArray[Any]) -> float:
    """Correlation of numbers (0 where all that was said is the same), or area under the curve of groups.

    Examples
    --------
    >>> score_of(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0]))
    1.0
    >>> score_of(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array(["F", "M", "F"]))
    1.0
    """
    if said.ndim == 1:
        if float(np.ptp(true)) == 0:
            return float("nan")
        return round(pearson(said, true), 12) if np.ptp(said) > 0 else 0.0
    from scipy.stats import rankdata

    # sklearn's roc_auc_score gives the same (a test says so), but takes fifty times as long: bootstraps ask often
    areas = []
    for column, name in enumerate(np.unique(true)) if said.shape[1] == np.unique(true).size else ():
        ranks, own = rankdata(said[:, column]), true == name
        count, rest = int(own.sum()), int((~own).sum())
        if rest:
            areas.append((ranks[own].sum() - count * (count + 1) / 2) / (count * rest))
    return float(np.mean(areas)) if areas else float("nan")


def _people_rows(
    features: ArrayLike, values: Sequence[str | None], people: Sequence[Any]
) -> tuple[NDArray[np.float64], list[str], int]:
    """Mean features and the value of each person who has one, and how many have none."""
    table = np.asarray(features, np.float64)
    own: dict[str, list[int]] = {}
    for index, person in enumerate(people):
        own.setdefault(str(person), []).append(index)
    rows, cells, missing = [], [], 0
    for person in sorted(own):
        known = [value for value in (values[index] for index in own[person]) if value is not None]
        if not known:
            missing += 1
            continue
        rows.append(mean_row(table[own[person]]))
        cells.append(str(known[0]))
    return np.array(rows), cells, missing


def _as_numbers(cells: Sequence[str]) -> NDArray[np.float64] | None:
    """The cells as finite numbers; None if one is not.

    >>> _as_numbers(["61", "62.5"]), _as_numbers(["61", "F"])
    (array([61. , 62.5]), None)
    """
    try:
        numbers = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _ridge(scores: NDArray[np.float64], true: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """What is told of each person by the others.

    Each part's predictions are moved to one common mean. Where there is nothing to tell, they are the others' mean,
    which is the lower, the higher the part's own values are: a correlation of minus one out of nothing.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold

    said = np.zeros(len(true))
    for train, test in KFold(FOLDS, shuffle=True, random_state=seed).split(scores):
        mean, spread = scores[train].mean(axis=0), scores[train].std(axis=0).max()
        model = RidgeCV(_ALPHAS).fit((scores[train] - mean) / spread, true[train])
        said[test] = model.predict((scores[test] - mean) / spread) - true[train].mean() + true.mean()
    return said


def _logistic(scores: NDArray[np.float64], true: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Probabilities of each group; parts have the groups' shares, so that these tell nothing."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    said = np.zeros((len(true), np.unique(true).size))
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(scores, true):
        # one scale for all components, so that the large ones, which most regions share, count most
        mean, spread = scores[train].mean(axis=0), scores[train].std(axis=0).max()
        model = LogisticRegression(C=1.0, max_iter=2000).fit((scores[train] - mean) / spread, true[train])
        said[test] = model.predict_proba((scores[test] - mean) / spread)
    return said
