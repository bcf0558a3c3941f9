"""Read all images of an output folder for the group level, one by one; what cannot be read costs that image only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmh_bids.bids.derivatives import OutputPaths
from mmh_bids.bids.inventory import OutputImage, with_facts
from mmh_bids.errors import ImageError
from mmh_bids.evaluation.features import ImageFeatures
from mmh_bids.evaluation.group_table import GroupImage
from mmh_bids.evaluation.measured import image_features, kept_features
from mmh_bids.evaluation.pool import KILLED, in_processes

#: Memory of a process that measures an image of 1 mm, GB.
PROCESS_GB = 0.6


@dataclass(frozen=True)
class Gathered:
    """The images that could be read, in the order asked for, and why others could not, by image."""

    images: list[GroupImage]
    problems: dict[str, str]


def gather(
    images: Sequence[OutputImage], output_dir: Path, processes: int = 1, say: Callable[[str], None] = lambda line: None
) -> Gathered:
    """Read sidecars and features; measure where the participant level left no features.

    Parameters
    ----------
    images
        Of `mmh_bids.bids.inventory.find_images`.
    processes
        At a time, for what has to be measured.
    say
        Gets a line of progress an image that is measured.
    """
    problems: dict[str, str] = {}
    known: dict[str, OutputImage] = {}
    features: dict[str, dict[str, ImageFeatures]] = {}
    missing = []
    for image in images:
        try:
            known[image.key] = with_facts(image, output_dir)
        except ImageError as error:
            problems[image.key] = str(error)
            continue
        if image.status == "done":
            found = kept_features(OutputPaths(output_dir, image.run))
            if found is None:
                missing.append(image)
            else:
                features[image.key] = found
    if missing:
        say(f"{len(missing)} image(s) have no features yet: measuring them, {min(processes, len(missing))} at a time")
    for number, (key, result) in enumerate(_measure(missing, output_dir, processes), start=1):
        if isinstance(result, ImageError):
            problems[key] = str(result)
        else:
            features[key] = result
            say(f"[{number}/{len(missing)}] {key}: measured")
    made = [
        GroupImage(known[image.key], features.get(image.key, {}))
        for image in images
        if image.key in known and image.key not in problems
    ]
    return Gathered(made, problems)


def _measure(
    images: Sequence[OutputImage], output_dir: Path, processes: int
) -> Iterator[tuple[str, dict[str, ImageFeatures] | ImageError]]:
    """Features, or what went wrong, of each image as it is ready."""
    paths = [OutputPaths(output_dir, image.run) for image in images]
    for place, found in in_processes(_measured, paths, processes):
        yield images[place].key, ImageError(f"{paths[place].harmonized()}: {KILLED}") if found is None else found


def _measured(paths: OutputPaths) -> dict[str, ImageFeatures] | ImageError:
    """Features, or the error as a value: it then comes back from another process as it is."""
    try:
        return image_features(paths)
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(f"{error.filename or paths.features}: {error.strerror or error}; free space there or change "
                          "its permissions, then run the same command again")  # fmt: skip
