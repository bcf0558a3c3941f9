"""What an image looks like, in a few hundred numbers that lie at the same places of everybody's brain.

All of it is measured on one grid of 2 mm in the template's space, so that images of any voxel size and of any method
can be put side by side. Torch is only imported for the style embedding.
"""

from __future__ import annotations

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
from mmh_bids.files import atomic_path
from mmh_bids.image.grid import MODEL_AFFINE, MODEL_SHAPE, antialias, bounding_box, box_affine, resample
from mmh_bids.image.intensity import N_QUANTILES, quantile_function, robust_scale
from mmh_bids.image.tissue import CLASSES, segment

#: Edge of a voxel of the grid, millimetres; a voxel is a box of the model grid's.
VOXEL_MM = 2.0
SHAPE = tuple(size // 2 for size in MODEL_SHAPE)
AFFINE = MODEL_AFFINE @ np.array([[2.0, 0, 0, 0.5], [0, 2.0, 0, 0.5], [0, 0, 2.0, 0.5], [0, 0, 0, 1.0]])
#: Edge of a region, voxels (16 mm), and the share of it that must be brain.
REGION_VOXELS = 8
LEAST_BRAIN = 1 / 3
#: Of the file; a reader refuses others.
FORMAT_VERSION = 1
#: Says that an image came without a scale, so that a gain of its own is not seen.
OWN_SCALE = "scaled by its own 99.9th percentile"
_VERSION_KEY = "format_version"
_REMEDY = "delete it, and it is made again"

#: A file, or what is in it: data (X, Y, Z) and RAS+ affine (4, 4).
Image = str | os.PathLike[str] | tuple[NDArray[Any], NDArray[Any]]


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


def on_grid(
    image: Image, mask: Image | NDArray[np.bool_], xfm: str | os.PathLike[str] | NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bring an image's brain to the grid of 2 mm.

    What lies outside the brain has no weight: an image with a skull and one without give the same.

    Parameters
    ----------
    image
        File, or data and affine; any units.
    mask
        File, data and affine, or (X, Y, Z) bool on the image's grid. One of another grid is resampled.
    xfm
        ITK transform file ``from-T1w_to-MNI152NLin2009aSym``, or the (4, 4) RAS+ map from the template's world to the
        image's that is in it (`image.registration.read_matrix`).

    Returns
    -------
    values
        (72, 92, 92) float32 in the image's units, zero outside the brain.
    inside
        (72, 92, 92) bool: brain.

    Raises
    ------
    ImageError
        A file cannot be read, or no brain lies on the grid.

    Examples
    --------
    >>> data, affine = np.full((40, 40, 40), 7.0), np.diag([4.0, 4.0, 4.0, 1.0])
    >>> affine[:3, 3] = -80
    >>> values, inside = on_grid((data, affine), data > 0, np.eye(4))
    >>> values.shape, float(values[inside].min()), float(values.max())
    ((72, 92, 92), 7.0, 7.0)
    """
    data, affine = _data_of(image)
    inside_own = _mask_on(mask, data.shape, affine)
    matrix = _matrix_of(xfm)
    name = f"{os.fspath(image)}: " if not isinstance(image, tuple) else ""
    if not inside_own.any():
        raise ImageError(f"{name}its brain mask is empty; give the derivatives that belong to it")
    box = bounding_box(inside_own, margin=2)
    brain, part = inside_own[box], box_affine(affine, box)
    # the map scales, too: how fine a voxel is counts in the template
    fine = np.linalg.inv(matrix) @ part
    soft = resample(antialias(brain.astype(np.float32), fine, AFFINE), part, SHAPE, AFFINE, matrix)
    total = resample(antialias(np.where(brain, data[box], 0), fine, AFFINE), part, SHAPE, AFFINE, matrix)
    inside = soft > 0.5
    if not inside.any():
        raise ImageError(f"{name}no brain in the template's space; check its transform")
    values = np.zeros(SHAPE, np.float32)
    values[inside] = total[inside] / soft[inside]
    return values, inside


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
        (72, 92, 92) of `on_grid`, intensities scaled so that 1 is the bright end.
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
        See `on_grid`.
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
    data, affine = _data_of(image)
    inside = _mask_on(mask, data.shape, affine)
    matrix = _matrix_of(xfm)
    try:
        low, high = (0.0, upper) if upper else robust_scale(data[inside])
        values, brain = on_grid((data, affine), inside, matrix)
    except ImageError as error:
        raise ImageError(f"{name}{error}") from None
    values = np.where(brain, (values - np.float32(low)) / np.float32(high - low), 0).astype(np.float32)
    voxel_ml = VOXEL_MM**3 / 1000 * abs(float(np.linalg.det(matrix[:3, :3])))
    return features_of(values, brain, sequence, with_style, voxel_ml, "" if upper else OWN_SCALE)


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
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)
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
    total = np.zeros(int(inner.sum()), np.float64)
    for axis in range(values.ndim):
        total += np.square(np.gradient(values, VOXEL_MM, axis=axis)[inner])
    return float(np.sqrt(total).mean()) / spread if spread > 0 else 0.0


@lru_cache(maxsize=1)
def _encoder() -> Any:
    from mmh_bids.models.encoders import load_style_encoder

    return load_style_encoder()


def _style(values: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    with torch.no_grad():
        return _encoder()(torch.from_numpy(values)[None, None], voxel_mm=VOXEL_MM)[0].numpy()


def _data_of(image: Image) -> tuple[NDArray[Any], NDArray[np.float64]]:
    if isinstance(image, tuple):
        data, affine = image
        return np.asarray(data), np.asarray(affine, np.float64)
    from mmh_bids.image.volume import read_image

    read = read_image(Path(image))
    return np.asanyarray(read.dataobj), np.asarray(read.affine, np.float64)


def _mask_on(mask: Image | NDArray[np.bool_], shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The mask on a grid, resampled where it has another."""
    if isinstance(mask, np.ndarray):
        if mask.shape != shape:
            raise ValueError(f"mask {mask.shape} and image {shape} must have one shape")
        return mask.astype(bool)
    data, own = _data_of(mask)
    if data.shape == shape and np.allclose(own, affine, atol=1e-3):
        return data > 0
    return resample((data > 0).astype(np.float32), own, shape, affine) > 0.5


def _matrix_of(xfm: str | os.PathLike[str] | NDArray[np.float64]) -> NDArray[np.float64]:
    if isinstance(xfm, np.ndarray):
        return xfm
    from mmh_bids.image.registration import read_matrix

    return read_matrix(os.fspath(xfm))
