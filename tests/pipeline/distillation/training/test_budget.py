"""Steps that fit into a budget of time, at its beginning and where training begins again, and the words for both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.distillation.training.budget import LEAST_STEPS, Budget, Deadline
from pipeline.distillation.training.learner import time_left


def budget(seconds: float, *, step: float = 1.0, **parts: float) -> Budget:
    return Budget(seconds=seconds, minutes=1.0, step=step, **parts)  # type: ignore[arg-type]  # of numbers alone


def test_steps_by_hand() -> None:
    # Of 100 seconds 90 are planned with, 10 judge; of the 160 steps of half a second four try the first.
    assert budget(100, step=0.5, judging=10).fitting(most=1000) == 156
    assert budget(100, step=0.5, judging=10).fitting(most=50) == 50
    assert budget(5, step=10, judging=1).fitting(most=9) == budget(-5).fitting(most=9) == 0
    # 300 steps are looked at in their second half, each fifteenth: ten times; from the beginning on twenty times.
    assert budget(0, look=3.0).estimate(300) == 304 + 30
    assert replace(budget(0, look=3.0), trifle=True).estimate(300) == 304 + 60
    # Where rates are tried out, four trainings of twelve steps or a sixteenth begin, and are looked at, before it.
    tried = replace(budget(0, look=3.0, beginning=2.0), tries_rates=True)
    assert tried.estimate(320) == 324 + 4 * 20 + (10 + 4) * 3 + (2 + 4) * 2
    assert tried.estimate(59) == budget(0, look=3.0, beginning=2.0).estimate(59)
    assert replace(tried, trifle=True).estimate(320) == 324 + 20 * 3 + 2 * 2
    # What learns is made once and taken apart once.
    assert budget(0, beginning=2.0).estimate(10) == 14 + 4


@pytest.mark.parametrize(("step", "judging", "look"), [(0.01, 0.0, 0.0), (2.0, 30.0, 5.0), (73.0, 5.0, 0.5)])
def test_what_a_refusal_names_is_enough(step: float, judging: float, look: float) -> None:
    parts = {"step": step, "judging": judging, "look": look}
    least = budget(0, **parts).seconds_for(LEAST_STEPS)
    assert budget(least * 1.001, **parts).fitting(most=1000) == LEAST_STEPS
    assert budget(least * 0.99, **parts).fitting(most=1000) < LEAST_STEPS


@pytest.mark.parametrize("given_up_after", [1, 21, 140])
def test_all_attempts_together_fit_into_the_seconds(given_up_after: int) -> None:
    """By the slowest steps that a budget allows for: a tenth of the time more than was measured."""
    whole = budget(200, look=2.0, judging=3.0, beginning=1.0)
    first = whole.fitting(most=10**6)
    spent, left, steps = 0.0, whole, first
    for _ in range(3):
        tried = min(given_up_after, steps)
        spent += (tried + 1.0) / 0.9  # its beginning, and its steps
        left = left.after(tried)
        steps = left.fitting(most=steps)
    if steps:
        spent += (steps + 2.0 + 3.0) / 0.9
    assert spent <= 200 and steps < first
    assert steps > 0 or given_up_after > 21


def test_what_is_said_of_it() -> None:
    planned = replace(budget(60, step=0.11), planned=300)

    def said(**changes: int) -> str:
        told = {"steps": 300, "attempts": 0, "default": 300, "patience": 3} | changes
        return planned.words(**told, follows=False)

    assert said() == (
        "--minutes 1: all 300 steps of the default fit, about 33 seconds by the first ones here, 0.11 s each; --steps"
        " 300 --patience 3 repeats them"
    )
    assert said(default=400, patience=0) == (
        "--minutes 1: 300 of 400 steps fit, about 33 seconds by the first ones here, 0.11 s each; --steps 300 repeats"
        " them"
    )
    assert said(attempts=1) == said(), "with as many steps --steps repeats what has begun again too"
    assert said(steps=80, attempts=2) == (
        "--minutes 1: 300 steps were planned; training diverged 2 times, and what was left had room for 80"
    )


def test_what_is_left_in_words() -> None:
    assert time_left(400, 1.8) == "1.8 s a step: training will take about 12 minutes more"
    assert time_left(30, 1.0) == "1 s a step: training will take about 30 seconds more"
    assert time_left(1, 0.4).endswith("about 1 second more")


@pytest.mark.parametrize(
    "changes", [{"step": 0.0}, {"judging": -1.0}, {"seconds": float("nan")}, {"planned": -1}, {"look": float("inf")}]
)
def test_what_is_no_budget(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        replace(budget(1.0), **changes)  # type: ignore[arg-type]  # on purpose


class Clock:
    """Steps of a training that take so many seconds each, from a step on."""

    def __init__(self, deadline_of: Budget, *, steps: int, slow: float, since: int) -> None:
        self.now, self._slow, self._since = 100.0, slow, since
        self.deadline = Deadline(deadline_of, steps=steps, clock=lambda: self.now)
        self.said = list[str]()
        self.deadline.begin()

    def trained(self, step: int = 0) -> int:
        """Steps that are taken from one on, to the end."""
        while step < self.deadline.end:
            if (line := self.deadline.look(step)) is not None:
                self.said.append(line)
            self.now += self._slow if step >= self._since else 1.0
            step += 1
        return step


@pytest.mark.parametrize(
    ("slow", "since", "taken"),
    # Of 120 seconds four are for the first step and two judge, by slow steps more: (120 - 4 - 4) / 2, (56 - 6) / 3.
    [(1.0, 0, 100), (1.1, 0, 100), (2.0, 0, 56), (2.0, 90, 100), (3.0, 60, 76), (50.0, 99, 100)],
)
def test_slower_steps_end_in_time(slow: float, since: int, taken: int) -> None:
    whole = budget(120, judging=2.0)
    clock = Clock(whole, steps=100, slow=slow, since=since)
    assert clock.trained() == taken
    assert (taken < 100) == clock.deadline.hurries == bool(clock.said)
    if clock.said:
        assert clock.now - 100 + 4 + 2 * slow <= 120
        assert len(clock.said) == 1 and clock.said[0].endswith(" steps instead of 100, to keep to --minutes 1")
        assert clock.deadline.share(taken - 1) < 0.1 < clock.deadline.share(clock.deadline.place.cools_from or 0)


def test_the_time_of_an_interrupted_attempt_counts() -> None:
    first = Clock(budget(120, judging=2.0), steps=100, slow=2.0, since=0)
    for step in range(30):
        first.deadline.look(step)
        first.now += 2.0
    second = Clock(budget(120, judging=2.0), steps=100, slow=2.0, since=0)
    second.deadline.place = first.deadline.place
    assert second.trained(29) in (55, 56)


def test_slow_attempts_leave_less_for_the_next() -> None:
    whole = budget(120)
    quick, slow = (Clock(whole, steps=100, slow=seconds, since=0) for seconds in (1.0, 5.0))
    for clock in (quick, slow):
        for step in range(11):
            clock.deadline.look(step)
            clock.now += clock._slow
    assert quick.deadline.after(10) == whole.after(10)
    assert slow.deadline.after(10).seconds == 120 - 4 - 50
