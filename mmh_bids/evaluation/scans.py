"""Rows about scans of one person: between sites beside the scan-rescan floor, tissues, and volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.evaluation.estimate import mean_over_people, ratio_over_people
from mmh_bids.evaluation.matrix import CannotSayError
from mmh_bids.evaluation.placement import Placed
from mmh_bids.evaluation.reliability import pair_dice, tissue_labels, volume_icc
from mmh_bids.evaluation.sample import Row, Sample, row_that_cannot
from mmh_bids.evaluation.sources import PREPROCESSING
from mmh_bids.evaluation.travelling import MEASURES, Pair, find_pairs, pair_measures
from mmh_bids.evaluation.verdicts import Ratio
from mmh_bids.image.tissue import CLASSES

#: What `Pair.kind` is called in the table.
KINDS = {"between": "travelling", "rescan": "rescan"}
_DICE = "tissue Dice"
#: The measure that tells how near sites are.
DECISIVE = "MAE"


@dataclass(frozen=True)
class Travelled:
    """Rows, and by method the decisive measure between sites over that of preprocessing; empty without travellers."""

    rows: list[Row]
    ratios: dict[str, Ratio]


def travelling_rows(samples: Mapping[str, Sample], sequence: str, seed: int) -> Travelled:
    """Compare scans of one person with each other, for each method.

    Parameters
    ----------
    samples
        By method; preprocessing is among them.
    """
    rows: list[Row] = []
    ratios: dict[str, Ratio] = {}
    found = {name: _pair_values(sample, sequence) for name, sample in samples.items()}
    plain = found[PREPROCESSING]
    for method, values in found.items():
        for kind, words in KINDS.items():
            own = [key for key in values if key[0] == kind]
            if not own:
                missing = (
                    "no person was scanned at two sites" if kind == "between" else "nobody was scanned twice at a site"
                )
                rows.append(row_that_cannot(method, sequence, words, CannotSayError(missing)))
                continue
            people = [key[1] for key in own]
            for measure in (*MEASURES, _DICE):
                numbers = [values[key][measure] for key in own]
                if np.isfinite(numbers).any():
                    estimate = mean_over_people(numbers, people, seed)
                    note = f"{len(own)} pairs"
                    rows.append(Row.of(method, sequence, f"{words}.{measure}", estimate, note))
                else:
                    cannot = CannotSayError("flat images")
                    rows.append(row_that_cannot(method, sequence, f"{words}.{measure}", cannot))
        both = [key for key in values if key in plain and key[0] == "between" and plain[key][DECISIVE] > 0]
        if both:
            top, bottom = ([one[key][DECISIVE] for key in both] for one in (values, plain))
            estimate = ratio_over_people(top, bottom, [key[1] for key in both], seed)
            ratios[method] = Ratio(estimate.value, estimate.low, estimate.high)
            rows.append(Row.of(method, sequence, f"travelling.{DECISIVE}.ratio", estimate, "over preprocessing"))
    return Travelled(rows, ratios)


def volume_rows(sample: Sample, sequence: str, seed: int) -> list[Row]:
    """ICC(2,1) of each class's volume between sites."""
    rows, volumes = [], sample.table("volumes_ml")
    for index, name in enumerate(CLASSES):
        measure = f"volume ICC.{name}"
        try:
            found = volume_icc(volumes[:, index], sample.people, sample.sites, seed)
            rows.append(Row.of(sample.method, sequence, measure, found))
        except CannotSayError as error:
            rows.append(row_that_cannot(sample.method, sequence, measure, error))
    return rows


def _pair_values(sample: Sample, sequence: str) -> dict[tuple[str, str, str, str], dict[str, float]]:
    """All measures by kind, person and the two images' keys."""
    pairs = find_pairs(sample.people, sample.sites)
    out: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for person in dict.fromkeys(pair.person for pair in pairs):
        own = [pair for pair in pairs if pair.person == person]
        # a person's scans at a time: memory does not grow with the number of people
        grids = {
            index: sample.grid(index) for index in sorted({pair.first for pair in own} | {pair.second for pair in own})
        }
        labels = {index: _labels(grid, sequence) for index, grid in grids.items()}
        for pair in own:
            key = pair.kind, person, sample.sources[pair.first].key, sample.sources[pair.second].key
            out[key] = _measures(sample, pair, grids, labels)
    return out


def _measures(
    sample: Sample, pair: Pair, grids: Mapping[int, Placed], labels: Mapping[int, NDArray[np.uint8] | None]
) -> dict[str, float]:
    (first, one), (second, other) = grids[pair.first], grids[pair.second]
    both = one & other
    if not both.any():
        return dict.fromkeys((*MEASURES, _DICE), float("nan"))
    tissues: Sequence[NDArray[np.uint8]] = [
        part for part in (labels[pair.first], labels[pair.second]) if part is not None
    ]
    dice = pair_dice(*tissues) if len(tissues) == 2 else float("nan")
    return pair_measures(first, second, both, sample.units) | {_DICE: dice}


def _labels(grid: Placed, sequence: str) -> NDArray[np.uint8] | None:
    try:
        return tissue_labels(*grid, sequence)
    except ImageError:
        return None  # no three classes: there is no Dice to give
