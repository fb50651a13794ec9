"""How large the learning rates are at which a student learns best: short trainings from its start, without labels.

A first step tells what does harm at once (`first_step`), not what does in the long run: EfficientNet-Lite0 at 4 bits,
reconstructed, lowers its loss for eight steps at rates at which it is lost after fifty. So the run is made small: a
sixteenth of its steps, on the same cosine down to nothing, at each of the rates, and the loss of held-out images tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from pipeline.distillation.training.optimiser import Rates

#: Parts of the rates of weights and of scales that are tried, in this order [ours]: scales that were fitted already, as
#: reconstruction does, stand less than weights.
PARTS: Final = ((1.0, 1.0), (1.0, 0.1), (0.3, 0.03), (0.1, 0.01))
# Of the whole training's steps, and how many at least; a training shorter than some of them is not tried out [ours].
_SHARE, _LEAST, _WORTH = 16, 12, 5
_STANDARD_ERRORS = 2.0


def trial_steps(steps: int) -> int:
    """Steps of one trial of a training of so many; 0: it is too short to be tried out."""
    return max(_LEAST, steps // _SHARE) if steps >= _WORTH * _LEAST else 0


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What was tried, the mean held-out loss after each, and what is taken."""

    rates: tuple[Rates, ...]
    losses: tuple[float, ...]
    taken: Rates

    def words(self, *, steps: int) -> str:
        """What to say of it."""
        tried = ", ".join(
            f"{loss:.3g} (weights {rates.weights:.3g}, scales {rates.scales:.3g})"
            for loss, rates in zip(self.losses, self.rates, strict=True)
        )
        return (
            f"{steps} steps on trial ended at held-out losses of {tried}: {self.taken.weights:.3g} and"
            f" {self.taken.scales:.3g} are taken, the highest rates that are not worse than others beyond chance"
            " (--learning-rate takes yours as it is)"
        )


def try_rates(offered: Rates, losses_after: Callable[[Rates], Tensor]) -> Trials:
    """The highest rates behind which no others leave less to learn beyond chance, by short trials of `PARTS` of them.

    Trials end with the first that is no better than the one before. `losses_after`: of held-out images, float64 [N],
    once a student has learned for a while at such rates; where one is not finite the rates are the worst. Two standard
    errors of the mean difference, image by image, are chance. Source: ours.
    """
    tried, losses = list[Rates](), list[Tensor]()
    for weights, scales in PARTS:
        tried.append(offered.of_student(weights=weights, scales=scales))
        after = losses_after(tried[-1]).double()
        losses.append(after if bool(after.isfinite().all()) else torch.full_like(after, torch.inf))
        if len(losses) > 1 and losses[-2].mean() <= losses[-1].mean() < torch.inf:
            break
    means = [float(after.mean()) for after in losses]
    best = losses[means.index(min(means))]
    taken = next(rates for rates, after in zip(tried, losses, strict=True) if not _is_worse(after, best))
    return Trials(rates=tuple(tried), losses=tuple(means), taken=taken)


def _is_worse(losses: Tensor, best: Tensor) -> bool:
    """Whether losses of the same images are higher beyond chance."""
    if losses is best:
        return False
    more = losses - best
    if len(more) < 2 or not bool(more.isfinite().all()):
        return float(more.mean()) > 0
    return float(more.mean()) > _STANDARD_ERRORS * float(more.std()) / math.sqrt(len(more))
