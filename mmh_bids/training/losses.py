"""Losses of MMH's stage 1, and the running statistics of a sequence that they pull its images towards.

Formulas: Wu et al., arXiv 2601.08193 (2026), and the authors' published scripts. MONAI has no loss that fits: its
histogram losses compare two images, these compare an image with a distribution that moves.

Intensities are those of the network, [-1, 1]; histograms are over [0, 1], as the paper has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmh_bids.models.gradient import gradient_map
from mmh_bids.training.share import Share

#: Bins over [0, 1] whose centres reach from 0 to 1, and how many of the lowest are left out.
BINS, IGNORED = 100, 2
SPACING = 1 / (BINS - 1)
#: Width of the histogram's kernel: T1w, T2w.
KERNEL_WIDTHS = (0.01, 0.015)
#: Temperature of the soft argmax: shares of the voxels in a bin differ by thousandths.
_PEAK_TEMPERATURE = 1e-4
#: Mean, standard deviation and soft histogram of a brain.
Measures = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
#: Voxels a piece of the histogram is made of: 100 weights for every voxel of a brain would take a gigabyte.
_PIECE = 1 << 16


def soft_histogram(values: torch.Tensor, width: float) -> torch.Tensor:
    """Histogram with a Gaussian kernel, differentiable in the values.

    Parameters
    ----------
    values
        (N,) in [0, 1].
    width
        Standard deviation of the kernel.

    Returns
    -------
    (98,) shares of the kernels' weight in all bins but the lowest two, whose share is dropped.

    Examples
    --------
    >>> histogram = soft_histogram(torch.full((9,), 0.5), 0.01)
    >>> round(float(histogram.sum()), 4), round(float(histogram @ bin_centres()), 4)
    (1.0, 0.5)
    """
    centres = torch.linspace(0, 1, BINS, device=values.device)
    total = torch.zeros(BINS, device=values.device)
    for piece in values.float().split(_PIECE):
        # recomputed in the backward pass rather than kept
        total = total + checkpoint(_kernel_sums, piece, centres, width, use_reentrant=False)
    return (total / (total.sum() + 1e-8))[IGNORED:]


def _kernel_sums(values: torch.Tensor, centres: torch.Tensor, width: float) -> torch.Tensor:
    return torch.exp(-0.5 * ((values[:, None] - centres) / width) ** 2).sum(dim=0)


def bin_centres(device: torch.device | str = "cpu") -> torch.Tensor:
    """Centres of the bins of `soft_histogram`, (98,)."""
    return torch.linspace(0, 1, BINS, device=device)[IGNORED:]


def wasserstein(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Wasserstein-1 distance of two histograms (98,), in units of intensity.

    The authors average the difference of the distributions over the bins, which is 1 % more than this integral.

    Examples
    --------
    >>> values = torch.linspace(0.3, 0.5, 50)
    >>> moved = wasserstein(soft_histogram(values, 0.01), soft_histogram(values + 0.2, 0.01))
    >>> round(float(moved), 3)
    0.2
    """
    return (first.cumsum(0) - second.cumsum(0)).abs().sum() * SPACING


def soft_peak(histogram: torch.Tensor) -> torch.Tensor:
    """Place of a histogram's peak, a softmax-weighted mean of the bins' centres, differentiable.

    >>> round(float(soft_peak(soft_histogram(torch.full((9,), 0.7), 0.02))), 2)
    0.7
    """
    weights = functional.softmax(histogram / _PEAK_TEMPERATURE, dim=0)
    return (weights * bin_centres(histogram.device)).sum()


def gradient_loss(estimate: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the gradient maps of two (B, 1, X, Y, Z): keeps the anatomy."""
    return functional.mse_loss(gradient_map(estimate), gradient_map(image))


class RunningStatistics(nn.Module):
    """Mean, standard deviation and histogram of each sequence's brains as the network makes them.

    All state is in buffers, so it travels with the network into checkpoints and averages.

    Attributes
    ----------
    mean, std
        (S,) in the scale [-1, 1]; S sequences.
    histogram
        (S, 98), see `soft_histogram`.
    seen
        (S,) whether there was an image of the sequence.
    images
        Number of images trained on, for the ramp of the losses.
    """

    mean: torch.Tensor
    std: torch.Tensor
    histogram: torch.Tensor
    seen: torch.Tensor
    images: torch.Tensor

    def __init__(self, decay: float = 0.95, sequences: int = 2) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(sequences))
        self.register_buffer("std", torch.ones(sequences))
        self.register_buffer("histogram", torch.zeros(sequences, BINS - IGNORED))
        self.register_buffer("seen", torch.zeros(sequences, dtype=torch.bool))
        self.register_buffer("images", torch.zeros((), dtype=torch.long))

    def style(self, labels: torch.Tensor) -> torch.Tensor:
        """Mean and standard deviation of the sequences `labels` (B,), (B, 2)."""
        return torch.stack([self.mean[labels], self.std[labels]], dim=1)

    @torch.no_grad()
    def start(self, label: int, values: torch.Tensor) -> None:
        """Take the brain's intensities (N,) in [-1, 1] as a sequence's statistics, unless it has some already."""
        if not self.seen[label]:
            self.take(label, *measure(values, label))

    @torch.no_grad()
    def take(self, label: int, mean: torch.Tensor, std: torch.Tensor, histogram: torch.Tensor) -> None:
        """Take an image's measures as a sequence's statistics, unless it has some already."""
        if not self.seen[label]:
            self._store(label, mean, std, histogram, share=1.0)
            self.seen[label] = True

    @torch.no_grad()
    def update(self, label: int, mean: torch.Tensor, std: torch.Tensor, histogram: torch.Tensor) -> None:
        """Move a sequence's statistics towards those of an image by (1 - `decay`) of the way."""
        self._store(label, mean, std, histogram, share=1 - self.decay)

    def _store(self, label: int, mean: torch.Tensor, std: torch.Tensor, histogram: torch.Tensor, share: float) -> None:
        self.mean[label] = torch.lerp(self.mean[label], mean, share)
        self.std[label] = torch.lerp(self.std[label], std, share)
        self.histogram[label] = torch.lerp(self.histogram[label], histogram, share)


def measure(values: torch.Tensor, label: int) -> Measures:
    """Mean, standard deviation and soft histogram of a brain's intensities (N,) in [-1, 1]."""
    return values.mean(), values.std(), soft_histogram((values + 1) / 2, KERNEL_WIDTHS[label])


def time_weight(timestep: int, limit: int = 100) -> float:
    """Weight of the style losses: a nearly clean estimate counts, a guess out of noise does not.

    >>> time_weight(0), time_weight(50), time_weight(100), time_weight(700)
    (1.0, 0.5, 0.0, 0.0)
    """
    return max(0.0, 1 - timestep / limit)


def ramp(done: int, over: int) -> float:
    """Share of a loss's full weight after `done` images, reached after `over`.

    >>> ramp(0, 20), ramp(5, 20), ramp(50, 20), ramp(0, 0)
    (0.0, 0.25, 1.0, 1.0)
    """
    return min(1.0, done / over) if over else 1.0


def start_all(
    statistics: RunningStatistics, brains: Sequence[torch.Tensor], labels: Sequence[int], share: Share
) -> None:
    """`RunningStatistics.start` with one image of the batch after the other, whichever process has it.

    Parameters
    ----------
    brains, labels
        Intensities (N,) in [-1, 1] and class of each image of this share; only those of new sequences are measured.
    """
    new = [not statistics.seen[label] for label in labels]
    measured = [measure(values, label) if one else None for values, label, one in zip(brains, labels, new, strict=True)]
    for row in share.gather(_rows(labels, measured, brains[0].device))[0]:
        if found := _measures(row):
            statistics.take(*found)


def style_losses(
    estimates: Sequence[torch.Tensor],
    labels: Sequence[int],
    timesteps: Sequence[int],
    statistics: RunningStatistics,
    share: Share | None = None,
) -> dict[str, torch.Tensor]:
    """Compare estimates of clean images with their sequences' running statistics, which follow each of them first.

    Parameters
    ----------
    estimates
        Intensities (N,) of each estimate in the brain, [-1, 1].
    labels
        Class of each sequence, `start`-ed in `statistics`.
    timesteps
        Of the noise the estimates were made from.
    statistics
        Follow one image after the other, those of all processes in the batch's order.
    share
        Which part of the batch the estimates are; all of it if None.

    Returns
    -------
    ``histogram``, ``moments``, ``peak``: means over the estimates, weighted for time but not ramped. From step 100 on
    an estimate's are zero and it leaves the statistics as they are.
    """
    weights = [time_weight(timestep) for timestep in timesteps]
    measured = [
        measure(values, label) if weight else None
        for values, label, weight in zip(estimates, labels, weights, strict=True)
    ]
    aims = _follow(statistics, _rows(labels, measured, estimates[0].device), share)
    found: dict[str, list[torch.Tensor]] = {"histogram": [], "moments": [], "peak": []}
    for weight, one, aim in zip(weights, measured, aims, strict=True):
        for name, value in _distances(one, aim).items():
            found[name].append(weight * value)
    return {name: torch.stack(values).mean() for name, values in found.items()}


def _distances(measured: Measures | None, aim: Measures) -> dict[str, torch.Tensor]:
    if measured is None:
        zero = aim[0].new_zeros(())
        return {"histogram": zero, "moments": zero, "peak": zero}
    mean, std, histogram = measured
    return {
        "histogram": wasserstein(histogram, aim[2]),
        "moments": (mean - aim[0]) ** 2 + (std - aim[1]) ** 2,
        "peak": (soft_peak(histogram) - soft_peak(aim[2])) ** 2,
    }


def _follow(statistics: RunningStatistics, rows: torch.Tensor, share: Share | None) -> list[Measures]:
    """Move the statistics by all processes' images; what they were after each of this process's own."""
    together, begin = (rows, 0) if share is None else share.gather(rows)
    aims: list[Measures] = []
    for number, row in enumerate(together):
        if found := _measures(row):
            statistics.update(*found)
        if begin <= number < begin + len(rows):
            label = int(row[1])
            # copies: later updates write into the buffers while the backward pass still needs them
            kept = statistics.mean, statistics.std, statistics.histogram
            mean, std, histogram = (buffer[label].clone() for buffer in kept)
            aims.append((mean, std, histogram))
    return aims


def _rows(labels: Sequence[int], measured: Sequence[Measures | None], device: torch.device) -> torch.Tensor:
    """What processes tell each other of images (N, 102): whether one counts, its class, its measures."""
    rows = torch.zeros(len(labels), 4 + BINS - IGNORED, device=device)
    for row, label, one in zip(rows, labels, measured, strict=True):
        row[1] = label
        if one is not None:
            row[0], row[2], row[3], row[4:] = 1, one[0].detach(), one[1].detach(), one[2].detach()
    return rows


def _measures(row: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor] | None:
    return (int(row[1]), row[2], row[3], row[4:]) if row[0] else None
