"""A target look for the light harmonizer: what brings the unified look of a sequence to that of a site. Torch only.

Stage 1 has given every tissue its level, so that what a site's look differs in is how bright a tissue is there. A look
is one rising curve of intensity, and curves that vary smoothly over the template's brain and are added to it: two
tissues of one intensity in the unified look may differ at the site. Neither can move an edge, and a look of some
thousand numbers is small enough to ship by the dozen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from mmh_bids.models.light import slice_curves

#: The brightest intensity of the unified look, where the curves' knots end.
BRIGHTEST = 1.25


class Look(nn.Module):
    """Curves from the unified look's intensities to a site's.

    Parameters
    ----------
    knots
        Of the one curve, evenly spaced from 0 to `BRIGHTEST`.
    local_knots
        Of the curves that vary over the brain, likewise.
    cells
        Sizes (x, y, z) of the coarse grid that these lie on, which covers the model grid.

    Attributes
    ----------
    rises
        (knots - 1,) what the one curve rises by between knots; what is below zero counts as zero.
    local
        (1, local_knots, x, y, z) added to the one curve at their knots.
    """

    def __init__(self, knots: int = 26, local_knots: int = 9, cells: tuple[int, int, int] = (9, 12, 12)) -> None:
        super().__init__()
        self.rises = nn.Parameter(torch.full((knots - 1,), BRIGHTEST / (knots - 1)))
        self.local = nn.Parameter(torch.zeros(1, local_knots, *cells))

    @property
    def levels(self) -> torch.Tensor:
        """(knots,) values of the one curve at its knots; zero stays zero."""
        return functional.pad(torch.cumsum(self.rises.clamp_min(0), dim=0), (1, 0))

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Give volumes the look.

        Parameters
        ----------
        volume
            (B, 1, X, Y, Z) in the unified look, the whole model grid at any voxel size, zero outside the brain.

        Returns
        -------
        (B, 1, X, Y, Z) on the scale of the site's images; not cut.

        Examples
        --------
        >>> look, volume = Look(), torch.rand(1, 1, 18, 24, 24)
        >>> bool(torch.allclose(look(volume), volume, atol=1e-6))  # untrained it changes nothing
        True
        """
        axis = (volume / BRIGHTEST).clamp(0, 1)
        return self._one_curve(axis) + slice_curves(self.local, axis)

    @property
    def roughness(self) -> torch.Tensor:
        """Mean square of the local curves, and of their differences between neighbouring cells and knots: for training.

        A cell that no brain reaches gets its neighbours' curve, as nothing else pulls at it.
        """
        steps = [torch.diff(self.local, dim=axis).square().mean() for axis in range(1, 5)]
        return self.local.square().mean() + torch.stack(steps).sum()

    @torch.no_grad()
    def start(self, levels: torch.Tensor) -> None:
        """Begin with the curve of given ascending values (knots,) at the knots; below zero counts as zero.

        Examples
        --------
        >>> look = Look(knots=4)
        >>> look.start(torch.tensor([-0.5, 0.25, 0.5, 1.5]))
        >>> look.levels.tolist()
        [0.0, 0.25, 0.5, 1.5]
        """
        levels = levels.clamp_min(0)
        self.rises.copy_(torch.diff(functional.pad(levels[1:], (1, 0))))

    def _one_curve(self, axis: torch.Tensor) -> torch.Tensor:
        levels = self.levels
        place = axis * (len(levels) - 1)
        below = place.detach().floor().long().clamp(0, len(levels) - 2)
        # gather's gradient is slow on the CPU: millions of additions into a few numbers, one after another
        steps = functional.embedding(below, torch.stack([levels[:-1], torch.diff(levels)], dim=1))
        return steps[..., 0] + steps[..., 1] * (place - below)


class Looks(nn.Module):
    """One `Look` a sequence, by name."""

    def __init__(self, sequences: Sequence[str]) -> None:
        super().__init__()
        self.looks = nn.ModuleDict({sequence: Look() for sequence in sequences})

    def __getitem__(self, sequence: str) -> Look:
        look = self.looks[sequence]
        assert isinstance(look, Look)
        return look

    def forward(self, volume: torch.Tensor, sequence: str) -> torch.Tensor:
        """Give volumes (B, 1, X, Y, Z) of a sequence its look."""
        return self[sequence](volume)

    def roughness(self, sequence: str) -> torch.Tensor:
        """See `Look.roughness`."""
        return self[sequence].roughness
