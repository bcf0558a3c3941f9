"""Method ``mmh-diffusion``: stage 1 of MMH, from any site to the unified look (Wu et al., arXiv 2601.08193).

torch is imported when the first image comes: the command line loads a harmonizer only to ask what it can do.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids.errors import BundleError, ImageError
from mmh_bids.harmonizers.base import SEQUENCES, Reference, Result, check_shapes, check_unified
from mmh_bids.models.bundle import Bundle
from mmh_bids.models.memory import inference_gb

if TYPE_CHECKING:
    import torch

    from mmh_bids.models.unet import StyleUNet

WEIGHTS_FILE = "unet.safetensors"
_AGAIN = "train the bundle again, or choose another with --model"


class Mmh:
    """Noise the image with the network's own noise, and denoise it with the style of its sequence.

    Nothing is drawn at random: the seed makes no difference.
    """

    name = "mmh-diffusion"

    def __init__(self, bundle: Bundle, device: str, styles: dict[str, tuple[float, float]]) -> None:
        self.bundle = bundle
        self.device = device
        self.styles = styles
        self.sequences = tuple(sequence for sequence in SEQUENCES if sequence in styles)
        self.mem_gb = inference_gb(bundle.card["network"], bundle.shape)
        self._network: StyleUNet | None = None

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
        styles = {}
        try:
            for sequence in bundle.sequences:
                facts = bundle.card["sequences"][sequence]["targets"]["unified"]
                styles[sequence] = float(facts["mean"]), float(facts["std"])
        except (KeyError, TypeError, ValueError):
            raise BundleError(f"--model {bundle.name}: its card has no mean and std of {sequence}; {_AGAIN}") from None
        return cls(bundle, device, styles)

    def check_target(self, target: str, sequence: str) -> None:
        """Raise UsageError unless `target` is ``unified`` and the bundle knows `sequence`."""
        check_unified(self.name, self.bundle.name, self.sequences, target, sequence)

    def harmonize(
        self,
        volume: NDArray[np.float32],
        mask: NDArray[np.bool_],
        sequence: str,
        target: str,
        seed: int,
        reference: Reference | None = None,
    ) -> Result:
        """Bring the brain to its sequence's unified look; see `mmh_bids.harmonizers.base.Harmonizer`.

        Returns
        -------
        `Result` whose volume is in [0, 1] and zero outside `mask`; details name the sampler, its steps and the
        numbers' precision.

        Raises
        ------
        BundleError
            Weights, network and sampler of the bundle do not go together.
        ImageError
            No brain in the mask, or no memory left on the GPU.
        """
        self.check_target(target, sequence)
        mask = check_shapes(volume, mask)
        if not mask.any() or not np.isfinite(volume).all():
            raise ImageError("the preprocessed image has no brain, or NaN or infinite values; check image and mask")
        import torch

        try:
            out, details = self._run(np.where(mask, volume, 0), sequence)
        except torch.OutOfMemoryError:
            raise ImageError(f"the GPU has too little memory for model {self.bundle.name}; use --device cpu") from None
        out[0][~mask] = 0
        return Result(out, details=details)

    def _run(self, volume: NDArray[np.float32], sequence: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
        import torch

        from mmh_bids.models.gradient import gradient_condition
        from mmh_bids.models.sampler import make_sampler
        from mmh_bids.models.unet import SEQUENCE_CLASS, from_signed, to_signed

        try:
            sampler = make_sampler(self.bundle.card["sampler"])
        except ValueError as error:
            raise BundleError(f"--model {self.bundle.name}: {error}; {_AGAIN}") from None
        network, dtype = self._loaded(), self._dtype()
        half = torch.autocast("cuda", dtype) if dtype != torch.float32 else nullcontext()
        label = torch.tensor([SEQUENCE_CLASS[sequence]], device=self.device)
        style = torch.tensor([self.styles[sequence]], device=self.device)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            image = to_signed(torch.from_numpy(np.asarray(volume, np.float32))[None].to(self.device))
            condition = gradient_condition(image)

            def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
                with half:
                    return network(noisy, condition, timesteps, label, style).float()

            signed = sampler.denoise(predict, sampler.invert(predict, image))
        details = {
            "Stage": 1,
            "Sampler": sampler.card,
            "Steps": {"Inversion": len(sampler.up), "Denoising": len(sampler.down)},
            "DType": str(dtype).removeprefix("torch."),
            "RunningMean": float(f"{self.styles[sequence][0]:.6g}"),
            "RunningStandardDeviation": float(f"{self.styles[sequence][1]:.6g}"),
        }
        return from_signed(signed)[0].cpu().numpy(), details

    def _dtype(self) -> torch.dtype:
        """Half precision where the hardware has it; between the passes everything stays in float32."""
        import torch

        if self.device == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16

    def _loaded(self) -> StyleUNet:
        """The network with its weights, on the device."""
        import torch

        from mmh_bids.models.unet import StyleUNet

        if self._network is None:
            arrays = self.bundle.arrays(WEIGHTS_FILE)
            try:
                network = StyleUNet(**self.bundle.card["network"])
                network.load_state_dict({name: torch.from_numpy(values) for name, values in arrays.items()})
            except (TypeError, ValueError, RuntimeError) as error:
                first = str(error).splitlines()[0]
                raise BundleError(
                    f"--model {self.bundle.name}: {WEIGHTS_FILE} does not fit the card's network ({first}); {_AGAIN}"
                ) from None
            self._network = network.eval().to(self.device)
        return self._network
