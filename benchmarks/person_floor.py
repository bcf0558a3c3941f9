"""What no method can know of one scan: how far a person's tissues are from the average person's in a target's look.

The tissue properties of people differ (`mmh_bids.simulate.tissues.PERSON_SPREAD`), and what a scanner makes of them
cannot be told from what it makes of everybody. Signals are computed, no image is made: levels of grey and white matter
over fluid (T2w) or of grey matter over white (T1w) in the target's look, in units of the person's own white-grey
contrast, against

* the average person's levels, which a method gives everybody that knows the target and nothing of the person,
* the best linear guess from the levels in the scan, learned from other people on scanners drawn at random; levels are
  measured with an error of 2 %.

A mean over both tissues comes near the regional difference of a method that does everything else perfectly.

    python benchmarks/person_floor.py [--people 4000]
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from mmh_bids.simulate import tissues
from mmh_bids.simulate.draw import draw_scanner
from mmh_bids.simulate.scanner import Scanner, load_scanners

FLUID, GREY, WHITE = tissues.INDEX["fluid"], tissues.GREY, tissues.WHITE
#: Standard deviation of the logarithm of a measured level over that of the reference tissue.
MEASURED = 0.02
#: The scanners that `target.py` takes scans from.
SOURCES = ("P", "Q", "R")


def levels(scanner: Scanner, sequence: str, scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of a person's fluid, grey and white matter (3,) over what the look is scaled by."""
    person = tissues.relaxation(scanner.field).scaled(*scales)
    signals = np.asarray(scanner.protocol(sequence).signals(person), float)
    chosen = np.log(signals[[FLUID, GREY, WHITE]])
    return chosen - chosen[0 if sequence == "T2w" else 2]


def errors(target: Scanner, sequence: str, people: int) -> tuple[float, float]:
    """Mean error over grey and white matter and people of the average's levels, and of the best linear guess."""
    rng, known = np.random.default_rng(0), load_scanners()
    seen, wanted = [], []
    for number in range(people):
        scales = tissues.person_scales(rng)
        # half of the people to learn from, half, on the benchmark's scanners, to be told about
        source = draw_scanner(rng) if 2 * number < people else known[SOURCES[number % len(SOURCES)]]
        seen.append(levels(source, sequence, scales))
        wanted.append(levels(target, sequence, scales))
    scans = np.array(seen) + rng.normal(0, MEASURED, (people, 3))
    truth, half = np.array(wanted), (people + 1) // 2
    design = np.column_stack([np.ones(people), scans])
    guess = design @ np.linalg.lstsq(design[:half], truth[:half], rcond=None)[0]
    average = np.broadcast_to(truth[:half].mean(axis=0), truth.shape)
    unit = np.abs(np.exp(truth[:, 1]) - np.exp(truth[:, 2]))[:, None]
    found = [np.abs(np.exp(told) - np.exp(truth))[half:, 1:] / unit[half:] for told in (average, guess)]
    return float(found[0].mean()), float(found[1].mean())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=4000)
    options = parser.parse_args()
    known = load_scanners()
    print("| target | the average's levels | the best linear guess |\n|---|---:|---:|")
    for sequence in ("T1w", "T2w"):
        for name in "AB":
            average, guess = errors(known[name], sequence, options.people)
            print(f"| {name} {sequence} | {average:.3f} | {guess:.3f} |")


if __name__ == "__main__":
    main()
