"""Carry a change made on the model grid to the image's own grid.

Resampling an image there and back blurs it. So the *change* travels. Where one monotone intensity curve T explains all
but little of it, T is applied to the image itself, and only the rest is interpolated,

    out_native = T(in_native) + resample(out_model - T(in_model)).

Else T is not what was done to any one place: fitted to noisy intensities it is a staircase, which makes speckle of
noise. Then the result is interpolated, and the fine detail that the model grid never saw is put back,

    out_native = resample(out_model) + gain (in_native - resample(in_model)),

by the share of fine detail that the harmonizer kept in that place, measured on the model grid: about the contrast's
stretch at edges, little for noise.

With a harmonizer that does nothing T is the identity, the rest zero, the gain one, and the output equals the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmh_bids.image.grid import bounding_box, box_affine, resample
from mmh_bids.image.intensity import MonotoneMap, fit_monotone_map

#: Differences up to this share of the model's scale are float32 rounding, not a change.
ROUNDING = 1e-7
#: The rest's standard deviation, as a share of the result's, up to which the curve is all that was done.
_LITTLE = 0.02
#: Most that fine detail is stretched.
_MOST = 3.0
#: Standard deviations (voxels of the model grid) of what detail is finer than, and of where its gain is measured.
_FINE, _AROUND = 1.0, 1.5


@dataclass(frozen=True)
class Scale:
    """Affine map between an image's own intensity units and [0, 1] of the model grid: ``(x - low) / (high - low)``.

    >>> Scale(100.0, 300.0).to_unit(200.0), Scale(100.0, 300.0).to_own(0.5)
    (0.5, 200.0)
    """

    low: float
    high: float

    def to_unit(self, values):
        """Own units to model units."""
        return (values - self.low) / (self.high - self.low)

    def to_own(self, values):
        """Model units to own units."""
        return values * (self.high - self.low) + self.low


@dataclass(frozen=True)
class ModelVolumes:
    """Input and output of a harmonizer on the model grid, both (X, Y, Z), in model units, and where they lie."""

    before: NDArray[np.float32]
    after: NDArray[np.float32]
    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]
    native_to_mni: NDArray


def transport(
    native: NDArray[np.float32],
    native_affine: NDArray[np.float64],
    native_mask: NDArray[np.bool_],
    model: ModelVolumes,
    scale_in: Scale,
    scale_out: Scale,
    skull: str = "strip",
) -> tuple[NDArray[np.float32], MonotoneMap]:
    """Apply the harmonizer's change to the image on its own grid.

    Parameters
    ----------
    native
        (X, Y, Z), the image in its own units.
    native_mask
        (X, Y, Z) bool, the brain.
    scale_in
        Scale with which `model.before` was made from `native`.
    scale_out
        Units of the result: equal to `scale_in` where the harmonizer kept the scale.
    skull
        ``"strip"``: zero outside the mask; ``"keep"``: T alone applies there, and no signal stays none.

    Returns
    -------
    The harmonized image, (X, Y, Z) float32, and the map T in model units.
    """
    curve = fit_monotone_map(model.before[model.mask], model.after[model.mask])
    out = np.zeros(native.shape, dtype=np.float32)
    if skull == "keep":
        darkest = float(np.percentile(model.before[model.mask], 1))
        around = through_zero(curve, darkest, scale_in.to_unit(0.0), scale_out.to_unit(0.0))
        # slab by slab: a float64 copy of a whole 0.5 mm head would cost a gigabyte
        for index in range(native.shape[0]):
            unit = scale_in.to_unit(native[index].astype(np.float64))
            out[index] = _floored(scale_out.to_own(around(unit)), native[index])
    box = bounding_box(native_mask, margin=1)
    inside = native_mask[box]
    values = native[box][inside].astype(np.float64)
    result = _inside(curve, model, box_affine(native_affine, box), inside, scale_in.to_unit(values))
    out[box][inside] = _floored(scale_out.to_own(result), values)
    return out, curve


def through_zero(curve: MonotoneMap, darkest: float, zero_in: float, zero_out: float) -> MonotoneMap:
    """The curve for what lies outside the brain: below the brain's darkest values, straight to no signal.

    A curve fitted inside the brain knows nothing of air, and what it is extrapolated to there would glow.

    Parameters
    ----------
    darkest
        Model-unit value below which the line begins.
    zero_in, zero_out
        No signal in the units of the curve's input and output.

    Examples
    --------
    >>> lifted = MonotoneMap(np.array([0.2, 1.0]), np.array([0.4, 1.0]), 1.0, 1.0)
    >>> np.round(through_zero(lifted, 0.2, 0.0, 0.0)([0.0, 0.1, 0.2, 1.0]), 9)
    array([0. , 0.2, 0.4, 1. ])
    >>> np.round(through_zero(MonotoneMap.identity(), 0.2, 0.0, 0.0)([-0.1, 0.1, 0.2, 1.0]), 9)
    array([-0.1,  0.1,  0.2,  1. ])
    """
    start = float(curve(np.array([darkest]))[0])
    if darkest <= zero_in or start <= zero_out:
        return curve
    slope = (start - zero_out) / (darkest - zero_in)
    above = curve.x > darkest
    x = np.concatenate([[zero_in, darkest], curve.x[above]])
    y = np.concatenate([[zero_out, start], curve.y[above]])
    return MonotoneMap(x, y, slope, curve.slope_above)


def _inside(
    curve: MonotoneMap, model: ModelVolumes, affine: NDArray, inside: NDArray[np.bool_], values: NDArray
) -> NDArray:
    """The result at the native voxels `inside`, 1-D float64 in model units.

    Beyond the model's mask and grid the nearest brain's value goes on, so that the change neither fades towards the
    brain's edge nor stops where the model grid cuts the brain.

    Parameters
    ----------
    values
        (N,) the native voxels in model units.
    """
    rest = model.after - curve(model.before.astype(np.float64))
    rest = np.where(model.mask, rest, 0.0).astype(np.float32)
    if np.abs(rest).max(initial=0.0) <= ROUNDING:
        return curve(values)
    nearest = _nearest(model.mask)

    def carried(volume: NDArray[np.float32]) -> NDArray[np.float32]:
        return resample(volume, model.affine, inside.shape, affine, model.native_to_mni, beyond="nearest")[inside]

    if rest[model.mask].std() <= _LITTLE * model.after[model.mask].std():
        return curve(values) + carried(rest[nearest])
    before, after = model.before[nearest], model.after[nearest]
    gain = detail_gain(before, after - before, model.mask)
    return carried(after) + carried(gain[nearest]) * (values - carried(before))


def detail_gain(
    before: NDArray[np.float32], change: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Share of the fine detail around each voxel that is left after a change.

    The slope of the changed image's detail over the image's own, by least squares in a Gaussian neighbourhood.

    Parameters
    ----------
    before, change
        (X, Y, Z), image and what is added to it, both going on beyond the mask: an edge there would pass for detail.
    mask
        (X, Y, Z) bool; detail outside does not count.

    Returns
    -------
    (X, Y, Z) float32, 0 to 3; exactly 1 where nothing changes.

    Examples
    --------
    Noise is halved, then left alone:

    >>> noise = np.random.default_rng(0).standard_normal((12, 12, 12)).astype(np.float32)
    >>> everywhere = np.ones(noise.shape, bool)
    >>> detail_gain(noise, -noise / 2, everywhere).round(3).max(), detail_gain(noise, 0 * noise, everywhere).min()
    (np.float32(0.5), np.float32(1.0))
    """
    from scipy.ndimage import gaussian_filter

    def detail(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(mask, values - gaussian_filter(values, _FINE), np.float32(0))

    own, changed = detail(before), detail(change)
    power = gaussian_filter(own * own, _AROUND)
    slope = gaussian_filter(own * changed, _AROUND) / np.maximum(power, np.finfo(np.float32).tiny)
    return np.clip(1 + slope, 0, _MOST, dtype=np.float32)


def _nearest(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], ...]:
    """Index that puts the value of the nearest voxel inside `mask` to every voxel outside.

    >>> mask = np.array([[[False, True, True, False, False]]])
    >>> np.array([[[0.0, 5.0, 7.0, 0.0, 0.0]]])[_nearest(mask)]
    array([[[5., 5., 7., 7., 7.]]])
    """
    from scipy.ndimage import distance_transform_edt

    return tuple(distance_transform_edt(~mask, return_distances=False, return_indices=True))


def _floored(values: NDArray, native: NDArray) -> NDArray:
    """Keep a magnitude image a magnitude image: nothing below zero unless the input itself is."""
    return np.where(native >= 0, np.maximum(values, 0.0), values)
