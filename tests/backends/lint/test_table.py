"""Every rule of the linter: legal files pass, a broken one is named, and the runtime shows why the rule exists."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from backends.facts.onnxruntime_rules import X64, X64_WITHOUT_VNNI
from backends.facts.tensorrt_rules import PROFILE
from backends.lint.rule import LintRules, lint_rules
from backends.lint.table import RULES, lint, require_clean
from backends.onnxruntime.backend import OnnxRuntime
from calibration.errors import UserError
from tests.backends.conftest import AS_IT_IS

Build = Callable[..., Any]
DOCS = Path(__file__).parents[3] / "docs"


class Mutant:
    """A copy of a legal file in which one thing is changed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph

    def node(self, name: str) -> onnx.NodeProto:
        named: onnx.NodeProto = next(node for node in self.graph.node if node.name == name)
        return named

    def value(self, name: str) -> Any:
        return numpy_helper.to_array(next(tensor for tensor in self.graph.initializer if tensor.name == name))

    def constant(self, name: str, values: Any) -> str:
        for tensor in [tensor for tensor in self.graph.initializer if tensor.name == name]:
            self.graph.initializer.remove(tensor)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def give(self, node: str, position: int, values: Any) -> None:
        """Let one node read a constant of its own."""
        self.node(node).input[position] = self.constant(f"{node}_own_{position}", values)

    def give_both(self, tensor: str, position: int, values: Any) -> None:
        """The same for the QuantizeLinear of a rounded tensor and for its DequantizeLinear."""
        for node in (tensor, f"{tensor}_dq"):
            self.give(node, position, values)

    def add(self, before: str, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        at = next(index for index, node in enumerate(self.graph.node) if node.name == before)
        self.graph.node.insert(at, helper.make_node(operator, inputs, [output], name=output, **attributes))

    def remove(self, *names: str) -> None:
        for name in names:
            self.graph.node.remove(self.node(name))

    def rewire(self, old: str, new: str) -> None:
        for node in self.graph.node:
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = new

    def run(self, images: torch.Tensor, *, optimise: bool = True) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        data = self.model.SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": images.numpy()})[0]

    def census(self, *layers: str) -> Any:
        return OnnxRuntime().census(self.model.SerializeToString(), layers)


def _rules(built: Any) -> LintRules:
    return lint_rules(built.profile, built.plan)


def broken(mutant: Mutant, rules: LintRules) -> set[tuple[int, str]]:
    onnx.checker.check_model(mutant.model)
    return {(violation.rule, violation.node) for violation in lint(mutant.model, rules)}


@pytest.fixture
def residual(build: Build) -> tuple[Mutant, LintRules, Any]:
    built = build("residual")
    return Mutant(built.model()), _rules(built), built.images


@pytest.fixture
def for_tensorrt(build: Build) -> tuple[Mutant, LintRules]:
    built = build("residual", "tensorrt")
    return Mutant(built.model()), _rules(built)


# Legal files.


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_emitted_for_onnx_runtime_is_legal(exact_network: str, bits: int, build: Build) -> None:
    built = build(exact_network, bits=bits)
    model = built.model(opset=21 if bits == 4 else 20, pack_int4=bits == 4)
    assert lint(model, _rules(built)) == []
    require_clean(model, _rules(built))


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_emitted_for_tensorrt_is_legal(every_network: str, bits: int, build: Build) -> None:
    built = build(every_network, "tensorrt", bits=bits)
    assert lint(built.model(), _rules(built)) == []


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_what_is_emitted_with_float_operators_is_legal(close_network: str, target: str, build: Build) -> None:
    built = build(close_network, target)
    assert lint(built.model(), _rules(built)) == []


def test_a_violation_stops_with_one_line_that_names_node_and_rule(residual: Any) -> None:
    mutant, rules, _ = residual
    mutant.give("relu_q", 1, np.array([0.1], np.float32))
    with pytest.raises(UserError, match=r"^relu_q: the file breaks rule 9 of onnxruntime \(.*rank 0\): its scale"):
        require_clean(mutant.model, rules)


def test_the_table_is_in_order_and_every_row_has_a_source() -> None:
    numbers = [rule.number for rule in RULES]
    assert numbers == sorted(set(numbers))
    assert all(rule.title and rule.source and rule.targets for rule in RULES)


def test_the_documents_name_the_rules_of_the_table_by_their_numbers() -> None:
    bound = {target: {rule.number for rule in RULES if target in rule.targets} for target in ("tensorrt", "openvino")}
    rules_of_tensorrt = (DOCS / "tensorrt.md").read_text().split("## Rules\n")[1].split("\n## ")[0]
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", rules_of_tensorrt, re.M)] == sorted(bound["tensorrt"])
    forms = [int(number) for number in re.findall(r"\| (\d+) \|$", (DOCS / "openvino.md").read_text(), re.M)]
    alone = {rule.number for rule in RULES if rule.targets == {"openvino"} and rule.number != 26}  # told in a sentence
    assert {*forms} == alone
    known = {rule.number for rule in RULES}
    for page in DOCS.glob("*.md"):
        named = re.findall(r"\brules? (\d+)(?: (?:to|and) (\d+))?", page.read_text())
        assert {int(number) for pair in named for number in pair if number} <= known, page.name


def test_a_rule_whose_source_tells_of_wrong_outputs_says_so() -> None:
    told = [rule for rule in RULES if "wrong" in rule.source]
    assert told and all(rule.breach == "wrong" for rule in told)


def test_a_weight_limit_is_checked() -> None:
    with pytest.raises(ValueError, match="weight limit"):
        replace(lint_rules(X64), weight_limit=128)


# Rules 1 to 3: TensorRT's parser.


def _refused_by_tensorrt(mutant: Mutant) -> bool:
    rtx = pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    assert rtx is not None
    from backends.tensorrt.ahead_of_time import build_ahead_of_time

    try:
        build_ahead_of_time(mutant.model.SerializeToString())
    except UserError:
        return True
    return False


def test_rule_1_zero_points_are_zero(for_tensorrt: Any) -> None:
    mutant, rules = for_tensorrt
    mutant.give_both("relu_q", 2, np.array(3, np.int8))
    assert broken(mutant, rules) == {(1, "relu_q"), (1, "relu_q_dq")}
    assert _refused_by_tensorrt(mutant)


def test_rule_2_no_uint8(for_tensorrt: Any) -> None:
    mutant, rules = for_tensorrt
    mutant.give_both("relu_q", 2, np.array(0, np.uint8))
    assert broken(mutant, rules) == {(2, "relu_q"), (2, "relu_q_dq")}
    # The parser takes it, and reads the upper half of the range as 127: nothing but the linter tells.
    assert not _refused_by_tensorrt(mutant)


@pytest.mark.parametrize("integer", [np.int16, np.uint16])
def test_rule_2_no_16_bits(integer: Any, for_tensorrt: Any) -> None:
    mutant, rules = for_tensorrt
    mutant.model.opset_import[0].version = 21
    mutant.give_both("relu_q", 2, np.array(0, integer))
    assert broken(mutant, rules) == {(2, "relu_q"), (2, "relu_q_dq")}
    assert _refused_by_tensorrt(mutant)


def test_rule_3_biases_are_float(for_tensorrt: Any) -> None:
    mutant, rules = for_tensorrt
    integers = mutant.constant("b_integers", np.zeros(16, np.int32))
    scale, zero = mutant.constant("b_scale", np.ones(16, np.float32)), mutant.constant("b_zero", np.zeros(16, np.int32))
    mutant.add("b", "DequantizeLinear", [integers, scale, zero], "b_bias_dq", axis=0)
    mutant.node("b").input[2] = "b_bias_dq"
    assert broken(mutant, rules) == {(3, "b_bias_dq"), (3, "b")}
    assert _refused_by_tensorrt(mutant)


def test_onnx_runtimes_file_breaks_the_rules_of_tensorrt(residual: Any) -> None:
    mutant, _, _ = residual
    numbers = {rule for rule, _ in broken(mutant, lint_rules(PROFILE))}
    assert {1, 2, 3} <= numbers
    assert _refused_by_tensorrt(mutant)


# Rules 9 to 12: scales, zero points, axes, types.


def test_rule_9_scales_have_rank_0(residual: Any) -> None:
    mutant, rules, images = residual
    legal = Mutant(mutant.model)
    mutant.give_both("relu_q", 1, mutant.value("relu_scale").reshape(1))
    mutant.give_both("relu_q", 2, np.zeros(1, np.uint8))
    assert {(9, "relu_q"), (9, "relu_q_dq")} <= broken(mutant, rules)
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32):
        with pytest.raises(Exception, match="must be a scalar"):
            mutant.run(images)
    else:  # 1.32 reads such a scale as rank 0; older devices and TensorRT do not
        assert np.array_equal(mutant.run(images), legal.run(images))


def test_rule_9_needs_one_scale_per_channel(residual: Any) -> None:
    mutant, rules, _ = residual
    mutant.give("b_weight_dq", 1, np.ones(1, np.float32))
    assert (9, "b_weight_dq") in broken(mutant, rules)


def test_rule_10_zero_points_are_written(residual: Any) -> None:
    mutant, rules, images = residual
    before = mutant.run(images)
    del mutant.node("x_q").input[2:]
    assert broken(mutant, rules) == {(10, "x_q")}
    assert not np.array_equal(mutant.run(images), before)


def test_rule_10_output_dtype_is_not_written(build: Build) -> None:
    built = build("residual")
    mutant = Mutant(built.model(opset=21))
    mutant.node("x_q").attribute.append(helper.make_attribute("output_dtype", TensorProto.UINT8))
    assert broken(mutant, _rules(built)) == {(10, "x_q")}


def test_rule_11_weight_scales_lie_on_output_channels(residual: Any) -> None:
    mutant, rules, images = residual
    right = np.abs(mutant.run(images) - mutant.run(images, optimise=False)).max()
    mutant.node("b_weight_dq").attribute[0].i = 1  # 16 to 16 channels: nothing but the axis tells them apart
    mutant.node("b_b_dq").attribute[0].i = 0
    assert broken(mutant, rules) == {(11, "b")}
    wrong = np.abs(mutant.run(images) - mutant.run(images, optimise=False)).max()
    assert wrong > 10 * max(right, 1e-3)


@pytest.mark.parametrize(("network", "layer"), [("transposed", "t"), ("linear", "b"), ("tokens", "l")])
def test_rule_11_knows_every_kind_of_layer(network: str, layer: str, build: Build) -> None:
    built = build(network, AS_IT_IS)
    mutant = Mutant(built.model())
    dequantise = mutant.node(mutant.node(layer).input[1])
    dequantise.attribute[0].i = 1 - dequantise.attribute[0].i
    assert (11, layer) in broken(mutant, _rules(built))


def test_rule_12_activations_are_uint8(residual: Any) -> None:
    mutant, rules, _ = residual
    assert mutant.census("a", "b", "c", "down").floating == ()
    for node in mutant.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and mutant.value(node.input[2]).dtype == np.uint8:
            mutant.give(node.name, 2, (mutant.value(node.input[2]).astype(np.int32) - 128).astype(np.int8))
    assert {rule for rule, _ in broken(mutant, rules)} == {12}
    assert mutant.census("a", "b", "c", "down").floating != ()


# Rules 13 to 18: fusion.


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


def test_rule_14_a_clip_is_part_of_the_rounding(build: Build) -> None:
    built = build("depthwise")
    mutant = Mutant(built.model())
    assert mutant.census("a", "b").floating == ()
    scale = np.array(7 / 255, np.float32)
    mutant.give_both("relu6_q", 1, scale)
    weight_scale = mutant.value("b_weight_scale")
    mutant.give("b_b_dq", 1, scale * weight_scale)
    assert broken(mutant, _rules(built)) == {(14, "relu6")}
    assert mutant.census("a", "b").floating == ("a",)


def test_rule_15_convolutions_end_in_a_rounding(build: Build) -> None:
    built = build("conv")
    mutant = Mutant(built.model())
    mutant.remove("c_q", "c_q_dq")
    mutant.node("c").output[0] = "output"
    assert broken(mutant, _rules(built)) == {(15, "c")}
    assert mutant.census("a", "b", "c").floating == ("c",)


def test_rule_15_convolutions_read_rounded_inputs(build: Build) -> None:
    built = build("conv")
    mutant = Mutant(built.model())
    mutant.node("a").input[0] = "x"
    assert (15, "a") in broken(mutant, _rules(built))
    assert mutant.census("a", "b", "c").floating == ("a",)


@pytest.mark.parametrize(("network", "node"), [("leaky_relu", "leaky_relu"), ("sigmoid", "sigmoid")])
def test_rule_16_integer_activations_are_rounded_on_both_sides(network: str, node: str, build: Build) -> None:
    built = build(network)
    mutant = Mutant(built.model())
    integer = {"leaky_relu": "QLinearLeakyRelu", "sigmoid": "QLinearSigmoid"}[network]
    assert integer in mutant.census("a").histogram
    mutant.rewire(f"{node}_q_dq", node)
    mutant.remove(f"{node}_q", f"{node}_q_dq")
    assert (16, node) in broken(mutant, _rules(built))
    assert integer not in mutant.census("a").histogram


def test_rule_17_poolings_are_rounded_on_both_sides(build: Build) -> None:
    built = build("pool_signed")
    mutant = Mutant(built.model())
    assert "QLinearGlobalAveragePool" in mutant.census("a").histogram
    mutant.rewire("adaptive_avg_pool2d_q", "adaptive_avg_pool2d")
    mutant.rewire("flatten_dq", "flatten")
    mutant.remove("adaptive_avg_pool2d_q", "flatten_dq")
    assert {(17, "adaptive_avg_pool2d"), (17, "fc")} <= broken(mutant, _rules(built))
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
    assert (17, "cat") in broken(mutant, _rules(built))
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
    assert broken(mutant, _rules(built)) == {(18, "max_pool2d")}
    assert mutant.census("a").histogram["DequantizeLinear"] == 2
    mutant.constant("other", mutant.value("relu_scale"))
    mutant.give("b_b_dq", 1, mutant.value("other") * mutant.value("b_weight_scale"))
    assert broken(mutant, _rules(built)) == set()


# Rules 19 to 27: biases, weights, scales, opsets.


def test_rule_19_bias_scales_are_exact(residual: Any) -> None:
    mutant, rules, _ = residual
    mutant.give("b_b_dq", 1, mutant.value("b_b_scale") * np.float32(1.5))
    assert broken(mutant, rules) == {(19, "b")}
    assert mutant.census("a", "b").floating == ("b",)


def test_rule_19_the_last_bit_counts(residual: Any) -> None:
    mutant, rules, _ = residual
    mutant.give("b_b_dq", 1, np.nextafter(mutant.value("b_b_scale"), np.float32(1)))
    assert broken(mutant, rules) == {(19, "b")}


def test_rule_19_biases_are_integers(residual: Any) -> None:
    mutant, rules, images = residual
    before = mutant.run(images, optimise=False)
    scale = mutant.value("b_b_scale")
    # Half a step is lost when the runtime rounds by itself.
    mutant.give("b", 2, (mutant.value("b_b").astype(np.float32) + np.float32(0.5)) * scale)
    assert broken(mutant, rules) == {(19, "b")}
    assert np.abs(mutant.run(images, optimise=False) - before).max() < 0.5


def test_rule_19_weights_behind_rounded_inputs_are_integers(build: Build) -> None:
    built = build("transposed", AS_IT_IS)
    mutant = Mutant(built.model())
    dequantise = mutant.node(mutant.node("t").input[1])
    reals = mutant.value(dequantise.input[0]) * mutant.value(dequantise.input[1]).reshape(1, -1, 1, 1)
    mutant.give("t", 1, reals.astype(np.float32))
    bias = mutant.node(mutant.node("t").input[2])
    mutant.give("t", 2, (mutant.value(bias.input[0]) * mutant.value(bias.input[1])).astype(np.float32))
    assert broken(mutant, _rules(built)) == {(19, "t")}
    # The same numbers, yet the runtime rounds them once more when it loads the file: per tensor, and silently.
    images = built.images
    unchanged = np.abs(Mutant(built.model()).run(images) - Mutant(built.model()).run(images, optimise=False)).max()
    rounded = np.abs(mutant.run(images) - mutant.run(images, optimise=False)).max()
    assert rounded > 4 * max(float(unchanged), 1e-6)


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
    assert (21, "c") in broken(mutant, _rules(built))
    assert mutant.census("a", "b", "c").floating == ("c",)


def test_rule_22_weights_respect_the_limit(build: Build) -> None:
    wide, narrow = build("residual", X64), build("residual", X64_WITHOUT_VNNI)
    rules = lint_rules(X64_WITHOUT_VNNI, wide.plan)
    assert {rule for rule, _ in broken(Mutant(wide.model()), rules)} == {22}
    assert broken(Mutant(narrow.model()), lint_rules(X64_WITHOUT_VNNI, narrow.plan)) == set()


def test_rule_23_weights_are_narrow(build: Build) -> None:
    built = build("residual", X64)  # whose weights have no other limit
    mutant, rules = Mutant(built.model()), lint_rules(X64, built.plan)
    weight = mutant.value("b_weight").copy()
    weight.flat[5] = -128
    mutant.constant("b_weight", weight)
    assert broken(mutant, rules) == {(23, "b")}


@pytest.mark.parametrize("scale", [0.0, -0.1, 1e-40, float("inf"), float("nan")])
def test_rule_24_scales_are_positive_and_normal(scale: float, build: Build) -> None:
    built = build("max_pool_signed")
    mutant = Mutant(built.model())
    mutant.give("x_q", 1, np.array(scale, np.float32))
    assert broken(mutant, _rules(built)) == {(24, "x_q")}


def test_rule_25_int4_goes_through_a_cast(build: Build) -> None:
    built = build("residual", bits=4)
    mutant = Mutant(built.model(opset=21, pack_int4=True))
    assert mutant.census("a", "b").floating == ()
    zero = TensorProto(name="int4_zero", data_type=TensorProto.INT4, dims=[16], raw_data=bytes(8))
    mutant.graph.initializer.append(zero)
    dequantise = mutant.node("b_weight_dq")
    dequantise.input[0], dequantise.input[2] = "b_weight", "int4_zero"
    mutant.remove("b_weight_i8")
    assert (25, "b_weight_dq") in broken(mutant, _rules(built))
    assert mutant.census("a", "b").floating == ("b",)


def test_rule_25_tensorrt_stores_int8(build: Build) -> None:
    built = build("residual", "tensorrt", bits=4)
    packed = Mutant(built.model(opset=21, pack_int4=True))
    assert {rule for rule, _ in broken(packed, _rules(built))} == {25}
    assert _refused_by_tensorrt(packed)


def test_rule_25_integers_lie_on_the_grid(build: Build) -> None:
    built = build("residual", "tensorrt", bits=4)
    mutant = Mutant(built.model())
    weight = mutant.value("b_weight").copy()
    assert np.abs(weight).max() == 7
    weight.flat[3] = 9
    mutant.constant("b_weight", weight)
    assert broken(mutant, _rules(built)) == {(25, "b")}


@pytest.mark.parametrize(("bits", "most"), [(1, 1), (2, 1), (3, 3)])
def test_rule_25_holds_for_fewer_bits(bits: int, most: int, build: Build) -> None:
    built = build("residual", bits=bits)
    mutant = Mutant(built.model(opset=21, pack_int4=True))
    assert lint(mutant.model, _rules(built)) == []
    weight = mutant.value("b_weight").copy()
    assert np.abs(weight.astype(int)).max() == most
    weight.flat[3] = most + 1
    mutant.constant("b_weight", weight)
    assert broken(mutant, _rules(built)) == {(25, "b")}


def test_rule_27_opsets(residual: Any, build: Build) -> None:
    mutant, rules, _ = residual
    mutant.model.opset_import[0].version = 24
    assert {(v.rule, v.node) for v in lint(mutant.model, rules)} == {(27, "faqd")}
    built = build("residual", bits=4)
    packed = Mutant(built.model(opset=21, pack_int4=True))
    packed.model.opset_import[0].version = 20
    assert (27, "faqd") in {(v.rule, v.node) for v in lint(packed.model, _rules(built))}


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
    assert broken(mutant, _rules(built)) == {(31, name)}
    after = mutant.census(*layers)
    kernel = "QGemm" if product == "linear" else "MatMulIntegerToFloat"
    assert after.histogram.get(kernel, 0) == before.histogram[kernel] - 1
    np.testing.assert_array_equal(mutant.run(built.images), Mutant(built.model()).run(built.images))
