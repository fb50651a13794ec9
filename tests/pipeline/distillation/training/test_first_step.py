"""The first step is tried before it is taken: by hand, and on a student that stands none of the usual rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.distillation.training.divergence import DivergenceWatch
from pipeline.distillation.training.first_step import SHARES, rounding_of, signed_step, try_first_step


def bowl(*values: float) -> tuple[nn.Parameter, list[float]]:
    """Weights w in a bowl of loss 1 + 100 sum (w - 0)^2, with gradients of very different sizes."""
    weights = nn.Parameter(torch.tensor(values))
    weights.grad = torch.tensor([1e-6 * (index + 1) ** 5 for index in range(len(values))])
    return weights, []


def test_a_signed_step_moves_all_alike_and_back() -> None:
    weights, _ = bowl(1.0, -2.0, 3.0)
    with signed_step([weights], 0.5):
        assert weights.tolist() == [0.5, -2.5, 2.5]
    assert weights.tolist() == [1.0, -2.0, 3.0]


@pytest.mark.parametrize(
    ("rate", "share"),
    # One step at rate r raises the loss from 1 to 1 + 300 r^2: twice as much at r = 0.0577.
    [(0.05, 1.0), (0.1, 0.3), (0.19, 0.3), (0.2, 0.1), (1.0, 0.03), (100.0, 0.01)],
)
def test_the_largest_share_that_no_more_than_doubles_the_loss(rate: float, share: float) -> None:
    weights, tried = bowl(0.0, 0.0, 0.0)

    def loss() -> float:
        tried.append(float(1 + 100 * weights.detach().square().sum()))
        return tried[-1]

    step = try_first_step([weights], rate, loss)
    assert step.share == share
    assert step.before == 1 and step.after == pytest.approx(1 + 300 * rate**2, rel=1e-4)
    assert len(tried) == 2 + SHARES.index(share)
    assert weights.tolist() == [0, 0, 0]


def test_a_loss_that_is_no_number_is_too_large() -> None:
    weights, _ = bowl(1.0)
    step = try_first_step([weights], 1.0, lambda: float("nan") if float(weights.detach()) != 1.0 else 1.0)
    assert step.share == SHARES[-1]


@pytest.mark.parametrize("start", [-1e-7, 0.0, 1e-7])
def test_rounding_lowers_no_rate(start: float) -> None:
    """A student that is its teacher but for rounding seems to lose a little, or to win."""
    weights, _ = bowl(1.0)

    def loss() -> float:
        return start if float(weights.detach()) == 1.0 else 1.5e-7

    assert try_first_step([weights], 1.0, loss, noise=1e-7).share == 1.0
    assert try_first_step([weights], 1.0, loss, noise=1e-8).share == (SHARES[-1] if start < 1e-7 else 1.0)
    assert try_first_step([weights], 1.0, loss, noise=1e-7).before >= 0


def test_rounding_alone_is_no_divergence() -> None:
    """A teacher that gives one and the same everywhere leaves an ignorant student nothing to lose."""
    assert [rounding_of(loss) for loss in (0.0, 1.0, 10.0)] == pytest.approx([1e-6, 1e-6, 1e-5])
    watch = DivergenceWatch(reference=0.0, floor=rounding_of(0.0))
    assert [watch.observe(3e-7) for _ in range(40)] == [None] * 40
    bare = DivergenceWatch(reference=0.0, floor=0.0)
    assert any(bare.observe(3e-7) for _ in range(40))
