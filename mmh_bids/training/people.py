"""The average person of each site, from the images that stage 2 is trained on: see `mmh_bids.harmonizers.people`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.torch import load_file

from mmh_bids.errors import ImageError
from mmh_bids.harmonizers.people import site_mean, tissue_logs
from mmh_bids.training.standards import Sample


def site_tissues(files: Mapping[Sample, Path], levels: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """What the card says of sites, per sequence.

    Parameters
    ----------
    files
        Samples and their files of `mmh_bids.training.look.removed_pair`; those without a site do not count.
    levels
        Per sequence the unified look's fluid, grey and white matter. Only sequences with bright fluid are looked at.

    Returns
    -------
    Per sequence and site ``{"tissues": [grey, white], "people": number}``: mean natural logarithms of the brightness of
    grey and white matter, and of how many people. Sites of fewer than `mmh_bids.harmonizers.people.FEWEST` are left
    out.
    """
    found: dict[tuple[str, str], dict[Path, list[NDArray]]] = defaultdict(lambda: defaultdict(list))
    for sample, path in files.items():
        if sample.site is None or not bright_fluid(levels[sample.sequence]):
            continue
        image, removed, mask = (load_file(path)[name][0, 0].numpy() for name in ("image", "removed", "mask"))
        try:
            logs = tissue_logs(image, removed, mask > 0, levels[sample.sequence])
        except ImageError:
            continue
        found[sample.sequence, sample.site][_person(sample.path)].append(logs)
    sites: dict[str, dict[str, Any]] = defaultdict(dict)
    for (sequence, site), people in sorted(found.items()):
        if (mean := site_mean(people.values())) is not None:
            sites[sequence][site] = {"tissues": mean[0], "people": mean[1]}
    return dict(sites)


def bright_fluid(levels: Sequence[float]) -> bool:
    """Whether fluid, the first of the levels, is brighter than white matter, the last.

    >>> bright_fluid([0.65, 0.33, 0.22])
    True
    """
    return levels[0] > levels[2]


def _person(path: Path) -> Path:
    """The participant's folder: two output folders may number their people alike.

    >>> _person(Path("out/sub-01/ses-A/anat/sub-01_ses-A_T2w.nii.gz")).as_posix()
    'out/sub-01'
    """
    return next((folder for folder in path.parents if folder.name.startswith("sub-")), path)
