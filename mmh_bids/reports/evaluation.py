"""The page of ``mmh-evaluate``: made of the content of evaluation.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmh_bids.reports.intervals import Mark, draw
from mmh_bids.reports.page import write_page

#: What each measure is, by the start of its name; the first that fits counts.
MEANINGS = (
    ("travelling.MAE.ratio", "mean absolute difference between sites over that of preprocessing; below 1 is nearer"),
    ("travelling.tissue", "Dice of three intensity classes, one person at two sites"),
    ("travelling.SSIM", "structural similarity, one person at two sites; 1 is equal"),
    ("travelling.PSNR", "dB, one person at two sites"),
    ("travelling.Pearson", "correlation over voxels, one person at two sites"),
    ("travelling", "difference in the brain, one person at two sites, in the method's pooled standard deviations"),
    ("rescan", "the same for one person scanned twice at one site: the floor"),
    ("volume ICC", "ICC(2,1) of a tissue's volume between sites"),
    ("silhouette", "do images lie together by that? low to high: null of shuffled labels"),
    ("probe.mask", "balanced accuracy of telling the site from brain masks alone; no method can change it"),
    ("probe.histogram", "balanced accuracy of telling the site from the histogram"),
    ("probe.regions", "balanced accuracy of telling the site from regional brightness"),
    ("sites.histogram", "Wasserstein-1 distance of the sites' mean histograms, pooled standard deviations"),
    ("sites.regions.ratio", "the next over that of preprocessing"),
    ("sites.regions", "difference of the sites' mean images by region, pooled standard deviations"),
    ("target.histogram.ratio", "distance to the target's histogram, after over before; below 1 is nearer"),
    ("target.histogram.before", "the same of these images after preprocessing"),
    ("target.histogram", "Wasserstein-1 distance to the target site's own images, preprocessing's standard deviations"),
    ("target.regions.ratio", "distance to the target by region, after over before; below 1 is nearer"),
    ("target.regions.before", "the same of these images after preprocessing"),
    ("target.regions", "difference by region to the target site's own images, preprocessing's standard deviations"),
    ("people.regions.ratio", "the next over that of preprocessing; near 0: everybody looks alike"),
    ("people.regions", "standard deviation between people of one site, by region"),
    ("change", "how much the image was changed beyond gain and offset; no merit in itself"),
    ("sharpness.ratio", "sharpness over that of preprocessing; below 1 is blurred, or less noisy"),
    ("edges.own share", "1: edges are those of the own input; 0: as much those of other people's"),
    ("edges.own", "correlation of edges with those of the own input"),
    ("effect", "how well this is told from regional brightness"),
)


@dataclass(frozen=True)
class Figure:
    """A drawing with its words."""

    title: str
    caption: str
    svg: Markup


def write_evaluation_page(path: Path, content: Mapping[str, Any]) -> Path:
    """Write the page; the same bytes for the same content.

    Parameters
    ----------
    content
        What `evaluation.study.to_json` gives.
    """
    sequences = [
        {
            "name": name,
            "facts": facts,
            "methods": _methods(facts, content["Controls"]),
            "figures": _figures(facts, content["Controls"]),
            "cannot": _cannot(facts["Rows"]),
            "rows": [_shown(row) for row in facts["Rows"]],
        }
        for name, facts in content["Sequences"].items()
    ]
    return write_page(path, "evaluation.html.j2", sequences=sequences, content=content)


def _methods(facts: Mapping[str, Any], controls: Sequence[str]) -> list[dict[str, Any]]:
    """One row a method for the first table, best first."""
    rows = []
    for place, name in enumerate(facts["Ranking"], start=1):
        own = facts["Facts"][name]
        flags = facts["Flags"][name]
        levels = {flag["Level"] for flag in flags}
        rows.append(
            {
                "place": place,
                "name": name,
                "control": name in controls,
                "flags": flags,
                "status": "ruled out" if "bad" in levels else "look" if "look" in levels else "passes",
                "css": "failed" if "bad" in levels else "look" if "look" in levels else "done",
                "sites": _ratio(own["SitesRatio"]),
                "sites_key": _number(own["SitesRatio"][0]),
                "people": _number(own["PeopleRatio"]),
                "sharpness": _number(own["Sharpness"]),
                "own": _number(own["OwnShare"]),
                "change": _number(own["Change"]),
            }
        )
    return rows


def _figures(facts: Mapping[str, Any], controls: Sequence[str]) -> list[Figure]:
    order, rows = facts["Ranking"], facts["Rows"]
    found = []

    def add(title: str, caption: str, marks: list[Mark], lines: Sequence[tuple[float, str]] = ()) -> None:
        svg = draw(title, marks, lines)
        if svg:
            found.append(Figure(title, caption, svg))

    floor = {row["method"]: row["value"] for row in rows if row["measure"] == "rescan.MAE"}
    add(
        "One person at two sites: mean absolute difference",
        "In the method's own pooled standard deviations. Lower is nearer. Hollow: the same person twice at one site, "
        "the floor that no method should go below by much. Line: 95 % over people.",
        _marks(rows, "travelling.MAE", order, controls, floor=floor),
    )
    add(
        "Sites' mean images apart, over preprocessing",
        "By region of 16 mm. Below 1 is nearer. Sites that scanned other people differ by the people, too: 0 is not "
        "the aim.",
        _marks(rows, "sites.regions.ratio", order, controls),
        [(1.0, "as far apart as after preprocessing")],
    )
    before = {row["method"]: row["value"] for row in rows if row["measure"] == "target.regions.before"}
    add(
        "Distance to the target site's own images",
        "By region of 16 mm, images of other sites, in preprocessing's pooled standard deviations. Hollow: before. "
        "People differ, too: 0 is not the aim. How much a method changed is told apart from this.",
        _marks(rows, "target.regions", order, controls, floor=before),
    )
    for words in ("regions", "histogram"):
        for probe in ("logistic regression", "linear SVM", "random forest"):
            add(
                f"Site told from {words}: {probe}",
                "Balanced accuracy, people apart. Grey: what shuffled labels give; a mark inside says that this probe "
                "finds no site.",
                _marks(rows, f"probe.{words}.{probe}", order, controls, band=True),
            )
    for name in dict.fromkeys(
        row["measure"] for row in rows if row["measure"].startswith("effect.") and row["measure"].count(".") == 1
    ):
        add(
            f"Known effect: {name.removeprefix('effect.')}",
            "Correlation, or area under the curve, cross-validated by person. It should not fall below preprocessing.",
            _marks(rows, name, order, controls),
        )
    return found


def _marks(
    rows: Sequence[Mapping[str, Any]],
    measure: str,
    order: Sequence[str],
    controls: Sequence[str],
    band: bool = False,
    floor: Mapping[str, float] | None = None,
) -> list[Mark]:
    own = {row["method"]: row for row in rows if row["measure"] == measure}
    marks = []
    for name in order:
        if name in own:
            value, low, high = (_float(own[name][key]) for key in ("value", "low", "high"))
            nan, below = float("nan"), (floor or {}).get(name)
            marks.append(
                Mark(
                    name,
                    value,
                    nan if band else low,
                    nan if band else high,
                    (low, high) if band else None,
                    None if below is None else _float(below),
                    name in controls,
                )
            )
    return marks


def _cannot(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the data cannot support, each reason once, with the measures it keeps from being told."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["note"].startswith("cannot say: "):
            kinds = reasons.setdefault(row["note"].removeprefix("cannot say: "), [])
            if row["measure"] not in kinds:
                kinds.append(row["measure"])
    return [f"{', '.join(kinds)}: {reason}" for reason, kinds in reasons.items()]


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    meaning = next((words for start, words in MEANINGS if row["measure"].startswith(start)), "")
    numbers = {key: _number(row[key]) for key in ("value", "low", "high")}
    words = {key: str(row[key]) for key in ("method", "measure", "note")}
    return words | numbers | {"n": str(row["n"] or "–"), "meaning": meaning}


def _ratio(values: Sequence[float | None]) -> str:
    value, low, high = (_float(number) for number in values)
    if not isfinite(value):
        return "–"
    return f"{value:.2f} ({low:.2f} to {high:.2f})" if isfinite(low + high) else f"{value:.2f}"


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _number(value: float | None) -> str:
    """Three significant digits, or a dash.

    >>> _number(0.12345), _number(None), _number(1234.5)
    ('0.123', '–', '1234')
    """
    if value is None or not isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
