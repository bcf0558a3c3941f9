"""Between arrays with RAS+ affines and SimpleITK images, and SimpleITK's threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import SimpleITK as sitk  # noqa: N813  (the library's own short name)
from numpy.typing import NDArray

#: RAS+ world <-> LPS+ world, its own inverse.
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

Params = ParamSpec("Params")
Returned = TypeVar("Returned")


def single_thread(function: Callable[Params, Returned]) -> Callable[Params, Returned]:
    """Run `function` with one ITK thread.

    ITK's metrics and sums add up in thread order, so that the last digits would differ from run to run and with the
    number of threads. Images are processed in parallel by the workflow, which uses the cores just as well.
    """

    @wraps(function)
    def wrapped(*args: Params.args, **kwargs: Params.kwargs) -> Returned:
        before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        try:
            return function(*args, **kwargs)
        finally:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)

    return wrapped


def to_itk(data: NDArray, affine: NDArray) -> sitk.Image:
    """Wrap an (X, Y, Z) array and its RAS+ affine as a SimpleITK image (shear, which ITK lacks, is refused by it)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(data)))
    lps = LPS @ affine
    zooms = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing([float(zoom) for zoom in zooms])
    image.SetOrigin([float(value) for value in lps[:3, 3]])
    # ITK wants an orthonormal matrix; headers carry six digits
    u, _, vt = np.linalg.svd(lps[:3, :3] / zooms)
    image.SetDirection([float(value) for value in (u @ vt).ravel()])
    return image
