"""Noticing that a training run is lost, from its losses alone."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What a watch has seen: how many steps, the loss that it measures by, and the losses of the last window."""

    steps: int
    reference: float | None
    recent: tuple[float, ...]


class DivergenceWatch:
    """Judges each step's loss: a run has diverged when its running median stays far above where it began.

    The median over the last `window` losses ignores single bad batches and the jolt of an optimiser's first
    steps; it exceeds `factor` times the reference only when the loss has risen and stayed. Before the first
    window is full only a loss that is not finite counts.

    Give the loss of the calibrated, untrained student as `reference`: a run can be lost within its first
    window, whose median is then no reference. Give a floor too, because a student that starts almost equal to
    its teacher may leave that start by much and still learn well. Measured with ResNet-20, W8A8, KL at T = 4:
    it starts at 0.005; Adam at 1e-4 raises that to 0.12 (median of ten steps) before it falls to 0.011 and
    all is well; at 1e-3 it is 18 and accuracy ends 4 points lower. A student that knows nothing has 28.5
    (`pipeline.distillation.objective.uninformed_loss`): a floor of 5 % of it tells the two apart at 8 and 4
    bits.

    Args:
        window: steps that the median covers, >= 1.
        factor: ratio of the median to the reference above which a run has diverged, > 1.
        reference: loss at the start, >= 0; None: the median of the first window.
        floor: least value of the reference, >= 0, in the units of the loss.

    Raises:
        ValueError: a number out of its range.

    Source: ours.
    """

    def __init__(
        self, *, window: int = 20, factor: float = 3.0, reference: float | None = None, floor: float = 0.0
    ) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        if not (factor > 1 and math.isfinite(factor)):
            raise ValueError(f"factor is {factor}; it must be finite and above 1")
        if reference is not None and not (reference >= 0 and math.isfinite(reference)):
            raise ValueError(f"reference is {reference}; it must be finite and at least 0")
        if not (floor >= 0 and math.isfinite(floor)):
            raise ValueError(f"floor is {floor}; it must be finite and at least 0")
        self._factor = factor
        self._floor = floor
        self._reference = reference
        self._recent: deque[float] = deque(maxlen=window)
        self._steps = 0

    @property
    def limit(self) -> float | None:
        """The median above which a run has diverged; None while the first window makes the reference."""
        return None if self._reference is None else self._factor * max(self._reference, self._floor)

    def observe(self, loss: float) -> str | None:
        """Take one step's loss, and say why the run has diverged, or None while it has not.

        Args:
            loss: total loss of the step, before its update; any float.

        Returns:
            None, or one line for the log and the report.
        """
        step = self._steps
        self._steps += 1
        if not math.isfinite(loss):
            return f"diverged at step {step}: the loss is {loss}"
        self._recent.append(loss)
        if len(self._recent) < (self._recent.maxlen or 0):
            return None
        median = statistics.median(self._recent)
        if self._reference is None:
            self._reference = median
        if self.limit is None or median <= self.limit:
            return None
        return (
            f"diverged at step {step}: median loss of the last {len(self._recent)} steps {median:.4g}, "
            f"limit {self.limit:.4g} ({self._factor:g} times the reference)"
        )

    def state(self) -> Watched:
        """What a checkpoint must keep for the watch to go on; a reference that is no finite number is none."""
        finite = self._reference is not None and math.isfinite(self._reference)
        return Watched(steps=self._steps, reference=self._reference if finite else None, recent=tuple(self._recent))

    def restore(self, state: Watched) -> None:
        """Go on from `state()` of a watch with the same settings."""
        self._steps, self._reference = state.steps, state.reference
        self._recent = deque(state.recent, maxlen=self._recent.maxlen)


def given_up(rate: float, backoffs: int, out_of_time: bool) -> Iterable[str]:
    """What to say of a training that diverged for good: at which rate, after how many others, and for want of what."""
    too, further = (" too", " further") if backoffs else ("", "")
    why = ", and --minutes had no room to begin again" if out_of_time else ""
    yield (
        f"WARNING: training diverged, at learning rate {rate:.3g}{too}{why}: the calibrated weights go on;"
        f" --learning-rate lowers it{further}"
    )
