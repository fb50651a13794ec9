"""Steps that fit into a budget of time, and the words for the time that is left."""

from __future__ import annotations

import pytest

from pipeline.distillation.training.budget import LEAST_STEPS, fitting_steps, seconds_for
from pipeline.distillation.training.learner import time_left


def test_steps_by_hand() -> None:
    # Of 100 seconds 90 are planned with, 10 judge; of the 160 steps of half a second four try the first.
    assert fitting_steps(100, step=0.5, judging=10) == 156
    assert fitting_steps(5, step=10, judging=1) == fitting_steps(-5, step=1, judging=1) == 0


@pytest.mark.parametrize(("step", "judging"), [(0.01, 0.0), (2.0, 30.0), (73.0, 5.0)])
def test_what_a_refusal_names_is_enough(step: float, judging: float) -> None:
    least = seconds_for(LEAST_STEPS, step=step, judging=judging)
    assert fitting_steps(least * 1.001, step=step, judging=judging) == LEAST_STEPS
    assert fitting_steps(least * 0.99, step=step, judging=judging) < LEAST_STEPS


def test_what_is_left_in_words() -> None:
    assert time_left(400, 1.8) == "1.8 s a step: training will take about 12 minutes more"
    assert time_left(30, 1.0) == "1 s a step: training will take about 30 seconds more"
