"""``--bids-mirror``: one participant of the raw dataset once more, with harmonized whole heads under the raw names.

What is in the mirror follows from two folders alone, the raw dataset and the output folder, never from who made it: a
T1w or T2w image is the harmonized one if the output folder has it, whole head, made from the raw file as it is now.
Every other file is the raw one. So calls can be repeated, stopped, and split over jobs in any way.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmh_bids import __version__
from mmh_bids.bids.dataset import dataset_lock
from mmh_bids.bids.derivatives import OutputPaths, bids_uri, harmonization_on_disk, write_json
from mmh_bids.bids.names import IMAGE_EXTENSIONS, split_name
from mmh_bids.bids.run import Run
from mmh_bids.bids.sidecars import SidecarIndex
from mmh_bids.bids.tsv import present
from mmh_bids.files import place, sha256_file, unpack
from mmh_bids.settings import Settings

#: Small and edited by people in the place where they find them: always copies, so that no edit reaches the raw data.
TEXT = ("", ".json", ".tsv", ".txt", ".md", ".rst", ".cff", ".bval", ".bvec")
#: What the mirror's sidecars repeat of the ``Harmonization`` object; the rest is in the derivative's.
_FACTS = (
    "Method", "Model", "ModelSHA256", "Target", "Seed", "Skull", "BiasCorrection", "Sloppy", "Site", "SiteSource",
    "SourceSHA256", "Fingerprint",
)  # fmt: skip
#: How long (s) a job waits for another that mirrors the same participant, whose fMRI may be copied.
_LOCK_SECONDS = 4 * 3600


@dataclass
class Mirrored:
    """What became of one participant's files.

    Attributes
    ----------
    images
        T1w and T2w images by their path in the dataset: why the raw one is in the mirror, or an empty text.
    missing
        Files of the raw dataset whose content is not there (links that lead nowhere).
    counts
        How many files were ``linked``, ``copied`` or ``there``.
    """

    images: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def mirror_participant(settings: Settings, participant: str, rows: Mapping[str, Mapping[str, str]]) -> Mirrored:
    """Bring the participant's folder in the mirror to what raw dataset and output folder say; jobs do so in turn.

    Parameters
    ----------
    participant
        Label without ``sub-``.
    rows
        Of ``logs/images.tsv``, by image.

    Raises
    ------
    OSError
        The mirror cannot be written to.
    """
    done, name = Mirrored(), f"sub-{participant}"
    with dataset_lock(settings.output_dir, f"mirror-{name}", _LOCK_SECONDS):
        for leftover in (_mirror(settings) / name).rglob(".tmp-*"):  # of a job that was killed
            leftover.unlink(missing_ok=True)
        files = list(files_below(settings.bids_dir / name))
        sidecars = {}
        for path in files:
            relative = path.relative_to(settings.bids_dir).as_posix()
            if not path.exists():
                done.missing.append(relative)
            elif run := _t1w_or_t2w(path, relative):
                reason = why_original(settings, run, rows.get(relative))
                done.images[relative] = reason
                if reason:
                    done.counts[_place(settings, path)] += 1
                else:
                    done.counts[_place_harmonized(settings, run)] += 1
                    sidecars[path.with_name(f"{run.key}.json")] = run
        for path in files:
            relative = path.relative_to(settings.bids_dir).as_posix()
            if relative not in done.images and relative not in done.missing and path not in sidecars:
                done.counts[_place(settings, path)] += 1
        for path, run in sidecars.items():
            write_json(_mirror(settings) / path.relative_to(settings.bids_dir), sidecar_of(settings, run))
    return done


def files_below(folder: Path) -> Iterator[Path]:
    """All files below `folder` that are not hidden, by name; folders that are links count, too."""
    seen: set[str] = set()

    def walk(place: Path) -> Iterator[Path]:
        if os.path.realpath(place) in seen:  # a link that leads back
            return
        seen.add(os.path.realpath(place))
        for path in sorted(place.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from walk(path)
            else:
                yield path

    if folder.is_dir():
        yield from walk(folder)


def why_original(settings: Settings, run: Run, row: Mapping[str, str] | None) -> str:
    """Why the mirror must hold the raw image; empty where there is a harmonized whole head that belongs to it.

    Parameters
    ----------
    row
        The image's row of ``logs/images.tsv``, if it has one.
    """
    if row is not None and row["status"] != "done":
        return f"{row['status']}: {present(row['message']) or 'see the log'}"
    paths = OutputPaths(settings.output_dir, run)
    facts = harmonization_on_disk(paths) if paths.harmonized().is_file() else {}
    if not facts:
        return "no call harmonized it (--participant-label, --session-label, --modalities or --bids-filter-file)"
    if not _has_what_the_raw_has(facts):
        return "harmonized without its skull; run mmh with --bids-mirror on it"
    if facts.get("SourceSHA256") != sha256_file(run.path):
        return "changed since it was harmonized; run mmh again"
    return ""


def _has_what_the_raw_has(facts: Mapping[str, Any]) -> bool:
    return facts.get("Skull") == "keep" or bool(facts.get("BrainExtraction", {}).get("InputSkullStripped"))


def sidecar_of(settings: Settings, run: Run) -> dict[str, Any]:
    """What the raw sidecars in the image's own folder say, and what was done; higher ones are inherited as before."""
    folder = run.path.parent
    own = SidecarIndex(folder, sorted(folder.glob("*.json"))).metadata(run.path)
    paths = OutputPaths(settings.output_dir, run)
    facts = harmonization_on_disk(paths)
    links = links_of(settings)
    done = {name: facts[name] for name in _FACTS if name in facts}
    return own | {
        "SkullStripped": bool(facts.get("BrainExtraction", {}).get("InputSkullStripped")),
        "Sources": [bids_uri(run.path, _mirror(settings), links)],
        "GeneratedBy": [{"Name": "mmh", "Version": __version__, "Description": "T1w and T2w images harmonized"}],
        "Harmonization": done | {"Derivative": bids_uri(paths.harmonized(), _mirror(settings), links)},
    }


def links_of(settings: Settings) -> dict[str, Path]:
    """The datasets that the mirror's ``Sources`` point into."""
    return {"mmh": settings.output_dir, "unharmonized": settings.bids_dir}


def _mirror(settings: Settings) -> Path:
    assert settings.bids_mirror is not None
    return settings.bids_mirror


def _t1w_or_t2w(path: Path, relative: str) -> Run | None:
    """The image as a `Run`; None for any other file, and for one that its folder contradicts."""
    if path.parent.name != "anat" or not path.name.endswith(IMAGE_EXTENSIONS):
        return None
    try:
        entities, suffix, _ = split_name(path.name)
    except ValueError:
        return None
    run = Run(path, suffix, entities)
    if suffix not in ("T1w", "T2w") or "sub" not in entities:
        return None
    folder = OutputPaths(Path(), run).anat.as_posix()
    return run if Path(relative).parent.as_posix() == folder else None


def place_text_or_data(source: Path, target: Path, how: str) -> str:
    """`place`, but text is copied whatever is asked for."""
    return place(source, target, "copy" if source.suffix in TEXT else how)


def _place(settings: Settings, path: Path) -> str:
    target = _mirror(settings) / path.relative_to(settings.bids_dir)
    return place_text_or_data(path, target, settings.bids_mirror_files)


def _place_harmonized(settings: Settings, run: Run) -> str:
    harmonized = OutputPaths(settings.output_dir, run).harmonized()
    target = _mirror(settings) / run.path.relative_to(settings.bids_dir)
    if target.name.endswith(".gz"):
        return place(harmonized, target, settings.bids_mirror_files)
    return unpack(harmonized, target)
