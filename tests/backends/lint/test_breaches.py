"""What a broken rule means is a fact of each runtime: what the table says of it, the runtime itself shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from backends import backend_named
from backends.lint.table import RULES
from backends.tensorrt.ahead_of_time import build_ahead_of_time
from calibration.errors import UserError
from tests.mutants import Mutant, broken, rules_of

Build = Callable[..., Any]
LAYERS = ("a", "b", "down", "c", "fc")


def shape_1(mutant: Mutant) -> None:
    """Of every tensor."""
    for node in [node for node in mutant.graph.node if node.op_type.endswith("Linear")]:
        for place in (1, 2):
            if mutant.value(node.input[place]).ndim == 0:
                mutant.give(node.name, place, mutant.value(node.input[place]).reshape(1))


def other_axis(mutant: Mutant) -> None:
    """Of a weight of 16 to 16 channels, and of its bias where it has a scale."""
    mutant.node("b_weight_dq").attribute[0].i = 1
    if any(node.name == "b_b_dq" for node in mutant.graph.node):
        mutant.node("b_b_dq").attribute[0].i = 0


def batch_norm(mutant: Mutant) -> None:
    (result,) = mutant.node("b").output
    mutant.rewire(result, "normalised")
    vectors = [mutant.constant(f"norm_{i}", np.linspace(0.5, 2, 16, dtype=np.float32)) for i in range(4)]
    at = [node.name for node in mutant.graph.node].index("b") + 1
    mutant.graph.node.insert(at, helper.make_node("BatchNormalization", [result, *vectors], ["normalised"], name="n"))


def negative_scale(mutant: Mutant) -> None:
    mutant.give_both("relu_q", 1, np.array(-0.05, np.float32))


def met(mutant: Mutant, target: str, images: Any) -> set[str]:
    """What a file meets on a runtime: a refusal, a layer in float, other outputs than unoptimised kernels compute."""
    try:
        if target == "tensorrt":
            return {"float"} if build_ahead_of_time(mutant.model.SerializeToString()).float_layers else {"none"}
        backend, written = backend_named(target), mutant.model.SerializeToString()
        with backend.runner(written, threads=1) as runner:
            (outputs,) = runner.run(images.numpy())
    except UserError:
        return {"refused"}
    right = mutant.run(images, optimise=False)
    words = {"wrong"} if np.abs(outputs - right).max() > 0.02 * np.abs(right).max() else set()
    return words | ({"float"} if backend.census(written, LAYERS).floating else set()) or {"none"}


@pytest.mark.parametrize(
    ("number", "breaks", "target"),
    [
        (9, shape_1, "tensorrt"),
        (9, shape_1, "openvino"),
        (11, other_axis, "onnxruntime"),
        (11, other_axis, "tensorrt"),
        (11, other_axis, "openvino"),
        (20, batch_norm, "onnxruntime"),
        (20, batch_norm, "tensorrt"),
        (20, batch_norm, "openvino"),
        (24, negative_scale, "onnxruntime"),
        (24, negative_scale, "tensorrt"),
        (24, negative_scale, "openvino"),
    ],
)
def test_the_runtime_does_with_a_breach_what_the_table_says(
    number: int, breaks: Callable[[Mutant], None], target: str, build: Build
) -> None:
    if target != "onnxruntime":
        package = {"tensorrt": "tensorrt_rtx", "openvino": "openvino"}[target]
        pytest.importorskip(package, reason=f"the extra {package.replace('_', '-')} is not installed")
    built = build("residual", target)
    mutant = Mutant(built.model())
    breaks(mutant)
    assert number in {rule for rule, _ in broken(mutant, rules_of(built))}
    (row,) = [rule for rule in RULES if rule.number == number]
    assert row.breach[target] in met(mutant, target, built.images)  # type: ignore[index]  # one of three names
