"""Method ``mmh-diffusion``: MMH as published (Wu et al., arXiv 2601.08193).

Stage 1 brings any image to the unified look. Stage 2, for a site that the bundle was fine-tuned to, gives it the mean
and standard deviation of the site's brains, inverts it with stage 1's network, denoises it with the fine-tuned one, and
matches mean and standard deviation again. For a reference image there is no such network: stage 1 and the matching.

torch is imported when the first image comes: the command line loads a harmonizer only to ask what it can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import BundleError, ImageError
from mmh_bids.harmonizers.base import SEQUENCES, Reference, Result, check_known, check_shapes
from mmh_bids.harmonizers.moments import brain_moments, match_moments
from mmh_bids.models.acceleration import Acceleration, choose_acceleration
from mmh_bids.models.bundle import Bundle
from mmh_bids.models.memory import inference_gb

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mmh_bids.models.sampler import Predictor, Sampler

WEIGHTS_FILE = "unet.safetensors"
_AGAIN = "train the bundle again, or choose another with --model"


@dataclass(frozen=True)
class TargetLook:
    """What the card says of one target of one sequence.

    Attributes
    ----------
    weights
        File of the network that denoises towards it.
    style
        Mean and standard deviation that feed the network's AdaIN, in [-1, 1] of intensity.
    moments
        Mean and standard deviation of the target's brains, in [0, 1], for the matching of stage 2.
    """

    weights: str
    style: tuple[float, float]
    moments: tuple[float, float]

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> TargetLook:
        """Read the facts of a target; KeyError, TypeError or ValueError if they are not there."""
        style = float(facts["mean"]), float(facts["std"])
        mean, std = facts.get("brain", ((style[0] + 1) / 2, style[1] / 2))
        return cls(str(facts.get("weights", WEIGHTS_FILE)), style, (float(mean), float(std)))


class Mmh:
    """Noise the image with the network's own noise, and denoise it with the style of its sequence.

    Nothing is drawn at random: the seed makes no difference.
    """

    name = "mmh-diffusion"

    def __init__(self, bundle: Bundle, device: str, looks: dict[tuple[str, str], TargetLook]) -> None:
        self.bundle = bundle
        self.device = device
        self.looks = looks
        self.sequences = tuple(sequence for sequence in SEQUENCES if (sequence, "unified") in looks)
        self.mem_gb = inference_gb(bundle.card["network"], bundle.shape, networks=self._weight_sets)
        self._networks: dict[str, nn.Module] = {}
        self._chosen: Acceleration | None = None

    @classmethod
    def load(cls, bundle: Bundle, device: str) -> Mmh:
        """Check the card; the weights are read with the first image.

        Raises
        ------
        BundleError
            The bundle is for other methods, or its card lacks network, sampler or running statistics.
        """
        bundle.require(cls.name)
        for name in ("network", "sampler"):
            if not isinstance(bundle.card.get(name), dict):
                raise BundleError(f"--model {bundle.name}: its card has no {name}; {_AGAIN}")
        if not isinstance(bundle.card["network"].get("channels"), list):
            raise BundleError(f"--model {bundle.name}: its card has no channels of the network; {_AGAIN}")
        looks = {}
        try:
            for sequence in bundle.sequences:
                for target, facts in bundle.card["sequences"][sequence]["targets"].items():
                    looks[sequence, target] = TargetLook.read(facts)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise BundleError(
                f"--model {bundle.name}: its card has no mean and std of {sequence}, {target}; {_AGAIN}"
            ) from None
        missing = sorted({look.weights for look in looks.values()} - set(bundle.card["files"]))
        if missing:
            raise BundleError(f"--model {bundle.name}: has no {', '.join(missing)}; {_AGAIN}")
        return cls(bundle, device, looks)

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
        `Result` whose volume is in [0, 1] and zero outside `mask`; details name the stage, the sampler, its steps, the
        numbers' precision and the thickness of the slabs (null for none).

        Raises
        ------
        BundleError
            Weights, network and sampler of the bundle do not go together.
        ImageError
            No brain in the mask, or too little memory left.
        """
        self.check_target(target, sequence)
        if target.startswith("image:") and reference is None:
            raise ValueError(f"target {target} needs the reference image on the model grid")
        mask = check_shapes(volume, mask)
        if not mask.any() or not np.isfinite(volume).all():
            raise ImageError("the preprocessed image has no brain, or NaN or infinite values; check image and mask")
        import torch

        unified = self.looks[sequence, "unified"]
        try:
            out = self._pass(np.where(mask, volume[0], 0).astype(np.float32), sequence, unified, unified)
            details = self._details(unified)
            if reference is not None and target.startswith("image:"):
                mean, std = brain_moments(reference.volume[0], reference.mask)
                out = match_moments(out, mask, mean, std)
                details |= {"StatisticsMatching": {"Mean": _short(mean), "StandardDeviation": _short(std)}}
            elif target != "unified":
                look = self.looks[sequence, target]
                out = match_moments(out, mask, *look.moments)
                out = match_moments(self._pass(out, sequence, unified, look), mask, *look.moments)
                details = self._details(look) | {"Stage": 2}
        except torch.OutOfMemoryError:
            raise ImageError(f"the GPU has too little memory for model {self.bundle.name}; use --device cpu") from None
        return Result(np.where(mask, out, 0)[np.newaxis].astype(np.float32), details=details)

    def _sampler(self) -> Sampler:
        from mmh_bids.models.sampler import make_sampler

        try:
            return make_sampler(self.bundle.card["sampler"])
        except ValueError as error:
            raise BundleError(f"--model {self.bundle.name}: {error}; {_AGAIN}") from None

    def _pass(
        self, volume: NDArray[np.float32], sequence: str, up: TargetLook, down: TargetLook
    ) -> NDArray[np.float32]:
        """Invert a volume (X, Y, Z) with the network of one look, and denoise it with that of another."""
        import torch

        from mmh_bids.models.gradient import gradient_condition
        from mmh_bids.models.unet import SEQUENCE_CLASS, from_signed, to_signed

        sampler, precision = self._sampler(), self._acceleration().dtype
        label = torch.tensor([SEQUENCE_CLASS[sequence]], device=self.device)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            image = to_signed(torch.from_numpy(volume)[None, None].to(self.device))
            condition = gradient_condition(image)

            def predictor(look: TargetLook) -> Predictor:
                network = self._loaded(look.weights)
                style = torch.tensor([look.style], device=self.device)

                def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
                    # between the passes everything is float32
                    return network(noisy, condition, timesteps, label, style).float()

                return predict

            signed = sampler.denoise(predictor(down), sampler.invert(predictor(up), image))
        if precision == "float16" and not bool(torch.isfinite(signed).all()):
            # weights that need more than float16 reaches, such as those trained in float32: from now on without
            self._chosen = Acceleration(channels_last=False)
            self._networks.clear()
            return self._pass(volume, sequence, up, down)
        return from_signed(signed)[0, 0].cpu().numpy()

    def _details(self, look: TargetLook) -> dict[str, Any]:
        sampler = self._sampler()
        return {
            "Stage": 1,
            "Sampler": sampler.card,
            "Steps": {"Inversion": len(sampler.up), "Denoising": len(sampler.down)},
            "DType": self._acceleration().dtype,
            "Slabs": self._acceleration().planes,
            "RunningMean": _short(look.style[0]),
            "RunningStandardDeviation": _short(look.style[1]),
        }

    @property
    def _weight_sets(self) -> int:
        """How many networks an image may need at once."""
        return min(2, len({look.weights for look in self.looks.values()}))

    def _acceleration(self) -> Acceleration:
        """How passes are computed, settled when the first image comes."""
        if self._chosen is None:
            card = self.bundle.card["network"]
            self._chosen = choose_acceleration(
                card, self.bundle.shape, self.device, self.bundle.name, self._weight_sets
            )
        return self._chosen

    def _loaded(self, weights: str) -> nn.Module:
        """The network with the weights of a file, on the device, as it is to be run."""
        import torch

        from mmh_bids.models.unet import StyleUNet

        if weights not in self._networks:
            arrays = self.bundle.arrays(weights)
            try:
                network = StyleUNet(**self.bundle.card["network"])
                network.load_state_dict({name: torch.from_numpy(values) for name, values in arrays.items()})
            except (TypeError, ValueError, RuntimeError) as error:
                first = str(error).splitlines()[0]
                raise BundleError(
                    f"--model {self.bundle.name}: {weights} does not fit the card's network ({first}); {_AGAIN}"
                ) from None
            self._networks[weights] = self._acceleration().prepared(network, self.device)
        return self._networks[weights]


def _short(value: float) -> float:
    return float(f"{value:.6g}")
