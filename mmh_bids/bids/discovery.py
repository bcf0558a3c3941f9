"""From a BIDS dataset and the settings to the list of images, each with what is to be done with it."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from mmh_bids.bids.layout import find_images, find_sidecars, needs_metadata, open_layout, read_filters
from mmh_bids.bids.names import natural_key, nearest, split_name, strip_prefix
from mmh_bids.bids.run import Action, Run
from mmh_bids.bids.sidecars import SidecarIndex
from mmh_bids.bids.sites import assign_sites
from mmh_bids.errors import ImageError, NothingToDoError, UsageError
from mmh_bids.image.headers import entity_skip_reason, examine
from mmh_bids.settings import Settings

logger = logging.getLogger(__name__)

SMALLEST_DESCRIPTION = '{"Name": "My study", "BIDSVersion": "1.10.0"}'


def discover(settings: Settings) -> list[Run]:
    """Find the T1w and T2w images that `settings` select and decide about each.

    Only the folders of the asked participants (and sessions) are listed. Sites are assigned.

    Returns
    -------
    list of Run
        By participant, session, name, T1w before T2w. Images that cannot or need not be used are in it, too,
        with action ``fail`` or ``skip`` and a reason.

    Raises
    ------
    UsageError
        Dataset, labels, filter file, database folder or tables cannot be used.
    NothingToDoError
        No T1w or T2w image fits the selection.
    """
    root = settings.bids_dir.absolute()
    check_dataset(root)
    filters = read_filters(settings.bids_filter_file)
    participants = _participants(root, settings.participant_label)
    sessions = frozenset(strip_prefix(label, "ses-") for label in settings.session_label) or None
    _check_folders(root, participants, sessions)

    asked = frozenset(participants) if settings.participant_label else None
    layout = open_layout(root, asked, sessions, settings.bids_database_dir, needs_metadata(filters))
    found = [
        (path, sequence)
        for sequence in settings.modalities
        for path in find_images(layout, sequence, filters.get(sequence, {}))
        if _is_selected(path, root, asked, sessions)
    ]
    if not found:
        raise NothingToDoError(_nothing(settings, root))
    sidecars = SidecarIndex(root, find_sidecars(layout, settings.modalities))
    runs = _without_duplicates([_run(path, sequence, root, sidecars) for path, sequence in found])
    for label in settings.participant_label:
        if not any(run.participant == strip_prefix(label, "sub-") for run in runs):
            logger.warning("sub-%s: no %s image found", strip_prefix(label, "sub-"), " or ".join(settings.modalities))
    runs.sort(key=image_order)
    return assign_sites(runs, settings, root)


def check_dataset(root: Path) -> None:
    """Raise UsageError unless `root` is a readable folder with a valid ``dataset_description.json``."""
    if not root.exists():
        raise UsageError(f"{root}: does not exist; give the folder of a BIDS dataset as the first argument")
    if not root.is_dir():
        raise UsageError(f"{root}: is not a directory; give the folder of a BIDS dataset as the first argument")
    path = root / "dataset_description.json"
    advice = f"the smallest valid one is {SMALLEST_DESCRIPTION}"
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"{root}: no dataset_description.json, so no BIDS dataset; {advice}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give read permission") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{path}: not valid JSON ({error}); {advice}") from None
    if not isinstance(description, dict):
        raise UsageError(f"{path}: not a JSON object; {advice}")


def _participants(root: Path, asked: Collection[str]) -> list[str]:
    """Labels to work on: all of the dataset, or the asked ones if the dataset has each of them."""
    known = {entry.name[4:] for entry in _entries(root) if entry.name.startswith("sub-") and entry.is_dir()}
    labels = list(dict.fromkeys(strip_prefix(label, "sub-") for label in asked))
    for label in labels:
        if label not in known:
            raise UsageError(
                f"--participant-label {label}: not in {root} ({len(known)} participants); {_did_you_mean(label, known)}"
            )
    return labels or sorted(known, key=natural_key)


def _check_folders(root: Path, participants: Collection[str], sessions: Collection[str] | None) -> None:
    """Raise UsageError for folders that may not be read (pybids would skip them) and for unknown sessions."""
    known: set[str] = set()
    for label in participants:
        folder = root / f"sub-{label}"
        subfolders = [entry.name for entry in _entries(folder) if entry.is_dir()]
        inside = {name[4:] for name in subfolders if name.startswith("ses-")}
        known |= inside
        below = [folder / f"ses-{name}" for name in inside if sessions is None or name in sessions]
        if "anat" in subfolders:
            list(_entries(folder / "anat"))
        for session in below:
            if any(entry.name == "anat" for entry in _entries(session)):
                list(_entries(session / "anat"))
    for label in sorted(sessions or ()):
        if label not in known:
            who = f"the {len(participants)} participant(s) asked for" if participants else str(root)
            raise UsageError(f"--session-label {label}: none of {who} has it; {_did_you_mean(label, known)}")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except PermissionError:
        raise UsageError(
            f"{folder}: no permission to list the folder; change its permissions or choose others with "
            "--participant-label"
        ) from None
    except NotADirectoryError:
        return


def _did_you_mean(label: str, known: Collection[str]) -> str:
    if not known:
        return "there are none; leave the flag out"
    alike = nearest(label, known)
    if alike:
        return f"nearest: {', '.join(alike)}"
    some = sorted(known, key=natural_key)[:5]
    return f"there are {', '.join(some)}{' ...' if len(known) > len(some) else ''}"


def _is_selected(
    path: Path, root: Path, participants: Collection[str] | None, sessions: Collection[str] | None
) -> bool:
    """Whether the folders of `path` are among the asked ones (a database holds all of the dataset)."""
    parts = path.relative_to(root).parts
    if not parts[0].startswith("sub-") or (participants is not None and parts[0][4:] not in participants):
        return False
    session = parts[1][4:] if parts[1].startswith("ses-") else None
    return sessions is None or session in sessions


def _run(path: Path, sequence: str, root: Path, sidecars: SidecarIndex) -> Run:
    """Judge one file by its name, its sidecars and its header, in this order."""
    folder = path.relative_to(root).parts
    try:
        entities, _, _ = split_name(path)
    except ValueError as error:
        # Still a Run with a unique key, so that the dry run and the report can show it.
        pieces = path.name.split(".")[0].split("_")[:-1]
        entities = {"sub": folder[0][4:]} | {piece: "" for piece in pieces if not piece.startswith("sub-")}
        reason = f"{path.name}: not a BIDS name ({error}); rename the file"
        return Run(path, sequence, entities, action="fail", reason=reason)
    misplaced = _misplaced(entities, folder)
    if misplaced:
        return Run(
            path,
            sequence,
            {"sub": folder[0][4:]} | entities,
            action="fail",
            reason=f"{path.name}: {misplaced}",
        )
    not_ours = entity_skip_reason(entities)
    if not_ours:
        return Run(path, sequence, entities, action="skip", reason=not_ours)
    try:
        metadata = sidecars.metadata(path)
    except ImageError as error:
        return Run(path, sequence, entities, action="fail", reason=str(error))
    verdict = examine(path)
    return Run(path, sequence, entities, metadata, action=verdict.action, reason=verdict.reason)


def _misplaced(entities: dict[str, str], folder: tuple[str, ...]) -> str | None:
    """Why a file does not belong into its folder: outputs of two such files could collide."""
    places = {part.partition("-")[0]: part.partition("-")[2] for part in folder[:-1] if "-" in part}
    for key in ("sub", "ses"):
        if entities.get(key) != places.get(key):
            named = f"{key}-{entities[key]}" if key in entities else f"no {key}-"
            placed = f"the folder {key}-{places[key]}" if key in places else f"no {key}- folder"
            return f"the name says {named}, but it lies in {placed}; rename or move it"
    return None


def _without_duplicates(runs: list[Run]) -> list[Run]:
    """Let one file stand for an image that is there as ``.nii`` and ``.nii.gz``: the compressed one."""
    counts = Counter(run.key for run in runs)
    result = []
    for run in runs:
        if counts[run.key] > 1 and not run.path.name.endswith(".gz"):
            skip: Action = "skip"
            reason = f"{run.path.name}.gz is the same image and is used; remove one of the two"
            run = dataclasses.replace(run, action=skip, reason=reason)
        result.append(run)
    return result


def image_order(run: Run) -> tuple[object, ...]:
    """Key to sort images by, as people count."""
    session = run.session or ""
    return (
        natural_key(run.participant),
        natural_key(session),
        natural_key(run.stem),
        run.sequence,
        run.path.name,
    )


def _nothing(settings: Settings, root: Path) -> str:
    looked = " and ".join(f"sub-*/[ses-*/]anat/*_{sequence}.nii[.gz]" for sequence in settings.modalities)
    limits = [
        f"{flag} {' '.join(map(str, value))}"
        for flag, value in (
            ("--participant-label", settings.participant_label),
            ("--session-label", settings.session_label),
            ("--bids-filter-file", (settings.bids_filter_file,) if settings.bids_filter_file else ()),
        )
        if value
    ]
    within = f" within {', '.join(limits)}" if limits else ""
    return f"{root}: no image found{within}; looked for {looked}"
