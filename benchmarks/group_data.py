"""An output folder that looks as if ``mmh`` had worked on many people: sidecars, features and lists, no images.

Everybody has an anatomy (block means), every site a gain and a gamma; harmonized images keep a share `left` of what
their site did. For the group level's benchmark, tests and example pages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmh_bids.bids.dataset import ImageStatus, record_images
from mmh_bids.bids.derivatives import OutputPaths, sidecar_path
from mmh_bids.bids.run import Run
from mmh_bids.evaluation.features import ImageFeatures, save_features, template_regions
from mmh_bids.settings import Settings

LEVELS = np.array([0.3, 0.55, 0.8])
SHARES = (0.18, 0.47, 0.35)
QUALITY = {
    "MappedGradientCorrelation": 0.99, "GradientCorrelation": 0.96, "RangeMin": 0.0, "RangeMax": 1050.0, "Finite": True,
    "NonNegative": True, "IntensityMapMonotone": True, "BrainMaskVolume": 1400.0, "ParenchymaVolumeBefore": 1120.0,
    "ParenchymaVolumeAfter": 1125.0, "ReferenceDistanceBefore": 0.08, "ReferenceDistanceAfter": 0.02,
    "WhiteGreyContrastBefore": 0.37, "WhiteGreyContrastAfter": 0.36, "GridCoverage": 0.999, "TemplateDice": 0.95,
}  # fmt: skip


def write_outputs(
    output_dir: Path,
    bids_dir: Path,
    people: int = 40,
    sites: Sequence[str] = ("Utrecht", "Genève"),
    left: float = 0.1,
    travellers: int = 0,
    sequences: Sequence[str] = ("T1w",),
    flagged: int = 0,
    failed: int = 0,
    seed: int = 0,
) -> Settings:
    """Write the folder; return the settings of the call that might have made it.

    Parameters
    ----------
    people
        The first `travellers` of them are scanned at all sites, the others at one, in turn.
    left
        Share of the sites' differences that harmonization leaves.
    flagged, failed
        How many of the last images are below a quality threshold, or failed.
    """
    rng = np.random.default_rng(seed)
    settings = Settings(bids_dir, output_dir)
    bids_dir.mkdir(parents=True, exist_ok=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    name = {"Name": "Generated", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "mmh"}]}
    (output_dir / "dataset_description.json").write_text(json.dumps(name))
    effects = {site: (rng.normal(1, 0.06), rng.normal(1, 0.12)) for site in sites}
    count = int(template_regions().max()) + 1
    usual = rng.uniform(0.45, 0.75, count)
    statuses: list[ImageStatus] = []
    for number in range(people):
        label = f"{number + 1:04d}"
        anatomy = usual + rng.normal(0, 0.02, count) + rng.normal(0, 0.01)
        share = np.clip(rng.normal(0.9, 0.05, count), 0, 1)
        for site in sites if number < travellers else [sites[number % len(sites)]]:
            session = {"ses": "".join(filter(str.isalnum, site))} if number < travellers else {}
            for sequence in sequences:
                entities = {"sub": label, **session}
                stem = "_".join(f"{key}-{value}" for key, value in entities.items())
                folder = bids_dir.joinpath(*(f"{key}-{value}" for key, value in entities.items()), "anat")
                path = folder / f"{stem}_{sequence}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                run = Run(path, sequence, entities, {}, site, "participants.tsv:site")
                statuses.append(ImageStatus(run, "done"))
                _write_image(OutputPaths(output_dir, run), anatomy, share, effects[site], left, rng)
    for place in range(flagged):
        _flag(OutputPaths(output_dir, statuses[-1 - failed - place].run))
    for place in range(failed):
        run = statuses[-1 - place].run
        for path in OutputPaths(output_dir, run).anat.glob("*"):
            path.unlink()
        statuses[-1 - place] = ImageStatus(run, "failed", f"{run.path.name}: truncated; copy it again")
    record_images(settings, statuses)
    return settings


def _write_image(paths: OutputPaths, anatomy, share, effect, left: float, rng) -> None:
    """Sidecar and features of one image."""
    gain, gamma = effect
    weak = 1 + left * (gain - 1), 1 + left * (gamma - 1)
    noise, wobble = rng.normal(0, 0.004, anatomy.size), rng.normal(0, 0.02, LEVELS.size)
    pair = {
        "before": _features(anatomy + noise, share, wobble, gain, gamma, paths.run.sequence),
        "after": _features(anatomy + noise, share, wobble, *weak, paths.run.sequence),
    }
    quality = QUALITY | {"MappedGradientCorrelation": round(float(rng.normal(0.985, 0.003)), 6)}
    facts = {
        "Method": "mmh-light", "Model": "mmh-light", "Target": "unified", "Sloppy": False, "Site": paths.run.site,
        "SiteSource": paths.run.site_source, "OutputScale": [0.0, 1000.0], "QC": quality,
    }  # fmt: skip
    sidecar = sidecar_path(paths.harmonized())
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    sidecar.write_text(json.dumps({"SkullStripped": True, "Harmonization": facts}))
    save_features(paths.features, pair)


def _features(regions, share, wobble, gain: float, gamma: float, sequence: str) -> ImageFeatures:
    def curve(values):
        return gain * np.clip(values, 0, None) ** gamma

    shift = float(regions.mean()) - 0.6
    levels = LEVELS if sequence == "T1w" else LEVELS[::-1]
    steps = (np.arange(256) + 0.5) / 256
    classes = np.repeat(LEVELS + shift + wobble, np.rint(np.array(SHARES) * 1000).astype(int))
    spread = classes + np.random.default_rng(0).normal(0, 0.05, classes.size)
    return ImageFeatures(
        quantiles=curve(np.quantile(spread, steps)).astype(np.float32),
        regions=curve(regions).astype(np.float32),
        levels=curve(levels + shift + wobble).astype(np.float32),
        volumes_ml=(np.array(SHARES) * (1400 + 2000 * shift)).astype(np.float32),
        sharpness=np.float32(0.3 + shift / 5).reshape(()),
        brain_share=share.astype(np.float32),
    )


def _flag(paths: OutputPaths) -> None:
    path = sidecar_path(paths.harmonized())
    content = json.loads(path.read_text())
    content["Harmonization"]["QC"]["MappedGradientCorrelation"] = 0.7
    path.write_text(json.dumps(content))
    paths.features.touch()
