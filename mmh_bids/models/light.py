"""The light harmonizer's network: one pass from an image to the unified look. Torch and MONAI only.

It starts from the z-scored image, which a curve that is the same all over the brain, and whose slope is bounded, brings
to the unified look, and adds

* a curve of intensity whose coefficients vary smoothly over the brain (a bilateral grid, Chen et al., ACM Trans Graph
  2007;26:103), which cannot move an edge, and
* at full resolution, second differences weighted by gains that vary over the brain (for noise, and for slices thicker
  than the unified look's), and a small free change.

Untrained, all are zero. Statistics of the whole brain modulate the features as in MMH's AdaIN; nothing is
normalised over the patch or volume at hand, so that a patch in training and a whole volume at run time are alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import nn
from torch.nn import functional

SEQUENCES = ("T1w", "T2w")
N_QUANTILES = 32
#: What the last layers' output is multiplied by, so that one step of Adam moves an image by hundredths.
_STEP = 0.1
#: Steps (voxels) of the second differences along each axis.
_REACHES = (1, 2, 3)
#: Intervals of the curve that is the same everywhere; logarithm of its steepest slope: z-scoring has slope 1, and its
#: flattest is the inverse. A flat curve erases what differs within a tissue, a steep one makes speckle of noise.
_INTERVALS, _STEEPEST = 16, math.log(3.0)
#: Channels that the image enters with: 4 of each of 8 voxels, and the place.
_ENTERING = 35


@dataclass(frozen=True)
class Style:
    """Whole-brain statistics of images, one row an image.

    Attributes
    ----------
    mean, std
        (B,) in the image's units.
    quantiles
        (B, 32) of the z-scored brain, ascending, at the middles of 32 equal shares.
    sequence
        (B,) index into `SEQUENCES`.
    """

    mean: torch.Tensor
    std: torch.Tensor
    quantiles: torch.Tensor
    sequence: torch.Tensor


def measure_style(values: torch.Tensor, sequence: str) -> Style:
    """Statistics of one image.

    Parameters
    ----------
    values
        (N,) intensities in the brain.
    sequence
        ``"T1w"`` or ``"T2w"``.
    """
    ordered = values.float().flatten().sort().values
    mean, std = ordered.double().mean().float(), ordered.double().std().float().clamp_min(1e-6)
    shares = (torch.arange(N_QUANTILES, device=ordered.device) + 0.5) / N_QUANTILES
    position = shares * (ordered.numel() - 1)
    below = position.floor().long()
    low, high = ordered[below], ordered[(below + 1).clamp_max(ordered.numel() - 1)]
    quantiles = ((low + (position - below) * (high - low)) - mean) / std
    index = torch.tensor([SEQUENCES.index(sequence)], device=ordered.device)
    return Style(mean[None], std[None], quantiles[None], index)


def join_styles(styles: list[Style]) -> Style:
    """One `Style` of several."""
    return Style(
        *(torch.cat([getattr(one, key) for one in styles]) for key in ("mean", "std", "quantiles", "sequence"))
    )


def intensity_axis(z: torch.Tensor, quantiles: torch.Tensor) -> torch.Tensor:
    """Where an intensity lies between the brain's darkest and brightest, 0 to 1, monotone.

    Half rank, half distance: rank spends the axis on the tissues, distance on the tails.

    Parameters
    ----------
    z
        (B, ...) z-scored image.
    quantiles
        (B, Q), see `Style`.

    Examples
    --------
    >>> z = torch.tensor([[-5.0, -1.0, 0.0, 1.0, 5.0]])
    >>> intensity_axis(z, torch.linspace(-1, 1, 32)[None])
    tensor([[0.0000, 0.0000, 0.5000, 1.0000, 1.0000]])
    """
    out = torch.empty_like(z)
    count = quantiles.shape[1]
    for image, knots, target in zip(z, quantiles.contiguous(), out, strict=True):
        place = torch.searchsorted(knots, image.contiguous()).clamp(1, count - 1)
        low, high = knots[place - 1], knots[place]
        share = ((image - low) / (high - low).clamp_min(1e-4)).clamp(0, 1)
        rank = (place - 1 + share) / (count - 1)
        distance = ((image - knots[0]) / (knots[-1] - knots[0]).clamp_min(1e-4)).clamp(0, 1)
        target.copy_(0.5 * (rank + distance))
    return out


def scored(image: torch.Tensor, style: Style) -> torch.Tensor:
    """(B, ...) image in standard deviations of its brain from the brain's mean, -6 to 12."""
    mean, std = (value.reshape(-1, *[1] * (image.dim() - 1)) for value in (style.mean, style.std))
    return ((image - mean) / std).clamp(-6, 12)


def gradient(z: torch.Tensor) -> torch.Tensor:
    """Mean of the signed forward differences along the three axes, 0.5 tanh; (B, 1, X, Y, Z) to the same.

    Like MMH's condition (`mmh_bids.models.gradient`), but in units of the whole brain's standard deviation instead of
    the volume's 99th percentile, which a patch does not know; and each difference is that of its own voxel.
    """
    total = torch.zeros_like(z)
    for axis in (2, 3, 4):
        step = torch.diff(z, dim=axis)
        padding = [0, 0, 0, 0, 0, 0]
        padding[2 * (4 - axis)] = 1
        total = total + functional.pad(step, padding)
    return 0.5 * torch.tanh(total / 3)


def place_in_grid(shape: tuple[int, int, int]) -> torch.Tensor:
    """Coordinates of every second voxel of the model grid: -1 to 1 from edge to edge; (3, X / 2, Y / 2, Z / 2)."""
    axes = [(torch.arange(size // 2, dtype=torch.float32) * 2 + 1 - size / 2) / (size / 2) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


class _Block(nn.Module):
    """Residual block of two convolutions; the style modulates between them."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(style, 2 * channels)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)
        _silence(self.modulation, self.second)

    def forward(self, features: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        gamma, beta = self.modulation(style)[:, :, None, None, None].chunk(2, dim=1)
        inner = _unit(self.first(functional.silu(features)))
        return features + self.second(functional.silu(inner * (1 + gamma) + beta))


class LightNetwork(nn.Module):
    """Predicts the unified look of an image.

    Parameters
    ----------
    filters
        Channels at 2 mm; twice at 4 mm, four times at 8 mm.
    knots
        Knots of the curves over `intensity_axis` that vary over the brain.
    unified
        Per sequence mean and standard deviation of the brain in the unified look.
    """

    unified: torch.Tensor

    def __init__(
        self, filters: int = 16, knots: int = 12, unified: dict[str, tuple[float, float]] | None = None
    ) -> None:
        super().__init__()
        known = unified or {"T1w": (0.5, 0.2), "T2w": (0.3, 0.12)}
        self.register_buffer("unified", torch.tensor([known[sequence] for sequence in SEQUENCES]))
        style = 64
        self.style = nn.Sequential(
            nn.Linear(N_QUANTILES + len(SEQUENCES), style), nn.SiLU(), nn.Linear(style, style), nn.SiLU()
        )
        one, two, four = filters, 2 * filters, 4 * filters
        self.stem = nn.Conv3d(_ENTERING, one, 3, padding=1)
        self.down_one, self.down_two = nn.Conv3d(one, two, 2, stride=2), nn.Conv3d(two, four, 2, stride=2)
        self.up_two, self.up_one = nn.Conv3d(four, two, 1), nn.Conv3d(two, one, 1)
        self.enter = nn.ModuleList([_Block(one, style), _Block(two, style)])
        self.deep = nn.ModuleList([_Block(four, style) for _ in range(3)])
        self.leave = nn.ModuleList([_Block(two, style), _Block(one, style)])
        self.curve, self.gains = nn.Conv3d(two, knots, 3, padding=1), nn.Conv3d(one, 3 * len(_REACHES), 1)
        self.detail = nn.Conv3d(one + _ENTERING, 8, 3, padding=1)
        self.everywhere = nn.Linear(style, _INTERVALS + 1)
        _silence(self.curve, self.gains, self.detail, self.everywhere)

    def forward(self, image: torch.Tensor, brain: torch.Tensor, place: torch.Tensor, style: Style) -> torch.Tensor:
        """The image in the unified look: the sum of the two parts that `parts` gives.

        Parameters
        ----------
        image
            (B, 1, X, Y, Z), the units of `style`; sizes divide by 8.
        brain
            (B, 1, X, Y, Z), 0 or 1.
        place
            (B, 3, X / 2, Y / 2, Z / 2) coordinates, about -1 to 1 over the template's brain.
        style
            Of the B images.

        Returns
        -------
        (B, 1, X, Y, Z), about 0 to 1, not clipped; zero outside the brain.
        """
        parts = self.parts(image, brain, place, style)
        return parts[:, :1] + parts[:, 1:]

    def parts(self, image: torch.Tensor, brain: torch.Tensor, place: torch.Tensor, style: Style) -> torch.Tensor:
        """What the curve that is the same everywhere gives, and what changes over the brain: (B, 2, X, Y, Z).

        Parameters as in `forward`. The first part carries no gradient: that curve learns through `one_curve`.
        """
        z = scored(image, style) * brain
        axis, code = intensity_axis(z, style.quantiles), self._code(style)
        curves, gains, detail = self._features(z, axis, brain, place, code)
        with torch.no_grad():
            same = self._look(bounded_curve(z, self.everywhere(code), style.quantiles), style)
        sharper = (_twice(gains) * second_differences(z, brain)).sum(dim=1, keepdim=True)
        local = slice_curves(curves, axis) + sharper + pixelshuffle(detail, 3, 2)
        width = self.unified[style.sequence][:, 1].reshape(-1, 1, 1, 1, 1)
        return torch.cat([same, width * local], dim=1) * brain

    def one_curve(self, values: torch.Tensor, style: Style) -> torch.Tensor:
        """What the curve that is the same everywhere makes of intensities.

        Parameters
        ----------
        values
            (B, N), the units of `style`.

        Returns
        -------
        (B, N) in the unified look.
        """
        curve = self.everywhere(self._code(style))
        return self._look(bounded_curve(scored(values, style), curve, style.quantiles), style)

    def _code(self, style: Style) -> torch.Tensor:
        kind = functional.one_hot(style.sequence, len(SEQUENCES)).to(style.quantiles.dtype)
        return self.style(torch.cat([style.quantiles / 2, kind], dim=1))

    def _look(self, z: torch.Tensor, style: Style) -> torch.Tensor:
        """Give z-scores the mean and standard deviation of the unified look."""
        own = self.unified[style.sequence].reshape(-1, 2, *[1] * (z.dim() - 1))
        return own[:, 0] + own[:, 1] * z

    def _features(
        self, z: torch.Tensor, axis: torch.Tensor, brain: torch.Tensor, place: torch.Tensor, code: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Curves (B, K, X / 4, ...), gains (B, 9, X / 2, ...), change (B, 8, X / 2, ...).

        Curves and change in standard deviations of the unified look.
        """
        fine = torch.cat([z / 2, 2 * axis - 1, gradient(z), brain], dim=1)
        entering = torch.cat([pixelunshuffle(fine, 3, 2), place], dim=1)
        one = self.enter[0](self.stem(entering), code)
        two = self.enter[1](self.down_one(one), code)
        four = self.down_two(two)
        for block in self.deep:
            four = block(four, code)
        two = self.leave[0](two + _twice(self.up_two(four)), code)
        one = self.leave[1](one + _twice(self.up_one(two)), code)
        one = _centred(one)
        change = self.detail(torch.cat([one, entering], dim=1))
        return _STEP * self.curve(_centred(two)), self.gains(one), _STEP * change


def second_differences(z: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """Mean of the two voxels 1, 2 and 3 steps away along each axis, less the voxel itself.

    Parameters
    ----------
    z, brain
        (B, 1, X, Y, Z); sides of 7 at least.

    Returns
    -------
    (B, 9, X, Y, Z); zero where one of the two is not brain or not there.

    Examples
    --------
    >>> line = torch.tensor([0.0, 0, 0, 1, 0, 0, 0])[None, None, :, None, None] * torch.ones(7, 7)
    >>> second_differences(line, torch.ones_like(line))[0, 0, :, 3, 3]
    tensor([ 0.0000,  0.0000,  0.5000, -1.0000,  0.5000,  0.0000,  0.0000])
    """
    found = []
    for axis in (2, 3, 4):
        for reach in _REACHES:
            inner = z.shape[axis] - 2 * reach
            before, here, behind = (z.narrow(axis, start, inner) for start in (0, reach, 2 * reach))
            both = brain.narrow(axis, 0, inner) * brain.narrow(axis, 2 * reach, inner)
            padding = [0, 0, 0, 0, 0, 0]
            padding[2 * (4 - axis)] = padding[2 * (4 - axis) + 1] = reach
            found.append(functional.pad(((before + behind) / 2 - here) * both, padding))
    return torch.cat(found, dim=1)


def bounded_curve(z: torch.Tensor, shape: torch.Tensor, quantiles: torch.Tensor) -> torch.Tensor:
    """A rising curve of straight pieces, equally wide between the brain's darkest and brightest.

    Parameters
    ----------
    z
        (B, ...) z-scored image.
    shape
        (B, K + 1) the curve's value at 0, then numbers that rise with the pieces' slopes: 0 stands for 1, and no number
        for less than 1/3 or more than 3. The outer pieces go on for ever.
    quantiles
        (B, Q), see `Style`.

    Examples
    --------
    >>> ends = torch.tensor([[-2.0, 2.0]])
    >>> bounded_curve(torch.tensor([[-3.0, -1.0, 0.0, 3.0]]), torch.tensor([[0.5, 0.0, 0.0]]), ends)
    tensor([[-2.5000, -0.5000,  0.5000,  3.5000]])
    >>> bounded_curve(torch.tensor([[-3.0, -1.0, 0.0, 3.0]]), torch.tensor([[0.0, -99.0, 99.0]]), ends)
    tensor([[-1.0000, -0.3333,  0.0000,  9.0000]])
    """
    slopes = torch.exp(_STEEPEST * torch.tanh(shape[:, 1:]))
    low = quantiles[:, :1]
    wide = ((quantiles[:, -1:] - low) / slopes.shape[1]).clamp_min(1e-3)
    reached = functional.pad(torch.cumsum(slopes * wide, dim=1), (1, 0))

    def risen(values: torch.Tensor) -> torch.Tensor:
        piece = ((values - low) / wide).detach().floor().long().clamp(0, slopes.shape[1] - 1)
        return reached.gather(1, piece) + slopes.gather(1, piece) * (values - low - piece * wide)

    flat = z.reshape(len(z), -1)
    return (shape[:, :1] + risen(flat) - risen(torch.zeros_like(low))).reshape(z.shape)


def slice_curves(curves: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """Value of each voxel's own piecewise-linear curve at the voxel's intensity.

    Parameters
    ----------
    curves
        (B, K, x, y, z) values at K equally spaced knots, on a coarse grid that covers the same volume.
    axis
        (B, 1, X, Y, Z) in [0, 1].

    Returns
    -------
    (B, 1, X, Y, Z).

    Examples
    --------
    >>> ramp = torch.tensor([0.0, 1.0, 4.0]).reshape(1, 3, 1, 1, 1)
    >>> slice_curves(ramp, torch.tensor([0.25, 0.75]).reshape(1, 1, 2, 1, 1)).flatten()
    tensor([0.5000, 2.5000])
    """
    knots, out = curves.shape[1], torch.zeros_like(axis)
    for number in range(knots):
        fine = functional.interpolate(curves[:, number : number + 1], axis.shape[2:], mode="trilinear")
        out = out + fine * (1 - (axis * (knots - 1) - number).abs()).clamp_min(0)
    return out


def _unit(features: torch.Tensor) -> torch.Tensor:
    """Each voxel's features with a mean square of one: a norm that sees neither patch nor volume, only the voxel."""
    return features * torch.rsqrt(features.square().mean(dim=1, keepdim=True) + 1e-4)


def _centred(features: torch.Tensor) -> torch.Tensor:
    """`_unit` of each voxel's features less their mean: a last layer's bias has nothing to do with its weights then."""
    return _unit(features - features.mean(dim=1, keepdim=True))


def _silence(*layers: nn.Module) -> None:
    """Set all parameters of the layers to zero: their output is nothing until they have learned."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def _twice(features: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(features, scale_factor=2.0, mode="trilinear")
