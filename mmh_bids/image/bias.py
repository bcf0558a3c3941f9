"""Bias field correction with N4 (Tustison et al. 2010) as SimpleITK implements it."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813  (the library's own short name)
from numpy.typing import NDArray

from mmh_bids.image.itk import single_thread, to_itk


@single_thread
def n4(
    data: NDArray[np.float32], mask: NDArray[np.bool_], affine: NDArray[np.float64], sloppy: bool = False
) -> NDArray[np.float32]:
    """Estimate the bias field inside the brain on about 4 mm voxels and divide the whole image by it.

    Parameters
    ----------
    data
        (X, Y, Z) float32.
    mask
        (X, Y, Z) bool; voxels of it that are not positive are left out of the estimate.

    Returns
    -------
    (X, Y, Z) float32. The field has mean 1 in the mask, so that intensities keep their units.
    """
    image = to_itk(data, affine)
    usable = to_itk((mask & (data > 0)).astype(np.uint8), affine)
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    shrink = [int(factor) for factor in np.clip(np.round(4.0 / zooms), 1, 8)]
    correct = sitk.N4BiasFieldCorrectionImageFilter()
    correct.SetMaximumNumberOfIterations([20] if sloppy else [50, 50, 50, 30])
    correct.Execute(sitk.Shrink(image, shrink), sitk.Shrink(usable, shrink))
    log_field = np.transpose(sitk.GetArrayFromImage(correct.GetLogBiasFieldAsImage(image)))
    # far outside the brain the spline is free: keep its extrapolation within the range seen inside
    low, high = log_field[mask].min(), log_field[mask].max()
    field = np.exp(np.clip(log_field, low, high), dtype=np.float32)
    return data / (field / field[mask].mean(dtype=np.float64)).astype(np.float32)
