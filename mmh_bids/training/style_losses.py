"""Losses of MMH's stage 2: the style displacement, and edges at several scales.

Formulas: Wu et al., arXiv 2601.08193 (2026), and the authors' published scripts.
"""

from __future__ import annotations

import torch
from torch.nn import functional

#: Weights of the direction and of the length of a displacement.
DIRECTION, LENGTH = 1.0, 1.5
#: Weight of the edges beside the displacement (style transfer) and beside the L1 error (style reconstruction).
EDGES = 0.5
#: Sizes of the cubes that are averaged before edges are compared.
SCALES = (1, 2, 4, 8)
#: The displacement's weight in the first epoch, and the one it has reached `WEIGHT_EPOCHS` later.
FIRST_WEIGHT, LAST_WEIGHT, WEIGHT_EPOCHS = 1.0, 5.0, 8


def displacement_loss(
    translated: torch.Tensor, source: torch.Tensor, target: torch.Tensor, target_removed: torch.Tensor
) -> torch.Tensor:
    """How far the step from a source to its translation differs from the step to the target's look.

    With d_trans = translated - source and d_tar = target - target_removed it is
    (1 - cos(d_trans, d_tar)) + 1.5 | |d_trans| - |d_tar| |, mean over the batch.

    Parameters
    ----------
    translated, source
        (B, D) style embeddings of translated images, and of the same images before, without style.
    target, target_removed
        (B, D) embeddings of images of the target, and of the same without style. No gradient flows through these.

    Examples
    --------
    >>> zero, step = torch.zeros(1, 2), torch.tensor([[0.0, 2.0]])
    >>> displacement_loss(step, zero, step, zero)
    tensor(0.)
    >>> displacement_loss(torch.tensor([[1.0, 0.0]]), zero, step, zero)
    tensor(2.5000)
    """
    moved = translated - source
    aim = (target - target_removed).detach()
    direction = 1 - functional.cosine_similarity(moved, aim, dim=1)
    # the gradient of a length at zero is not a number: a translation that changes nothing is where training starts
    length = (_length(moved) - _length(aim)).abs()
    return (DIRECTION * direction + LENGTH * length).mean()


def _length(vectors: torch.Tensor) -> torch.Tensor:
    """Euclidean length of rows (B, D), with a gradient of zero at zero."""
    square = vectors.square().sum(dim=1)
    none = square == 0
    return torch.where(none, 0.0, torch.where(none, 1.0, square).sqrt())


def multiscale_gradient_loss(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """L1 distance of the forward differences of two volumes, mean over the averages of 1, 2, 4 and 8 voxels.

    Scales at which an axis would have less than two cubes are left out.

    Parameters
    ----------
    image, reference
        (B, 1, X, Y, Z), X, Y and Z two at least.

    Examples
    --------
    >>> volume = torch.rand(1, 1, 16, 16, 16)
    >>> multiscale_gradient_loss(volume + 0.5, volume) < 1e-6
    tensor(True)
    >>> ramp = torch.arange(16.0).reshape(1, 1, 16, 1, 1).expand_as(volume)
    >>> multiscale_gradient_loss(ramp, 0 * ramp)  # steps of 1, 2, 4 and 8 along one of three axes
    tensor(1.2500)
    """
    smallest = min(image.shape[2:])
    found = []
    for scale in SCALES:
        if smallest // scale < 2:
            continue
        difference = functional.avg_pool3d(image - reference, scale)
        found.append(torch.stack([torch.diff(difference, dim=axis).abs().mean() for axis in (2, 3, 4)]).mean())
    return torch.stack(found).mean()


def displacement_weight(epoch: int) -> float:
    """Weight of the displacement in an epoch: from 1 to 5 over 8 epochs.

    >>> displacement_weight(0), displacement_weight(4), displacement_weight(30)
    (1.0, 3.0, 5.0)
    """
    return FIRST_WEIGHT + (LAST_WEIGHT - FIRST_WEIGHT) * min(1.0, epoch / WEIGHT_EPOCHS)
