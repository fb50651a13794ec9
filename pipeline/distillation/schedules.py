"""Learning rates over a run, as pure functions of the step: a resumed run needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

ScheduleKind = Literal["cosine", "linear", "constant"]

# name -> factor after the warm-up, as a function of the fraction of it that is done, in [0, 1)
SCHEDULES: dict[ScheduleKind, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int, kind: ScheduleKind) -> float:
    """Factor by which the base learning rate is multiplied at one step.

    The warm-up rises linearly, (step + 1) / (warmup_steps + 1), and the first step after it has the factor 1.
    From there the schedule falls towards 0, which it would reach at `steps`, one past the last step: no step
    is idle.

    Args:
        step: from 0 to steps - 1.
        steps: length of the run, >= 1.
        warmup_steps: from 0 to steps.
        kind: "cosine", "linear" or "constant".

    Returns:
        In (0, 1].

    Raises:
        ValueError: a number out of its range, an unknown kind.

    Source: cosine: Loshchilov and Hutter, arXiv 1608.03983 (one period); linear warm-up: Goyal et al., arXiv
    1706.02677.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"schedule is {kind!r}; allowed: {', '.join(SCHEDULES)}")
    if not 0 <= step < steps:
        raise ValueError(f"step is {step}; a run of {steps} steps has 0 to {steps - 1}")
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps is {warmup_steps}; a run of {steps} steps allows 0 to {steps}")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return SCHEDULES[kind]((step - warmup_steps) / (steps - warmup_steps))
