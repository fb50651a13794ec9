"""What a strategy came to: the students that it made, from the cheapest on, each measured as the result is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backends.device.bundle_check import records

StepName = Literal["calibrated", "corrected", "reconstructed", "distilled"]


@dataclass(frozen=True, kw_only=True)
class StepTaken:
    """A student on the way."""

    name: StepName
    accuracy: float | None
    """Of the runtime, of the oracle where it is not here, as the report's accuracy measures it, a fraction."""
    lost: float | None
    """Of that against the float teacher, percentage points."""
    over: float | None
    """Percentage points by which it exceeds a limit, of all accuracy gates the worst; 0 and less: by none."""
    decided_by: str | None = None
    """The output whose limit that is, where it has one of its own; `accuracy` and `lost` may be another's."""
    reached: bool | None
    """Whether all accuracy gates passed; None: the images cannot say."""
    suffices: bool
    """Whether no further step is worth its time: the goal is reached, or images that cannot say show no loss at all."""
    gained: float | None = None
    """Percentage points that it has lost less than the step before; None of the first."""
    seconds: float | None = None
    """That making it took, its measurement not included; None where it was made along with the step before."""

    def __post_init__(self) -> None:
        records.check(self)
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ValueError(f"StepTaken.accuracy is {self.accuracy!r}: must be a fraction, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Course:
    """A strategy, its steps in their order, and which of them is the result."""

    name: Literal["auto"]
    limit: float
    """Percentage points that may be lost, of all gates the smallest."""
    steps: tuple[StepTaken, ...]
    chosen: StepName

    def __post_init__(self) -> None:
        records.check(self)
        if self.chosen not in [step.name for step in self.steps]:
            raise ValueError(f"Course.chosen is {self.chosen!r}: must be one of its steps")

    @property
    def result(self) -> StepTaken:
        """The step that is the result."""
        return next(step for step in self.steps if step.name == self.chosen)
