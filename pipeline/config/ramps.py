"""Weights and temperatures over a run, as a flag's value says them: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from calibration.errors import UserError

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


def read_ramp(flag: str, typed: float | str, *, positive: bool, instead: str = "") -> Ramp:
    """The ramp that a flag's value means: 0.1, linear:1:0, cosine:4:1, step:1:0.5:0.1.

    Args:
        flag: its name without dashes, for the error.
        typed: what the user wrote.
        positive: whether every value must be above 0 (a temperature) or only one of them (a weight).
        instead: what to do where a weight of nothing but zeros was meant.

    Raises:
        UserError: no such form, a number that is negative or not finite, or zero where that is not allowed.
    """
    words = str(typed).split(":")
    kind, numbers = (words[0], words[1:]) if len(words) > 1 else ("constant", words)
    try:
        values = tuple(float(number) for number in numbers)
    except ValueError:
        raise UserError(f"--{flag} {typed}: must be {RAMP_FORMS}") from None
    if kind != "constant" and kind != "step" and kind not in RAMPS:
        raise UserError(f"--{flag} {typed}: unknown schedule {kind!r}; must be {RAMP_FORMS}")
    if len(values) < 2 if kind == "step" else len(values) != (1 if kind == "constant" else 2):
        raise UserError(f"--{flag} {typed}: must be {RAMP_FORMS}")
    least = min(values) if positive else max(values)
    if not all(math.isfinite(value) and value >= 0 for value in values) or least <= 0:
        what = "must be a finite number above 0"
        if kind != "constant":
            what = f"every value {what}" if positive else "its values must be finite, not negative, and one above 0"
        raise UserError(f"--{flag} {typed}: {what}" + (f"; {instead}" if instead else ""))
    return Ramp(kind=kind, values=values)
