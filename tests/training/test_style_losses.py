"""The losses of stage 2 against an independent computation in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmh_bids.training.style_losses import displacement_loss, multiscale_gradient_loss

vectors = st.lists(
    st.lists(st.floats(-5, 5, width=32).filter(lambda value: abs(value) > 1e-3), min_size=4, max_size=4),
    min_size=4,
    max_size=4,
)


def by_hand(translated: list[float], source: list[float], target: list[float], removed: list[float]) -> float:
    """The formula in Python's float64, one vector at a time."""
    moved = [a - b for a, b in zip(translated, source, strict=True)]
    aim = [a - b for a, b in zip(target, removed, strict=True)]
    lengths = math.sqrt(math.fsum(v * v for v in moved)), math.sqrt(math.fsum(v * v for v in aim))
    cosine = math.fsum(a * b for a, b in zip(moved, aim, strict=True)) / (lengths[0] * lengths[1])
    return (1 - cosine) + 1.5 * abs(lengths[0] - lengths[1])


@given(vectors)
@settings(max_examples=50, deadline=None)
def test_displacement_is_the_papers_formula(rows: list[list[float]]) -> None:
    moved = sum((a - b) ** 2 for a, b in zip(rows[0], rows[1], strict=True))
    aim = sum((a - b) ** 2 for a, b in zip(rows[2], rows[3], strict=True))
    if min(moved, aim) < 1e-2:
        return  # the direction of nearly nothing
    loss = displacement_loss(*(torch.tensor([row], dtype=torch.float64) for row in rows))
    assert float(loss) == pytest.approx(by_hand(*rows), rel=1e-9, abs=1e-9)


def test_displacement_is_the_mean_over_the_batch() -> None:
    rows = torch.randn(4, 3, 8, dtype=torch.float64)
    each = [by_hand(*(rows[part, index].tolist() for part in range(4))) for index in range(3)]
    assert float(displacement_loss(*rows)) == pytest.approx(sum(each) / 3, rel=1e-12)


def test_only_the_translation_gets_a_gradient() -> None:
    parts = [torch.randn(2, 8, requires_grad=True) for _ in range(4)]
    displacement_loss(*parts).backward()
    assert parts[0].grad is not None and parts[0].grad.abs().min() > 0
    assert parts[1].grad is not None
    assert parts[2].grad is None and parts[3].grad is None


def test_no_change_at_all_has_a_finite_gradient() -> None:
    translated = torch.zeros(1, 4, requires_grad=True)
    loss = displacement_loss(translated, torch.zeros(1, 4), torch.ones(1, 4), torch.zeros(1, 4))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1 + 1.5 * 2)
    assert translated.grad is not None and translated.grad.isfinite().all()


def test_gradient_loss_sees_each_scale() -> None:
    """A ripple of two voxels vanishes in all averages; one of sixteen is seen by all of them."""
    line = torch.arange(32)
    fine, coarse = ((line // size % 2).float().reshape(1, 1, 32, 1, 1).expand(1, 1, 32, 32, 32) for size in (1, 8))
    still = torch.zeros_like(fine)
    # fine: 31 steps of 1 at scale 1, nothing beyond; a third of that for three axes, a quarter for four scales
    assert float(multiscale_gradient_loss(fine, still)) == pytest.approx(1 / 3 / 4)
    # coarse: 3 steps of 1 among 31, 15, 7 and 3 differences
    expected = (3 / 31 + 3 / 15 + 3 / 7 + 3 / 3) / 3 / 4
    assert float(multiscale_gradient_loss(coarse, still)) == pytest.approx(expected)


def test_gradient_loss_leaves_out_scales_that_do_not_fit() -> None:
    volume = torch.rand(1, 1, 4, 4, 4)
    one = torch.stack([torch.diff(volume, dim=axis).abs().mean() for axis in (2, 3, 4)]).mean()
    pooled = torch.nn.functional.avg_pool3d(volume, 2)
    two = torch.stack([torch.diff(pooled, dim=axis).abs().mean() for axis in (2, 3, 4)]).mean()
    assert float(multiscale_gradient_loss(volume, torch.zeros_like(volume))) == pytest.approx(float((one + two) / 2))
