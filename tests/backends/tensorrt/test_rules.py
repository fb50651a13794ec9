"""Every rule of TensorRT's files, kept and broken: what the linter says, and what the real parser and builder do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from backends.lint.rule import lint_rules
from backends.lint.table import lint
from backends.onnx_file.half import half_rest, half_scale
from backends.onnx_file.view import OPSETS, OnnxView
from backends.oracle.backend import IntegerOracle
from backends.tensorrt.ahead_of_time import AheadOfTimeEngine, build_ahead_of_time
from backends.tensorrt.backend import TensorRT
from calibration.errors import UserError

Build = Callable[..., Any]
Change = Callable[[onnx.ModelProto], None]
LAYERS = ("a", "b", "down", "c", "fc")


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")


@pytest.fixture(scope="module")
def good(build: Build) -> onnx.ModelProto:
    """A file that keeps every rule."""
    model: onnx.ModelProto = build("residual", "tensorrt").model()
    return model


def changed(model: onnx.ModelProto, change: Change) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy)
    return copy


def put(model: onnx.ModelProto, name: str, values: Any) -> None:
    """Give an initialiser, there or not, these values."""
    tensor = numpy_helper.from_array(np.asarray(values), name)
    for stored in model.graph.initializer:
        if stored.name == name:
            stored.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def reader(model: onnx.ModelProto, name: str) -> NodeProto:
    reader: NodeProto = next(node for node in model.graph.node if name in node.input)
    return reader


def node(model: onnx.ModelProto, name: str) -> NodeProto:
    named: NodeProto = next(node for node in model.graph.node if node.name == name)
    return named


def zero_point(model: onnx.ModelProto) -> None:
    put(model, "int8_0", np.array(3, np.int8))


def uint8_activations(model: onnx.ModelProto) -> None:
    put(model, "int8_0", np.array(0, np.uint8))


def int16_activations(model: onnx.ModelProto) -> None:
    put(model, "int8_0", np.array(0, np.int16))
    model.opset_import[0].version = 21


def uint8_weight(model: onnx.ModelProto) -> None:
    put(model, "a_weight", np.ones((16, 3, 3, 3), np.uint8))
    put(model, "zeros", np.zeros(16, np.uint8))
    reader(model, "a_weight").input[2] = "zeros"


def integer_bias(model: onnx.ModelProto) -> None:
    put(model, "bias", np.zeros(16, np.int32))
    put(model, "bias_scale", np.ones(16, np.float32))
    put(model, "bias_zero", np.zeros(16, np.int32))
    bias = helper.make_node("DequantizeLinear", ["bias", "bias_scale", "bias_zero"], ["b_dq"], name="b_dq", axis=0)
    model.graph.node.insert(0, bias)
    node(model, "a").input[2] = "b_dq"


def half_bias(model: onnx.ModelProto) -> None:
    put(model, "a_bias", np.zeros(16, np.float16))


def vector_scales(model: onnx.ModelProto) -> None:
    view = OnnxView(model)
    for name in {view.input(rounding, 1) for rounding in view.roundings()}:
        values = view.value(name)
        assert values is not None
        if values.ndim == 0:
            put(model, name, values.reshape(1))
    put(model, "int8_0", np.zeros(1, np.int8))


def scales_per_channel(model: onnx.ModelProto) -> None:
    """Of the activations that b reads."""
    put(model, "channels", np.full(16, 0.03, np.float32))
    put(model, "zeros", np.zeros(16, np.int8))
    for name in ("max_pool2d_q", "max_pool2d_q_dq"):
        rounding = node(model, name)
        rounding.input[1], rounding.input[2] = "channels", "zeros"
        rounding.attribute.append(helper.make_attribute("axis", 1))


def wrong_axis(model: onnx.ModelProto) -> None:
    (axis,) = reader(model, "b_weight").attribute
    axis.i = 1


def negative_scale(model: onnx.ModelProto) -> None:
    put(model, "x_scale", np.array(-0.1, np.float32))


def four_bit_convolution(model: onnx.ModelProto) -> None:
    for name, shape in (("b_weight", [16, 16, 3, 3]), ("zeros", [16])):
        count = int(np.prod(shape))
        packed = TensorProto(
            name=name,
            data_type=TensorProto.INT4,
            dims=shape,
            raw_data=bytes([0x11 if name == "b_weight" else 0]) * (count // 2),
        )
        put(model, name, np.zeros(1))
        next(t for t in model.graph.initializer if t.name == name).CopyFrom(packed)
    reader(model, "b_weight").input[2] = "zeros"
    model.opset_import[0].version = 21


#: Rule -> how to break it, and what the SDK says in our words.
REFUSED: dict[str, tuple[int, Change, str]] = {
    "zero point": (
        1,
        zero_point,
        r"^x_q \(QuantizeLinear\): .* refuses it when parsing; rule 1: a zero point is not 0",
    ),
    "uint8 weight": (2, uint8_weight, r"^a_weight_dq \(DequantizeLinear\): .*; rule 2: it works on uint8"),
    "int16 activations": (
        2,
        int16_activations,
        r"^the model: .*; rule 2: a constant is of a type that TensorRT does not",
    ),
    "int32 bias": (3, integer_bias, r"^b_dq \(DequantizeLinear\): .*; rule 3: it dequantises int32"),
    "mixed floats": (8, half_bias, r"^a \(Conv\): .*; rule 8: float types are mixed"),
    "negative scale": (24, negative_scale, r"^x_q \(QuantizeLinear\): .*; rule 24: a scale is not positive"),
    "int4 convolution": (25, four_bit_convolution, r"^the model: .* builds no engine; rule 25: 4-bit weights"),
}

#: Rule -> how to break it, and the layers that then run in float without a word (or those that still do not).
SILENT: dict[str, tuple[int, Change, tuple[str, ...]]] = {
    "uint8 activations": (2, uint8_activations, ()),
    "scales of shape [1]": (9, vector_scales, ("a", "b", "down", "c")),
    "a scale per channel of activations": (9, scales_per_channel, ("b",)),
    "axis of the weight": (11, wrong_axis, ("b",)),
}


@pytest.mark.usefixtures("rtx")
def test_the_file_that_keeps_all_rules_builds(good: onnx.ModelProto) -> None:
    assert lint(good, lint_rules(TensorRT.profile)) == []
    assert build_ahead_of_time(good.SerializeToString()).integer_layers == LAYERS


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("case", REFUSED)
def test_what_the_sdk_refuses_the_linter_refuses(case: str, good: onnx.ModelProto) -> None:
    rule, change, message = REFUSED[case]
    broken = changed(good, change)
    assert rule in {violation.rule for violation in lint(broken, lint_rules(TensorRT.profile))}
    with pytest.raises(UserError, match=message):
        build_ahead_of_time(broken.SerializeToString())


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("case", SILENT)
def test_what_the_sdk_changes_silently_the_linter_refuses(case: str, good: onnx.ModelProto) -> None:
    rule, change, floating = SILENT[case]
    broken = changed(good, change)
    assert rule in {violation.rule for violation in lint(broken, lint_rules(TensorRT.profile))}
    assert build_ahead_of_time(broken.SerializeToString()).float_layers == floating


def roundings(model: onnx.ModelProto) -> int:
    """Rounding stages in the kernels of an engine: the compiler names its pointwise kernels after what they do."""
    log = build_ahead_of_time(model.SerializeToString()).log
    names = [line.partition(",")[0] for line in log.splitlines() if line.startswith("Name:")]
    return sum(name.count("Roun") for name in names)


@pytest.mark.usefixtures("rtx")
def test_rule_4_a_rounding_before_the_activation_costs_one_more(good: onnx.ModelProto) -> None:
    def between(model: onnx.ModelProto) -> None:
        put(model, "between_scale", np.array(0.03, np.float32))
        place = list(model.graph.node).index(node(model, "relu"))
        inputs = ["between_scale", "int8_0"]
        first = helper.make_node("QuantizeLinear", ["a", *inputs], ["a_q"], name="a_q")
        second = helper.make_node("DequantizeLinear", ["a_q", *inputs], ["a_q_dq"], name="a_q_dq")
        node(model, "relu").input[0] = "a_q_dq"
        model.graph.node.insert(place, second)
        model.graph.node.insert(place, first)

    assert roundings(changed(good, between)) == roundings(good) + 1


@pytest.mark.usefixtures("rtx")
def test_rule_5_rounding_both_branches_costs_one_more(good: onnx.ModelProto) -> None:
    def other_branch(model: onnx.ModelProto) -> None:
        put(model, "branch_scale", np.array(0.03, np.float32))
        addition = node(model, "add")
        place, inputs = list(model.graph.node).index(addition), ["branch_scale", "int8_0"]
        (position,) = [p for p in (0, 1) if OnnxView(model).dequantised(addition, p) is None]
        first = helper.make_node("QuantizeLinear", [addition.input[position], *inputs], ["both_q"], name="both_q")
        second = helper.make_node("DequantizeLinear", ["both_q", *inputs], ["both_q_dq"], name="both_q_dq")
        addition.input[position] = "both_q_dq"
        model.graph.node.insert(place, second)
        model.graph.node.insert(place, first)

    assert roundings(changed(good, other_branch)) == roundings(good) + 1


@pytest.mark.usefixtures("rtx")
def test_rule_23_the_whole_range_runs_on_integers_all_the_same(good: onnx.ModelProto) -> None:
    # The runtime takes -128; the rule keeps weights such that their negation fits, as the simulation has them.
    def whole_range(model: onnx.ModelProto) -> None:
        weight = np.array(OnnxView(model).value("b_weight"))
        weight.flat[5] = -128
        put(model, "b_weight", weight)

    broken = changed(good, whole_range)
    assert {violation.rule for violation in lint(broken, lint_rules(TensorRT.profile))} == {23}
    assert build_ahead_of_time(broken.SerializeToString()).integer_layers == LAYERS


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("opset", [OPSETS.start, OPSETS.stop - 1])
def test_rule_27_the_oldest_and_the_newest_opset_run_on_integers(opset: int, build: Build) -> None:
    model = TensorRT().emit(build("residual", "tensorrt").frozen, opset=opset)
    assert build_ahead_of_time(model.SerializeToString()).integer_layers == LAYERS


@pytest.mark.usefixtures("rtx")
def test_rule_6_parts_on_one_scale_are_rounded_once(build: Build) -> None:
    good = build("dense", "tensorrt").model()

    def own_scale(model: onnx.ModelProto) -> None:
        view = OnnxView(model)
        part = next(n for n in view.nodes if n.op_type == "QuantizeLinear" and n.input[0] == "cat")
        scale = view.scale(part)
        assert scale is not None
        put(model, "own_scale", np.asarray(scale * 1.5, np.float32))
        part.input[1] = "own_scale"
        reader(model, part.output[0]).input[1] = "own_scale"

    assert roundings(changed(good, own_scale)) > roundings(good)


# Rule 8: the rest in float16.


def types(engine: AheadOfTimeEngine) -> set[str]:
    """Every type that a kernel of the engine works on."""
    return {dtype for kernel in engine.kernels for dtype in kernel.weights + kernel.inputs + kernel.outputs}


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("network", ["residual", "squeeze_excite", "bilinear", "tokens", "hard_swish"])
def test_rule_8_the_rest_is_half(network: str, build: Build) -> None:
    built = build(network, "tensorrt")
    backend = TensorRT(rest="fp16")
    model = backend.emit(built.frozen)
    assert lint(model, lint_rules(built.profile, built.plan)) == []
    plain = build_ahead_of_time(TensorRT().emit(built.frozen).SerializeToString())
    half = build_ahead_of_time(model.SerializeToString())
    assert half.integer_layers == plain.integer_layers
    # Its int8 convolutions write float32 whatever the file says; constants and pointwise kernels follow the file.
    assert "Half" in {dtype for kernel in half.kernels for dtype in kernel.weights + kernel.inputs + kernel.outputs}
    assert "Half" not in {
        dtype for kernel in plain.kernels for dtype in kernel.weights + kernel.inputs + kernel.outputs
    }


@pytest.mark.parametrize("network", ["residual", "squeeze_excite", "bilinear", "tokens"])
def test_half_files_compute_nearly_the_same(network: str, build: Build) -> None:
    built = build(network, "tensorrt")
    model = TensorRT().emit(built.frozen)
    (whole, *_), _ = IntegerOracle(model, fused_rounding=False).run(built.images)
    (half, *_), _ = IntegerOracle(half_rest(model), fused_rounding=False).run(built.images)
    noise = float((whole - half).square().mean() / whole.square().mean())
    assert 0 < noise < 10**-2.5
    assert half.dtype == whole.dtype


def test_a_half_result_is_a_float16_number(build: Build) -> None:
    built = build("residual", "tensorrt")
    (half, *_), _ = IntegerOracle(half_rest(built.model()), fused_rounding=False).run(built.images)
    assert bool((half == half.half().float()).all())
    assert built.model().graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_half_scales_by_hand() -> None:
    # 0.1 is 0.0999755859375 in float16; 3e-8 lies below the smallest that is kept, 2**-20; 1e-5 is no normal float16
    # (those begin at 6.1e-5), whose next ones are 168/2**24 and 167/2**24: never the smaller, which would clip.
    scales = half_scale(np.array([0.1, 3e-8, 1e-5], np.float32))
    assert scales.dtype == np.float16
    assert scales.astype(np.float64).tolist() == [0.0999755859375, 2.0**-20, 168 / 2**24]


def test_weights_follow_a_scale_that_moves(build: Build) -> None:
    model = build("residual", "tensorrt").model()
    put(model, "a_weight_scale", np.full(16, 2.0**-22, np.float32))  # a quarter of the smallest that is kept
    before, after = OnnxView(model), OnnxView(half_rest(model))
    expected = np.rint(np.asarray(before.value("a_weight")) / 4).astype(np.int8)
    np.testing.assert_array_equal(np.asarray(after.value("a_weight")), expected)
    np.testing.assert_array_equal(np.asarray(after.value("b_weight")), np.asarray(before.value("b_weight")))


def test_a_number_that_guards_a_division_stays_above_zero(build: Build) -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x)) * 0.0
            result: Tensor = self.b(torch.nn.functional.normalize(x, eps=1e-12))
            return result

    built = build(Norm(), "tensorrt")
    model = half_rest(TensorRT().emit(built.frozen))
    (result, *_), _ = IntegerOracle(model, fused_rounding=False).run(built.images)
    assert bool(result.isfinite().all())
    smallest = OnnxView(model).value("f32_1e-12")
    assert smallest is not None and smallest == np.float16(2.0**-24)


def test_what_float16_cannot_hold_is_named(build: Build) -> None:
    model = build("residual", "tensorrt").model()
    put(model, "a_bias", np.full(16, 7e4, np.float32))
    with pytest.raises(UserError, match=r"^a_bias holds 70000: float16 ends at 65504; use --rest fp32$"):
        half_rest(model)
    with pytest.raises(UserError, match="--rest fp16 with --opset 17"):
        half_rest(build("residual", "tensorrt").model(opset=17))
