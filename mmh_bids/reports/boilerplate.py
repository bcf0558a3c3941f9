"""The methods paragraph and the references of what ran, to paste into a paper."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from mmh_bids.files import atomic_write

_ACCENTS = {"'": "\u0301", '"': "\u0308", "~": "\u0303", "`": "\u0300", "^": "\u0302"}


@dataclass(frozen=True)
class MethodsFacts:
    """What ran, as far as the methods text tells it.

    Attributes
    ----------
    method, bundle, bundle_sha256, target
        Name of the harmonization method, of the model bundle with its hash, and the target as asked for.
    sequences
        ``"T1w"``, ``"T2w"`` or both.
    versions
        Versions by distribution name, as `mmh_bids.bids.provenance.software_versions` gives them.
    brain_extraction
        ``"deepbet"``; ``"derivatives"`` (masks of another pipeline); ``"input"`` (images came without
        skull). Several where images differ.
    bias_correction
        ``"n4"`` or ``"none"``.
    registration
        ``"affine"`` (to the template), ``"derivatives"``, or ``"none"``.
    shared_transforms
        T2w images took mask and transform of the same person's T1w image where that measured better.
    skull
        ``"strip"`` or ``"keep"``.
    sloppy
        Made with --sloppy: not for science.
    """

    method: str
    bundle: str
    target: str = "unified"
    sequences: tuple[str, ...] = ("T1w", "T2w")
    bundle_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    brain_extraction: tuple[str, ...] = ("deepbet",)
    bias_correction: str = "n4"
    registration: str = "affine"
    shared_transforms: bool = False
    skull: str = "strip"
    sloppy: bool = False


#: One sentence a method, with its citation keys; `{package}` is the package that does it, with its version.
METHODS = {
    "none": "No harmonization was applied: the outputs are the preprocessed inputs (a control).",
    "zscore": (
        "Intensities were shifted and scaled to a common mean and standard deviation inside the brain mask "
        "with {intensity-normalization} [@reinhold2019]."
    ),
    "whitestripe": (
        "Intensities were scaled by the mode and the spread of normal-appearing white matter (WhiteStripe "
        "[@whitestripe]) with {intensity-normalization} [@reinhold2019]."
    ),
    "nyul": (
        "Intensities were mapped piecewise linearly so that percentiles inside the brain mask meet the "
        "landmarks of a standard scale (Nyul and Udupa [@nyul1999; @nyul2000]) with "
        "{intensity-normalization} [@reinhold2019]."
    ),
    "histmatch": (
        "The histogram inside the brain mask was matched to that of the reference with {SimpleITK} [@simpleitk]."
    ),
    "mmh-light": (
        "Images were brought to one unified look per sequence by a small convolutional network that "
        "is conditioned on image gradients and whole-brain statistics (MMH-light, after MMH [@mmh]): intensity curves "
        "whose coefficients vary smoothly over the brain (a bilateral grid [@bilateralgrid]) plus locally weighted "
        "second differences and a small change at full resolution, trained on travelling subjects simulated with MR "
        "signal equations. Before and after it, the field by which grey and white matter still differed "
        "over the brain was estimated together with tissue classes [@wells1996] and taken off; what a second pass "
        "changed in the network's own output was taken back; and at last one curve brought grey and white matter to "
        "the levels of the unified look, and fluid to or near its own. Field and levels were found by "
        "Gaussian mixtures with the template's tissue maps as priors [@unifiedsegmentation] and classes for partial "
        "volume [@shattuck2001]."
    ),
    "mmh-diffusion": "Images were harmonized with a diffusion model guided by style-free image gradients (MMH [@mmh]).",
}

_STATISTICS = (
    "From the unified look they were shifted and scaled to the mean and standard deviation of the reference's brain."
)
#: What follows for a target other than the unified look: method, kind of target.
_SECOND = {
    ("mmh-light", "site"): (
        "From there, curves of intensity learned from images of the target site, one common to the whole brain and "
        "others varying smoothly over it, gave them the site's look."
    ),
    ("mmh-diffusion", "site"): (
        "From the unified look they were shifted and scaled to the mean and standard deviation of the target site's "
        "brains, inverted to noise, denoised with a network fine-tuned to the site, and shifted and scaled again."
    ),
    ("mmh-light", "image"): _STATISTICS,
    ("mmh-diffusion", "image"): _STATISTICS,
}


def methods_text(facts: MethodsFacts) -> str:
    """The methods paragraph as Markdown with pandoc citation keys.

    >>> facts = MethodsFacts("nyul", "classic", sequences=("T1w",), versions={"mmh_bids": "0.1.0"})
    >>> text = methods_text(facts)
    >>> text.startswith("T1-weighted images were harmonized across scanners with *mmh_bids* 0.1.0")
    True
    """
    sentences = [_opening(facts), *_preprocessing(facts), _harmonization(facts), _return(facts)]
    if facts.sloppy:
        sentences.append("**The run used `--sloppy`: these results are for testing only.**")
    return " ".join(sentence for sentence in sentences if sentence) + "\n"


def _package(facts: MethodsFacts, name: str) -> str:
    """Name and, where it is known, version.

    >>> _package(MethodsFacts("nyul", "classic", versions={"SimpleITK": "2.5.7"}), "SimpleITK")
    '*SimpleITK* 2.5.7'
    """
    return f"*{name}* {facts.versions.get(name, '')}".strip()


def _opening(facts: MethodsFacts) -> str:
    names = "- and ".join(f"T{name[1]}" for name in sorted(facts.sequences))
    ours, engine = _package(facts, "mmh_bids"), _package(facts, "nipype")
    return (
        f"{names}-weighted images were harmonized across scanners with {ours}, a BIDS App [@bids] built on "
        f"{engine} [@nipype] and *PyBIDS* [@pybids]."
    )


def _preprocessing(facts: MethodsFacts) -> list[str]:
    ways = {
        "deepbet": f"computed with {_package(facts, 'deepbet')} [@deepbet]",
        "derivatives": "taken from existing derivatives",
        "input": "read off the background of images that came without a skull",
    }
    found = [text for way, text in ways.items() if way in facts.brain_extraction]
    sentences = [f"Brain masks were {' or '.join(found)}."] if found else []
    if facts.bias_correction == "n4":
        package = _package(facts, "SimpleITK")
        sentences.append(
            f"Intensity non-uniformity was corrected inside the mask with N4 [@n4] in {package} [@simpleitk]."
        )
    if facts.registration == "affine":
        sentences.append(
            "Each brain was registered to the symmetric ICBM152 2009a template [@icbm152_2009; "
            "@icbm152_2011], as packaged with *nilearn* [@nilearn], by an affine transform that maximises "
            "mutual information [@mattes]."
        )
    elif facts.registration == "derivatives":
        sentences.append("Transforms to template space were taken from existing derivatives.")
    if facts.shared_transforms:
        sentences.append(
            "T2-weighted images took the mask and the transform of the same person's T1-weighted image "
            "through a rigid registration where that measured better than going alone."
        )
    return sentences


def _harmonization(facts: MethodsFacts) -> str:
    fallback = f"Images were harmonized with the method *{facts.method}*."
    sentence = METHODS.get(facts.method, fallback)
    for name in ("intensity-normalization", "SimpleITK"):
        sentence = sentence.replace(f"{{{name}}}", _package(facts, name))
    if facts.method == "none":
        return sentence
    digest = f", sha256 {facts.bundle_sha256[:12]}" if facts.bundle_sha256 else ""
    kind, _, name = facts.target.partition(":")
    if kind == "site":
        target = f"the site *{name}*"
    elif kind == "image":
        target = f"the reference image *{Path(name).name}*"
    else:
        target = f"the {kind} reference of the bundle"
    sentence = " ".join(filter(None, (sentence, _SECOND.get((facts.method, kind)))))
    return f"{sentence} The target was {target} (model bundle *{facts.bundle}*{digest})."


def _return(facts: MethodsFacts) -> str:
    if facts.method == "none":
        return ""
    outside = "set to zero" if facts.skull == "strip" else "changed by the intensity map alone"
    return (
        "The change was carried back to each image's own grid. Where one monotone intensity map explained it, the map "
        "was applied to the image itself and only the rest interpolated; else the harmonized image was interpolated "
        "from the model grid, and detail finer than that grid was put back from the image itself, scaled by the share "
        f"to which the harmonizer kept fine detail nearby. Voxels outside the brain were {outside}."
    )


def citations(facts: MethodsFacts) -> dict[str, str]:
    """BibTeX entries by key of all that the methods text cites, in the order of their first mention."""
    entries = bibliography()
    # A site may be called "a@b": only what the bibliography knows is a citation.
    keys = re.findall(r"[\[ ]@(\w+)", methods_text(facts))
    return {key: entries[key] for key in dict.fromkeys(keys) if key in entries}


def bibliography() -> dict[str, str]:
    """All entries of ``data/boilerplate.bib`` by key."""
    text = (files("mmh_bids.data") / "boilerplate.bib").read_text(encoding="utf-8")
    entries = {}
    for block in re.split(r"\n(?=@)", text):
        match = re.match(r"@\w+\{(\w+),", block)
        if match:
            entries[match.group(1)] = block.strip()
    return entries


def reference(entry: str) -> str:
    """One line of plain text for a BibTeX entry of ours (one field a line).

    >>> reference(bibliography()["mattes"])
    'Mattes D, Haynor DR, Vesselle H, Lewellen TK, Eubank W (2003). PET-CT image registration in ...
    doi:10.1109/...'
    >>> reference(bibliography()["mmh"])[-18:]
    ' arXiv:2601.08193.'
    """
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
    plain = {name: _plain(value) for name, value in fields.items()}
    place = plain.get("journal") or plain.get("booktitle", "")
    for mark, name in ((" ", "volume"), (":", "pages")):
        if name in plain:
            place += mark + plain[name].replace("--", "\u2013")
    authors = ", ".join(_short_name(name) for name in plain["author"].split(" and "))
    doi = f" doi:{plain['doi']}" if "doi" in plain else ""
    return f"{authors} ({plain['year']}). {plain['title']}. {place}.{doi}"


def _plain(value: str) -> str:
    accented = re.sub(r"\{\\(['\"~`^])(\w)\}", lambda match: match.group(2) + _ACCENTS[match.group(1)], value)
    return unicodedata.normalize("NFC", accented.replace("{", "").replace("}", ""))


def _short_name(name: str) -> str:
    """``Wu, Mengqi`` as ``Wu M``; ``others`` as ``et al.``.

    >>> _short_name("Collins, D. Louis"), _short_name("Yap, Pew-Thian"), _short_name("others")
    ('Collins DL', 'Yap PT', 'et al.')
    """
    if name == "others":
        return "et al."
    last, _, first = name.partition(", ")
    return f"{last} {''.join(part[0] for part in re.split(r'[ -]', first) if part)}".strip()


def write_citations(logs_dir: Path, facts: MethodsFacts) -> tuple[Path, Path]:
    """Write ``CITATION.md`` (the text and the references) and ``CITATION.bib``; return both paths."""
    entries = citations(facts)
    lines = ["# Methods", "", methods_text(facts), "# References", ""]
    lines += [f"- [@{key}] {reference(entry)}" for key, entry in entries.items()]
    return (
        atomic_write(logs_dir / "CITATION.md", "\n".join(lines) + "\n"),
        atomic_write(logs_dir / "CITATION.bib", "\n\n".join(entries.values()) + "\n"),
    )
