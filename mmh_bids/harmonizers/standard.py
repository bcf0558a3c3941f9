"""`Standard`: what the classical methods know of a population of images, or of one reference image.

The methods take their parameters from the package intensity-normalization. It is driven with 16,384
quantiles of the image instead of its million voxels: these are the same distribution, need no random
subsample, and make the kernel density estimate of WhiteStripe a matter of milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import BundleError, ImageError
from mmh_bids.image.intensity import N_QUANTILES, histogram, quantile_function
from mmh_bids.models.bundle import Bundle

#: File of a bundle that holds the standards, under keys such as ``T1w/unified/quantiles``.
STANDARDS_FILE = "standards.safetensors"
N_SAMPLE = 16_384
#: Percentiles of the landmarks of Nyul and Udupa, as intensity-normalization has them.
NYUL_PERCENTILES = (1.0, *(float(step) for step in range(10, 100, 10)), 99.0)
MIN_VOXELS = 500


@dataclass(frozen=True, eq=False)
class Standard:
    """Statistics of one image, or the average over images, in [0, 1] units of the image's own scale.

    Attributes
    ----------
    zscore
        (2,) mean and standard deviation in the brain.
    whitestripe
        (2,) mean and standard deviation of the white stripe.
    nyul
        (11,) intensities of the Nyul landmarks, ascending.
    quantiles
        (256,) quantiles as `mmh_bids.image.intensity.quantile_function` gives them.
    histogram
        (100,) share of the voxels in each of 100 bins over [0, 1].
    range
        (2,) lowest and highest intensity.
    """

    zscore: NDArray[np.float64]
    whitestripe: NDArray[np.float64]
    nyul: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    histogram: NDArray[np.float64]
    range: NDArray[np.float64]

    @classmethod
    def measure(cls, volume: NDArray[Any], mask: NDArray[np.bool_], sequence: str) -> Standard:
        """Measure one image.

        Parameters
        ----------
        volume
            (X, Y, Z) in [0, 1], brain only.
        mask
            (X, Y, Z) bool.

        Raises
        ------
        ImageError
            Fewer than 500 voxels, no contrast, or values that are not finite.
        """
        values = brain_values(volume, mask)
        sample = brain_sample(values)
        return cls(
            zscore=np.array(fit_zscore(sample)),
            whitestripe=np.array(fit_whitestripe(sample, sequence)),
            nyul=_nyul_landmarks(sample),
            quantiles=quantile_function(values, N_QUANTILES),
            histogram=histogram(values),
            range=np.array([values.min(), values.max()], dtype=np.float64),
        )

    @classmethod
    def average(cls, standards: list[Standard], weights: list[float] | None = None) -> Standard:
        """Weighted mean of standards, number by number.

        For quantiles this is the Wasserstein barycentre of the distributions, for the landmarks what Nyul
        and Udupa call the standard scale; averages of ascending numbers ascend.
        """
        mean = {
            field.name: np.average([getattr(one, field.name) for one in standards], axis=0, weights=weights)
            for field in fields(cls)
        }
        return cls(**mean)

    def arrays(self, prefix: str) -> dict[str, NDArray[np.float64]]:
        """The arrays under the names they have in a bundle: ``<prefix>/<field>``."""
        return {f"{prefix}/{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str) -> Standard:
        """Read what `arrays` gave; KeyError if one is not there."""
        named = {field.name: arrays[f"{prefix}/{field.name}"].astype(np.float64) for field in fields(cls)}
        return cls(**named)


def bundle_standards(bundle: Bundle) -> dict[str, dict[str, Standard]]:
    """All standards of a bundle: sequence -> target -> standard; empty if it has no standards file."""
    if STANDARDS_FILE not in bundle.card["files"]:
        return {}
    arrays = bundle.arrays(STANDARDS_FILE)
    try:
        return {
            sequence: {
                target: Standard.from_arrays(arrays, f"{sequence}/{target}") for target in bundle.targets(sequence)
            }
            for sequence in bundle.sequences
        }
    except KeyError as error:
        raise BundleError(
            f"{bundle.folder / STANDARDS_FILE}: lacks {error.args[0]}; train the bundle again with mmh-train standards"
        ) from None


def brain_values(volume: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """The brain's intensities, (N,): in `mask` and above zero, as zero is where there was no signal."""
    values = volume[mask]
    if not np.isfinite(values).all():
        raise ImageError("the preprocessed image has NaN or infinite values inside the brain; check the input image")
    values = values[values > 0]
    if values.size < MIN_VOXELS:
        raise ImageError(
            f"the brain has only {values.size} voxels with signal, too few to harmonize; check the brain mask"
        )
    return values


def brain_sample(values: NDArray[Any]) -> NDArray[np.float64]:
    """16,384 quantiles of the brain's intensities, (N,) float64, strictly ascending.

    Equal values (an image of few grey levels) are set apart by a millionth of the range, so that no landmark
    coincides with the next.
    """
    sample = quantile_function(values, N_SAMPLE)
    spread = float(sample[-1] - sample[0])
    if spread <= 1e-6 * abs(float(sample[-1])):
        raise ImageError("the brain has one and the same intensity all over, so there is no contrast to harmonize")
    return sample + np.linspace(0, 1e-6 * spread, sample.size)


@dataclass(frozen=True, eq=False)
class Intensities:
    """A one-dimensional 'image' in float64 for the normalizers of intensity-normalization."""

    data: NDArray[np.float64]

    def get_data(self) -> NDArray[np.float64]:
        """The intensities."""
        return self.data

    def with_data(self, data: NDArray[np.floating]) -> Intensities:
        """The same kind of image with other intensities."""
        return Intensities(np.asarray(data, dtype=np.float64))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data."""
        return self.data.shape

    def save(self, path: Any) -> None:
        """The package's protocol asks for it; these images live in memory only."""
        raise TypeError("intensities in memory are not saved")


@contextmanager
def normalization_errors() -> Iterator[None]:
    """Turn the package's errors into ours."""
    from intensity_normalization.domain.exceptions import IntensityNormalizationError

    try:
        yield
    except IntensityNormalizationError as error:
        raise ImageError(
            f"{error} (the brain's histogram is too odd for this method; try --method histmatch)"
        ) from None


def fit_zscore(sample: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation of the brain."""
    from intensity_normalization.normalizers.individual.zscore import ZScoreNormalizer

    with normalization_errors():
        fitted = ZScoreNormalizer().fit(Intensities(sample))
    return float(fitted.mean or 0.0), float(fitted.std or 1.0)


def fit_whitestripe(sample: NDArray[np.float64], sequence: str) -> tuple[float, float]:
    """Mean and standard deviation of the white stripe (Shinohara et al. 2014).

    The stripe lies 5 % of the voxels to either side of the last mode of the histogram (T1w) or its largest
    (T2w).
    """
    from intensity_normalization.domain.models import Modality
    from intensity_normalization.normalizers.individual.whitestripe import WhiteStripeNormalizer

    modality = Modality.T1 if sequence == "T1w" else Modality.T2
    with normalization_errors():
        fitted = WhiteStripeNormalizer(modality=modality).fit(Intensities(sample))
    return float(fitted.mean or 0.0), float(fitted.std or 1.0)


def _nyul_landmarks(sample: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nyul landmarks of one image in its own units.

    The package scales each image's first and last landmark to a common range; here they keep their places,
    so that the average over images lies in the units of the images.
    """
    from intensity_normalization.normalizers.population.nyul import NyulNormalizer

    low, high = np.percentile(sample, (NYUL_PERCENTILES[0], NYUL_PERCENTILES[-1]))
    normalizer = NyulNormalizer(output_min_value=float(low), output_max_value=float(high))
    with normalization_errors():
        normalizer.fit_population([Intensities(sample)])
    return np.asarray(normalizer.standard_scale, dtype=np.float64)
