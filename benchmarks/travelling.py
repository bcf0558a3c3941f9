"""The same simulated people on several scanners: what does harmonization make of them?

    python benchmarks/travelling.py                      everything: heads 13 to 16, all scanners for testing
    python benchmarks/travelling.py --heads 13 --scanners P Q --modalities T1w --methods none zscore blur

Simulates the scans, runs the app with each method, measures against the truth, writes a page, a JSON file and a
picture. What is in the work folder already is not done again. Neither these heads nor these scanners were trained on.
Exit code 1 if a condition is not met.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import travelling_data as data
import travelling_report as report
from filelock import FileLock, Timeout
from travelling_bars import CLASSICAL, Bar, blur_bars, candidate_bars
from travelling_data import BLUR, MADE_HERE, PLAIN, TRUTH, Study
from travelling_measure import measure_head

from mmh_bids.simulate.scanner import SEQUENCES, load_scanners

HEADS = (13, 14, 15, 16)
METHODS = (PLAIN, BLUR, *CLASSICAL, "mmh-light", TRUTH)


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--work", type=Path, default=Path("build/travelling"), help="kept between calls; about 20 GB")
    out.add_argument("--docs", type=Path, default=Path("docs/benchmarks"), help="where page, JSON and picture go")
    out.add_argument("--heads", type=int, nargs="+", default=list(HEADS), help="numbers of label maps")
    out.add_argument("--scanners", nargs="+", help="two at least, the first scans twice (default: all for testing)")
    out.add_argument("--modalities", nargs="+", choices=SEQUENCES, default=list(SEQUENCES))
    out.add_argument("--methods", nargs="+", default=list(METHODS), help=f"always with {PLAIN}")
    out.add_argument("--model", nargs="+", default=[], metavar="METHOD=BUNDLE", help="bundles other than the default")
    out.add_argument("--nprocs", type=int, default=1, help="processes of the app")
    out.add_argument("--device", help="of the app: auto, cpu, cuda")
    return out


def study_of(asked: argparse.Namespace) -> Study:
    """The study that the flags ask for; SystemExit if there is no such."""
    known = load_scanners()
    scanners = asked.scanners or [name for name, one in known.items() if one.use == "testing"]
    unknown = [name for name in scanners if name not in known]
    if unknown or len(set(scanners)) < 2:
        raise SystemExit(f"--scanners {' '.join(scanners)}: give two at least of {', '.join(known)}")
    trained = [name for name in scanners if known[name].use != "testing"]
    if trained:
        print(f"warning: scanner(s) {', '.join(trained)} are for training: no test of anything", file=sys.stderr)
    models = dict(pair.split("=", 1) for pair in asked.model if "=" in pair)
    if len(models) != len(asked.model):
        raise SystemExit(f"--model {' '.join(asked.model)}: write METHOD=BUNDLE")
    return Study(
        asked.work.absolute(), _unique(asked.heads), _unique(scanners), _unique(asked.modalities),
        _unique([PLAIN, *asked.methods]), models, asked.nprocs, asked.device,
    )  # fmt: skip


def _unique(values: list[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def say(text: str) -> None:
    print(text, flush=True)


def measure(study: Study) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Simulate, run, measure: sequence -> method -> measures of each head."""
    raw: dict[str, dict[str, list[dict[str, Any]]]] = {
        sequence: {method: [] for method in study.methods} for sequence in study.sequences
    }
    for head in study.heads:
        data.simulate(study, head, say)
        for method in study.app_methods:
            say(f"head {head}, {method}: app ran {data.run_app(study, head, method):.0f} s")
        for sequence in study.sequences:
            for method, values in measure_head(study, head, sequence, say).items():
                raw[sequence][method].append(values)
    return raw


def conditions(methods: dict[str, Any]) -> list[Bar]:
    """Bars of everything that is no baseline, and those of blur."""
    candidates = [name for name in methods if name not in (PLAIN, *MADE_HERE, *CLASSICAL)]
    return [*(bar for name in candidates for bar in candidate_bars(methods, name)), *blur_bars(methods)]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    say(f"wrote {path}")


def main() -> int:
    asked = parser().parse_args()
    study = study_of(asked)
    study.work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(study.work / ".lock", timeout=0):
            return run(study, asked.docs)
    except Timeout:
        raise SystemExit(f"--work {study.work}: another call works there; wait for it or give another folder") from None


def run(study: Study, docs: Path) -> int:
    """Measure, print, write; the exit code."""
    raw = measure(study)
    for by_method in raw.values():
        report.add_psnr(by_method)
    results = {sequence: report.figures(by_method) for sequence, by_method in raw.items()}
    bars = {sequence: conditions(methods) for sequence, methods in results.items()}
    page = report.page(study, results, bars)
    print(page)
    write(docs / "travelling.md", page)
    write(docs / "travelling.json", report.as_json(study, raw, bars))
    report.picture(study, results, docs / "travelling.png")
    failed = [bar for some in bars.values() for bar in some if bar.passed is False]
    say(f"{sum(map(len, bars.values()))} conditions, {len(failed)} not met")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
