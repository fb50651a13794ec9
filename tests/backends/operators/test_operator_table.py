"""Every operator that the survey's networks export to is known to our tables, or refused with a way round."""

from __future__ import annotations

import re

from backends.onnx_file.translations import TRANSLATORS
from backends.onnx_file.translations.refused import REFUSED, refusal
from tests.operator_survey import read
from tests.operator_table import PAGE, operators_of, page, status


def test_every_operator_of_the_survey_is_known_or_refused() -> None:
    counted = operators_of(read())
    assert len(counted) > 60
    assert {operator for operator in counted if not status(operator)[0]} == set()


def test_every_refusal_names_what_to_do() -> None:
    asked = re.compile(r"--submodule|--teacher python:package\.module:function")
    assert {name for name, why in REFUSED.items() if not asked.search(why)} == set()


def test_refusals_are_of_operators_that_are_not_translated() -> None:
    assert refusal("aten.lstm.input") is not None and refusal("aten.conv2d.default") is None
    # Of an operator with several overloads some are translated, such as a mean over named axes.
    some = {str(target).rpartition(".")[0] for target in TRANSLATORS}
    assert REFUSED.keys() & some <= {
        f"aten.{word}" for word in ("mean", "sum", "max", "min", "div", "pow", "fmod", "instance_norm")
    }


def test_the_page_shows_the_survey() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(read())
