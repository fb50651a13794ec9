"""Trials of the rates: which are taken, when they end, how long they are, and what is said."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.distillation.training.optimiser import Rates
from pipeline.distillation.training.short_trials import PARTS, trial_steps, try_rates

OFFERED = Rates(weights=1e-4, scales=1e-3)


def losses(mean: float, *, noise: float = 0.01) -> torch.Tensor:
    """Of 16 images: each of its own size, with as much noise, which differs with the mean."""
    generator = torch.Generator().manual_seed(round(1000 * mean) if math.isfinite(mean) else 0)
    unlike = torch.randn(16, generator=generator)
    return mean * torch.linspace(0.9, 1.1, 16) + noise * (unlike - unlike.mean())


@pytest.mark.parametrize(
    ("means", "noise", "taken", "tried"),
    [
        ([1.0, 2.0], 0.01, 0, 2),  # the first is no worse than the next: no more are asked
        ([1.0, 1.0], 0.0, 0, 2),
        ([4.0, 2.0, 3.0], 0.01, 1, 3),
        ([4.0, 3.0, 2.0, 1.0], 0.01, 3, 4),
        ([4.0, 2.02, 2.01, 2.0], 1.0, 1, 4),  # what follows is better by chance
        ([4.0, 2.02, 2.01, 2.0], 0.0, 3, 4),  # or beyond it
        ([math.nan, math.inf, 2.0, 3.0], 0.01, 2, 4),  # what is lost says nothing of what comes
        ([math.nan, math.nan, math.inf, math.inf], 0.01, 0, 4),
    ],
    ids=str,
)
def test_the_highest_rates_that_are_not_worse(means: list[float], noise: float, taken: int, tried: int) -> None:
    asked = list[Rates]()

    def losses_after(rates: Rates) -> torch.Tensor:
        asked.append(rates)
        return losses(means[len(asked) - 1], noise=noise)

    trials = try_rates(OFFERED, losses_after)
    assert len(trials.losses) == tried and trials.rates == tuple(asked)
    assert trials.taken == asked[taken]
    for rates, (weights, scales) in zip(asked, PARTS, strict=False):
        assert (rates.weights, rates.scales) == pytest.approx((weights * 1e-4, scales * 1e-3))
        assert rates.transforms == OFFERED.transforms


def test_one_held_out_image_is_believed() -> None:
    means = iter([2.0, 1.0, 1.5])
    assert try_rates(OFFERED, lambda _: torch.tensor([next(means)])).taken.scales == pytest.approx(1e-4)


def test_what_is_said() -> None:
    means = iter([0.5, 0.25, 0.3])
    trials = try_rates(OFFERED, lambda _: torch.full((16,), next(means)))
    assert trials.words(steps=18) == (
        "18 steps on trial ended at held-out losses of 0.5 (weights 0.0001, scales 0.001), 0.25 (weights 0.0001, scales"
        " 0.0001), 0.3 (weights 3e-05, scales 3e-05): 0.0001 and 0.0001 are taken, the highest rates that are not worse"
        " than others beyond chance (--learning-rate takes yours as it is)"
    )


def test_short_trainings_are_not_tried_out() -> None:
    assert [trial_steps(steps) for steps in (10, 59, 60, 192, 207, 208, 1600)] == [0, 0, 12, 12, 12, 13, 100]
