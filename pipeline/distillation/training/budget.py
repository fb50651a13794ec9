"""How many steps fit into the time that there is for them."""

from __future__ import annotations

#: Fewer steps than these teach nothing [ours].
LEAST_STEPS = 10
#: Steps that are timed, behind a first one.
TIMED_STEPS = 3
# Steps are slower than they were when timed, where other work begins beside them [ours].
_RESERVE = 0.1
# What the trial of the first step takes at most, in steps: every part of the rate, for weights and for scales, by a
# pass forward each.
_TRIAL_STEPS = 4


def fitting_steps(seconds: float, *, step: float, judging: float) -> int:
    """Steps of `step` seconds each that fit into `seconds`, with the trial of the first and a last `judging`; >= 0."""
    return max(0, int(((1 - _RESERVE) * seconds - judging) / step) - _TRIAL_STEPS)


def seconds_for(steps: int, *, step: float, judging: float) -> float:
    """The seconds into which so many steps fit: what `fitting_steps` comes from."""
    return ((steps + _TRIAL_STEPS) * step + judging) / (1 - _RESERVE)


def planned(minutes: float, *, step: float, steps: int, patience: int) -> str:
    """What to say of the steps that a budget is spent on, each of `step` seconds, and of how to repeat them."""
    same = f"--steps {steps} --patience {patience}" if patience else f"--steps {steps}"
    return f"--minutes {minutes:g}: of {step:.2g} s each {steps} steps are planned, which {same} repeats"
