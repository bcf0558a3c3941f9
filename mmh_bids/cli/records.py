"""What is written about the images after they were processed: reports, methods text, provenance."""

from __future__ import annotations

import logging
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from mmh_bids import __version__
from mmh_bids.bids.calls import locked
from mmh_bids.bids.dataset import dataset_links
from mmh_bids.bids.derivatives import OutputPaths, bids_uri, harmonization_on_disk, split_space
from mmh_bids.bids.discovery import image_order
from mmh_bids.bids.inventory import recorded_images
from mmh_bids.bids.provenance import (
    ActivityRecord,
    FileRecord,
    software_versions,
    write_provenance,
)
from mmh_bids.bids.run import Action, Run
from mmh_bids.cli.qc_fail import is_set_aside, reason_on_disk
from mmh_bids.container import container_id
from mmh_bids.errors import EXIT_OK, EXIT_SOME_FAILED
from mmh_bids.files import sha256_file
from mmh_bids.reports.boilerplate import MethodsFacts, methods_text, write_citations
from mmh_bids.reports.figures import TITLES
from mmh_bids.reports.participant import ImageRecord, write_participant_report
from mmh_bids.settings import Settings
from mmh_bids.workflows.study import Study

logger = logging.getLogger("mmh")

_ACTION: dict[str, Action] = {"failed": "fail", "skipped": "skip"}


def fingerprint_on_disk(paths: OutputPaths, spaces: Iterable[str] = (), qc_fail: str = "warn") -> str | None:
    """Fingerprint of the outputs that are there, if all of them are, those in `spaces`, figures and features included.

    An image that was set aside for its quality is whole without its harmonized images, unless they are wanted now.
    """
    needed = [paths.preproc, paths.brain_mask, paths.transform()]
    if not is_set_aside(paths, qc_fail):
        needed += [paths.harmonized(), *(paths.harmonized(*split_space(space)) for space in spaces)]
    needed += [paths.features, *(paths.figure(name) for name in TITLES)]
    if not all(path.is_file() for path in needed):
        return None
    return harmonization_on_disk(paths).get("Fingerprint")


def image_record(run: Run, settings: Settings, failures: Mapping[str, str]) -> ImageRecord:
    """What the report shows of one image, read back from the derivatives."""
    paths = OutputPaths(settings.output_dir, run)
    status, reason = "done", ""
    if run.action == "skip":
        status, reason = "skipped", run.reason
    elif run.action == "fail" or run.key in failures:
        status, reason = "failed", failures.get(run.key, run.reason)
    set_aside = paths.excluded.is_file() and not paths.harmonized().is_file()
    if status == "done" and set_aside:
        status, reason = "excluded", reason_on_disk(paths)
    facts = harmonization_on_disk(paths) if status == "done" or set_aside else {}
    if status == "done" and not facts:
        status, reason = "failed", f"{run.path.name}: no derivatives yet; run without --reports-only"
    ok = status == "done" or set_aside
    kept = (paths.preproc, paths.brain_mask, paths.transform())
    return ImageRecord(
        key=run.key,
        sequence=run.sequence,
        session=run.session,
        site=run.site,
        site_source=run.site_source,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        qc=facts.get("QC", {}),
        harmonization=facts,
        figures=tuple(sorted(paths.figures.glob(f"{run.stem}_desc-*_{run.sequence}.svg"))) if ok else (),
        outputs=() if not ok else kept if set_aside else (paths.harmonized(), *kept),
    )


def write_reports(settings: Settings, study: Study, runs: Sequence[Run], failures: Mapping[str, str]) -> int:
    """One HTML page a participant, and the methods text; the exit code says whether all could be written."""
    write_boilerplate(settings, study, runs)
    # a page says what decides its bytes, which Python's last digit does not; the provenance has it
    software = software_versions() | {"Python": ".".join(platform.python_version_tuple()[:2])}
    code = EXIT_OK
    for participant in dict.fromkeys(run.participant for run in runs):
        own = [run for run in runs if run.participant == participant]
        try:
            # two calls may end at once with a session each: the later one sees what the other recorded
            with locked(settings.output_dir / "logs" / "locks" / f"sub-{participant}_report.lock"):
                own = with_other_calls(own, settings)
                images = [image_record(run, settings, failures) for run in own]
                # of the participant's images only: the page is the same whoever else was in the call
                text = methods_text(methods_facts(settings, study, own))
                errors = [f"{image.key}: {image.reason}" for image in images if image.status == "failed"]
                write_participant_report(
                    settings.output_dir, participant, images, text, errors, __version__, command_line(settings),
                    settings.sloppy, software,
                )  # fmt: skip
        except OSError as error:
            logger.error("sub-%s: the report cannot be written (%s); run again with --reports-only", participant, error)
            code = EXIT_SOME_FAILED
    return code


def with_other_calls(own: Sequence[Run], settings: Settings) -> list[Run]:
    """A participant's images of this call, and those that other calls recorded (of other sessions or sequences)."""
    keys = {run.key for run in own}
    others = [
        replace(image.run, action=_ACTION.get(image.status, "done"), reason=image.message)
        for image in recorded_images(settings.bids_dir, settings.output_dir)
        if image.run.participant == own[0].participant and image.key not in keys
    ]
    return sorted([*own, *others], key=image_order)


def command_line(settings: Settings) -> str:
    """The call as a reader of the report can repeat it; folders by name, so that the page says the same everywhere."""
    words = ["mmh", settings.bids_dir.name, settings.output_dir.name, *settings.analysis_level]
    for name in ("method", "model", "target", "skull_strip", "skull", "bias_correction", "random_seed"):
        value, default = getattr(settings, name), Settings.__dataclass_fields__[name].default
        if value != default:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if settings.output_spaces:
        words += ["--output-spaces", *settings.output_spaces]
    return shlex.join(words + (["--sloppy"] if settings.sloppy else []))


def write_boilerplate(settings: Settings, study: Study, runs: Iterable[Run]) -> None:
    """Write the methods text and its references, logs/CITATION.*."""
    write_citations(settings.output_dir / "logs", methods_facts(settings, study, runs))


def methods_facts(settings: Settings, study: Study, runs: Iterable[Run]) -> MethodsFacts:
    """What the methods text may say, from the settings and, where images are done, from what happened to them."""
    used = [run for run in runs if run.action in ("harmonize", "done")]
    done = [facts for run in used if (facts := harmonization_on_disk(OutputPaths(settings.output_dir, run)))]
    extraction = {_extraction(facts["BrainExtraction"]["Method"]) for facts in done} or {"deepbet"}
    registration = [facts["Registration"]["Method"] for facts in done]
    return MethodsFacts(
        method=settings.method,
        bundle=study.bundle.name,
        bundle_sha256=study.bundle.sha256,
        target=settings.target,
        sequences=tuple(sorted({run.sequence for run in used})) or settings.modalities,
        versions=software_versions(),
        brain_extraction=tuple(sorted(extraction)),
        bias_correction=settings.bias_correction,
        registration="derivatives"
        if registration and all(text.startswith("reused") for text in registration)
        else "affine",
        shared_transforms=any("T1w" in text for text in registration),
        skull=settings.skull,
        sloppy=settings.sloppy,
    )


def _extraction(method: str) -> str:
    if method.startswith("reused"):
        return "derivatives"
    return "input" if method.startswith("support") else "deepbet"


def write_provenance_of(settings: Settings, study: Study, runs: Sequence[Run], run_id: str, started: datetime) -> Path:
    """PROV-JSON of the images that this call made."""
    links = dataset_links(settings)
    inputs, outputs, activities = [], [], []
    for run in runs:
        paths = OutputPaths(settings.output_dir, run)
        facts = harmonization_on_disk(paths)
        source = FileRecord(bids_uri(run.path, settings.output_dir, links), facts["SourceSHA256"])
        made = [
            FileRecord(bids_uri(path, settings.output_dir, links), sha256_file(path))
            for path in [*sorted(paths.anat.glob(f"{run.stem}_*")), paths.features]
            if path == paths.features or _belongs(path, run)
        ]
        inputs.append(source)
        outputs += made
        parameters = {name: value for name, value in facts.items() if name not in ("QC", "IntensityMap", "Details")}
        activities.append(ActivityRecord(run.key, [source.uri], [file.uri for file in made], parameters))
    return write_provenance(
        settings.output_dir / "logs" / f"provenance-{run_id}.json", run_id, settings.to_toml(), inputs, outputs,
        activities, software_versions(), container_id(), started, datetime.now(timezone.utc),
    )  # fmt: skip


def _belongs(path: Path, run: Run) -> bool:
    """Whether a file in the anat folder is a derivative of this run and not of the session's other sequence.

    The stem of one image can begin with that of another (``sub-01`` and ``sub-01_run-1``), so what follows it counts.
    """
    rest = path.name.removeprefix(run.stem + "_")
    own = rest.split("_")[0].split("-")[0] in ("space", "res", "desc", "from")
    other = "T2w" if run.sequence == "T1w" else "T1w"
    if "_xfm" in rest:
        return own and rest.startswith(f"from-{run.sequence}")
    if "_mask" in rest or rest.endswith(("mask.nii.gz", "mask.json")):
        return own and (("brainT2w" in rest) == (run.sequence == "T2w"))
    return own and other not in rest
