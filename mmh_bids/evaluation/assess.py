"""All measures of all methods over one sequence's images, as rows of one long table, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from mmh_bids.evaluation import clustering
from mmh_bids.evaluation.alignment import between_people, between_sites, site_ratio
from mmh_bids.evaluation.anatomy import OTHERS, Edges, choose_others, detail, own_edges, own_share
from mmh_bids.evaluation.effects import Effect, compare, find_effect
from mmh_bids.evaluation.estimate import Estimate, mean_over_people
from mmh_bids.evaluation.matrix import CannotSayError, LeakError, check_identities
from mmh_bids.evaluation.probes import LINEAR, PERMUTATIONS, PROBES, probe_site
from mmh_bids.evaluation.sample import Row, Sample, row_that_cannot
from mmh_bids.evaluation.scans import travelling_rows, volume_rows
from mmh_bids.evaluation.sources import CONTROLS, IDENTITY, MASK_ONLY, PREPROCESSING
from mmh_bids.evaluation.target import target_rows
from mmh_bids.evaluation.travelling import change_beyond_gain
from mmh_bids.evaluation.verdicts import EffectChange, Facts, Flag, Ratio, flags_of, ranking

#: Most images whose edges are compared, evenly chosen.
MOST_EDGES = 60
#: Mean share of a region that must be brain for it to tell people apart: what lies at the edge differs by the masks.
CORE = 0.9
NULL = "low and high: null of shuffled labels"


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes
    ----------
    seed
        Of all that is random.
    permutations
        Shuffled labels of probes and silhouettes.
    effects
        By column, a participant's cell (None: missing).
    with_style
        Whether features have an embedding of the look.
    """

    seed: int = 0
    permutations: int = PERMUTATIONS
    effects: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    with_style: bool = False


@dataclass(frozen=True)
class Assessment:
    """Of one sequence: the rows, and by method facts, flags and the order from best to worst."""

    sequence: str
    rows: list[Row]
    facts: dict[str, Facts]
    flags: dict[str, list[Flag]]
    ranking: list[str]


def assess(samples: Mapping[str, Sample], sequence: str, options: Options) -> Assessment:
    """Measure and judge.

    Parameters
    ----------
    samples
        By method, controls included (`sources.CONTROLS`); none empty.
    sequence
        For the rows.

    Returns
    -------
    What cannot be said of the data is a row without a value, whose note says why.
    """
    plain = samples[PREPROCESSING]
    rows: list[Row] = []
    facts = {name: Facts() for name in samples}
    travelled = travelling_rows(samples, sequence, options.seed)
    rows += travelled.rows
    leak = _leak(samples[IDENTITY])
    rows += _mask_probe(plain, sequence, options, leak)
    before = {name: _effect(plain, name, options) for name in options.effects}
    told_before = _probes(plain, sequence, options, leak)[1]
    for name, sample in samples.items():
        rows += volume_rows(sample, sequence, options.seed)
        rows += _clusters(sample, sequence, options)
        probes, told = _probes(sample, sequence, options, leak)
        near, sites, people = _alignment(sample, plain, sequence, options)
        edges, measured = _anatomy(sample, plain, sequence, options)
        effects, changed = _effects(sample, sequence, before, options)
        rows += probes + near + edges + effects
        if name not in CONTROLS:
            rows += target_rows(sample, plain, sequence, options.seed)
        ratio = travelled.ratios.get(name)
        facts[name] = replace(
            measured,
            people=people,
            sites=ratio or sites,
            travelled=ratio is not None,
            effects=changed,
            told=told,
            told_before=told_before,
        )
    flags = {name: flags_of(one) for name, one in facts.items()}
    return Assessment(sequence, rows, facts, flags, ranking(facts, flags))


def _leak(sample: Sample) -> str:
    """Why people cannot be kept apart; empty if they can."""
    try:
        check_identities(np.hstack([sample.table("regions"), sample.table("brain_share")]), sample.people)
    except LeakError as error:
        return str(error)
    return ""


def _mask_probe(sample: Sample, sequence: str, options: Options, leak: str) -> list[Row]:
    return _probe_rows(replace(sample, method=MASK_ONLY), "brain_share", "mask", sequence, options, leak)[0]


def _probes(sample: Sample, sequence: str, options: Options, leak: str) -> tuple[list[Row], bool | None]:
    rows, told = _probe_rows(sample, "regions", "regions", sequence, options, leak)
    return rows + _probe_rows(sample, "quantiles", "histogram", sequence, options, leak)[0], told


def _probe_rows(
    sample: Sample, name: str, words: str, sequence: str, options: Options, leak: str
) -> tuple[list[Row], bool | None]:
    measure, known = f"probe.{words}", sample.with_site()
    try:
        if leak:
            raise CannotSayError(leak)
        probes = tuple(PROBES) if words == "regions" else LINEAR
        found = probe_site(
            known.table(name), known.sites, known.people, options.seed, options.permutations, probes=probes
        )
    except CannotSayError as error:
        return [row_that_cannot(sample.method, sequence, measure, error)], None
    rows = []
    for one in found:
        note = "; ".join(filter(None, (f"p = {one.p:.3g}", f"chance {1 / one.sites:.3g}", NULL, one.note)))
        rows.append(
            Row(
                sample.method,
                sequence,
                f"{measure}.{one.probe}",
                one.balanced_accuracy,
                one.null_low,
                one.null_high,
                one.images,
                note,
            )
        )
    converged = [one for one in found if one.converged]
    return rows, any(one.tells_sites for one in converged) if converged else None


def _clusters(sample: Sample, sequence: str, options: Options) -> list[Row]:
    rows = []
    known, how = sample.with_site(), (options.seed, options.permutations)
    for name in ("regions", "style") if options.with_style else ("regions",):
        for by in ("site", "person"):
            measure = f"silhouette.{name}.{by}"
            try:
                if by == "site":
                    found = clustering.by_site(known.table(name), known.sites, known.people, *how)
                else:
                    found = clustering.by_subject(sample.table(name), sample.people, *how)
            except CannotSayError as error:
                rows.append(row_that_cannot(sample.method, sequence, measure, error))
                continue
            note = f"p = {found.p:.3g}; {NULL}"
            rows.append(
                Row(sample.method, sequence, measure, found.value, found.null_low, found.null_high, found.images, note)
            )
    return rows


def _alignment(sample: Sample, plain: Sample, sequence: str, options: Options) -> tuple[list[Row], Ratio, float]:
    """Rows, how far sites are apart and how much people differ, both over preprocessing."""
    rows, ratio, people = [], Ratio(), float("nan")
    core = plain.table("brain_share").mean(axis=0) >= CORE
    known, method = sample.with_site(), sample.method
    asks: dict[str, Callable[[], Estimate]] = {
        "sites.histogram": lambda: between_sites(
            known.table("quantiles"), known.sites, known.people, sample.units.deviation, options.seed
        ),
        "sites.regions": lambda: between_sites(
            known.table("regions"), known.sites, known.people, sample.units.deviation, options.seed
        ),
        "people.regions": lambda: between_people(
            sample.table("regions")[:, core], sample.sites, sample.people, sample.units.deviation, options.seed
        ),
    }
    for measure, ask in asks.items():
        try:
            rows.append(Row.of(method, sequence, measure, ask()))
        except CannotSayError as error:
            rows.append(row_that_cannot(method, sequence, measure, error))
    own, other = known.common(plain)
    try:
        found = site_ratio(
            (own.table("regions"), sample.units.deviation),
            (other.table("regions"), plain.units.deviation),
            own.sites,
            own.people,
            options.seed,
        )
        ratio = Ratio(found.value, found.low, found.high)
        rows.append(Row.of(method, sequence, "sites.regions.ratio", found))
    except CannotSayError as error:
        rows.append(row_that_cannot(method, sequence, "sites.regions.ratio", error))
    own, other = sample.common(plain)
    try:
        spread = [
            between_people(one.table("regions")[:, core], one.sites, one.people, unit, options.seed).value
            for one, unit in ((own, sample.units.deviation), (other, plain.units.deviation))
        ]
        people = spread[0] / spread[1] if spread[1] > 0 else float("nan")
        rows.append(Row(method, sequence, "people.regions.ratio", people, n=len(own.sources)))
    except CannotSayError as error:
        rows.append(row_that_cannot(method, sequence, "people.regions.ratio", error))
    return rows, ratio, people


def _anatomy(sample: Sample, plain: Sample, sequence: str, options: Options) -> tuple[list[Row], Facts]:
    """Change, sharpness and whose edges they are, against preprocessing; medians go into the facts."""
    own, before = sample.common(plain)
    if not own.sources:
        missing = CannotSayError("no image has both this method and preprocessing")
        return [row_that_cannot(sample.method, sequence, "change", missing)], Facts()
    chosen = np.unique(np.linspace(0, len(own.sources) - 1, MOST_EDGES).round().astype(int))
    names = ("change", "sharpness.ratio", "edges.own", "edges.own share")
    found: dict[str, list[float]] = {name: [] for name in names}
    # neighbours ask for the same people: few are kept, whatever their number
    edges_before = lru_cache(maxsize=4 * OTHERS)(lambda index: Edges.of(before.grid(index)))
    for index in chosen.tolist():
        new, old = own.grid(index), before.grid(index)
        edges = Edges.of(new)
        both = new[1] & old[1]
        found["change"].append(change_beyond_gain(old[0][both], new[0][both], sample.units) if both.any() else np.nan)
        sharp = detail(old)
        found["sharpness.ratio"].append(detail(new) / sharp if sharp > 0 else np.nan)
        found["edges.own"].append(own_edges(edges, edges_before(index)))
        others = [edges_before(other) for other in choose_others(before.people, index, OTHERS)]
        found["edges.own share"].append(own_share(edges, edges_before(index), others) if others else np.nan)
    people = [own.people[index] for index in chosen]
    rows = []
    for name in names:
        if np.isfinite(found[name]).any():
            estimate = mean_over_people(found[name], people, options.seed)
            rows.append(Row.of(sample.method, sequence, name, estimate))
        else:
            cannot = CannotSayError("needs images of two people at least")
            rows.append(row_that_cannot(sample.method, sequence, name, cannot))
    change, sharpness, _, share = (_median(found[name]) for name in names)
    return rows, Facts(change=change, sharpness=sharpness, own_share=share)


def _effect(sample: Sample, name: str, options: Options) -> Effect | CannotSayError:
    cells = [options.effects[name].get(source.run.participant) for source in sample.sources]
    try:
        return find_effect(name, sample.table("regions"), cells, sample.people, options.seed)
    except CannotSayError as error:
        return error


def _effects(
    sample: Sample, sequence: str, before: Mapping[str, Effect | CannotSayError], options: Options
) -> tuple[list[Row], tuple[EffectChange, ...]]:
    rows, changed = [], []
    for name, old in before.items():
        found = _effect(sample, name, options)
        if isinstance(found, CannotSayError):
            rows.append(row_that_cannot(sample.method, sequence, f"effect.{name}", found))
            continue
        missing = f"{found.missing} without a value" if found.missing else ""
        kind = "correlation" if found.kind == "number" else "AUC"
        note = "; ".join(filter(None, (kind, missing)))
        method, people = sample.method, found.people
        rows.append(Row(method, sequence, f"effect.{name}", found.score, found.low, found.high, people, note))
        if found.kind == "number":
            rows.append(Row(method, sequence, f"effect.{name}.R2", found.r2, n=people))
            rows.append(Row(method, sequence, f"effect.{name}.MAE", found.mae, n=people))
        if isinstance(old, Effect) and old.true.shape == found.true.shape and (old.true == found.true).all():
            difference, low, high = compare(old, found, options.seed)
            note = "less that of preprocessing, same people"
            rows.append(Row(method, sequence, f"effect.{name}.difference", difference, low, high, people, note))
            gain, chance = (1.0, 0.0) if found.kind == "number" else (2.0, 0.5)
            scores = [gain * (one.score - chance) for one in (old, found)]
            changed.append(EffectChange(name, scores[0], scores[1], gain * low, gain * high))
    return rows, tuple(changed)


def _median(values: Iterable[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.median(finite)) if finite else float("nan")


def summary_of(assessment: Assessment, methods: Sequence[str]) -> str:
    """One sentence: which of the methods is best, or that none is to be trusted."""
    own = [name for name in assessment.ranking if name in methods]
    sound = [name for name in own if not any(flag.level == "bad" for flag in assessment.flags[name])]
    if not sound:
        return "No method passes: each has a flag that rules it out."
    helps = any(flag.code == "together" for flag in assessment.flags[sound[0]])
    words = (
        "brings sites together and passes all checks" if helps else "passes all checks, but brings no sites together"
    )
    out = len(own) - len(sound)
    rest = f" {out} of {len(own)} methods {'is' if out == 1 else 'are'} ruled out." if out else ""
    return f"{sound[0]} {words}.{rest}"


def describe(facts: Facts) -> dict[str, Any]:
    """Facts in the types of JSON."""
    return {
        "Change": facts.change,
        "Sharpness": facts.sharpness,
        "OwnShare": facts.own_share,
        "PeopleRatio": facts.people,
        "SitesRatio": [facts.sites.value, facts.sites.low, facts.sites.high],
        "SitesRatioOfTravellers": facts.travelled,
        "SitesTold": facts.told,
        "Effects": {one.name: [one.before, one.after] for one in facts.effects},
    }
