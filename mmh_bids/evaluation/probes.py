"""Can the site be told from what a method gives? Several converged probes, cross-validated by person, with a null.

A frozen classifier proves little: blur alone drives it to chance, and another seed changes its answer. Here each probe
is trained on the very outputs it is tested on, people are never on both sides, and what chance gives is measured with
shuffled labels. A probe at chance still only says that *these* features, linear or in trees, do not tell the sites.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmh_bids.evaluation.matrix import COMPONENTS, CannotSayError, LeakError, principal, shuffled

#: Least people that a site must have, and most parts that people are split into.
LEAST_PEOPLE = 4
MOST_FOLDS = 5
#: Fewest components that probes are trained on.
LEAST_COMPONENTS = 3
#: Share of the answers of shuffled labels that lie in the null interval of *all* probes of a call together.
LEVEL = 0.95
PERMUTATIONS = 100
#: Splits that a probe's answer is averaged over.
SEEDS = 3
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class ProbeResult:
    """What one probe found.

    Attributes
    ----------
    probe
        Key of `PROBES`.
    balanced_accuracy
        Mean over sites of the share of their images that were told right, over all splits.
    null_low, null_high
        Between these lie the answers for shuffled labels; see `probe_site`.
    p
        Share of the shuffled labels that do as well or better; the real one counts as one of them (Phipson and Smyth,
        Stat Appl Genet Mol Biol 2010;9:39).
    images, people, sites
        How many went in.
    converged
        Whether the fit converged on each split of the true labels.
    note
        What else to know; empty if nothing.
    """

    probe: str
    balanced_accuracy: float
    null_low: float
    null_high: float
    p: float
    images: int
    people: int
    sites: int
    converged: bool
    note: str = ""

    @property
    def tells_sites(self) -> bool:
        """Whether it does better than shuffled labels."""
        return self.balanced_accuracy > self.null_high


def _logistic(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1.0, max_iter=2000, random_state=seed)


def _svm(seed: int) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=0.1, dual=False, max_iter=5000, random_state=seed)


def _forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(12, min_samples_leaf=2, random_state=seed, n_jobs=1)


#: Enough for controls: those that cost little.
LINEAR = ("logistic regression", "linear SVM")
#: By name, what makes an untrained classifier for a seed.
PROBES: dict[str, Callable[[int], Any]] = {
    "logistic regression": _logistic,
    "linear SVM": _svm,
    "random forest": _forest,
}


def check_folds(folds: Iterable[Fold], subjects: ArrayLike) -> None:
    """Raise LeakError if anybody is on both sides of a split.

    Parameters
    ----------
    folds
        Pairs of indices: trained on, tested on.
    subjects
        (N,) who each image shows.

    Examples
    --------
    >>> check_folds([(np.array([0, 1]), np.array([2]))], ["01", "01", "02"])
    >>> check_folds([(np.array([0, 2]), np.array([1]))], ["01", "01", "02"])
    Traceback (most recent call last):
    mmh_bids.evaluation.matrix.LeakError: 01 is on both sides of a split: ...
    """
    people = np.asarray(subjects)
    for train, test in folds:
        both = np.intersect1d(people[train], people[test])
        if both.size:
            raise LeakError(
                f"{', '.join(map(str, both[:3]))} is on both sides of a split: a probe would know people, "
                "not sites; split by person"
            )


def folds_by_subject(labels: ArrayLike, subjects: ArrayLike, count: int, seed: int) -> list[Fold]:
    """Split images in `count` parts by person, each with all labels where that can be.

    Returns
    -------
    (train, test) indices; checked by `check_folds`.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # shuffled labels may leave a label with fewer people than parts
        warnings.simplefilter("ignore", UserWarning)
        folds = list(splitter.split(np.zeros(np.size(labels)), np.asarray(labels), np.asarray(subjects)))
    check_folds(folds, subjects)
    return folds


def usable_sites(sites: Sequence[Any], subjects: Sequence[Any]) -> tuple[NDArray[np.bool_], str]:
    """Which images are of sites with enough people, and what was left out in words.

    Raises
    ------
    CannotSayError
        Fewer than two such sites.

    Examples
    --------
    >>> usable_sites(["A"] * 3 + ["B"] * 4, range(7))
    Traceback (most recent call last):
    mmh_bids.evaluation.matrix.CannotSayError: needs two sites with 4 people each at least; there are A (3), B (4)
    """
    labels = np.asarray([str(site) for site in sites])
    people = Counter(site for site, _ in {(str(site), str(who)) for site, who in zip(sites, subjects, strict=True)})
    enough = sorted(site for site, count in people.items() if count >= LEAST_PEOPLE)
    if len(enough) < 2:
        have = ", ".join(f"{site} ({people[site]})" for site in sorted(people)[:12]) or "none"
        raise CannotSayError(f"needs two sites with {LEAST_PEOPLE} people each at least; there are {have}")
    dropped = sorted(set(people) - set(enough))
    note = f"without sites of fewer than {LEAST_PEOPLE} people: {', '.join(dropped)}" if dropped else ""
    return np.isin(labels, enough), note


def probe_site(
    features: ArrayLike,
    sites: Sequence[Any],
    subjects: Sequence[Any],
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    seeds: int = SEEDS,
    probes: Sequence[str] = tuple(PROBES),
    folds: Sequence[Fold] | None = None,
) -> list[ProbeResult]:
    """Try to tell the site of images.

    Features are reduced to their principal components (`matrix.principal`, no label used; at most 20, and half as many
    as images) and standardised on the training side of each split. The null shuffles labels as `matrix.shuffled` does
    and splits anew, once, where true labels get the mean over several splits: its interval is rather too wide. It is
    also so wide that of all probes asked for, together, 95 % of shuffled labels would lie inside (Bonferroni).

    Parameters
    ----------
    features
        (N, F); NaN are gaps.
    sites, subjects
        (N,) labels; images without a site must not be among them.
    seed
        Of splits, shuffling and forests.
    permutations
        How often labels are shuffled, at least once.
    seeds
        Number of splits that the answer for the true labels is averaged over.
    probes
        Names from `PROBES`.
    folds
        Splits of one's own instead of random ones, by person.

    Returns
    -------
    One result a probe, in their order.

    Raises
    ------
    CannotSayError
        Fewer than two sites with people enough, or features that do not differ.
    LeakError
        Somebody is on both sides of one's own splits.
    """
    table = np.asarray(features, np.float64)
    if folds is not None:
        check_folds(folds, subjects)
        keep, note = np.ones(len(table), bool), ""
    else:
        keep, note = usable_sites(sites, subjects)
    labels = np.asarray([str(site) for site in sites])[keep]
    people = np.asarray([str(subject) for subject in subjects])[keep]
    # standardised, small components count as much as large ones: few images leave few that are not noise
    scores = principal(table[keep], max(LEAST_COMPONENTS, min(COMPONENTS, len(labels) // 2)))
    answers, converged = _answers(scores, labels, people, probes, (seed, permutations, seeds), folds)
    facts = {"images": len(labels), "people": np.unique(people).size, "sites": np.unique(labels).size}
    return [_result(name, answers[name], converged[name], len(probes), note, **facts) for name in probes]


def _answers(
    scores: NDArray[np.float64],
    labels: NDArray[Any],
    people: NDArray[Any],
    probes: Sequence[str],
    how: tuple[int, int, int],
    folds: Sequence[Fold] | None,
) -> tuple[dict[str, list[float]], dict[str, bool]]:
    """By probe, its answers for the true labels and then for shuffled ones, and whether it converged on the true."""
    seed, permutations, seeds = how
    count = _fold_count(labels, people)
    rng = np.random.default_rng(seed)
    answers: dict[str, list[float]] = {name: [] for name in probes}
    converged = dict.fromkeys(probes, True)
    for turn in range(permutations + 1):
        now = labels if turn == 0 else shuffled(labels, people, rng)
        numbers = range(seeds) if turn == 0 else [turn % seeds]
        splits = [folds or folds_by_subject(now, people, count, 1000 * seed + number) for number in numbers]
        for name in probes:
            value, well = _answer(scores, now, splits, PROBES[name], seed)
            answers[name].append(value)
            converged[name] &= well or turn > 0
    return answers, converged


def _fold_count(labels: NDArray[Any], people: NDArray[Any]) -> int:
    fewest = min(np.unique(people[labels == site]).size for site in np.unique(labels))
    return max(2, min(MOST_FOLDS, fewest))


def _answer(
    scores: NDArray[np.float64],
    labels: NDArray[Any],
    splits: Sequence[Sequence[Fold]],
    make: Callable[[int], Any],
    seed: int,
) -> tuple[float, bool]:
    """Balanced accuracy over splits, and whether all fits converged."""
    from sklearn.exceptions import ConvergenceWarning

    found, converged = [], True
    for folds in splits:
        said, true = [], []
        for train, test in folds:
            if np.unique(labels[train]).size < 2:
                continue  # shuffled labels may leave one site only to learn from
            mean, spread = scores[train].mean(axis=0), scores[train].std(axis=0)
            spread[spread == 0] = 1.0
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model = make(seed).fit((scores[train] - mean) / spread, labels[train])
            converged &= not any(issubclass(item.category, ConvergenceWarning) for item in caught)
            said.append(model.predict((scores[test] - mean) / spread))
            true.append(labels[test])
        found.append(_balanced(np.concatenate(true), np.concatenate(said)) if true else 0.0)
    return float(np.mean(found)), converged


def _balanced(true: NDArray[Any], said: NDArray[Any]) -> float:
    """Mean over labels of the share told right.

    >>> _balanced(np.array(["A", "A", "A", "B"]), np.array(["A", "A", "A", "A"]))
    0.5
    """
    return float(np.mean([(said[true == label] == label).mean() for label in np.unique(true)]))


def _result(
    name: str, answers: Sequence[float], converged: bool, family: int, note: str, images: int, people: int, sites: int
) -> ProbeResult:
    value, null = answers[0], np.sort(answers[1:])
    if null.size == 0:
        raise ValueError("a probe without shuffled labels says nothing: give 1 permutation at least")
    # the order statistics between which a new answer falls often enough; the outermost where there are too few
    rank = max(int((null.size + 1) * (1 - LEVEL) / family / 2) - 1, 0)
    said = [note] if note else []
    if not converged:
        said.append("did not converge: no answer to rely on")
    p = (1 + int((null >= value - 1e-12).sum())) / (1 + null.size)
    return ProbeResult(
        name, value, float(null[rank]), float(null[-1 - rank]), p, images, people, sites, converged, "; ".join(said)
    )
