"""What an image looks like, in a few hundred numbers that lie at the same places of everybody's brain.

All of it is measured on one grid of 2 mm in the template's space, so that images of any voxel size and of any method
can be put side by side. Torch is only imported for the style embedding.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.evaluation.placement import (
    AFFINE,
    SHAPE,
    VOXEL_MM,
    Image,
    Placed,
    data_of,
    mask_on,
    matrix_of,
    on_grid,
)
from mmh_bids.files import atomic_path
from mmh_bids.image.edges import gradient_magnitude
from mmh_bids.image.grid import antialias, resample
from mmh_bids.image.intensity import N_QUANTILES, quantile_function, robust_scale
from mmh_bids.image.tissue import CLASSES, segment

#: Edge of a region, voxels (16 mm), and the share of it that must be brain.
REGION_VOXELS = 8
LEAST_BRAIN = 1 / 3
#: Of the file; a reader refuses others.
FORMAT_VERSION = 1
#: Says that an image came without a scale, so that a gain of its own is not seen.
OWN_SCALE = "scaled by its own 99.9th percentile"
_VERSION_KEY = "format_version"
_REMEDY = "delete it, and it is made again"


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Numbers about one brain.

    Attributes
    ----------
    quantiles
        (256,) of the brain's intensities, ascending, on the image's scale: the histogram.
    regions
        (R,) mean intensity in the brain of each region of `template_regions`; NaN where too little of it is brain.
    levels
        (3,) mean of CSF, grey and white matter by `image.tissue.segment`; NaN where it finds no three classes.
    volumes_ml
        (3,) volume of the same classes in the image's own space, mL; NaN likewise.
    sharpness
        Mean gradient magnitude over the standard deviation in the eroded brain, 1/mm, a float32 of shape ().
    brain_share
        (R,) share of each region that is brain: all that a mask alone tells.
    style
        (D,) embedding of the small style encoder; None where it was not asked for.
    note
        What to know about the numbers; empty, or `OWN_SCALE`.
    """

    quantiles: NDArray[np.float32]
    regions: NDArray[np.float32]
    levels: NDArray[np.float32]
    volumes_ml: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    brain_share: NDArray[np.float32]
    style: NDArray[np.float32] | None = None
    note: str = ""


def features_of(
    values: NDArray[np.float32],
    inside: NDArray[np.bool_],
    sequence: str,
    with_style: bool = False,
    voxel_ml: float = VOXEL_MM**3 / 1000,
    note: str = "",
) -> ImageFeatures:
    """Measure an image on the grid.

    Parameters
    ----------
    values, inside
        (72, 92, 92) of `placement.on_grid`, intensities scaled so that 1 is the bright end.
    sequence
        ``"T1w"`` or ``"T2w"``.
    with_style
        Whether to embed the look, which takes a second and imports torch.
    voxel_ml
        Volume of a voxel in the image's own space, mL: that of the grid times the determinant of the map.
    note
        See `ImageFeatures`.

    Raises
    ------
    ImageError
        No brain.

    Examples
    --------
    >>> inside = template_regions() >= 0
    >>> found = features_of(np.where(inside, 0.5, 0).astype(np.float32), inside, "T1w")
    >>> float(found.quantiles[0]), bool((found.regions == 0.5).all()), float(found.sharpness), found.levels.tolist()
    (0.5, True, 0.0, [nan, nan, nan])
    """
    brain = values[inside]
    means, share = _region_means(values, inside)
    levels, volumes = np.full(len(CLASSES), np.nan), np.full(len(CLASSES), np.nan)
    try:
        tissue = segment(brain, sequence)
    except ImageError:
        pass  # a flat image has no classes, and that is what NaN says
    else:
        levels = np.array([tissue.means[name] for name in CLASSES])
        volumes = np.bincount(tissue.labels, minlength=len(CLASSES)) * voxel_ml
    return ImageFeatures(
        quantiles=quantile_function(brain, N_QUANTILES).astype(np.float32),
        regions=means.astype(np.float32),
        levels=levels.astype(np.float32),
        volumes_ml=volumes.astype(np.float32),
        sharpness=np.array(_sharpness(values, inside), np.float32),
        brain_share=share.astype(np.float32),
        style=_style(values) if with_style else None,
        note=note,
    )


def features_of_file(
    image: Image,
    mask: Image | NDArray[np.bool_],
    xfm: str | os.PathLike[str] | NDArray[np.float64],
    sequence: str,
    upper: float | None = None,
    with_style: bool = False,
) -> ImageFeatures:
    """Read, scale, bring to the grid and measure.

    Parameters
    ----------
    image, mask, xfm
        See `placement.on_grid`.
    sequence, with_style
        See `features_of`.
    upper
        The intensity that becomes 1: `output_scale` of the sidecar. None: the image's own scale, by
        `image.intensity.robust_scale` in the brain, which `ImageFeatures.note` then says.

    Raises
    ------
    ImageError
        With the file's name: it cannot be read, or has no brain or no contrast there.
    """
    name = f"{os.fspath(image)}: " if not isinstance(image, tuple) else ""
    data, affine = data_of(image)
    inside = mask_on(mask, data.shape, affine)
    matrix = matrix_of(xfm)
    try:
        return measure_brain((data, affine), inside, matrix, sequence, upper, with_style)[0]
    except ImageError as error:
        raise ImageError(f"{name}{error}") from None


def measure_brain(
    image: tuple[NDArray[Any], NDArray[np.float64]],
    inside: NDArray[np.bool_],
    matrix: NDArray[np.float64],
    sequence: str,
    upper: float | None = None,
    with_style: bool = False,
) -> tuple[ImageFeatures, Placed]:
    """Scale, bring to the grid and measure an image that was read.

    Parameters
    ----------
    image
        Data (X, Y, Z) and RAS+ affine (4, 4).
    inside
        (X, Y, Z) bool, brain.
    matrix
        (4, 4) RAS+ map from the template's world to the image's.
    sequence, upper, with_style
        See `features_of_file`.

    Returns
    -------
    features
        Of the brain on the grid.
    placed
        The brain on the grid, scaled so that 1 is the bright end.

    Raises
    ------
    ImageError
        No brain, or no contrast in it.
    """
    low, high = (0.0, upper) if upper else robust_scale(image[0][inside])
    values, brain = on_grid(image, inside, matrix)
    values = np.where(brain, (values - np.float32(low)) / np.float32(high - low), 0).astype(np.float32)
    voxel_ml = VOXEL_MM**3 / 1000 * abs(float(np.linalg.det(matrix[:3, :3])))
    note = "" if upper else OWN_SCALE
    return features_of(values, brain, sequence, with_style, voxel_ml, note), (values, brain)


def output_scale(sidecar: Mapping[str, Any]) -> float | None:
    """The intensity that is 1 on the model's scale, from an image's sidecar; None where it does not say.

    >>> output_scale({"Harmonization": {"OutputScale": [0.0, 1000.0]}}), output_scale({})
    (1000.0, None)
    """
    facts = sidecar.get("Harmonization")
    ends = facts.get("OutputScale") if isinstance(facts, Mapping) else None
    if not isinstance(ends, (list, tuple)) or len(ends) != 2:
        return None
    upper = ends[1]
    return float(upper) if isinstance(upper, (int, float)) and 0 < upper < float("inf") else None


def save_features(path: Path, features: Mapping[str, ImageFeatures]) -> Path:
    """Write features by name (``before`` and ``after``, say) to one npz file in one step; same bytes for the same.

    Examples
    --------
    >>> import tempfile
    >>> inside = template_regions() >= 0
    >>> made = features_of(np.where(inside, 0.5, 0).astype(np.float32), inside, "T1w", note=OWN_SCALE)
    >>> path = save_features(Path(tempfile.mkdtemp()) / "a.npz", {"before": made})
    >>> load_features(path)["before"].note
    'scaled by its own 99.9th percentile'
    """
    arrays: dict[str, Any] = {_VERSION_KEY: np.int64(FORMAT_VERSION)}
    for name, one in features.items():
        for field in fields(one):
            value = getattr(one, field.name)
            if value is not None:
                arrays[f"{name}/{field.name}"] = np.asarray(value)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            # numpy's own writer asks for 64-bit sizes, which every other Python notes otherwise in the file
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
            archive.writestr(entry, stream.getvalue())
    return Path(path)


def load_features(path: Path) -> dict[str, ImageFeatures]:
    """Read what `save_features` wrote.

    Raises
    ------
    ImageError
        The file is missing, damaged, of another version, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; run the participant level, or the image's features again") from None
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ImageError(f"{path}: damaged ({' '.join(str(error).split())[:80]}); {_REMEDY}") from None
    version = arrays.pop(_VERSION_KEY, None)
    if version is None or version.shape or int(version) != FORMAT_VERSION:
        raise ImageError(f"{path}: of another version of mmh, or not made by it; {_REMEDY}")
    grouped: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        name, _, field = key.rpartition("/")
        grouped.setdefault(name, {})[field] = array.item() if field == "note" else array
    try:
        found = {name: ImageFeatures(**values) for name, values in grouped.items()}
    except TypeError:
        raise ImageError(f"{path}: lacks what features of an image have; {_REMEDY}") from None
    count = int(template_regions().max()) + 1
    if any(one.quantiles.shape != (N_QUANTILES,) or one.regions.shape != (count,) for one in found.values()):
        raise ImageError(f"{path}: has another number of regions or quantiles; {_REMEDY}")
    return found


@lru_cache(maxsize=1)
def template_regions() -> NDArray[np.int16]:
    """Region of each voxel of the grid, (72, 92, 92): 0 to R - 1, or -1. Kept for the next call: not to be written to.

    Regions are the cubes of 16 mm of which the template's brain fills at least a third.
    """
    from mmh_bids.image.grid import load_template

    template = load_template()
    brain = (np.asanyarray(template.dataobj) > 0).astype(np.float32)
    inside = resample(antialias(brain, template.affine, AFFINE), template.affine, SHAPE, AFFINE) > 0.5
    place = [np.arange(size) // REGION_VOXELS for size in SHAPE]
    counts = [int(axis[-1]) + 1 for axis in place]
    block = np.ravel_multi_index(np.meshgrid(*place, indexing="ij"), counts)
    share = np.bincount(block.ravel(), weights=inside.ravel()) / np.bincount(block.ravel())
    used = share >= LEAST_BRAIN
    return np.where(used, np.cumsum(used) - 1, -1)[block].astype(np.int16)


def _region_means(
    values: NDArray[np.float32], inside: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of the brain in each region (NaN where too little of it is brain), and the share that is brain."""
    regions = template_regions()
    count = int(regions.max()) + 1
    sizes = np.bincount(regions[regions >= 0], minlength=count)
    chosen = inside & (regions >= 0)
    voxels = np.bincount(regions[chosen], minlength=count)
    total = np.bincount(regions[chosen], weights=values[chosen].astype(np.float64), minlength=count)
    share = voxels / sizes
    return np.where(share >= LEAST_BRAIN, total / np.maximum(voxels, 1), np.nan), share


def _sharpness(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """Mean gradient magnitude over the standard deviation, 1/mm, in the brain eroded by one voxel; 0 if it is flat."""
    from scipy.ndimage import binary_erosion

    inner = binary_erosion(inside)
    inner = inner if inner.any() else inside
    spread = float(values[inner].std(dtype=np.float64))
    steep = float(gradient_magnitude(values, np.float64)[inner].mean()) / VOXEL_MM
    return steep / spread if spread > 0 else 0.0


@lru_cache(maxsize=1)
def _encoder() -> Any:
    from mmh_bids.models.encoders import load_style_encoder

    return load_style_encoder()


def _style(values: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    with torch.no_grad():
        return _encoder()(torch.from_numpy(values)[None, None], voxel_mm=VOXEL_MM)[0].numpy()
