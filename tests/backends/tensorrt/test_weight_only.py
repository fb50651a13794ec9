"""Large linear layers with int4 weights and float inputs (rule 30): who gets them, what is computed, how it builds."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from backends.facts.profile import LayerShape
from backends.facts.tensorrt_rules import PROFILE, WEIGHT_ONLY
from backends.facts.widths import Widths
from backends.lint.rule import lint_rules
from backends.lint.stored import BLOCK_SIZES
from backends.lint.table import lint
from backends.onnx_file.half import half_rest
from backends.onnx_file.int4 import int4_tensor
from backends.onnx_file.view import OnnxView
from backends.oracle.backend import IntegerOracle
from backends.tensorrt.ahead_of_time import build_ahead_of_time
from backends.tensorrt.backend import TensorRT
from calibration.errors import UserError

Build = Callable[..., Any]

#: The profile with layers that count as large from 64 x 128 weights on, which tests have time for.
SMALL = replace(PROFILE, weight_only=replace(WEIGHT_ONLY, least_weights=64 * 128))
FOUR = Widths(weights=4)


class Head(nn.Module):
    """A convolution and three linear layers, as in VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(256, 128)
        self.g, self.o = nn.Linear(128, 192), nn.Linear(192, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.a(x)), 3)
        result: Tensor = self.o(torch.relu(self.g(torch.relu(self.h(x.flatten(1))))))
        return result


@pytest.fixture(scope="module")
def built(build: Build) -> Any:
    torch.manual_seed(0)
    return build(Head(), SMALL, widths=FOUR)


@pytest.fixture(scope="module")
def good(built: Any) -> onnx.ModelProto:
    return TensorRT().emit(built.frozen)


def _linear(inputs: int, outputs: int, rows_per_image: int = 1, rows: int | None = None) -> LayerShape:
    return LayerShape(kind="linear", inputs=inputs, outputs=outputs, rows_per_image=rows_per_image, rows=rows)


@pytest.mark.parametrize(
    ("layer", "bits", "block"),
    [
        (_linear(4096, 4096), 4, 128),
        (_linear(4096, 4096, rows=1), 4, 128),
        (_linear(4096, 4096), 3, 128),
        (_linear(4096, 4096), 8, None),
        (_linear(960, 1280), 4, 64),
        (_linear(128, 8192), 4, 64),
        (_linear(64, 16384), 4, None),
        (_linear(1056, 1280), 4, None),
        (_linear(1024, 1023), 4, None),
        (_linear(4096, 4096, rows_per_image=49), 4, None),
        (LayerShape(kind="conv", inputs=1024, outputs=1024, kernel=(1, 1)), 4, None),
    ],
)
def test_the_row_of_the_table(layer: LayerShape, bits: int, block: int | None) -> None:
    assert WEIGHT_ONLY.block(layer, bits) == block
    assert set(WEIGHT_ONLY.blocks) == set(BLOCK_SIZES)


def test_who_gets_int4_weights(built: Any, build: Build) -> None:
    weights = {placement.layer: placement for placement in built.plan.weights}
    assert [layer for layer, placement in weights.items() if placement.weight_only] == ["h", "g"]
    assert (weights["h"].grid.block, weights["g"].grid.block, weights["o"].grid.block) == (128, 64, None)
    assert built.plan.integer_layers() == ["a", "o"]
    assert built.plan.float_nodes["h"] == built.plan.float_nodes["g"] == WEIGHT_ONLY.reason
    # Their inputs are not rounded: what the first one and the last layer read is.
    assert [placement.tensor for placement in built.plan.activations] == ["x", "relu_2"]
    # The last layer has 8 bits unless it is asked for fewer; with 8 bits everywhere nothing is weight-only.
    narrow = build(Head(), SMALL, widths=replace(FOUR, last=4)).plan
    assert narrow.integer_layers() == ["a"]
    plain = build(Head(), SMALL).plan
    switched_off = build(Head(), TensorRT(weight_only=False).profile, widths=FOUR).plan
    assert plain.integer_layers() == switched_off.integer_layers() == ["a", "h", "g", "o"]


def test_tokens_and_shared_weights_stay_on_int8(build: Build) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h, self.o = nn.Conv2d(3, 64, 4, stride=4), nn.Linear(64, 256), nn.Linear(256, 10)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.a(x).flatten(2).transpose(1, 2)
            result: Tensor = self.o(torch.relu(self.h(tokens)).mean(1))
            return result

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h, self.o = nn.Conv2d(3, 128, 12), nn.Linear(128, 128), nn.Linear(128, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x)).flatten(1)
            result: Tensor = self.o(torch.relu(self.h(torch.relu(self.h(x)))))
            return result

    for network in (Tokens(), Shared()):
        plan = build(network, SMALL, widths=FOUR).plan
        assert "h" in plan.integer_layers() and not any(placement.weight_only for placement in plan.weights)


def test_behind_a_pooling_the_inputs_stay_float_too(build: Build) -> None:
    # A pooling is rounded on both sides, but not for a layer that reads floats, as in the head of a MobileNet V3.
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h, self.o = nn.Conv2d(3, 256, 3), nn.Linear(256, 128), nn.Linear(128, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.adaptive_avg_pool2d(torch.relu(self.a(x)), 1).flatten(1)
            result: Tensor = self.o(nn.functional.hardswish(self.h(x)))
            return result

    built = build(Pooled(), SMALL, widths=FOUR)
    assert built.plan.integer_layers() == ["a", "o"]
    assert [placement.tensor for placement in built.plan.activations] == ["x", "relu", "hardswish"]
    model = TensorRT().emit(built.frozen)
    (oracle,), _ = IntegerOracle(model, fused_rounding=False).run(built.images)
    (simulated,) = built.simulate()
    assert torch.equal(oracle, simulated)
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        assert build_ahead_of_time(model.SerializeToString()).int4_layers == ("h",)


def test_simulation_and_oracle_multiply_alike(built: Any, good: onnx.ModelProto) -> None:
    (oracle,), _ = IntegerOracle(good, fused_rounding=False).run(built.images)
    (simulated,) = built.simulate()
    assert torch.equal(oracle, simulated)
    assert IntegerOracle(good, fused_rounding=False).integer_layers() == ["a", "o"]


def test_the_product_by_hand(built: Any, good: onnx.ModelProto) -> None:
    view = OnnxView(good)
    integers, scale = view.value("h_weight"), view.value("h_weight_scale")
    assert integers is not None and scale is not None
    assert view.initialisers["h_weight"].data_type == TensorProto.INT4
    assert scale.shape == (128, 2) and integers.min() >= -7 and integers.max() == 7
    by_hand = np.zeros((128, 256))
    for row in range(128):
        for column in range(256):
            by_hand[row, column] = float(integers[row, column]) * float(scale[row, column // 128])
    with torch.no_grad():
        weight = built.prepared.graph.get_parameter("h.weight")
        grid = built.prepared.weight_grid("h.weight")
        np.testing.assert_allclose(grid.reals(grid(weight)).numpy(), by_hand, rtol=1e-6)
    # Within half a step of the trained weight, but for what the shrunken scale clips.
    steps = np.abs(by_hand - weight.detach().numpy()) / scale.repeat(128, 1)
    assert float(np.median(steps)) < 0.5 and float((steps > 0.51).mean()) < 0.05


def test_weights_and_scales_learn(build: Build) -> None:
    prepared = build(Head(), SMALL, widths=FOUR).prepared.train()
    (result,) = prepared(torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1)))
    torch.autograd.backward(result.square().mean())
    grid, weight = prepared.weight_grid("h.weight"), prepared.graph.get_parameter("h.weight")
    for learned in (grid.log_scale, weight):
        assert learned.grad is not None and bool(learned.grad.isfinite().all()) and bool((learned.grad != 0).any())


def test_half_files_hold_int4_weights(built: Any) -> None:
    model = TensorRT(rest="fp16").emit(built.frozen)
    assert lint(model, lint_rules(SMALL, built.plan)) == []
    (half,), _ = IntegerOracle(model, fused_rounding=False).run(built.images)
    (whole,), _ = IntegerOracle(TensorRT().emit(built.frozen), fused_rounding=False).run(built.images)
    assert 0 < float((whole - half).square().mean() / whole.square().mean()) < 10**-2.5


def test_int4_weights_follow_a_scale_that_moves(good: onnx.ModelProto) -> None:
    moved = onnx.ModelProto()
    moved.CopyFrom(good)
    _put(moved, numpy_helper.from_array(np.full((128, 2), 2.0**-22, np.float32), "h_weight_scale"))
    before, after = OnnxView(moved).value("h_weight"), OnnxView(half_rest(moved)).value("h_weight")
    np.testing.assert_array_equal(after, np.rint(np.asarray(before) / 4))  # float16 keeps no scale below 2**-20


def test_an_opset_without_int4_is_refused(built: Any) -> None:
    assert TensorRT().emit(built.frozen).opset_import[0].version == 21
    with pytest.raises(UserError, match="--opset 20: int4 weights exist from opset 21 on"):
        TensorRT().emit(built.frozen, opset=20)


# What the compiler makes of them, and what the linter refuses.


def _put(model: onnx.ModelProto, tensor: TensorProto) -> None:
    next(stored for stored in model.graph.initializer if stored.name == tensor.name).CopyFrom(tensor)


def _dequantise(model: onnx.ModelProto) -> onnx.NodeProto:
    named: onnx.NodeProto = next(node for node in model.graph.node if node.name == "h_weight_dq")
    return named


def per_channel(model: onnx.ModelProto) -> None:
    del _dequantise(model).attribute[:]
    _dequantise(model).attribute.append(onnx.helper.make_attribute("axis", 0))
    _put(model, numpy_helper.from_array(np.full(128, 0.01, np.float32), "h_weight_scale"))
    _put(model, int4_tensor(np.zeros(128, np.int8), "h_weight_zero"))


def rounded_input(model: onnx.ModelProto) -> None:
    """Let the layer read what the convolution reads rounded: int8 data and int4 weights."""
    zero, scale = "int8_0", "x_scale"
    product = next(node for node in model.graph.node if node.name == "h")
    place = list(model.graph.node).index(product)
    first = onnx.helper.make_node("QuantizeLinear", [product.input[0], scale, zero], ["r_q"], name="r_q")
    second = onnx.helper.make_node("DequantizeLinear", ["r_q", scale, zero], ["r_dq"], name="r_dq")
    product.input[0] = "r_dq"
    model.graph.node.insert(place, second)
    model.graph.node.insert(place, first)


def blocks_of_outputs(model: onnx.ModelProto) -> None:
    """Blocks along the outputs: of 64 there are two."""
    del _dequantise(model).attribute[:]
    _dequantise(model).attribute.extend(
        [onnx.helper.make_attribute("axis", 0), onnx.helper.make_attribute("block_size", 64)]
    )
    _put(model, numpy_helper.from_array(np.full((2, 256), 0.01, np.float32), "h_weight_scale"))
    _put(model, int4_tensor(np.zeros((2, 256), np.int8), "h_weight_zero"))


def one_block(model: onnx.ModelProto) -> None:
    """A single block of all inputs."""
    node = _dequantise(model)
    del node.attribute[:]
    node.attribute.extend([onnx.helper.make_attribute("axis", 1), onnx.helper.make_attribute("block_size", 256)])
    _put(model, numpy_helper.from_array(np.full((128, 1), 0.01, np.float32), "h_weight_scale"))
    _put(model, int4_tensor(np.zeros((128, 1), np.int8), "h_weight_zero"))


#: How the file is broken -> the rule that refuses it.
BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], None], int]] = {
    "a scale per channel": (per_channel, 30),
    "a rounded input": (rounded_input, 25),
    "blocks of outputs": (blocks_of_outputs, 30),
    "one block": (one_block, 30),
}


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_the_compiler_reads_int4_as_it_is(rest: str, built: Any) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed: not done")
    model = TensorRT(rest="fp16" if rest == "fp16" else "fp32").emit(built.frozen)
    assert lint(model, lint_rules(SMALL, built.plan)) == []
    engine = build_ahead_of_time(model.SerializeToString())
    assert engine.integer_layers == ("a", "o") and engine.int4_layers == ("h", "g")
    census = TensorRT().census(model.SerializeToString(), built.plan.integer_layers())
    assert census.floating == () and census.remark.endswith("; products of int4 weights: 2")


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_read_as_it_is_the_linter_refuses(case: str, good: onnx.ModelProto) -> None:
    change, rule = BROKEN[case]
    broken = onnx.ModelProto()
    broken.CopyFrom(good)
    change(broken)
    assert {violation.rule for violation in lint(broken, lint_rules(PROFILE))} == {rule}


@pytest.mark.parametrize("change", [per_channel, one_block])
def test_a_scale_per_channel_is_expanded_to_floats(
    change: Callable[[onnx.ModelProto], None], good: onnx.ModelProto
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed: not done")
    broken = onnx.ModelProto()
    broken.CopyFrom(good)
    change(broken)
    assert build_ahead_of_time(broken.SerializeToString()).int4_layers == ("g",)
