"""The learning-rate schedule: numbers by hand, and its shape."""

from __future__ import annotations

import math

import pytest

from pipeline.distillation.schedules import SCHEDULES, ScheduleKind, learning_rate_factor


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cosine", [1 / 3, 2 / 3, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("linear", [1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_by_hand(kind: ScheduleKind, expected: list[float]) -> None:
    factors = [learning_rate_factor(step, steps=6, warmup_steps=2, kind=kind) for step in range(6)]
    assert factors == pytest.approx(expected)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 0), (1, 1), (10, 0), (10, 10), (1000, 50)])
def test_shape(kind: ScheduleKind, steps: int, warmup_steps: int) -> None:
    factors = [learning_rate_factor(step, steps=steps, warmup_steps=warmup_steps, kind=kind) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    rise, fall = factors[:warmup_steps], factors[warmup_steps:]
    assert rise == sorted(set(rise))
    assert fall == sorted(fall, reverse=True)
    if fall:
        assert fall[0] == 1


def test_numbers_out_of_range_are_refused() -> None:
    for step, steps, warmup_steps in ((-1, 5, 0), (5, 5, 0), (0, 0, 0), (0, 5, -1), (0, 5, 6)):
        with pytest.raises(ValueError, match="a run of"):
            learning_rate_factor(step, steps=steps, warmup_steps=warmup_steps, kind="cosine")
    with pytest.raises(ValueError, match="allowed: cosine, linear, constant"):
        learning_rate_factor(0, steps=1, warmup_steps=0, kind="step")  # type: ignore[arg-type]
