"""Which images an output folder holds, and what their sidecars say of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmh_bids.bids.derivatives import OutputPaths, read_sidecar, sidecar_path
from mmh_bids.bids.names import natural_key, split_name
from mmh_bids.bids.run import Run
from mmh_bids.bids.tsv import present, read_tsv
from mmh_bids.errors import ImageError

_SUFFIX = "_desc-harmonized"


@dataclass(frozen=True)
class OutputImage:
    """One source image of an output folder.

    Attributes
    ----------
    run
        The source; its path need not exist any more.
    image
        Path of the source relative to the dataset, as in ``logs/images.tsv``.
    status, message
        What became of it: ``done``, ``failed``, ``excluded`` ..., and why, for people.
    """

    run: Run
    image: str
    status: str
    message: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Unique name of the image."""
        return self.run.key


def find_images(bids_dir: Path, output_dir: Path, sequences: Iterable[str]) -> list[OutputImage]:
    """All images of these sequences that the participant level was asked for, ordered as people count.

    They are those of ``logs/images.tsv``, and those of which there is a sidecar but no row (logs that were deleted,
    outputs that were copied together). Images that were skipped, as they are not for this program, are left out.

    Raises
    ------
    UsageError
        ``logs/images.tsv`` cannot be read.
    """
    wanted = set(sequences)
    found: dict[str, OutputImage] = {}
    skipped = set()
    for image in recorded_images(bids_dir, output_dir):
        if image.status == "skipped":
            skipped.add(image.key)
        elif image.run.sequence in wanted:
            found[image.key] = image
    for path in sorted(output_dir.glob(f"sub-*/**/anat/*{_SUFFIX}_T[12]w.json")):
        unlisted = _of_sidecar(path, bids_dir, output_dir)
        if unlisted is not None and unlisted.run.sequence in wanted and unlisted.key not in skipped:
            found.setdefault(unlisted.key, unlisted)
    return sorted(found.values(), key=lambda image: natural_key(image.image))


def recorded_images(bids_dir: Path, output_dir: Path) -> list[OutputImage]:
    """All images of ``logs/images.tsv``, in its order; those with a name that is none of BIDS are left out."""
    table = output_dir / "logs" / "images.tsv"
    rows = read_tsv(table, "image")[1] if table.is_file() else []
    return [found for row in rows if (found := _of_row(row, bids_dir)) is not None]


def with_facts(image: OutputImage, output_dir: Path) -> OutputImage:
    """The image with its sidecar's ``Harmonization`` object, or what was kept of it; as it is where there is none.

    Site and where it came from are then those that the image was harmonized with.

    Raises
    ------
    ImageError
        The image is said to be done, and its sidecar is missing or not what this program writes.
    """
    paths = OutputPaths(output_dir, image.run)
    if image.status == "excluded" and paths.excluded.is_file():
        path = paths.excluded
    elif image.status == "done":
        path = sidecar_path(paths.harmonized())
    else:
        return image
    facts = read_sidecar(path).get("Harmonization")
    if not isinstance(facts, dict) or not isinstance(facts.get("QC"), dict):
        raise ImageError(f"{path}: has no Harmonization object with QC; delete it and run the participant level again")
    site = present(facts["Site"]) if "Site" in facts else image.run.site
    run = Run(
        image.run.path, image.run.sequence, image.run.entities, {}, site,
        str(facts.get("SiteSource") or image.run.site_source),
    )  # fmt: skip
    return OutputImage(run, image.image, image.status, image.message, facts)


def _of_row(row: Mapping[str, str], bids_dir: Path) -> OutputImage | None:
    """The image of a row of ``logs/images.tsv``; None for a name that is none of BIDS."""
    try:
        entities, suffix, _ = split_name(row["image"])
    except ValueError:
        return None
    if suffix not in ("T1w", "T2w") or "sub" not in entities:
        return None
    site = present(row.get("site"))
    run = Run(bids_dir / row["image"], suffix, entities, {}, site, present(row.get("site_from")) or "")
    return OutputImage(run, row["image"], row.get("status") or "done", present(row.get("message")) or "")


def _of_sidecar(path: Path, bids_dir: Path, output_dir: Path) -> OutputImage | None:
    """The image of a sidecar on its own grid; the name of its source follows from that of the sidecar."""
    try:
        entities, suffix, _ = split_name(path.name)
    except ValueError:
        return None
    if "space" in entities or entities.pop("desc", None) != "harmonized" or "sub" not in entities:
        return None
    source = path.parent.relative_to(output_dir) / f"{path.name.removesuffix('.json').replace(_SUFFIX, '')}.nii.gz"
    return OutputImage(Run(bids_dir / source, suffix, entities), source.as_posix(), "done")
