"""Rules of what stands beside what, so that integers are multiplied: a broken one is named, the runtime shows why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import nn

from backends.facts.onnxruntime_rules import X64
from backends.lint.rule import lint_rules
from backends.lint.table import lint
from tests.mutants import Mutant, broken, rules_of

Build = Callable[..., Any]


def test_rule_12_activations_are_uint8(residual: Any) -> None:
    mutant, rules, _ = residual
    assert mutant.census("a", "b", "c", "down").floating == ()
    for node in mutant.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and mutant.value(node.input[2]).dtype == np.uint8:
            mutant.give(node.name, 2, (mutant.value(node.input[2]).astype(np.int32) - 128).astype(np.int8))
    assert {rule for rule, _ in broken(mutant, rules)} == {12}
    assert mutant.census("a", "b", "c", "down").floating != ()


def test_rule_13_a_relu_is_part_of_the_rounding(residual: Any) -> None:
    mutant, rules, _ = residual
    mutant.give_both("relu_q", 2, np.array(9, np.uint8))
    assert broken(mutant, rules) == {(13, "relu")}
    assert mutant.census("a", "b").floating == ("a",)


def test_rule_13_nothing_rounds_before_a_relu(residual: Any) -> None:
    mutant, rules, images = residual
    scale, zero = "relu_scale", mutant.constant("middle", np.array(128, np.uint8))
    mutant.add("relu", "QuantizeLinear", ["a", scale, zero], "a_q")
    mutant.add("relu", "DequantizeLinear", ["a_q", scale, zero], "a_q_dq")
    before = mutant.run(images)
    mutant.node("relu").input[0] = "a_q_dq"
    assert broken(mutant, rules) == {(13, "relu")}
    assert not np.array_equal(mutant.run(images), before)


def test_rule_13_a_number_between_the_rounding_and_a_relu_is_another_matter(residual: Any) -> None:
    """A positive number that multiplies integers is in the scale that they are read with: no kernel performs both."""
    mutant, rules, _ = residual
    zero = mutant.constant("middle", np.array(128, np.uint8))
    mutant.add("relu", "QuantizeLinear", ["a", "relu_scale", zero], "a_q")
    tripled = mutant.constant("tripled", (mutant.value("relu_scale") * 3).astype(np.float32))
    mutant.add("relu", "DequantizeLinear", ["a_q", tripled, zero], "a_q_dq")
    mutant.node("relu").input[0] = "a_q_dq"
    assert not broken(mutant, rules)


def test_rule_14_a_clip_is_part_of_the_rounding(build: Build) -> None:
    built = build("depthwise")
    mutant = Mutant(built.model())
    assert mutant.census("a", "b").floating == ()
    scale = np.array(7 / 255, np.float32)
    mutant.give_both("relu6_q", 1, scale)
    weight_scale = mutant.value("b_weight_scale")
    mutant.give("b_b_dq", 1, scale * weight_scale)
    assert broken(mutant, rules_of(built)) == {(14, "relu6")}
    assert mutant.census("a", "b").floating == ("a",)


def test_rule_15_convolutions_end_in_a_rounding(build: Build) -> None:
    built = build("conv")
    mutant = Mutant(built.model())
    mutant.remove("c_q", "c_q_dq")
    mutant.node("c").output[0] = "output"
    assert broken(mutant, rules_of(built)) == {(15, "c")}
    assert mutant.census("a", "b", "c").floating == ("c",)


def test_rule_15_convolutions_read_rounded_inputs(build: Build) -> None:
    built = build("conv")
    mutant = Mutant(built.model())
    mutant.node("a").input[0] = "x"
    assert (15, "a") in broken(mutant, rules_of(built))
    assert mutant.census("a", "b", "c").floating == ("a",)


@pytest.mark.parametrize(("network", "node"), [("leaky_relu", "leaky_relu"), ("sigmoid", "sigmoid")])
def test_rule_16_integer_activations_are_rounded_on_both_sides(network: str, node: str, build: Build) -> None:
    built = build(network)
    mutant = Mutant(built.model())
    integer = {"leaky_relu": "QLinearLeakyRelu", "sigmoid": "QLinearSigmoid"}[network]
    assert integer in mutant.census("a").histogram
    mutant.rewire(f"{node}_q_dq", node)
    mutant.remove(f"{node}_q", f"{node}_q_dq")
    assert (16, node) in broken(mutant, rules_of(built))
    assert integer not in mutant.census("a").histogram


def test_rule_17_poolings_are_rounded_on_both_sides(build: Build) -> None:
    built = build("pool_signed")
    mutant = Mutant(built.model())
    assert "QLinearGlobalAveragePool" in mutant.census("a").histogram
    mutant.rewire("adaptive_avg_pool2d_q", "adaptive_avg_pool2d")
    mutant.rewire("flatten_dq", "flatten")
    mutant.remove("adaptive_avg_pool2d_q", "flatten_dq")
    assert {(17, "adaptive_avg_pool2d"), (17, "fc")} <= broken(mutant, rules_of(built))
    assert "QLinearGlobalAveragePool" not in mutant.census("a").histogram
    assert mutant.census("a", "fc").floating == ("fc",)


def test_rule_17_means_are_global_poolings(residual: Any) -> None:
    mutant, rules, _ = residual
    name = next(node.name for node in mutant.graph.node if node.op_type == "GlobalAveragePool")
    axes, source = mutant.constant("axes", np.array([2, 3])), mutant.node(name).input[0]
    output = mutant.node(name).output[0]
    mutant.add(name, "ReduceMean", [source, axes], f"{name}_mean")
    mutant.remove(name)
    mutant.node(f"{name}_mean").output[0] = output
    assert broken(mutant, rules) == {(17, f"{name}_mean")}
    assert "ReduceMean" in mutant.census("a").histogram


def test_rule_17_concatenations_are_rounded(build: Build) -> None:
    built = build("mixed_concat")
    mutant = Mutant(built.model())
    assert "QLinearConcat" in mutant.census("a").histogram
    mutant.rewire("cat_q_dq", "cat")
    mutant.remove("cat_q", "cat_q_dq")
    assert (17, "cat") in broken(mutant, rules_of(built))
    assert "QLinearConcat" not in mutant.census("a").histogram


def test_rule_18_movement_keeps_the_grid(build: Build) -> None:
    built = build("max_pool")
    mutant = Mutant(built.model())
    assert mutant.census("a").histogram["DequantizeLinear"] == 1
    pooled = mutant.node("max_pool2d")
    mutant.add("max_pool2d", "DequantizeLinear", ["relu_q", "relu_scale", "uint8_0"], "relu_q_dq")
    pooled.input[0] = "relu_q_dq"
    dequantise = mutant.node("max_pool2d_dq")
    mutant.add("max_pool2d_dq", "QuantizeLinear", ["max_pool2d", "other", "uint8_0"], "max_pool2d_q")
    mutant.constant("other", mutant.value("relu_scale") * np.float32(1.5))
    dequantise.input[0], dequantise.input[1] = "max_pool2d_q", "other"
    mutant.give("b_b_dq", 1, mutant.value("other") * mutant.value("b_weight_scale"))
    assert broken(mutant, rules_of(built)) == {(18, "max_pool2d")}
    assert mutant.census("a").histogram["DequantizeLinear"] == 2
    mutant.constant("other", mutant.value("relu_scale"))
    mutant.give("b_b_dq", 1, mutant.value("other") * mutant.value("b_weight_scale"))
    assert broken(mutant, rules_of(built)) == set()


def test_rule_20_no_batch_norm(residual: Any) -> None:
    mutant, rules, _ = residual
    ones, zeros = mutant.constant("ones", np.ones(16, np.float32)), mutant.constant("zeros", np.zeros(16, np.float32))
    mutant.add("relu", "BatchNormalization", ["a", ones, zeros, zeros, ones], "norm")
    mutant.node("relu").input[0] = "norm"
    assert (20, "norm") in broken(mutant, rules)
    assert mutant.census("a", "b").floating == ("a",)


def test_rule_21_a_second_rounding(residual: Any) -> None:
    mutant, rules, _ = residual
    scale = mutant.constant("second", mutant.value("relu_scale") * np.float32(2))
    mutant.add("b", "QuantizeLinear", ["relu", scale, "uint8_0"], "relu_q2")
    mutant.add("b", "DequantizeLinear", ["relu_q2", scale, "uint8_0"], "relu_q2_dq")
    mutant.node("b").input[0] = "relu_q2_dq"
    mutant.give("b_b_dq", 1, mutant.value("second") * mutant.value("b_weight_scale"))
    assert {(21, "relu")} <= broken(mutant, rules)
    assert "a" in mutant.census("a", "b").floating


def test_rule_21_a_float_reader(build: Build) -> None:
    built = build("conv")
    mutant = Mutant(built.model())
    mutant.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["batch", 4, "h", "w"]))
    assert (21, "c") in broken(mutant, rules_of(built))
    assert mutant.census("a", "b", "c").floating == ("c",)


def test_a_relu_in_a_float_region_may_have_any_zero_point(build: Build) -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.a(F.relu(x))
            return logits

    built = build(Early())
    assert lint(built.model(), lint_rules(X64, built.plan)) == []


@pytest.mark.parametrize(("network", "product"), [("relu_of_tokens", "linear"), ("relu_of_scores", "matmul")])
def test_rule_31_activations_behind_float_products_are_no_relus(network: str, product: str, build: Build) -> None:
    built = build(network)
    mutant = Mutant(built.model())
    layers = [placement.layer for placement in built.plan.weights]
    name, maximum = next((node.input[0], node) for node in mutant.graph.node if node.op_type == "Max")
    before = mutant.census(*layers)
    maximum.op_type = "Relu"
    del maximum.input[1]
    assert broken(mutant, rules_of(built)) == {(31, name)}
    after = mutant.census(*layers)
    kernel = "QGemm" if product == "linear" else "MatMulIntegerToFloat"
    assert after.histogram.get(kernel, 0) == before.histogram[kernel] - 1
    np.testing.assert_array_equal(mutant.run(built.images), Mutant(built.model()).run(built.images))
