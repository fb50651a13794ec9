"""How many steps fit into the time that there is for them, also where training has to begin again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

from calibration.errors import UserError
from pipeline.distillation.training.plateau import cooled, cooling_steps, looks_at_most
from pipeline.distillation.training.short_trials import PARTS, trial_steps
from pipeline.tools.source_text import counted

#: Fewer steps than these teach nothing [ours].
LEAST_STEPS = 10
# Steps are slower than they were when timed, where other work begins beside them [ours].
_RESERVE = 0.1
# Steps whose mean says how fast training is [ours].
_RECENT_STEPS = 10
# What the trial of the first step takes at most, in steps: every part of the rate, for weights and for scales, by a
# pass forward each.
_TRIAL_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The seconds that are left for a training, and what its parts take, measured once where it begins.

    What comes of a budget hangs on no further clock, unless steps become slower than its reserve (see `Deadline`): a
    run that goes on after an interruption takes the same steps.
    """

    seconds: float
    """Left for the attempt that is under way, its beginning and its end included; 0 and less: none."""
    step: float
    """Of one step, > 0."""
    judging: float = 0.0
    """Of judging the held-out images in the end."""
    look: float = 0.0
    """Of one look at those that are seen on the way; 0: there is none."""
    trifle: bool = False
    """Whether these looks begin with the first steps (see `pipeline.distillation.training.plateau`)."""
    tries_rates: bool = False
    """Whether short trials tell which rates are taken (see `pipeline.distillation.training.short_trials`)."""
    beginning: float = 0.0
    """Of making a student that learns, which takes as long as taking it apart in the end."""
    minutes: float
    """As asked for, of all students of a chain together."""
    students: int = 1
    """How many of them share it."""
    planned: int = 0
    """Steps of the first attempt."""

    def __post_init__(self) -> None:
        parts = (self.step, self.judging, self.look, self.beginning)
        if not (self.step > 0 and min(parts) >= 0 and all(map(math.isfinite, (self.seconds, *parts)))):
            raise ValueError(f"{self}: seconds must be finite, a step more than 0 and the others at least 0")
        if self.planned < 0:
            raise ValueError(f"planned is {self.planned}: must be 0 or more")

    def fitting(self, *, most: int) -> int:
        """Steps of an attempt that fit into the seconds, 0 to `most`."""
        steps = min(most, max(0, int((1 - _RESERVE) * self.seconds / self.step)))
        while steps and self.seconds_for(steps) > self.seconds:
            steps -= 1
        return steps

    def seconds_for(self, steps: int) -> float:
        """The seconds into which an attempt of so many steps fits."""
        return self.estimate(steps) / (1 - _RESERVE)

    def estimate(self, steps: int) -> float:
        """The seconds that it takes if all goes on as it began."""
        looks = looks_at_most(steps, trifle=self.trifle) * self.look
        return self.before_first_step(steps) + steps * self.step + looks + self.beginning + self.judging

    def before_first_step(self, steps: int) -> float:
        """The seconds of making a student that learns for so many steps, and of trying its rates."""
        trials = trial_steps(steps) if self.tries_rates and not self.trifle else 0
        trying = len(PARTS) * (trials * self.step + self.look + self.beginning) if trials else 0.0
        return _TRIAL_STEPS * self.step + self.beginning + trying

    def after(self, steps: int, *, of: int | None = None) -> Budget:
        """What is left once an attempt is given up after so many steps, on whose way there may have been any look.

        `of`: the steps that it was to have. Rates are tried before the first attempt alone.
        """
        taken = self.estimate(steps) - self.before_first_step(steps) - self.beginning - self.judging
        taken += self.before_first_step(of or steps)
        return replace(self, seconds=self.seconds - taken / (1 - _RESERVE), tries_rates=False)

    def too_small(self, steps: int) -> UserError:
        """The line of one that has room for so few steps."""
        needed = 60 * self.minutes / self.students - self.seconds + self.seconds_for(LEAST_STEPS)
        least = math.ceil(needed * self.students / 6) / 10
        return UserError(
            f"--minutes {self.minutes:g}: a training step takes {self.step:.2g} s here and judging the held-out images"
            f" {self.judging:.2g} s, which leaves room for {steps} steps, and {LEAST_STEPS} are the least: give"
            f" --minutes {least:g}, a smaller --batch-size, or --steps 0, which trains nothing"
        )

    def words(
        self, *, steps: int, attempts: int, default: int, patience: int, follows: bool, late: int | None = None
    ) -> str:
        """What to say of the steps that it is spent on, and of how to repeat them.

        `steps`: of the present attempt; `attempts`: before it; `default`: steps that there would be without a budget;
        `patience`: that ends them early; `follows`: whether another student of the chain has set their number; `late`:
        steps that were taken where they became too slow for all.
        """
        start = f"--minutes {self.minutes:g}:"
        if late is not None:
            slower = f"they became slower than {self.step:.2g} s each"
            return f"{start} {steps} steps were planned and {late} taken: {slower}"
        if steps < self.planned:
            again = "once" if attempts == 1 else f"{attempts} times"
            left = f"training diverged {again}, and what was left had room for {steps}"
            return f"{start} {self.planned} steps were planned; {left}"
        if follows:
            return f"{start} {steps} steps, as many as the first of {self.students} students took"
        fitting = f"all {steps} steps of the default fit" if steps == default else f"{steps} of {default} steps fit"
        same = f"--steps {steps} --patience {patience}" if patience else f"--steps {steps}"
        seconds = f"{in_words(self.estimate(steps))} by the first ones here, {self.step:.2g} s each"
        return f"{start} {fitting}, about {seconds}; {same} repeats them"


@dataclass(frozen=True, kw_only=True)
class Hurried:
    """How a training stands to its time, as its checkpoint says."""

    seconds: float
    """That the attempt has taken so far."""
    cools_from: int | None = None
    """Step at which it was brought to its end, in time."""
    over: int = 1
    """Steps that this takes, >= 1."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.over >= 1 and (self.cools_from or 0) >= 0):
            raise ValueError(f"{self}: seconds must be finite, over at least 1 and cools_from at least 0")


@final
class Deadline:
    """Brings a training to its end in time where its steps become slower than its budget was planned with.

    As late as may be: when what is left has just room for the last part of the schedule, in which the rate goes to 0.

    Args:
        budget: at the beginning of the attempt.
        steps: of the attempt, >= 1.
        clock: seconds that pass.
    """

    def __init__(self, budget: Budget, *, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget, self._steps, self._clock = budget, steps, clock
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._last: float | None = None
        self.place = Hurried(seconds=budget.before_first_step(steps))

    @property
    def end(self) -> int:
        """Steps of the attempt as far as is known."""
        begun = self.place.cools_from
        return self._steps if begun is None else min(self._steps, begun + self.place.over)

    def share(self, step: int) -> float:
        """The part of the schedule's rate that a step takes: falling to 0 at an end in time, else 1."""
        begun = self.place.cools_from
        return 1.0 if begun is None else cooled(step - begun, self.place.over)

    @property
    def hurries(self) -> bool:
        """Whether the end has begun in time."""
        return self.place.cools_from is not None

    def begin(self) -> None:
        """Time passes from here on."""
        self._last = self._clock()

    def look(self, step: int) -> str | None:
        """Look at the clock before a step; a line where the end begins there."""
        now = self._clock()
        passed = now - (now if self._last is None else self._last)
        self._last, self.place = now, replace(self.place, seconds=self.place.seconds + passed)
        if passed:
            self._recent.append(passed)
        if not self._recent:
            return None
        pace = sum(self._recent) / len(self._recent)
        tail = (self._budget.judging + self._budget.beginning) * max(1.0, pace / self._budget.step)
        fitting = max(1, math.floor((self._budget.seconds - self.place.seconds - tail) / pace))
        if fitting >= self.end - step or fitting > cooling_steps(self._steps):
            return None
        if (begun := self.place.cools_from) is not None:  # slower still
            self.place = replace(self.place, over=step - begun + fitting)
            return None
        self.place = replace(self.place, cools_from=step, over=fitting)
        return (
            f"a step takes {pace:.2g} s now, instead of {self._budget.step:.2g}: training ends after {self.end} steps"
            f" instead of {self._steps}, to keep to --minutes {self._budget.minutes:g}"
        )

    def after(self, steps: int) -> Budget:
        """What is left once the attempt is given up after so many steps; less where these were slower than planned."""
        left = self._budget.after(steps, of=self._steps)
        return replace(left, seconds=min(left.seconds, self._budget.seconds - self.place.seconds))


def in_words(seconds: float) -> str:
    """A time as it is told."""
    if seconds >= 90:
        return f"{seconds / 60:.0f} minutes"
    return counted(max(1, round(seconds)), "second")
