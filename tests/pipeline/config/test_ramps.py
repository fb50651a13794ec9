"""Weights and temperatures over a run: numbers by hand, and what makes no sense is refused."""

from __future__ import annotations

import math

import pytest

from calibration.errors import UserError
from pipeline.config.ramps import Ramp, read_ramp


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (0.25, [0.25] * 5),
        ("3", [3.0] * 5),
        ("linear:1:0", [1, 0.75, 0.5, 0.25, 0]),
        # 1 - (1 - cos(pi s / 4)) / 2 = (1 + cos(pi s / 4)) / 2
        ("cosine:1:0", [1, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4, 0]),
        ("cosine:4:1", [4, 1 + 3 * (0.5 + math.sqrt(2) / 4), 2.5, 1 + 3 * (0.5 - math.sqrt(2) / 4), 1]),
        # Thirds of five steps: 0 and 1, 2 and 3, 4.
        ("step:1:0.5:0.1", [1, 1, 0.5, 0.5, 0.1]),
    ],
)
def test_weights_over_five_steps(text: float | str, values: list[float]) -> None:
    ramp = read_ramp("logit-weight", text, positive=False)
    assert [ramp.at(step, steps=5) for step in range(5)] == pytest.approx(values)
    assert ramp.start == ramp.at(0, steps=1) == values[0]


@pytest.mark.parametrize(
    ("text", "positive", "words"),
    [
        ("linear", False, "must be a number, linear:A:B, cosine:A:B or step:A:B:..."),
        ("linear:1:0:2", False, "must be a number, linear:A:B"),
        ("step:1", False, "must be a number, linear:A:B"),
        ("exp:1:0", False, "unknown schedule 'exp'"),
        ("linear:a:0", False, "must be a number, linear:A:B"),
        ("linear:0:0", False, "its values must be finite, not negative, and one above 0"),
        ("linear:1:-1", False, "its values must be finite, not negative, and one above 0"),
        ("-1", False, "must be a finite number above 0"),
        ("nan", False, "must be a finite number above 0"),
        ("linear:4:0", True, "every value must be a finite number above 0"),
        (0, False, "must be a finite number above 0; leave it out"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(text: float | str, positive: bool, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_ramp("some-weight", text, positive=positive, instead="leave it out")
    assert str(caught.value).startswith(f"--some-weight {text}: {words}")


def test_a_ramp_that_exists_is_valid() -> None:
    for kind, values in (("constant", (1.0, 2.0)), ("linear", (1.0,)), ("exp", (1.0, 2.0)), ("constant", (-1.0,))):
        with pytest.raises(ValueError):
            Ramp(kind=kind, values=values)
