"""The report of one participant: a single HTML file that opens offline."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from markupsafe import Markup

from mmh_bids.reports.figures import CAPTIONS, TITLES
from mmh_bids.reports.flags import Flag, flags, label, limit, ordered, show, usable
from mmh_bids.reports.page import write_page

Status = Literal["done", "excluded", "failed", "skipped"]

#: A sign beside each word: colour alone tells some readers nothing.
SIGNS = {"done": "✓", "look": "⚠", "unusable": "✕", "excluded": "✕", "failed": "✕", "skipped": "–"}
#: What the first screen calls the images that are not simply done, in its order.
CALLS = {
    "failed": "Failed", "excluded": "Excluded, only the preprocessed image was kept", "unusable": "Do not use unseen",
    "look": "Look at", "skipped": "Skipped",
}  # fmt: skip
_STAGES: dict[Any, str] = {1: "1: to the unified look", 2: "2: to the unified look, then to the target's"}

# Elements that a picture needs; a file with anything else (a script, say) is shown as an image, which runs
# nothing.
_HARMLESS = {"svg", "title", "rect", "g", "image", "path", "text"}
_SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class ImageRecord:
    """One image of the participant and what became of it.

    Attributes
    ----------
    key
        Unique name in the dataset, e.g. ``sub-01_ses-A_T1w``.
    sequence, session, site, site_source
        As in `mmh_bids.bids.run.Run`; None or empty where there is none.
    status, reason
        What became of it; the reason, one line, for all but ``done``.
    qc
        Quality values by key, see `mmh_bids.reports.flags`.
    harmonization
        The sidecar's ``Harmonization`` object; any key may be missing.
    figures, outputs
        Files, absolute or relative to the output folder.
    """

    key: str
    sequence: str
    session: str | None = None
    site: str | None = None
    site_source: str = ""
    status: Status = "done"
    reason: str = ""
    qc: Mapping[str, Any] = field(default_factory=dict)
    harmonization: Mapping[str, Any] = field(default_factory=dict)
    figures: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()


def write_participant_report(
    output_dir: Path,
    participant: str,
    records: Sequence[ImageRecord],
    methods_text: str,
    errors: Sequence[str],
    version: str,
    command: str,
    sloppy: bool = False,
    software: Mapping[str, str] | None = None,
) -> Path:
    """Write ``<output_dir>/sub-<participant>.html``; the same bytes for the same arguments and figures.

    Parameters
    ----------
    participant
        Label without ``sub-``.
    records
        In the order they are shown.
    methods_text
        Markdown, see `mmh_bids.reports.boilerplate`.
    errors
        One message each. Lines after the first (a traceback) are folded away.
    version, command
        Of this package, and the command line as typed.
    sloppy
        Stamps the page.
    software
        Versions by name for the provenance summary.

    Returns
    -------
    The path of the page.
    """
    images = [_view(record, output_dir) for record in records]
    return write_page(
        output_dir / f"sub-{participant}.html",
        "participant.html.j2",
        participant=participant,
        verdict=verdict(records),
        images=images,
        calls=[(CALLS[word], found) for word in CALLS if (found := [each for each in images if each["mark"] == word])],
        signs=SIGNS,
        methods_text=methods_text.strip(),
        errors=[_message(error) for error in errors],
        version=version,
        command=command,
        sloppy=sloppy,
        software=dict(software or {}),
    )


def verdict(records: Sequence[ImageRecord]) -> str:
    """Did it work, and for how many not: one sentence.

    >>> verdict([ImageRecord("a", "T1w"), ImageRecord("b", "T2w", status="failed"),
    ...          ImageRecord("c", "T1w", qc={"GridCoverage": 0.97})])
    '2 of 3 images were harmonized; 1 of them needs a look; 1 failed.'
    >>> verdict([ImageRecord("a", "T1w")]), verdict([])
    ('The image was harmonized and nothing stands out.', 'No image was found.')
    >>> verdict([ImageRecord("a", "T1w", qc={"Finite": False})])
    'The image was harmonized; it has a quality value beyond use.'
    """
    if not records:
        return "No image was found."
    done = [record for record in records if record.status == "done"]
    marks = [mark(record) for record in done]
    look, bad = marks.count("look"), marks.count("unusable")
    if len(done) == len(records) == 1:
        parts = ["The image was harmonized"]
    elif len(done) == len(records):
        parts = [f"All {len(records)} images were harmonized"]
    else:
        parts = [f"{len(done)} of {len(records)} image{'s' * (len(records) > 1)} were harmonized"]
    if len(done) == len(records) and not look + bad:
        return f"{parts[0]} and nothing stands out."
    if look:
        needs = "needs a look" if look == 1 else "need a look"
        parts.append(f"it {needs}" if len(records) == 1 else f"{look} of them {needs}")
    if bad:
        beyond = "has a quality value" if bad == 1 else "have quality values"
        parts.append(f"{'it' if len(records) == 1 else f'{bad} of them'} {beyond} beyond use")
    counts = Counter(record.status for record in records)
    parts += [f"{counts[word]} {word}" for word in ("excluded", "failed", "skipped") if counts[word]]
    return "; ".join(parts) + "."


def mark(record: ImageRecord) -> str:
    """One word for an image: its status, or for one that is done the worst of its quality values.

    >>> mark(ImageRecord("a", "T1w", qc={"GridCoverage": 0.97})), mark(ImageRecord("a", "T1w", qc={"Finite": False}))
    ('look', 'unusable')
    """
    if record.status != "done":
        return record.status
    found = flags(record.qc)
    return "unusable" if any(flag.unusable for flag in found) else "look" if found else "done"


def _view(record: ImageRecord, output_dir: Path) -> dict[str, Any]:
    """All the template needs to know about one image."""
    marked = flags(record.qc) if record.harmonization or record.status == "done" else []
    return {
        "id": record.key,
        "record": record,
        "mark": mark(record),
        "word": _word(record, marked),
        "flags": [(label(flag.key), flag) for flag in marked],
        "facts": _facts(record),
        "warnings": _warnings(record.harmonization),
        "qc": _table(record, marked),
        "figures": sorted((_figure(output_dir, path) for path in record.figures), key=_place),
        "outputs": [_link(output_dir, output) for output in record.outputs],
    }


def _word(record: ImageRecord, marked: Sequence[Flag]) -> str:
    if record.status != "done":
        return record.status
    if not marked:
        return "done"
    beyond = sum(flag.unusable for flag in marked)
    if beyond:
        return f"done, {beyond} value{'s' * (beyond > 1)} beyond use"
    return f"done, {len(marked)} value{'s' * (len(marked) > 1)} to look at"


def _table(record: ImageRecord, marked: Sequence[Flag]) -> list[dict[str, Any]]:
    keys = {flag.key: flag for flag in marked}
    return [
        {
            "label": label(key),
            "value": show(key, record.qc[key]),
            "limit": limit(key),
            "usable": usable(key),
            "verdict": _verdict(keys.get(key), bool(limit(key)) and record.qc[key] is not None),
        }
        for key in ordered(record.qc)
        if not isinstance(record.qc[key], Mapping | list | tuple)
    ]


def _verdict(flag: Flag | None, judged: bool) -> str:
    """A key of SIGNS for one quality value; empty for a value that nothing is expected of."""
    if flag is None:
        return "done" if judged else ""
    return "unusable" if flag.unusable else "look"


def _facts(record: ImageRecord) -> list[tuple[str, str]]:
    """What was done, as pairs of a word and its value; what is not known is left out."""
    done = record.harmonization
    digest = str(done.get("ModelSHA256") or "")
    model = done.get("Model")
    brain, registration, details = (done.get(name) or {} for name in ("BrainExtraction", "Registration", "Details"))
    stage = details.get("Stage")
    pairs = [
        ("Method", done.get("Method")),
        ("Model bundle", f"{model} (sha256 {digest[:12]}\u2026)" if model and digest else model),
        ("Target", done.get("Target")),
        ("Stage", _STAGES.get(stage, stage)),
        ("Sampler", ", ".join(str(part) for part in (details.get("Sampler"), _steps(details.get("Steps"))) if part)),
        ("Site", record.site or "not known"),
        ("Site taken from", record.site_source),
        ("Session", record.session),
        ("Brain mask", brain.get("Method")),
        ("Bias correction", done.get("BiasCorrection")),
        ("Registration", registration.get("Method")),
        ("Outside the brain", {"strip": "set to zero", "keep": "kept"}.get(str(done.get("Skull")))),
        ("Overlap with the template's brain (Dice)", registration.get("Dice")),
        ("Random seed", done.get("Seed")),
        ("Device", done.get("Device")),
    ]
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]


def _steps(steps: Any) -> str:
    return f"{steps} steps" if isinstance(steps, int) and steps > 1 else ""


def _warnings(done: Mapping[str, Any]) -> list[str]:
    details = done.get("Details")
    found = list(done.get("Warnings") or ())
    if isinstance(details, Mapping):
        found += list(details.get("Warnings") or details.get("warnings") or ())
    return [str(warning) for warning in found]


def _message(error: str) -> tuple[str, str]:
    """First line and the rest."""
    first, _, rest = error.strip().partition("\n")
    return first, rest


def _link(output_dir: Path, path: Path) -> tuple[str, str]:
    """Text and address of a file, relative to the page; no address for a file outside the output folder."""
    if not path.is_absolute():
        return path.as_posix(), quote(path.as_posix())
    if path.is_relative_to(output_dir):
        relative = path.relative_to(output_dir).as_posix()
        return relative, quote(relative)
    return path.name, ""


def _figure(output_dir: Path, path: Path) -> dict[str, Any]:
    """Heading, caption and content of a figure; a missing file becomes a sentence."""
    parts = path.stem.split("_desc-")
    kind = parts[-1].split("_")[0] if len(parts) > 1 else path.stem
    text, address = _link(output_dir, path)
    view: dict[str, Any] = {
        "kind": kind,
        "title": TITLES.get(kind, kind),
        "caption": CAPTIONS.get(kind, ""),
        "name": text,
        "href": address,
        "inline": None,
        "uri": None,
    }
    try:
        content = (output_dir / path).read_text(encoding="utf-8")
    except OSError:
        return view
    if kind == "beforeafter" and is_harmless_svg(content):
        view["inline"] = Markup(content)  # noqa: S704 - is_harmless_svg has just looked at it
    else:
        view["uri"] = "data:image/svg+xml," + quote(content, safe="/:;=,+ ()")
    return view


def _place(figure: Mapping[str, Any]) -> tuple[int, str]:
    """Figures follow the order of the work, whatever the order of their names; unknown ones come last."""
    known = list(TITLES)
    kind = figure["kind"]
    return (known.index(kind) if kind in known else len(known), figure["name"])


def is_harmless_svg(text: str) -> bool:
    """True if an SVG holds only shapes, words and embedded pictures, so that it can stand in a page.

    >>> start = '<svg xmlns="http://www.w3.org/2000/svg">'
    >>> is_harmless_svg(start + '<image href="data:image/jpeg;base64,AA"/></svg>')
    True
    >>> is_harmless_svg(start + "<script>1</script></svg>"), is_harmless_svg("<svg")
    (False, False)
    >>> is_harmless_svg(start + '<g onload="x()"/></svg>')
    False
    >>> is_harmless_svg(start + '<image href="http://elsewhere/a.png"/></svg>')
    False
    """
    if "<!" in text or not text.startswith("<svg"):
        return False
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return False
    for element in root.iter():
        if not isinstance(element.tag, str) or element.tag.removeprefix(_SVG) not in _HARMLESS:
            return False
        for name, value in element.attrib.items():
            word = name.rpartition("}")[2].lower()
            if word.startswith("on") or word == "style" or "url(" in value:
                return False
            if word == "href" and not value.startswith("data:image/jpeg;base64,"):
                return False
    return True
