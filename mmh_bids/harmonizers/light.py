"""Method ``mmh-light``: MMH's stage 1 in two passes of a small network, for a laptop.

What bias correction takes for a field depends on an image's contrast and on how much fluid lies around the brain, so
that two scanners keep two different rests of it. With the template's tissues beside it the rest can be told from
tissue: it is taken off before the network sees the image, and, all images having one contrast in the unified look, once
more after. What the network would still change in its own output, which has no scanner's look any more, is a habit of
the network, and is taken back. At last one curve brings grey and white matter to the levels of the unified look, and
fluid to or near its own: network and field leave them a few percent apart, and one level a tissue is what "unified"
means. Differences between people in a tissue's overall brightness go with them.

torch is imported when the first image comes: the command line loads a harmonizer only to ask what it can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import BundleError, ImageError
from mmh_bids.harmonizers.base import SEQUENCES, Reference, Result, check_known, check_shapes
from mmh_bids.harmonizers.levelling import CEILING, RIM_MM, levelled
from mmh_bids.harmonizers.moments import brain_moments, match_moments
from mmh_bids.harmonizers.people import CUBE, deviation, tissue_logs, with_person
from mmh_bids.harmonizers.standard import brain_values
from mmh_bids.image.intensity import fit_monotone_map
from mmh_bids.image.levels import TISSUES
from mmh_bids.models.bundle import Bundle

if TYPE_CHECKING:
    from mmh_bids.models.light import LightNetwork
    from mmh_bids.models.look import Look

WEIGHTS_FILE = "light.safetensors"
#: Looks of sites, under keys such as ``T1w/site:A/rises``; only in bundles that know a site.
LOOKS_FILE = "looks.safetensors"
#: Room around the brain, voxels, and what corner and sizes of the network's box divide by.
_MARGIN, _DIVISOR = 8, 8
_AGAIN = "train it again with mmh-train global, or choose another with --model"


class MmhLight:
    """Two passes of `mmh_bids.models.light.LightNetwork`. Nothing is drawn at random: the seed makes no difference."""

    name = "mmh-light"
    mem_gb = 2.5

    def __init__(self, bundle: Bundle, device: str) -> None:
        self.bundle = bundle
        self.device = device
        self.sequences = tuple(sequence for sequence in SEQUENCES if sequence in bundle.sequences)
        self._network: LightNetwork | None = None

    @classmethod
    def load(cls, bundle: Bundle, device: str) -> MmhLight:
        """Check the card; the weights are read with the first image."""
        bundle.require(cls.name)
        if not isinstance(bundle.card.get("network"), dict) or WEIGHTS_FILE not in bundle.card["files"]:
            raise BundleError(f"--model {bundle.name}: has no network or no {WEIGHTS_FILE}; {_AGAIN}")
        known = [one["targets"]["unified"] for one in bundle.card["sequences"].values()]
        if any(len(one.get("levels", ())) != len(TISSUES) for one in known):
            raise BundleError(f"--model {bundle.name}: has no tissue levels; {_AGAIN}")
        return cls(bundle, device)

    def check_target(self, target: str, sequence: str) -> None:
        """Raise UsageError unless the bundle knows `target` for `sequence`; any reference image will do."""
        check_known(self.name, self.bundle, self.sequences, target, sequence)

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
        """Bring the brain to the target's look; see `mmh_bids.harmonizers.base.Harmonizer`.

        Returns
        -------
        `Result` whose volume is zero outside `mask` and in [0, 1.25]; its details hold ``EvenedField``, the standard
        deviations of the logarithms of the two fields that were taken off (null where none could be told), and
        ``TissueLevels``, those found before the last curve (fluid, grey, white matter; null where they could not be
        found and no curve was applied), and ``Stage``: 2 for a site's look, else 1; for a site ``TissueLevelsUnified``,
        the levels that `settled` found, and ``OwnTissues``, the logarithms by which grey and white matter were kept
        apart from the average person's (null where the bundle does not know the image's site); for a reference image
        ``StatisticsMatching``, the mean and standard deviation
        that the brain was given.

        Raises
        ------
        BundleError
            Weights and network of the bundle do not go together.
        ImageError
            An empty or tiny mask, no contrast, values that are not finite, or no memory left on the GPU.
        """
        self.check_target(target, sequence)
        mask = check_shapes(volume, mask)
        out, details = self.unify(volume[0], mask, sequence)
        if reference is not None and target.startswith("image:"):
            mean, std = brain_moments(reference.volume[0], reference.mask)
            out = match_moments(out, mask, mean, std)
            details |= {"StatisticsMatching": {"Mean": round(mean, 6), "StandardDeviation": round(std, 6)}}
        elif target != "unified":
            out, more = self.look(out, mask, sequence, target, volume[0], site)
            details |= {"Stage": 2} | more
        return Result(out[np.newaxis], details=details)

    def unify(
        self, volume: NDArray[np.float32], mask: NDArray[np.bool_], sequence: str
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Stage 1 of one volume (X, Y, Z): the unified look, and the details; errors as those of `harmonize`."""
        import torch

        values = brain_values(volume, mask)
        if float(np.ptp(values)) <= 1e-6 * float(np.abs(values).max()):
            raise ImageError("the brain has one and the same intensity all over, so there is no contrast to harmonize")
        try:
            flat, before = evened(np.where(mask, volume, 0), mask, self.bundle.affine)
            first, mean, std = self.run(flat, mask, sequence)
            second, *_ = self.run(first, mask, sequence)
        except torch.OutOfMemoryError:
            raise ImageError(f"the GPU has too little memory for model {self.bundle.name}; use --device cpu") from None
        unified, after = evened(without_habit(first, second, mask).clip(0, CEILING), mask, self.bundle.affine)
        out, levels = levelled(unified, mask, self.bundle.affine, self.levels(sequence))
        details = {"Stage": 1, "Sampler": "two passes", "Steps": 2, "DType": "float32"}
        details |= {"BrainMean": mean, "BrainStd": std, "EvenedField": [before, after], "TissueLevels": levels}
        return out, details

    def settled(
        self, unified: NDArray[np.float32], mask: NDArray[np.bool_], sequence: str
    ) -> tuple[NDArray[np.float32], list[float] | None]:
        """What `unify` gave with its tissues at their levels to the point: what stage 2 starts from.

        Only where fluid is bright, see `mmh_bids.harmonizers.levelling.levelled`: what the unified look may leave open
        a look would learn from some scanners and put on the scans of others.

        Returns
        -------
        The volume and the levels it had; unchanged and None where fluid is dark, or no tissue can be told apart.
        """
        levels = self.levels(sequence)
        if levels[0] < levels[2]:
            return unified, None
        return levelled(unified, mask, self.bundle.affine, levels, room=0.0, rim_mm=RIM_MM)

    def look(
        self,
        unified: NDArray[np.float32],
        mask: NDArray[np.bool_],
        sequence: str,
        target: str,
        image: NDArray[np.float32] | None = None,
        site: str | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Stage 2 of what `unify` gave: the look of a site (`mmh_bids.models.look`).

        Parameters
        ----------
        image, site
            What `unify` was given and the site it comes from: where the bundle knows that site's average person, this
            one keeps what is their own (`mmh_bids.harmonizers.people`).

        Returns
        -------
        The volume and the details: ``TissueLevelsUnified``, ``OwnTissues``.
        """
        import torch

        look = self._look(sequence, target)
        settled, levels = self.settled(unified, mask, sequence)
        with torch.no_grad():
            out = look(torch.from_numpy(settled)[None, None])[0, 0].numpy()
        own = None if image is None else self._own_tissues(image, settled, mask, sequence, site)
        if own is not None:
            out = with_person(out, settled, self.levels(sequence), own)
        kept = None if own is None else [round(float(value), 6) for value in own]
        out = np.where(mask, out.clip(0, CEILING), 0).astype(np.float32)
        return out, {"TissueLevelsUnified": levels, "OwnTissues": kept}

    def _look(self, sequence: str, target: str) -> Look:
        import torch

        from mmh_bids.models.look import Look

        try:
            arrays = self.bundle.arrays(LOOKS_FILE)
            rises, local = (arrays[f"{sequence}/{target}/{name}"].astype(np.float32) for name in ("rises", "local"))
            look = Look(len(rises) + 1, local.shape[1], local.shape[2:])
            look.load_state_dict({"rises": torch.from_numpy(rises), "local": torch.from_numpy(local)})
        except (KeyError, IndexError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise BundleError(
                f"--model {self.bundle.name}: {LOOKS_FILE} has no look {target} for {sequence} ({first}); {_AGAIN}"
            ) from None
        return look

    def _own_tissues(
        self,
        image: NDArray[np.float32],
        settled: NDArray[np.float32],
        mask: NDArray[np.bool_],
        sequence: str,
        site: str | None,
    ) -> NDArray[np.float64] | None:
        """What a person's grey and white matter add to the look of their site; None where that cannot be told."""
        known = self.bundle.card["sequences"][sequence].get("sites", {}).get(site)
        if known is None:
            return None
        from mmh_bids.models.shrink import shrink_brain

        even, _ = evened(np.where(mask, image, 0), mask, self.bundle.affine)
        (small, inside), (before, _) = (
            [one[0, 0].numpy() for one in shrink_brain(values, mask, CUBE)] for values in (even, settled)
        )
        try:
            return deviation(tissue_logs(small, before, inside, self.levels(sequence)), known["tissues"])
        except ImageError:
            return None

    def run(
        self, volume: NDArray[np.float32], mask: NDArray[np.bool_], sequence: str
    ) -> tuple[NDArray[np.float32], float, float]:
        """One pass of the network over a volume (X, Y, Z), zero outside the mask; mean and spread of its brain."""
        import torch

        from mmh_bids.models.light import measure_style, place_in_grid

        box = network_box(mask)
        half = tuple(slice(side.start // 2, side.stop // 2) for side in box)
        style = measure_style(torch.from_numpy(volume[mask]).to(self.device), sequence)
        place = place_in_grid(mask.shape)[(slice(None), *half)]
        arrays = (volume[box], mask[box].astype(np.float32))
        image, brain = (torch.from_numpy(np.ascontiguousarray(values))[None, None] for values in arrays)
        with torch.no_grad():
            inside = self._loaded()(image.to(self.device), brain.to(self.device), place[None].to(self.device), style)
        out = np.zeros(mask.shape, np.float32)
        out[box] = inside[0, 0].clamp(0, CEILING).cpu().numpy()
        return out, round(float(style.mean), 6), round(float(style.std), 6)

    def levels(self, sequence: str) -> list[float]:
        """Fluid, grey and white matter in the unified look."""
        return [float(level) for level in self.bundle.card["sequences"][sequence]["targets"]["unified"]["levels"]]

    def _loaded(self) -> LightNetwork:
        """The network with the bundle's weights, on the device."""
        if self._network is None:
            import torch

            from mmh_bids.models.light import LightNetwork

            weights = {key: torch.from_numpy(value).float() for key, value in self.bundle.arrays(WEIGHTS_FILE).items()}
            try:
                network = LightNetwork(**self.bundle.card["network"])
                network.load_state_dict(weights)
            except (RuntimeError, TypeError) as error:
                first = str(error).splitlines()[0]
                raise BundleError(
                    f"--model {self.bundle.name}: weights and network differ ({first}); {_AGAIN}"
                ) from None
            self._network = network.eval().requires_grad_(False).to(self.device)
        return self._network


def evened(
    volume: NDArray[np.float32], mask: NDArray[np.bool_], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32], float | None]:
    """Take off the field by which grey and white matter differ over the brain (`mmh_bids.image.field.tissue_field`).

    Parameters
    ----------
    volume, mask
        (X, Y, Z), zero outside the mask.

    Returns
    -------
    The volume and the standard deviation of the field's logarithm in the mask; unchanged and None where no field can be
    told from tissue.
    """
    from mmh_bids.image.field import tissue_field

    try:
        field = tissue_field(volume, mask, affine)
    except ImageError:
        return volume, None
    return volume / field, round(float(np.log(field[mask]).std()), 6)


def without_habit(
    first: NDArray[np.float32], second: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Take back what a second pass of the network adds to the first beyond one curve of intensity.

    Were the network perfect, its output would be the unified look and a second pass would change nothing. What it does
    change there, it changed in the first pass as well: noise and edges smoothed by more than was needed. The one curve,
    which squeezes the contrast, is left to `levelled`: taken back, it leaves spin-echo T1w half way to the look.

    Parameters
    ----------
    first, second
        (X, Y, Z), one pass of the network over an image, and one over its output; zero outside the mask.
    mask
        (X, Y, Z) bool, brain.

    Returns
    -------
    (X, Y, Z) float32, zero outside the mask.

    Examples
    --------
    >>> first = np.linspace(0.2, 0.8, 8000, dtype=np.float32).reshape(20, 20, 20)
    >>> squeezed = 0.5 + 0.9 * (first - 0.5)
    >>> bool(np.allclose(without_habit(first, squeezed, first > 0), first, atol=2e-3))
    True
    """
    before, after = first[mask], second[mask]
    out = np.zeros_like(first)
    out[mask] = before - (after - fit_monotone_map(before, after)(before))
    return out


def network_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The part of a volume that the network is shown: the brain with some room, sides that divide by 8.

    Raises
    ------
    ImageError
        The grid's sizes do not divide by 8, so that no such box fits.

    Examples
    --------
    >>> mask = np.zeros((32, 40, 48), bool)
    >>> mask[12:20, 12:30, 20:22] = True
    >>> network_box(mask)
    (slice(0, 32, None), slice(0, 40, None), slice(8, 32, None))
    """
    box = []
    for axis, size in enumerate(mask.shape):
        if size % _DIVISOR:
            raise ImageError(f"the model grid {mask.shape} does not divide by {_DIVISOR}; choose another with --model")
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        first = max(0, int(hit[0]) - _MARGIN) // _DIVISOR * _DIVISOR
        last = min(size, -(-(int(hit[-1]) + 1 + _MARGIN) // _DIVISOR) * _DIVISOR)
        box.append(slice(first, last))
    return box[0], box[1], box[2]
