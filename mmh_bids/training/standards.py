"""Learn the standards of the classical methods from preprocessed images, and write them as a model bundle."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmh_bids import __version__
from mmh_bids.errors import ImageError, NothingToDoError, UsageError
from mmh_bids.harmonizers.standard import NYUL_PERCENTILES, STANDARDS_FILE, Standard
from mmh_bids.image.grid import MODEL_AFFINE, MODEL_SHAPE, TEMPLATE_SPACE
from mmh_bids.models.bundle import Bundle, card_head, target_order, write_bundle

METHODS = ("nyul", "zscore", "whitestripe", "histmatch")
OUTPUT_MAX = 1000
_PATTERN = f"*_space-{TEMPLATE_SPACE}_desc-model_T[12]w.nii.gz"


@dataclass(frozen=True)
class Sample:
    """A training image on the model grid.

    Attributes
    ----------
    path
        Image: brain only, [0, 1], zero outside the brain.
    sequence
        ``"T1w"`` or ``"T2w"``.
    site
        Site label, None where the sidecar tells none.
    """

    path: Path
    sequence: str
    site: str | None


def find_samples(folders: Iterable[Path]) -> list[Sample]:
    """Find the model-grid images that ``mmh --method none`` wrote, sorted by path.

    Raises
    ------
    UsageError
        A folder is none, or a sidecar is not valid JSON.
    NothingToDoError
        There is no such image.
    """
    folders = list(folders)
    found: dict[Path, Sample] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder; give output folders of mmh")
        for path in folder.rglob(_PATTERN):
            sequence = path.name.removesuffix(".nii.gz")[-3:]
            found[path.resolve()] = Sample(path, sequence, _site(path))
    if not found:
        raise NothingToDoError(
            f"{', '.join(map(str, folders))}: no *_desc-model_T1w or T2w images; make them with mmh --method none"
        )
    return [found[path] for path in sorted(found)]


def _site(path: Path) -> str | None:
    sidecar = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
    if not sidecar.is_file():
        return None
    try:
        site = json.loads(sidecar.read_text(encoding="utf-8")).get("Harmonization", {}).get("Site")
    except (ValueError, AttributeError):
        raise UsageError(f"{sidecar}: not a valid JSON sidecar; run mmh on the image again") from None
    return str(site) if site else None


def measure(sample: Sample) -> Standard:
    """Measure one image; its brain is where it is above zero. ImageError names the file."""
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        data = nib.Nifti1Image.from_filename(sample.path).get_fdata(dtype=np.float32)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise ImageError(f"{sample.path}: cannot be read ({error}); make it again with mmh --method none") from None
    if data.ndim != 3 or data.min() < 0 or data.max() > 1.5:
        raise ImageError(f"{sample.path}: no model-grid image in [0, 1]; make it again with mmh --method none")
    try:
        return Standard.measure(data, data > 0, sample.sequence)
    except ImageError as error:
        raise ImageError(f"{sample.path}: {error}") from None


def learn(measured: Mapping[Sample, Standard]) -> dict[str, dict[str, Standard]]:
    """Average the images' standards: sequence -> target -> standard.

    In ``unified`` every site weighs the same, however many images it has; images of no known site count as
    one site together. Within a site every image weighs the same.
    """
    sites: dict[str, dict[str | None, list[Standard]]] = defaultdict(lambda: defaultdict(list))
    for sample, standard in measured.items():
        sites[sample.sequence][sample.site].append(standard)
    learned: dict[str, dict[str, Standard]] = {}
    for sequence in sorted(sites):
        means = {site: Standard.average(images) for site, images in sites[sequence].items()}
        targets = {"unified": Standard.average(list(means.values()))}
        targets |= {f"site:{site}": mean for site, mean in means.items() if site is not None}
        learned[sequence] = dict(sorted(targets.items(), key=lambda item: target_order(item[0])))
    return learned


def train_standards(
    folders: Iterable[Path],
    output: Path,
    name: str,
    overwrite: bool = False,
    tell: Callable[[str], None] = print,
    site_targets: Iterable[str] | None = None,
    source: str = "",
) -> Bundle:
    """Learn from the images under `folders` and write the bundle `name` to the folder `output`.

    Parameters
    ----------
    site_targets
        Sites to keep as targets; all of them count for ``unified`` all the same. None keeps every site.
    source
        Where the images come from, for the card.
    tell
        Called with one line of progress an image.

    Raises
    ------
    MmhError
        No image found, an unreadable one, or `output` cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"--name {name}: use letters, digits, dots, hyphens and underscores only")
    measured: dict[Sample, Standard] = {}
    samples = find_samples(folders)
    for number, sample in enumerate(samples, 1):
        measured[sample] = measure(sample)
        tell(f"{number}/{len(samples)} {sample.path.name} (site {sample.site or 'unknown'})")
    learned = learn(measured)
    if site_targets is not None:
        learned = keep_sites(learned, list(site_targets))
    data = "Images preprocessed by mmh: " + ", ".join(
        f"{sum(one.sequence == sequence for one in measured)} {sequence}" for sequence in learned
    )
    return write_standards(output, name, learned, measured, f"{data}. {source}".strip(), overwrite=overwrite)


def keep_sites(learned: Mapping[str, Mapping[str, Standard]], sites: Sequence[str]) -> dict[str, dict[str, Standard]]:
    """Drop the targets of all other sites; UsageError for a site that no image comes from."""
    known = {target.removeprefix("site:") for targets in learned.values() for target in targets if target != "unified"}
    unknown = sorted(set(sites) - known)
    if unknown:
        raise UsageError(
            f"--site-targets {' '.join(unknown)}: no image of such a site; there are {', '.join(sorted(known))}"
        )
    kept = {"unified", *(f"site:{site}" for site in sites)}
    return {
        sequence: {target: standard for target, standard in targets.items() if target in kept}
        for sequence, targets in learned.items()
    }


def write_standards(
    output: Path,
    name: str,
    learned: Mapping[str, Mapping[str, Standard]],
    measured: Mapping[Sample, Standard],
    data: str,
    provisional: bool = False,
    overwrite: bool = False,
) -> Bundle:
    """Write learned standards as a bundle for the classical methods; `data` says what they come from."""
    note = "PROVISIONAL: for trying the app out, not for studies. " if provisional else ""
    text = note + "Standards of the classical methods: z-score, WhiteStripe, Nyul, histogram matching."
    papers = [
        "Nyul LG, Udupa JK. On standardizing the MR image intensity scale. Magn Reson Med 1999.",
        "Nyul LG et al. New variants of a method of MRI scale standardization. IEEE TMI 2000.",
        "Shinohara RT et al. Statistical normalization techniques for MRI. NeuroImage Clin 2014.",
        "Reinhold JC et al. Evaluating the impact of intensity normalization on MR image synthesis. Proc SPIE 2019.",
    ]
    card = card_head(name, text, data, papers) | {
        "provisional": provisional,
        "methods": list(METHODS),
        "grid": {"shape": list(MODEL_SHAPE), "affine": MODEL_AFFINE.tolist()},
        "output_max": OUTPUT_MAX,
        "targets": sorted({target for targets in learned.values() for target in targets}, key=target_order),
        "sequences": {
            sequence: {"targets": {target: _facts(one, sequence, target, measured) for target, one in targets.items()}}
            for sequence, targets in learned.items()
        },
        "training": {"data": data, "recipe": _recipe()},
        "metrics": {},
    }
    arrays: dict[str, np.ndarray] = {}
    for sequence, targets in learned.items():
        for target, standard in targets.items():
            arrays |= standard.arrays(f"{sequence}/{target}")
    return write_bundle(output, card, {STANDARDS_FILE: arrays}, overwrite=overwrite)


def _facts(standard: Standard, sequence: str, target: str, measured: Mapping[Sample, Standard]) -> dict[str, Any]:
    """What the card says of one target, rounded to 6 digits; the methods read the arrays."""
    used = [one for one in measured if one.sequence == sequence and target in ("unified", f"site:{one.site}")]
    return {
        "images": len(used),
        "sites": len({one.site for one in used}),
        "zscore": _short(standard.zscore),
        "whitestripe": _short(standard.whitestripe),
        "nyul": _short(standard.nyul),
        "quantiles": _short(standard.quantiles),
    }


def _short(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _recipe() -> dict[str, Any]:
    return {
        "command": "mmh-train standards",
        "mmh_version": __version__,
        "weighting": "images equal within a site, sites equal in unified",
        "scale": "0 = no signal, 1 = 99.9th percentile of the brain, bias field corrected",
        "nyul_percentiles": list(NYUL_PERCENTILES),
        "quantiles": "256 at (i + 0.5) / 256",
        "histogram": "100 bins over [0, 1]",
    }
