"""The classical methods: z-score, WhiteStripe, Nyul and histogram matching, by well-kept packages.

Each finds one ascending curve from the image's intensities to the target's, and applies it in the brain. The
curves share two soft ends. Where a method would send dark voxels below zero, the curve below 0.05 becomes
the straight line through the origin, so that fluid keeps its detail instead of being cut to zero. The
scale's 1 is the 99.9th percentile of the brains the standards were learned from: brighter voxels may come
out above it, and where a method would send them beyond 1.25, the part above 1 is compressed to end there.
All else lies in [0, 1].
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import BundleError, ImageError, UsageError
from mmh_bids.harmonizers.base import SEQUENCES, Reference, Result, check_shapes
from mmh_bids.harmonizers.standard import (
    NYUL_PERCENTILES,
    Intensities,
    Standard,
    brain_sample,
    brain_values,
    bundle_standards,
    fit_whitestripe,
    fit_zscore,
    normalization_errors,
)
from mmh_bids.image.intensity import MonotoneMap
from mmh_bids.models.bundle import Bundle

SOFT_FLOOR = 0.05
CEILING = 1.25
HISTOGRAM_LEVELS = 1024
MATCH_POINTS = 64
_N_MATCH_SAMPLE = 4096


class _Classic(ABC):
    """What the four methods share: targets, the brain's intensities, the curve's ends, the output."""

    name: ClassVar[str]
    sequences: tuple[str, ...] = SEQUENCES
    mem_gb: float = 0.5

    def __init__(self, bundle_name: str, standards: dict[str, dict[str, Standard]]) -> None:
        self.bundle_name = bundle_name
        self.standards = standards

    @classmethod
    def load(cls, bundle: Bundle, device: str) -> _Classic:
        """Take the standards out of `bundle`; `device` makes no difference."""
        bundle.require(cls.name)
        standards = bundle_standards(bundle)
        if not standards:
            raise BundleError(f"--model {bundle.name}: holds no standards; train it again with mmh-train standards")
        return cls(bundle.name, standards)

    def check_target(self, target: str, sequence: str) -> None:
        """Raise UsageError, naming the targets there are, if `target` cannot be reached for `sequence`."""
        if target.startswith("image:") and len(target) > len("image:"):
            return
        known = self.standards.get(sequence, {})
        if target not in known:
            sites = ", ".join(name for name in known if name.startswith("site:")) or "no site"
            what = "unified, image:<path> and " + sites if known else "image:<path> only"
            raise UsageError(f"--target {target}: unknown to model {self.bundle_name} for {sequence}; it knows {what}")

    def harmonize(
        self,
        volume: NDArray[np.float32],
        mask: NDArray[np.bool_],
        sequence: str,
        target: str,
        seed: int,
        reference: Reference | None = None,
        site: str | None = None,
    ) -> Result:
        """Bring the brain to the target's scale with one ascending curve.

        Returns
        -------
        `Result` whose volume is zero outside `mask`, finite, and in [0, 1] but for the brightest voxels,
        which reach at most 1.25; its details hold the method's parameters and the curve.

        Raises
        ------
        ImageError
            An empty or tiny mask, no contrast, or values that are not finite.
        """
        mask = check_shapes(volume, mask)
        standard = self._standard(sequence, target, reference)
        sample = brain_sample(brain_values(volume[0], mask))
        x, y, details = self.curve(sample, standard, sequence)
        curve, soft_ends = with_soft_ends(x, y)
        out = np.zeros_like(volume, dtype=np.float32)
        out[0][mask] = np.maximum(curve(volume[0][mask]), 0)
        return Result(out, details=details | soft_ends | {"Curve": curve.to_json()})

    @abstractmethod
    def curve(
        self, sample: NDArray[np.float64], standard: Standard, sequence: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
        """Knots of the curve and the method's parameters.

        Parameters
        ----------
        sample
            Quantiles of the image as `brain_sample` gives them.

        Returns
        -------
        x, y
            (K,) intensities of the image, ascending, and those of the target; straight lines lie between.
        details
            JSON-ready parameters.
        """

    def _standard(self, sequence: str, target: str, reference: Reference | None) -> Standard:
        self.check_target(target, sequence)
        if not target.startswith("image:"):
            return self.standards[sequence][target]
        if reference is None:
            raise ValueError(f"target {target} needs the reference image on the model grid")
        try:
            return Standard.measure(reference.volume[0], np.asarray(reference.mask, dtype=bool), sequence)
        except ImageError as error:
            raise ImageError(f"--target {target}: {error}") from None


class ZScore(_Classic):
    """Same mean and standard deviation in the brain as the target."""

    name = "zscore"

    def curve(self, sample, standard, sequence):
        """See `_Classic.curve`."""
        mean, sd = fit_zscore(sample)
        x = np.array([0.0, 1.0])
        y = (x - mean) / sd * standard.zscore[1] + standard.zscore[0]
        return x, y, _moments(mean, sd, standard.zscore)


class WhiteStripe(_Classic):
    """Same mean and standard deviation of the white stripe as the target (Shinohara et al. 2014)."""

    name = "whitestripe"

    def curve(self, sample, standard, sequence):
        """See `_Classic.curve`."""
        mean, sd = fit_whitestripe(sample, sequence)
        x = np.array([0.0, 1.0])
        y = (x - mean) / sd * standard.whitestripe[1] + standard.whitestripe[0]
        return x, y, _moments(mean, sd, standard.whitestripe)


class Nyul(_Classic):
    """Same percentiles as the target at eleven landmarks, straight lines between (Nyul and Udupa 1999)."""

    name = "nyul"

    def curve(self, sample, standard, sequence):
        """See `_Classic.curve`."""
        from intensity_normalization.normalizers.population.nyul import NyulNormalizer

        normalizer = NyulNormalizer()
        with io.BytesIO() as stored, normalization_errors():
            np.save(stored, np.vstack([standard.nyul, NYUL_PERCENTILES]))
            stored.seek(0)
            normalizer.load_standard_histogram(stored)  # type: ignore[arg-type]
        landmarks = np.percentile(sample, NYUL_PERCENTILES)
        x = np.unique(np.concatenate([[0.0], landmarks, [1.0]]))
        y = _transformed(normalizer, x, sample)
        details = {
            "Percentiles": list(NYUL_PERCENTILES),
            "Input": _plain(landmarks),
            "Target": _plain(standard.nyul),
        }
        return x, y, {"Landmarks": details}


class HistogramMatch(_Classic):
    """Same histogram as the target at 64 quantiles, by SimpleITK's histogram matching (Nyul et al. 2000)."""

    name = "histmatch"

    def curve(self, sample, standard, sequence):
        """See `_Classic.curve`."""
        import SimpleITK as sitk  # noqa: N813

        probabilities = (np.arange(_N_MATCH_SAMPLE) + 0.5) / _N_MATCH_SAMPLE
        n = standard.quantiles.size
        known_at = np.concatenate([[0.0], (np.arange(n) + 0.5) / n, [1.0]])
        known = np.concatenate([standard.range[:1], standard.quantiles, standard.range[1:]])
        reference = np.interp(probabilities, known_at, np.maximum.accumulate(known))
        source = np.interp(probabilities, (np.arange(sample.size) + 0.5) / sample.size, sample)
        matched = sitk.HistogramMatching(
            sitk.GetImageFromArray(source[np.newaxis]),
            sitk.GetImageFromArray(reference[np.newaxis]),
            numberOfHistogramLevels=HISTOGRAM_LEVELS,
            numberOfMatchPoints=MATCH_POINTS,
            thresholdAtMeanIntensity=False,
        )
        x, keep = np.unique(source, return_index=True)
        y = np.maximum.accumulate(sitk.GetArrayFromImage(matched)[0][keep])
        return x, y, {"HistogramLevels": HISTOGRAM_LEVELS, "MatchPoints": MATCH_POINTS}


def _transformed(normalizer: Any, x: NDArray[np.float64], sample: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a fitted Nyul normalizer makes of the intensities `x` of the image that `sample` stands for.

    Its transform takes landmarks and intensities from one image, and a mask for the landmarks: the probes
    are laid beside the sample, out of the mask.
    """
    image = Intensities(np.concatenate([sample, x]))
    mask = Intensities(np.concatenate([np.ones(sample.size), np.zeros(x.size)]))
    with normalization_errors():
        return normalizer.transform(image, mask).get_data()[sample.size :]


def with_soft_ends(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[MonotoneMap, dict[str, Any]]:
    """Join the knots to a curve over [0, 1] that starts at or above 0 and ends at or below 1.25.

    Returns
    -------
    The curve and, where an end was bent, the intensity of the input from which on: ``SoftFloorBelow``,
    ``SoftCeilingAbove``.

    Examples
    --------
    >>> curve, ends = with_soft_ends(np.array([0.0, 1.0]), np.array([-0.15, 0.85]))
    >>> np.round(curve([0, 0.1, 0.2, 0.5]), 6), ends
    (array([0.   , 0.025, 0.05 , 0.35 ]), {'SoftFloorBelow': 0.2})
    >>> curve, ends = with_soft_ends(np.array([0.0, 1.0]), np.array([0.0, 2.0]))
    >>> np.round(curve([0.25, 0.5, 0.75, 1]), 6), ends
    (array([0.5  , 1.   , 1.125, 1.25 ]), {'SoftCeilingAbove': 0.5})
    """
    x, y = _over_unit_range(np.asarray(x, dtype=np.float64), np.maximum.accumulate(y))
    if y[-1] <= SOFT_FLOOR:
        raise ImageError("harmonization would turn the whole brain black; the image is too unlike the target")
    ends: dict[str, Any] = {}
    if y[0] < 0:
        knee = _reached(x, y, SOFT_FLOOR)
        x, y = np.append([0.0, knee], x[x > knee]), np.append([0.0, SOFT_FLOOR], y[x > knee])
        ends["SoftFloorBelow"] = float(f"{knee:.6g}")
    if y[-1] > CEILING:
        knee = _reached(x, y, 1.0)
        x, y = np.append(x[x < knee], [knee, 1.0]), np.append(y[x < knee], [1.0, CEILING])
        ends["SoftCeilingAbove"] = float(f"{knee:.6g}")
    slopes = np.diff(y) / np.diff(x)
    return MonotoneMap(x, y, float(slopes[0]), float(slopes[-1])), ends


def _over_unit_range(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Prolong a curve to 0 and to 1 with the slope of its end's tenth of the knots."""
    part = max(1, x.size // 10)
    if x[0] > 0:
        slope = (y[part] - y[0]) / (x[part] - x[0])
        x, y = np.append(0.0, x), np.append(y[0] - slope * x[0], y)
    if x[-1] < 1:
        slope = (y[-1] - y[-1 - part]) / (x[-1] - x[-1 - part])
        x, y = np.append(x, 1.0), np.append(y, y[-1] + slope * (1 - x[-1]))
    return x, y


def _reached(x: NDArray[np.float64], y: NDArray[np.float64], level: float) -> float:
    """The smallest x at which the ascending curve reaches `level`, which lies between its ends."""
    after = int(np.searchsorted(y, level))
    share = (level - y[after - 1]) / (y[after] - y[after - 1])
    return float(x[after - 1] + share * (x[after] - x[after - 1]))


def _moments(mean: float, sd: float, target: NDArray[np.float64]) -> dict[str, Any]:
    return {"Input": _named(mean, sd), "Target": _named(float(target[0]), float(target[1]))}


def _named(mean: float, sd: float) -> dict[str, float]:
    return {"Mean": float(f"{mean:.6g}"), "StandardDeviation": float(f"{sd:.6g}")}


def _plain(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
