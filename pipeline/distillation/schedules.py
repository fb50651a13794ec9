"""Rates, weights and temperatures over a run, as pure functions of the step: a resumed run needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from calibration.errors import UserError

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


# kind -> how far from the first to the second value, as a function of the fraction of the run that is done, in [0, 1]
RAMPS: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {"linear": lambda done: done, "cosine": lambda done: 0.5 * (1 - math.cos(math.pi * done))}
)
RAMP_FORMS = "a number, linear:A:B, cosine:A:B or step:A:B:..."


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A weight or temperature over a run.

    Args:
        kind: "constant" (one value), "linear" or "cosine" (from the first value at the first step to the second at the
            last), "step" (two or more values, each for an equal part of the run).
        values: finite numbers, >= 0, of the weight's or temperature's unit.

    Raises:
        ValueError: an unknown kind, or values that do not belong to it.
    """

    kind: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        fits = {"constant": len(self.values) == 1, "step": len(self.values) >= 2}
        if not fits.get(self.kind, self.kind in RAMPS and len(self.values) == 2):
            raise ValueError(f"{self.kind} with {len(self.values)} values is not {RAMP_FORMS}")
        if not all(math.isfinite(value) and value >= 0 for value in self.values):
            raise ValueError(f"{self.values} are not all finite numbers from 0 on")

    def at(self, step: int, *, steps: int) -> float:
        """The value at one step, 0 to steps - 1."""
        if self.kind == "constant":
            return self.values[0]
        if self.kind == "step":
            return self.values[min(step * len(self.values) // steps, len(self.values) - 1)]
        first, last = self.values
        return first + (last - first) * RAMPS[self.kind](step / max(steps - 1, 1))

    @property
    def start(self) -> float:
        """The value at the first step."""
        return self.values[0]


def constant(value: float) -> Ramp:
    """The ramp that stays where it is."""
    return Ramp(kind="constant", values=(value,))


def read_ramp(flag: str, given: float | str, *, positive: bool, instead: str = "") -> Ramp:
    """The ramp that a flag's value means: 0.1, linear:1:0, cosine:4:1, step:1:0.5:0.1.

    Args:
        flag: its name without dashes, for the error.
        given: what the user wrote.
        positive: whether every value must be above 0 (a temperature) or only one of them (a weight).
        instead: what to do where a weight of nothing but zeros was meant.

    Raises:
        UserError: no such form, a number that is negative or not finite, or zero where that is not allowed.
    """
    words = str(given).split(":")
    kind, numbers = (words[0], words[1:]) if len(words) > 1 else ("constant", words)
    try:
        values = tuple(float(number) for number in numbers)
    except ValueError:
        raise UserError(f"--{flag} {given}: must be {RAMP_FORMS}") from None
    if kind != "constant" and kind != "step" and kind not in RAMPS:
        raise UserError(f"--{flag} {given}: unknown schedule {kind!r}; must be {RAMP_FORMS}")
    if len(values) < 2 if kind == "step" else len(values) != (1 if kind == "constant" else 2):
        raise UserError(f"--{flag} {given}: must be {RAMP_FORMS}")
    least = min(values) if positive else max(values)
    if not all(math.isfinite(value) and value >= 0 for value in values) or least <= 0:
        what = "must be a finite number above 0"
        if kind != "constant":
            what = f"every value {what}" if positive else "its values must be finite, not negative, and one above 0"
        raise UserError(f"--{flag} {given}: {what}" + (f"; {instead}" if instead else ""))
    return Ramp(kind=kind, values=values)
