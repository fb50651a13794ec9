"""Gates on a result, and the status and exit status that they amount to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from backends.device.bundle_check import records

Status = Literal["validated", "gate-failed", "not-validated-on-target", "undecided"]

EXIT_STATUS: dict[Status, int] = {"validated": 0, "gate-failed": 1, "not-validated-on-target": 3, "undecided": 4}
"""Exit status of a command that ended with a report; 2 is kept for the user's mistakes."""

OPTIONAL_OF_GATES = ("undecided", "images", "images_needed", "at_most", "judged_by", "says_nothing")
"""Keys of a gate that are absent where they say nothing."""

Judge = Literal["runtime", "oracle", "run"]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition on the result; what it is called says which way the limit counts (`wording.GATES`).

    A name of two parts, as in "max-drop:boxes", is the gate of the output that the second part names.
    """

    name: str
    limit: float | None
    value: float | None
    passed: bool | None
    """None: not measurable here, or undecided."""
    undecided: bool = False
    """Whether it was measured on images that can neither pass nor fail it: too few of them, or `says_nothing`."""
    images: int | None = None
    """Images that it was measured on; None where their number plays no part."""
    images_needed: int | None = None
    """Images from which on the limit can be decided."""
    at_most: float | None = None
    """What the value is at most with 95 % confidence, in its unit."""
    judged_by: Judge | None = None
    """What the value is of: the runtime; the oracle, where the runtime is not here; "run": what the run that made a
    bundle had measured, whose runtime is compared here on golden inputs."""
    says_nothing: bool = False
    """Whether it is undecided since the float network gives one and the same for all of the images."""

    def __post_init__(self) -> None:
        records.check(self)
        if self.undecided and self.passed is not None:
            raise ValueError(f"Gate {self.name} is undecided and passed={self.passed}: it cannot be both")
        if self.says_nothing and not self.undecided:
            raise ValueError(f"Gate {self.name} says nothing and is not undecided")


def verdict(gates: Sequence[Gate], *, on_target: bool) -> Status:
    """Return the status that gates amount to; `on_target`: the target runtime itself ran the network."""
    if any(gate.passed is False for gate in gates):
        return "gate-failed"
    if not on_target or any(gate.passed is None and not gate.undecided for gate in gates):
        return "not-validated-on-target"
    if any(gate.undecided for gate in gates):
        return "undecided"
    return "validated"
