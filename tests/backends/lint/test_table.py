"""The table of rules: legal files pass, the documents name its rows, a violation stops with one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.facts.onnxruntime_rules import X64
from backends.facts.profile import RuntimeName
from backends.lint.rule import lint_rules
from backends.lint.table import RULES, lint, require_clean
from calibration.errors import UserError
from tests.mutants import rules_of

Build = Callable[..., Any]
DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_emitted_for_onnx_runtime_is_legal(exact_network: str, bits: int, build: Build) -> None:
    built = build(exact_network, bits=bits)
    model = built.model(opset=21 if bits == 4 else 20, pack_int4=bits == 4)
    assert lint(model, rules_of(built)) == []
    require_clean(model, rules_of(built))


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_emitted_for_tensorrt_is_legal(every_network: str, bits: int, build: Build) -> None:
    built = build(every_network, "tensorrt", bits=bits)
    assert lint(built.model(), rules_of(built)) == []


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_what_is_emitted_with_float_operators_is_legal(close_network: str, target: str, build: Build) -> None:
    built = build(close_network, target)
    assert lint(built.model(), rules_of(built)) == []


def test_a_violation_stops_with_one_line_that_names_node_and_rule(residual: Any) -> None:
    mutant, rules, _ = residual
    mutant.give("relu_q", 1, np.array([0.1], np.float32))
    with pytest.raises(UserError, match=r"^relu_q: the file breaks rule 9 of onnxruntime \(.*rank 0\): its scale"):
        require_clean(mutant.model, rules)


def test_the_table_is_in_order_and_every_row_has_a_source() -> None:
    numbers = [rule.number for rule in RULES]
    assert numbers == sorted(set(numbers))
    assert all(rule.title and rule.source and rule.breach for rule in RULES)


def test_the_documents_name_the_rules_of_the_table_by_number_and_title() -> None:
    rules_of_tensorrt = (DOCS / "tensorrt.md").read_text().split("## Rules\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.*?) \| (.*) \|$", rules_of_tensorrt, re.M)
    bound = [rule for rule in RULES if "tensorrt" in rule.breach]
    assert [int(number) for number, _, _ in rows] == [rule.number for rule in bound]
    for rule, (_, title, meets) in zip(bound, rows, strict=True):
        assert re.match(re.escape(rule.title) + r"($|[ ,:;])", title), (rule.title, title)
        words = {"none": "- ", "float": "float", "refused": "refuse|fail", "wrong": "read as|means", "slow": "."}
        assert re.search(words[rule.breach["tensorrt"]], f"{meets} "), (rule.number, meets)
        assert meets.startswith("-") is (rule.breach["tensorrt"] == "none"), (rule.number, meets)
    forms = re.findall(r"^  \| .* \| (\d+): (.*) \|$", (DOCS / "openvino.md").read_text(), re.M)
    alone = [rule for rule in RULES if {*rule.breach} == {"openvino"} and rule.number != 26]  # told in a sentence
    assert forms == [(str(rule.number), rule.title) for rule in alone]
    known = {rule.number for rule in RULES}
    for page in DOCS.glob("*.md"):
        named = re.findall(r"\brules? (\d+)(?: (?:to|and) (\d+))?", page.read_text())
        assert {int(number) for pair in named for number in pair if number} <= known, page.name


@pytest.mark.parametrize(
    ("words", "breaches"),
    [
        (("wrong", "silently", "saturates"), {"wrong"}),
        (("asserts", "refuses", "fails", "flushed to zero", "no build"), {"refused", "wrong"}),
        (
            ("in float", "as floats", "float:", "no int8 kernel", "into floats", "to floats"),
            {"float", "wrong", "refused"},
        ),
    ],
)
def test_a_rule_says_of_its_breach_what_its_source_tells(words: tuple[str, ...], breaches: set[str]) -> None:
    told = [rule for rule in RULES if any(word in rule.source for word in words)]
    assert told and {rule.number: rule.breach for rule in told if not breaches & {*rule.breach.values()}} == {}


#: What each runtime does where they differ: on ONNX Runtime, TensorRT and OpenVINO.
DIFFERING = {
    9: ("refused", "float", "none"),
    11: ("wrong", "float", "float"),
    12: ("float", None, "wrong"),
    20: ("float", "none", "float"),
    21: ("float", "slow", "slow"),
    22: ("wrong", "none", "wrong"),
    24: ("wrong", "refused", "wrong"),
    25: ("float", "refused", "float"),
}


def test_what_a_breach_means_is_a_fact_of_each_target() -> None:
    targets: tuple[RuntimeName, ...] = ("onnxruntime", "tensorrt", "openvino")
    differing = {
        rule.number: tuple(map(rule.breach.get, targets)) for rule in RULES if len({*rule.breach.values()}) > 1
    }
    assert differing == DIFFERING


def test_a_weight_limit_is_checked() -> None:
    with pytest.raises(ValueError, match="weight limit"):
        replace(lint_rules(X64), weight_limit=128)
