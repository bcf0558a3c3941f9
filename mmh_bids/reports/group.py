"""The report of a group: one HTML file a sequence that says first whether harmonization worked, and for whom not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from mmh_bids.bids.derivatives import OutputPaths
from mmh_bids.bids.tsv import cell
from mmh_bids.evaluation.group_probes import FEATURES, MOST_IMAGES, Answer
from mmh_bids.evaluation.group_spread import Change
from mmh_bids.evaluation.group_summary import Summary
from mmh_bids.evaluation.group_table import WHEN, GroupImage, number_of
from mmh_bids.evaluation.matrix import CannotSayError
from mmh_bids.evaluation.measured import AFTER, BEFORE
from mmh_bids.image.tissue import CLASSES
from mmh_bids.reports.flags import flags, label
from mmh_bids.reports.group_figures import embeddings, histograms, legend, site_styles
from mmh_bids.reports.page import write_page

#: Images named on the first screen; the table has all.
SHOWN_FIRST = 12
_ORDER = {"failed": 0, "excluded": 1, "look": 2, "ok": 3}
#: What it means to be far from the others, in words.
_FAR = {
    "gm_mean_after": "grey matter unlike the others'",
    "wm_mean_after": "white matter unlike the others'",
    "csf_mean_after": "fluid unlike the others'",
    "sharpness_after": "sharper or blurrier than the others",
    "mapped_gradient_correlation": "edges changed more than the others'",
    "regional_distance_after": "far from the median image",
    "distance_to_other_sites_after": "histogram far from the other sites'",
}
_SORTED = (
    ("distance_to_other_sites_before", "To other sites, before"),
    ("distance_to_other_sites_after", "To other sites, after"),
    ("regional_distance_after", "To the median image"),
    ("mapped_gradient_correlation", "Edges kept"),
    ("sharpness_after", "Sharpness"),
    ("wm_mean_after", "WM"),
    ("gm_mean_after", "GM"),
    ("csf_mean_after", "CSF"),
)


@dataclass(frozen=True)
class Finding:
    """One sentence of the first screen, and whether it is good news: ``good``, ``look``, ``bad`` or ``plain``."""

    mark: str
    text: str


def write_group_report(
    path: Path, sequence: str, images: Sequence[GroupImage], summary: Summary, problems: Mapping[str, str]
) -> Path:
    """Write ``group_<sequence>.html``; the same bytes for the same arguments.

    Parameters
    ----------
    images
        Of one sequence, through `evaluation.group_distances.compare`.
    summary
        Of `evaluation.group_summary.summarize`.
    problems
        Why images could not be read, by key.
    """
    done = [image for image in images if image.features]
    styles = site_styles(done)
    concerned = sorted(
        (image for image in images if image.verdict != "ok"), key=lambda image: _ORDER.get(image.verdict, 0)
    )
    drawn: Any = ""
    try:
        drawn = embeddings(done, styles)
    except CannotSayError as refusal:
        drawn = str(refusal)
    return write_page(
        path, "group.html.j2", sequence=sequence, headline=headline(images, summary, problems),
        findings=findings(images, summary), made=_made(done),
        concerned=[_row(image, path.parent) for image in concerned[:SHOWN_FIRST]],
        more=len(concerned) - SHOWN_FIRST, problems=dict(problems), caveats=summary.caveats,
        sites=_sites(done, summary), histograms={when: histograms(done, when, styles) for when in WHEN} if done else {},
        lines=legend(styles, True), marks=legend(styles, False), embeddings=drawn, probes=_probes(summary.answers),
        silhouettes=_silhouettes(summary.answers), sampled=len(done) > MOST_IMAGES, most=MOST_IMAGES,
        summary=summary, travellers=[] if isinstance(summary.travellers, str) else summary.travellers,
        rows=[_row(image, path.parent) for image in images], heads=[words for _, words in _SORTED],
        table=path.with_suffix(".tsv").name, columns=path.with_suffix(".json").name, show=number,
        sloppy=any(image.source.facts.get("Sloppy") for image in done),
    )  # fmt: skip


def headline(images: Sequence[GroupImage], summary: Summary, problems: Mapping[str, str]) -> str:
    """Did it work, and for how many not: one sentence.

    >>> from mmh_bids.evaluation.group_summary import summarize
    >>> headline([], summarize([]), {"a": "broken"})
    'No image was harmonized; 1 could not be read.'
    """
    counts = Counter(image.verdict for image in images)
    done = counts["ok"] + counts["look"]
    total = len(images) + len(problems)
    if not done:
        parts = ["No image was harmonized"]
    elif done == total:
        parts = [f"All {total} images were harmonized" if total > 1 else "The image was harmonized"]
    else:
        parts = [f"{done} of {total} images were harmonized"]
    if counts["look"]:
        parts.append(f"{counts['look']} of them call{'s' * (counts['look'] == 1)} for a look")
    parts += [f"{counts[word]} {words}" for word, words in
              (("failed", "failed"), ("excluded", "were not kept")) if counts[word]]  # fmt: skip
    if problems:
        parts.append(f"{len(problems)} could not be read")
    if not isinstance(summary.distance, str):
        parts.append(_HEADLINES[summary.distance.verdict])
    return "; ".join(parts) + "."


_HEADLINES = {
    "closer": "sites came closer together",
    "farther": "sites came farther apart",
    "alike": "sites did not come measurably closer",
}


def findings(images: Sequence[GroupImage], summary: Summary) -> list[Finding]:
    """The sentences of the first screen: sites, probes, travelling people, people of one site."""
    if not any(image.features for image in images):
        return []
    return [_of_sites(summary), _of_probes(summary), _of_travellers(summary), _of_people(summary)]


def _of_sites(summary: Summary) -> Finding:
    if isinstance(summary.distance, str):
        return Finding("plain", f"Whether sites came closer cannot be said: {summary.distance}.")
    text = f"Histograms lie {_change(summary.distance)} as far from those of the other sites as before harmonization."
    return Finding(_MARKS[summary.distance.verdict], text)


def _of_probes(summary: Summary) -> Finding:
    asked = {(answer.feature, answer.when): answer for answer in summary.answers if answer.kind == "probe"}
    before, after = asked.get(("regions", BEFORE)), asked.get(("regions", AFTER))
    if before is None or after is None or not after.probes or not before.probes:
        reason = after.refusal if after else "no site is known"
        return Finding("plain", f"Whether the site can still be told cannot be said: {reason}.")
    best, first = (max(answer.probes, key=lambda probe: probe.balanced_accuracy) for answer in (after, before))
    numbers = (
        f"balanced accuracy {best.balanced_accuracy:.2f}, chance up to {best.null_high:.2f}, "
        f"before {first.balanced_accuracy:.2f}"
    )
    histogram, mask = (
        any(probe.tells_sites for probe in answer.probes) if (answer := asked.get((feature, AFTER))) else False
        for feature in ("quantiles", "brain_share")
    )
    if not any(probe.tells_sites for probe in (*before.probes, *after.probes)):
        return Finding(
            "plain",
            f"Probes say nothing here, as they cannot tell the site of preprocessed images either ({numbers}): it "
            f"takes more than {best.people} people, or sites that differ more.{_told_by_histogram(histogram)}",
        )
    masks = (
        " The brain masks alone tell it, too: the people of the sites differ, not only the scanners." if mask else ""
    )
    if any(probe.tells_sites for probe in after.probes):
        return Finding("look", f"A classifier can still tell the site of harmonized images ({numbers}).{masks}")
    text = f"None of {len(after.probes)} probes tells the site by the harmonized images' regions ({numbers})"
    if histogram:
        return Finding("look", f"{text}, but one does by their histograms.{masks}")
    return Finding("good", f"{text}, nor does one by their histograms.{masks}")


def _told_by_histogram(told: bool) -> str:
    return " By the histograms of harmonized images one can." if told else ""


def _of_travellers(summary: Summary) -> Finding:
    if isinstance(summary.travelling, str):
        return Finding("plain", f"Nothing can be said by travelling people: {summary.travelling}.")
    change = summary.travelling
    who = "the one person" if change.people == 1 else f"{change.people} people"
    text = f"Scans of {who} at several sites differ {_change(change)} as much as before harmonization."
    return Finding(_MARKS[change.verdict], text)


def _of_people(summary: Summary) -> Finding:
    if isinstance(summary.spread, str):
        return Finding("plain", f"Whether people of one site still differ cannot be said: {summary.spread}.")
    ratio = summary.spread[AFTER].within / summary.spread[BEFORE].within
    text = f"People of one site differ {ratio:.2f} times as much as before."
    if ratio < LEAST_LEFT:
        return Finding("look", f"{text} Differences between people may have gone with those between sites.")
    return Finding("good", f"{text} Differences between people were kept.")


#: Share of the spread between people of one site below which the report asks whether people were made alike. Half the
#: spread between people is noise, field and gain, which harmonization may take.
LEAST_LEFT = 0.5
_MARKS = {"closer": "good", "farther": "bad", "alike": "look"}


def _change(change: Change) -> str:
    """A ratio with its interval.

    >>> _change(Change(2.0, 1.0, 0.4, 0.6, 9)), _change(Change(2.0, 1.0, float("nan"), float("nan"), 2))
    ('0.50 times (95 % interval 0.40 to 0.60)', '0.50 times (too few people for an interval)')
    """
    few = np.isnan(change.low)
    interval = "too few people for an interval" if few else f"95 % interval {change.low:.2f} to {change.high:.2f}"
    return f"{change.ratio:.2f} times ({interval})"


def number(value: float, digits: int = 3) -> str:
    """A number for a table; a dash where there is none.

    >>> number(0.12345), number(float("nan"))
    ('0.123', '–')
    """
    return f"{value:.{digits}f}" if np.isfinite(value) else "\u2013"


def _made(images: Sequence[GroupImage]) -> str:
    """Method, model and target, where all images have the same."""
    pairs = []
    for name in ("Method", "Model", "Target"):
        values = {str(image.source.facts.get(name)) for image in images}
        pairs.append(f"{name.lower()} {values.pop()}" if len(values) == 1 else f"several {name.lower()}s")
    return ", ".join(pairs) if images else ""


def _row(image: GroupImage, output_dir: Path) -> dict[str, Any]:
    page = OutputPaths(output_dir, image.source.run).report.name
    return {
        "key": image.source.key,
        "href": f"{quote(page)}#{quote(image.source.key)}",
        "site": image.site or "n/a",
        "verdict": image.verdict,
        "mark": {"ok": "done"}.get(image.verdict, image.verdict),
        "why": _why(image),
        "numbers": [(cell(value), number(value)) for name, _ in _SORTED for value in [number_of(image, name)]],
    }


def _why(image: GroupImage) -> str:
    if not image.done:
        return image.source.message or image.source.status
    words = [f"{label(flag.key)}: {flag.value}" for flag in flags(image.qc)]
    return "; ".join(words + [_FAR[name] for name in image.outlier_in]) or "nothing stands out"


def _sites(done: Sequence[GroupImage], summary: Summary) -> list[dict[str, Any]]:
    """Counts of each site, and the mean levels of its tissues, before and after."""
    rows = []
    for count in summary.sites:
        own = [image for image in done if (image.site or "") == count.site]
        levels = [" / ".join(number(_mean_level(own, when, place)) for place in range(len(CLASSES))) for when in WHEN]
        rows.append({"count": count, "site": count.site or "not known", "levels": levels})
    return rows


def _mean_level(images: Sequence[GroupImage], when: str, place: int) -> float:
    """Mean of a class over the images that have it; NaN if none has."""
    values = np.array([image.features[when].levels[place] for image in images])
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _probes(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """A row a feature and probe: the answers before and after, with what chance gives."""
    rows: list[dict[str, Any]] = []
    asked = {(answer.feature, answer.when): answer for answer in answers if answer.kind == "probe"}
    for feature, (words, probes) in FEATURES.items():
        if (feature, AFTER) not in asked:
            continue
        for probe in probes:
            row: dict[str, Any] = {"feature": words, "probe": probe, "refusal": asked[feature, AFTER].refusal}
            for when in WHEN:
                answer = asked.get((feature, when), asked[feature, AFTER] if feature == "brain_share" else None)
                row[when] = next((one for one in answer.probes if one.probe == probe), None) if answer else None
            rows.append(row)
    return rows


def _silhouettes(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    words = {"sites": "by site (near 0 or below is good)", "people": "by person with several scans (higher is better)"}
    return [
        {"words": text} | {answer.when: answer for answer in answers if answer.kind == kind}
        for kind, text in words.items()
        if any(answer.kind == kind for answer in answers)
    ]
