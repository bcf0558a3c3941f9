"""Affine and rigid registration with SimpleITK, on arrays, in RAS+ world coordinates.

Similarity is Mattes' mutual information (Mattes et al. 2003), which serves T1w and T2w alike. Both images are brain
only, so that what is aligned is the brain and not the head's pose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813  (the library's own short name)
from numpy.typing import NDArray

from mmh_bids.errors import ImageError
from mmh_bids.image.grid import antialias, bounding_box, box_affine, resample
from mmh_bids.image.itk import LPS, single_thread, to_itk

#: Head poses tried when the first start measures badly, in degrees about the x (nod), y (tilt) and z (turn) axes.
_POSES = [(x, y, z) for x in (-25, 0, 25) for y in (-20, 0, 20) for z in (-20, 0, 20)]
GOOD_OVERLAP = 0.93
#: Voxels of 4 mm that a mask must have, a cube of 2.4 cm: registration needs a shape.
FEWEST_VOXELS = 200
#: A transform that shrinks the brain's volume more than this is broken.
SMALLEST_VOLUME_RATIO = 1e-3
#: A warp that moves the brain farther (mm, root mean square) than this does what the affine beside it left undone.
LARGEST_WARP_MM = 10.0


@dataclass(frozen=True)
class Volume:
    """A brain-only image: data (X, Y, Z) float32, zero outside `mask` (X, Y, Z) bool, and its RAS+ affine."""

    data: NDArray[np.float32]
    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]

    def reduced(self, size_mm: float) -> Volume:
        """Cropped to the brain and resampled to isotropic voxels of `size_mm`, smoothed first.

        Raises
        ------
        ImageError
            The mask is too small to be a brain.
        """
        if self.mask.sum() * abs(np.linalg.det(self.affine[:3, :3])) < FEWEST_VOXELS * 4.0**3:
            raise ImageError(
                "the brain mask is empty or a few millilitres small, which cannot be registered: check the brain "
                "extraction, or give a mask with --derivatives"
            )
        box = bounding_box(self.mask, margin=2)
        affine = box_affine(self.affine, box)
        zooms = np.linalg.norm(affine[:3, :3], axis=0)
        extent = np.array(self.mask[box].shape) * zooms
        margin = 3
        shape = tuple(int(n) for n in np.ceil(extent / size_mm) + 2 * margin)
        # the nearest rotation: a header's axes may be slightly sheared, which ITK does not know
        u, _, vt = np.linalg.svd(affine[:3, :3] / zooms)
        direction = u @ vt
        target = np.eye(4)
        target[:3, :3] = direction * size_mm
        centre = affine @ np.append((np.array(self.mask[box].shape) - 1) / 2, 1)
        target[:3, 3] = centre[:3] - target[:3, :3] @ ((np.array(shape) - 1) / 2)
        smooth = antialias(np.where(self.mask[box], self.data[box], 0), affine, target)
        soft = antialias(self.mask[box].astype(np.float32), affine, target)
        mask = resample(soft, affine, shape, target) > 0.5
        return Volume(np.where(mask, resample(smooth, affine, shape, target), 0), mask, target)

    def to_itk(self) -> sitk.Image:
        """The data as a SimpleITK image in ITK's LPS+ world."""
        return to_itk(self.data, self.affine)


def matrix_of(transform: sitk.Transform) -> NDArray[np.float64]:
    """4x4 RAS+ world map of a linear SimpleITK transform (fixed point -> moving point)."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float)
    moved = np.array([transform.TransformPoint(corner) for corner in corners])
    matrix = np.eye(4)
    matrix[:3, :3] = (moved[1:] - moved[0]).T
    matrix[:3, 3] = moved[0]
    return LPS @ matrix @ LPS


def itk_affine(matrix: NDArray) -> sitk.AffineTransform:
    """SimpleITK affine of a 4x4 RAS+ world map; what is written to ``*_xfm.txt``."""
    lps = LPS @ matrix @ LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix([float(value) for value in lps[:3, :3].ravel()])
    transform.SetTranslation([float(value) for value in lps[:3, 3]])
    return transform


def overlap(fixed: Volume, moving: Volume, matrix: NDArray) -> float:
    """Dice of the two brains when `matrix` maps the fixed world to the moving one."""
    moved = resample(moving.mask.astype(np.float32), moving.affine, fixed.mask.shape, fixed.affine, matrix) > 0.5
    # brain outside the fixed grid counts as missed
    volume = moving.mask.sum() * abs(np.linalg.det(moving.affine[:3, :3])) / abs(np.linalg.det(matrix[:3, :3]))
    total = fixed.mask.sum() + volume / abs(np.linalg.det(fixed.affine[:3, :3]))
    return float(2 * (fixed.mask & moved).sum() / total)


@single_thread
def similarity(fixed: Volume, moving: Volume, matrix: NDArray) -> float:
    """Mutual information (nats, higher is better) under `matrix`, on all voxels of the fixed brain's box."""
    method = _method(fixed, sampling=1.0)
    method.SetInitialTransform(itk_affine(matrix), inPlace=False)
    return -float(method.MetricEvaluate(fixed.to_itk(), moving.to_itk()))


def _method(fixed: Volume, sampling: float) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    if sampling < 1:
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(sampling, 1)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _optimise(
    fixed: Volume, moving: Volume, start: sitk.Transform, iterations: int, step: float, sampling: float
) -> float:
    """Improve `start` in place (gradient descent); returns the similarity reached."""
    method = _method(fixed, sampling)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step, minStep=step * 1e-3, numberOfIterations=iterations, relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-6,
    )  # fmt: skip
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed.to_itk(), moving.to_itk())
    return -float(method.GetMetricValue())


def _centre(volume: Volume) -> NDArray[np.float64]:
    voxel = np.append(np.argwhere(volume.mask).mean(axis=0), 1)
    return (LPS @ volume.affine @ voxel)[:3]


def _start(fixed: Volume, moving: Volume, pose: tuple[float, float, float]) -> sitk.Euler3DTransform:
    transform = sitk.Euler3DTransform()
    centre = _centre(fixed)
    transform.SetCenter([float(value) for value in centre])
    transform.SetRotation(*[float(value) for value in np.deg2rad(pose)])
    transform.SetTranslation([float(value) for value in _centre(moving) - centre])
    return transform


def _as_affine(rigid: sitk.Euler3DTransform, scale: float = 1.0) -> sitk.AffineTransform:
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix([float(value) * scale for value in rigid.GetMatrix()])
    affine.SetTranslation(rigid.GetTranslation())
    return affine


def _size_ratio(fixed: Volume, moving: Volume) -> float:
    """Cube root of the ratio of brain volumes: the isotropic scale that fits one onto the other."""
    volumes = [v.mask.sum() * abs(np.linalg.det(v.affine[:3, :3])) for v in (moving, fixed)]
    return float((volumes[0] / volumes[1]) ** (1 / 3))


@single_thread
def register_affine(fixed: Volume, moving: Volume, sloppy: bool = False) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Find the affine that maps the template's world to the image's.

    Returns
    -------
    matrix
        4x4, RAS+ world of `fixed` -> RAS+ world of `moving`.
    quality
        ``Dice`` of the brains, ``MutualInformation`` (nats) on 2 mm voxels, ``Starts`` tried.
    """
    coarse = fixed.reduced(4.0), moving.reduced(4.0)
    matrix, starts = _coarse(*coarse, poses=[(0.0, 0.0, 0.0)]), 1
    if overlap(*coarse, matrix) < GOOD_OVERLAP:
        matrix, starts = (
            _coarse(*coarse, poses=[(float(x), float(y), float(z)) for x, y, z in _POSES]),
            len(_POSES),
        )
    fine = fixed.reduced(2.0), moving.reduced(2.0)
    transform = _with_centre(matrix, fixed)
    _optimise(*fine, transform, iterations=30 if sloppy else 100, step=1.0, sampling=0.2)
    matrix = matrix_of(transform)
    return matrix, {
        "Dice": round(overlap(*fine, matrix), 4),
        "MutualInformation": round(similarity(*fine, matrix), 4),
        "Starts": starts,
    }


def _with_centre(matrix: NDArray, fixed: Volume) -> sitk.AffineTransform:
    """The affine with its centre in the fixed brain, which keeps rotation and translation apart for the optimiser."""
    centre = _centre(fixed)
    lps = LPS @ matrix @ LPS
    transform = sitk.AffineTransform(3)
    transform.SetCenter([float(value) for value in centre])
    transform.SetMatrix([float(value) for value in lps[:3, :3].ravel()])
    offset = lps[:3, 3] + lps[:3, :3] @ centre - centre
    transform.SetTranslation([float(value) for value in offset])
    return transform


def _coarse(fixed: Volume, moving: Volume, poses: list[tuple[float, float, float]]) -> NDArray[np.float64]:
    """Rigid then affine on 4 mm voxels from each pose; the most similar result wins."""
    rigid: list[tuple[float, sitk.Euler3DTransform]] = []
    scale = _size_ratio(fixed, moving)
    for pose in poses:
        start = _start(fixed, moving, pose)
        iterations = 60 if len(poses) == 1 else 25
        rigid.append((_optimise(fixed, moving, start, iterations, step=2.0, sampling=0.5), start))
    rigid.sort(key=lambda item: -item[0])
    best: tuple[float, NDArray] | None = None
    for _, start in rigid[:3]:
        transform = _as_affine(start, scale)
        value = _optimise(fixed, moving, transform, iterations=100, step=2.0, sampling=1.0)
        if best is None or value > best[0]:
            best = value, matrix_of(transform)
    assert best is not None
    return best[1]


@single_thread
def register_rigid(fixed: Volume, moving: Volume) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Rigid map from `fixed`'s world to `moving`'s: two images of one head in one session.

    Starts where the scanner says (identity) and from the brains' centres; the more similar result wins.
    """
    coarse = fixed.reduced(4.0), moving.reduced(4.0)
    fine = fixed.reduced(2.0), moving.reduced(2.0)
    results = []
    for from_header in (True, False):
        start = _start(*coarse, (0.0, 0.0, 0.0))
        if from_header:
            start.SetTranslation((0.0, 0.0, 0.0))
        _optimise(*coarse, start, iterations=60, step=2.0, sampling=0.5)
        results.append((similarity(*coarse, matrix_of(start)), start))
    best = max(results, key=lambda item: item[0])[1]
    _optimise(*fine, best, iterations=60, step=0.5, sampling=0.2)
    matrix = matrix_of(best)
    quality = {"Dice": overlap(*fine, matrix), "MutualInformation": similarity(*fine, matrix)}
    return matrix, {name: round(value, 4) for name, value in quality.items()}


def read_matrix(path: str) -> NDArray[np.float64]:
    """4x4 RAS+ world map of an ITK transform file; one with a warp is reduced to its affine.

    That is its affine stage (see `read_affine_part`), or where it has none, what fits it best in the brain.

    Raises
    ------
    ImageError
        No transform of three dimensions, or one that folds space flat.
    """
    transform = _read(path)
    matrix = _affine_part(transform)
    return _checked(_fitted(transform) if matrix is None else matrix, path)


def read_affine_part(path: str) -> NDArray[np.float64] | None:
    """4x4 RAS+ world map of the affine that an ITK transform file holds, alone or before a warp.

    A registration as fMRIPrep runs it leaves a composite of its affine stage and a displacement field. The affine
    stage is an affine registration; the best affine fit of the field is not.

    Returns
    -------
    None where the file holds no affine, or one that leaves the alignment to the warp (`LARGEST_WARP_MM`).

    Raises
    ------
    ImageError
        As `read_matrix`.
    """
    matrix = _affine_part(_read(path))
    return None if matrix is None else _checked(matrix, path)


def _affine_part(transform: sitk.Transform) -> NDArray[np.float64] | None:
    if transform.IsLinear():
        return matrix_of(transform)
    linear = [part for part in _parts(transform) if part.IsLinear()]
    if not linear:
        return None
    matrix = np.eye(4)
    for part in linear:  # ITK applies what comes last first
        matrix = matrix @ matrix_of(part)
    points, moved = _in_the_brain(transform)
    left = np.linalg.norm(moved - nib.affines.apply_affine(LPS @ matrix @ LPS, points), axis=1)
    return matrix if np.sqrt((left**2).mean()) <= LARGEST_WARP_MM else None


def _read(path: str) -> sitk.Transform:
    try:
        transform = sitk.ReadTransform(path)
    except RuntimeError:
        raise ImageError(f"{path}: missing, or no ITK transform; make it again, or drop its --derivatives") from None
    if transform.GetDimension() != 3:
        raise ImageError(f"{path}: no transform of three dimensions; make it again, or drop its --derivatives")
    return transform


def _checked(matrix: NDArray[np.float64], path: str) -> NDArray[np.float64]:
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < SMALLEST_VOLUME_RATIO:
        raise ImageError(f"{path}: this transform folds the brain flat; make it again, or drop its --derivatives")
    return matrix


def _parts(transform: sitk.Transform) -> list[sitk.Transform]:
    """What a transform consists of, in ITK's order; files never hold composites of composites."""
    if transform.GetTransformEnum() != sitk.sitkComposite:
        return [transform]
    composite = sitk.CompositeTransform(transform)
    return [composite.GetNthTransform(index) for index in range(composite.GetNumberOfTransforms())]


def _in_the_brain(transform: sitk.Transform) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points (N, 3) all over the template's brain, LPS+ mm, and where `transform` moves them."""
    grid = np.stack(np.meshgrid(*[np.arange(-60.0, 61.0, 12.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    points = nib.affines.apply_affine(LPS, grid + [0.0, -17.0, 5.0])
    return points, np.array([transform.TransformPoint(point) for point in points])


def _fitted(transform: sitk.Transform) -> NDArray[np.float64]:
    points, moved = _in_the_brain(transform)
    solution, *_ = np.linalg.lstsq(np.c_[points, np.ones(len(points))], moved, rcond=None)
    matrix = np.eye(4)
    matrix[:3] = solution.T
    return LPS @ matrix @ LPS
