"""The whole evaluation: from a dataset and folders of derivatives to all numbers, images one at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmh_bids import __version__
from mmh_bids.bids.discovery import discover
from mmh_bids.bids.names import strip_prefix
from mmh_bids.bids.tsv import present, read_tsv, tsv_text
from mmh_bids.errors import ImageError, NothingToDoError, UsageError
from mmh_bids.evaluation.assess import Assessment, Options, assess, describe, summary_of
from mmh_bids.evaluation.features import OWN_SCALE
from mmh_bids.evaluation.measure import Task, measure_all
from mmh_bids.evaluation.probes import PERMUTATIONS
from mmh_bids.evaluation.sample import Sample
from mmh_bids.evaluation.sources import CONTROLS, PREPROCESSING, Entry, Source, entries_of, read_people, sources_of
from mmh_bids.settings import Settings

logger = logging.getLogger(__name__)

#: Of evaluation.json.
FORMAT_VERSION = 1
COLUMNS = ("method", "sequence", "measure", "value", "low", "high", "n", "note")


@dataclass(frozen=True)
class Request:
    """What is to be evaluated; see ``mmh-evaluate --help``.

    Attributes
    ----------
    methods
        Folder of derivatives by name.
    travelling
        Table of who is who; None where a participant is a person.
    effects
        Columns of participants.tsv.
    """

    bids_dir: Path
    output_dir: Path
    methods: Mapping[str, Path]
    travelling: Path | None = None
    effects: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ("T1w", "T2w")
    participant_label: tuple[str, ...] = ()
    site_from: str = "auto"
    site_column: str = "site"
    seed: int = 0
    permutations: int = PERMUTATIONS
    nprocs: int = 1
    with_style: bool = False

    @property
    def work(self) -> Path:
        """Where measurements are kept."""
        return self.output_dir / "work"


@dataclass(frozen=True)
class Evaluation:
    """What came of it.

    Attributes
    ----------
    request
        What was asked for.
    assessments
        By sequence.
    images, people, sites
        By sequence: how many there were.
    notes
        By sequence: what to know about the methods' images.
    problems
        A line for each image that is missing or could not be read.
    """

    request: Request
    assessments: dict[str, Assessment]
    images: dict[str, int]
    people: dict[str, int]
    sites: dict[str, list[str]]
    notes: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def evaluate(request: Request) -> Evaluation:
    """Measure all images of all methods and judge the methods.

    Raises
    ------
    UsageError
        The dataset, a table or an effect's column cannot be used.
    NothingToDoError
        No image can be compared.
    ImageError
        No image could be measured.
    """
    people = read_people(request.travelling) if request.travelling else {}
    cells = read_effects(request.bids_dir, request.effects)
    runs = discover(_settings(request))
    sources, problems = sources_of(runs, request.methods, people)
    if not sources:
        raise NothingToDoError(problems[0] if problems else f"{request.bids_dir}: no image to compare")
    tasks = []
    for source in sources:
        entries, missing = entries_of(source, request.methods)
        problems += missing
        tasks.append(Task(source, tuple(entries), request.work, request.with_style))
    logger.info("%d images, %d with controls and methods", len(tasks), sum(len(task.entries) for task in tasks))
    problems += measure_all(tasks, request.nprocs)
    options = Options(request.seed, request.permutations, cells, request.with_style)
    found = Evaluation(request, {}, {}, {}, {}, problems=problems)
    for sequence in request.modalities:
        samples, damaged = _samples(tasks, sequence, request)
        found.problems.extend(damaged)
        if PREPROCESSING not in samples or CONTROLS[0] not in samples:
            if any(source.run.sequence == sequence for source in sources):
                found.problems.append(f"{sequence}: no image could be measured; see the lines above")
            continue
        logger.info("%s: %d images", sequence, len(samples[PREPROCESSING].sources))
        _describe_sample(found, sequence, samples)
        found.assessments[sequence] = assess(samples, sequence, options)
    if not found.assessments:
        raise ImageError(found.problems[0] if found.problems else "no image could be measured")
    return found


def read_effects(bids_dir: Path, names: tuple[str, ...]) -> dict[str, dict[str, str | None]]:
    """Cells of participants.tsv by column and participant label.

    Raises
    ------
    UsageError
        There is no table, or it has no such column.
    """
    if not names:
        return {}
    path = bids_dir / "participants.tsv"
    columns, rows = read_tsv(path, "participant_id")
    for name in names:
        if name not in columns:
            there = ", ".join(column for column in columns if column != "participant_id") or "none"
            raise UsageError(f"--effects {name}: {path} has no such column; it has {there}")
    return {name: {strip_prefix(row["participant_id"], "sub-"): present(row[name]) for row in rows} for name in names}


def to_json(found: Evaluation) -> dict[str, Any]:
    """Everything, in the types of JSON but for numbers that are not finite (`bids.derivatives.plain`)."""
    request = found.request
    return {
        "FormatVersion": FORMAT_VERSION,
        "GeneratedBy": {"Name": "mmh_bids", "Version": __version__},
        "Seed": request.seed,
        "Permutations": request.permutations,
        "Methods": list(request.methods),
        "Controls": list(CONTROLS),
        "Sequences": {
            sequence: {
                "Images": found.images[sequence],
                "People": found.people[sequence],
                "Sites": found.sites[sequence],
                "Summary": summary_of(one, list(request.methods)),
                "Ranking": one.ranking,
                "Flags": {
                    name: [{"Code": flag.code, "Level": flag.level, "Text": flag.text} for flag in flags]
                    for name, flags in one.flags.items()
                },
                "Facts": {name: describe(facts) for name, facts in one.facts.items()},
                "Notes": found.notes[sequence],
                "Rows": [{name: getattr(row, name) for name in COLUMNS} for row in one.rows],
            }
            for sequence, one in found.assessments.items()
        },
        "Problems": found.problems,
    }


def to_tsv(found: Evaluation) -> str:
    """The long table: one number a row, ``n/a`` where there is none."""
    rows = ([getattr(row, name) for name in COLUMNS] for one in found.assessments.values() for row in one.rows)
    return tsv_text(COLUMNS, rows)


def _settings(request: Request) -> Settings:
    return Settings(
        request.bids_dir,
        request.output_dir,
        participant_label=request.participant_label,
        modalities=request.modalities,
        site_from=request.site_from,
        site_column=request.site_column,
        work_dir=request.work,
    )


def _samples(tasks: list[Task], sequence: str, request: Request) -> tuple[dict[str, Sample], list[str]]:
    """By method, controls first, what is kept of its images."""
    samples: dict[str, Sample] = {}
    problems: list[str] = []
    for method in (*CONTROLS, *request.methods):
        sources, paths, targets = [], [], []
        for task in tasks:
            for entry in task.entries:
                if entry.method == method and task.source.run.sequence == sequence:
                    path = _kept(entry, task.source, request)
                    if path is not None:
                        sources.append(task.source)
                        paths.append(path)
                        targets.append(entry.target)
        sample, damaged = Sample.read(method, sources, paths, targets)
        problems += damaged
        if sample is not None:
            samples[method] = sample
    return samples, problems


def _kept(entry: Entry, source: Source, request: Request) -> Path | None:
    try:
        return entry.kept_as(source, request.work, request.with_style)
    except OSError:
        return None  # gone since it was found: a line says so already


def _describe_sample(found: Evaluation, sequence: str, samples: Mapping[str, Sample]) -> None:
    plain = samples[PREPROCESSING]
    found.images[sequence] = len(plain.sources)
    found.people[sequence] = len(set(plain.people))
    found.sites[sequence] = sorted({site for site in plain.sites if site is not None})
    notes = []
    for method, sample in samples.items():
        own = sum(one.note == OWN_SCALE for one in sample.features)
        if own and method not in CONTROLS:
            notes.append(f"{method}: {own} of {len(sample.features)} images have no OutputScale: {OWN_SCALE}")
        missing = len(plain.sources) - len(sample.sources)
        if missing > 0:
            notes.append(f"{method}: {missing} of {len(plain.sources)} images are missing or cannot be read")
    unknown = plain.sites.count(None)
    if unknown:
        notes.append(f"the site of {unknown} images is not known: they count where no site is needed")
    found.notes[sequence] = notes
