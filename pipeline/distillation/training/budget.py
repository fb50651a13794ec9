"""How many steps fit into the time that there is for them, also where training has to begin again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from calibration.errors import UserError
from pipeline.distillation.training.plateau import looks_at_most
from pipeline.tools.source_text import counted

#: Fewer steps than these teach nothing [ours].
LEAST_STEPS = 10
# Steps are slower than they were when timed, where other work begins beside them [ours].
_RESERVE = 0.1
# What the trial of the first step takes at most, in steps: every part of the rate, for weights and for scales, by a
# pass forward each.
_TRIAL_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The seconds that are left for a training, and what its parts take, measured once where it begins.

    What comes of a budget hangs on no clock: a run that goes on after an interruption takes the same steps.
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
        return (steps + _TRIAL_STEPS) * self.step + looks + 2 * self.beginning + self.judging

    def after(self, steps: int) -> Budget:
        """What is left once an attempt is given up after so many steps, on whose way there may have been any look."""
        taken = self.estimate(steps) - self.beginning - self.judging
        return replace(self, seconds=self.seconds - taken / (1 - _RESERVE))

    def too_small(self, steps: int) -> UserError:
        """The line of one that has room for so few steps."""
        needed = 60 * self.minutes / self.students - self.seconds + self.seconds_for(LEAST_STEPS)
        least = math.ceil(needed * self.students / 6) / 10
        return UserError(
            f"--minutes {self.minutes:g}: a training step takes {self.step:.2g} s here and judging the held-out images"
            f" {self.judging:.2g} s, which leaves room for {steps} steps, and {LEAST_STEPS} are the least: give"
            f" --minutes {least:g}, a smaller --batch-size, or --steps 0, which trains nothing"
        )

    def words(self, *, steps: int, attempts: int, default: int, patience: int, follows: bool) -> str:
        """What to say of the steps that it is spent on, and of how to repeat them.

        `steps`: of the present attempt; `attempts`: before it; `default`: steps that there would be without a budget;
        `patience`: that ends them early; `follows`: whether another student of the chain has set their number.
        """
        start = f"--minutes {self.minutes:g}:"
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


def in_words(seconds: float) -> str:
    """A time as it is told."""
    if seconds >= 90:
        return f"{seconds / 60:.0f} minutes"
    return counted(max(1, round(seconds)), "second")
