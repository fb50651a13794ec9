"""Rules of stored scales, zero points, weights and biases: a broken one is named, and the runtime shows why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from backends.facts.onnxruntime_rules import X64, X64_WITHOUT_VNNI
from backends.facts.tensorrt_rules import PROFILE
from backends.lint.rule import lint_rules
from backends.lint.table import lint
from calibration.errors import UserError
from tests.backends.conftest import AS_IT_IS
from tests.mutants import Mutant, broken, rules_of
from tests.versions import older

Build = Callable[..., Any]


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


def test_rule_9_scales_have_rank_0(residual: Any) -> None:
    mutant, rules, images = residual
    legal = Mutant(mutant.model)
    mutant.give_both("relu_q", 1, mutant.value("relu_scale").reshape(1))
    mutant.give_both("relu_q", 2, np.zeros(1, np.uint8))
    assert {(9, "relu_q"), (9, "relu_q_dq")} <= broken(mutant, rules)
    if older("onnxruntime", "1.32"):
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
    assert broken(mutant, rules_of(built)) == {(10, "x_q")}


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
    assert (11, layer) in broken(mutant, rules_of(built))


def test_rule_19_bias_scales_are_exact(residual: Any) -> None:
    mutant, rules, images = residual
    mutant.give("b_b_dq", 1, mutant.value("b_b_scale") * np.float32(1.5))
    assert broken(mutant, rules) == {(19, "b")}
    # ONNX Runtime 1.23 takes it for an integer layer all the same, and its integers for those of the products' scale.
    misread = np.abs(mutant.run(images) - mutant.run(images, optimise=False)).max()
    assert mutant.census("a", "b").floating == ("b",) or misread > 0.1


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
    assert broken(mutant, rules_of(built)) == {(19, "t")}
    # The same numbers, yet the runtime rounds them once more when it loads the file: per tensor, and silently.
    images = built.images
    unchanged = np.abs(Mutant(built.model()).run(images) - Mutant(built.model()).run(images, optimise=False)).max()
    rounded = np.abs(mutant.run(images) - mutant.run(images, optimise=False)).max()
    assert rounded > 4 * max(float(unchanged), 1e-6)


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
    assert broken(mutant, rules_of(built)) == {(24, "x_q")}


def test_rule_25_int4_goes_through_a_cast(build: Build) -> None:
    built = build("residual", bits=4)
    mutant = Mutant(built.model(opset=21, pack_int4=True))
    assert mutant.census("a", "b").floating == ()
    zero = TensorProto(name="int4_zero", data_type=TensorProto.INT4, dims=[16], raw_data=bytes(8))
    mutant.graph.initializer.append(zero)
    dequantise = mutant.node("b_weight_dq")
    dequantise.input[0], dequantise.input[2] = "b_weight", "int4_zero"
    mutant.remove("b_weight_i8")
    assert (25, "b_weight_dq") in broken(mutant, rules_of(built))
    assert mutant.census("a", "b").floating == ("b",)


def test_rule_25_tensorrt_stores_int8(build: Build) -> None:
    built = build("residual", "tensorrt", bits=4)
    packed = Mutant(built.model(opset=21, pack_int4=True))
    assert {rule for rule, _ in broken(packed, rules_of(built))} == {25}
    assert _refused_by_tensorrt(packed)


def test_rule_25_integers_lie_on_the_grid(build: Build) -> None:
    built = build("residual", "tensorrt", bits=4)
    mutant = Mutant(built.model())
    weight = mutant.value("b_weight").copy()
    assert np.abs(weight).max() == 7
    weight.flat[3] = 9
    mutant.constant("b_weight", weight)
    assert broken(mutant, rules_of(built)) == {(25, "b")}


@pytest.mark.parametrize(("bits", "most"), [(1, 1), (2, 1), (3, 3)])
def test_rule_25_holds_for_fewer_bits(bits: int, most: int, build: Build) -> None:
    built = build("residual", bits=bits)
    mutant = Mutant(built.model(opset=21, pack_int4=True))
    assert lint(mutant.model, rules_of(built)) == []
    weight = mutant.value("b_weight").copy()
    assert np.abs(weight.astype(int)).max() == most
    weight.flat[3] = most + 1
    mutant.constant("b_weight", weight)
    assert broken(mutant, rules_of(built)) == {(25, "b")}


def test_rule_27_opsets(residual: Any, build: Build) -> None:
    mutant, rules, _ = residual
    mutant.model.opset_import[0].version = 24
    assert {(v.rule, v.node) for v in lint(mutant.model, rules)} == {(27, "faqd")}
    built = build("residual", bits=4)
    packed = Mutant(built.model(opset=21, pack_int4=True))
    packed.model.opset_import[0].version = 20
    assert (27, "faqd") in {(v.rule, v.node) for v in lint(packed.model, rules_of(built))}
