"""Quantised files of a layer or two, whose every node, number and type is worked by hand."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto

from backends.facts.file_form import PLAIN
from backends.onnx_file.emit import emit
from backends.onnx_file.view import OnnxView
from calibration.errors import UserError
from calibration.simulation.freeze import FrozenNetwork
from tests.backends.onnx_file.hand_graphs import HandGraph, frozen, integers, read_aloud, rounded

aten: Any = torch.ops.aten


def lines(network: FrozenNetwork, *, opset: int = 20, **form: Any) -> list[str]:
    return read_aloud(emit(network, opset=opset, form=replace(PLAIN, **form)))


def one_convolution(*, biased: bool = True) -> FrozenNetwork:
    g = HandGraph(3, 4, 4)
    bias = g.constant("b", torch.ones(2)) if biased else None
    conv = g(aten.conv2d.default, g.x, g.constant("w", torch.ones(2, 3, 1, 1)), bias, name="conv")
    return frozen(
        g.module(g(aten.relu.default, conv, name="act")),
        rounded("x", "conv", scale=0.25, zero=128),
        rounded("act", "output", scale=0.5),
        weights={"conv": integers([[[[1]], [[-2]], [[3]]], [[[4]], [[5]], [[-6]]]], [0.5, 0.25], axis=0, bits=4)},
        biases={"conv": integers([7, -8], [0.125, 0.0625], axis=0, bits=32)} if biased else None,
        kinds={"conv": "conv"},
        absorbed={"act": "conv"},
    )


WEIGHT = "i8:[[[[1]],[[-2]],[[3]]],[[[4]],[[5]],[[-6]]]]"
CONV = "dilations=[1,1] group=1 kernel_shape=[1,1] pads=[0,0,0,0] strides=[1,1]"


def around_the_layer(weight: list[str], read: str) -> list[str]:
    return [
        "x_q = QuantizeLinear(x, f32:0.25, u8:128)",
        "x_q_dq = DequantizeLinear(x_q, f32:0.25, u8:128)",
        *weight,
        "conv_b_dq = DequantizeLinear(i32:[7,-8], f32:[0.125,0.0625], i32:[0,0]) axis=0",
        f"conv = Conv(x_q_dq, {read}, conv_b_dq) {CONV}",
        "act = Relu(conv)",
        "act_q = QuantizeLinear(act, f32:0.5, u8:0)",
        "act_q_dq = DequantizeLinear(act_q, f32:0.5, u8:0)",
    ]


def test_a_convolution_on_integers() -> None:
    network = one_convolution()
    model = emit(network, opset=20, form=PLAIN, name="net")
    plain = [f"w_dq = DequantizeLinear({WEIGHT}, f32:[0.5,0.25], i8:[0,0]) axis=0"]
    assert read_aloud(model) == around_the_layer(plain, "w_dq")
    assert (model.producer_name, model.ir_version, model.graph.name) == ("faqd", 9, "net")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    ends = [*model.graph.input, *model.graph.output]
    assert [entry.name for entry in ends] == ["x", "y0"]
    assert [entry.type.tensor_type.elem_type for entry in ends] == [TensorProto.FLOAT] * 2
    sizes = [[d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim] for entry in ends]
    assert sizes == [["batch", 3, 4, 4], ["batch", 2, 4, 4]]
    assert [t.name for t in model.graph.initializer if t.name.startswith("int8")] == ["int8_0x2"]
    assert not any(t.HasField("data_location") for t in model.graph.initializer)


def test_a_layer_of_its_own_constants() -> None:
    own = [f"conv_weight_dq = DequantizeLinear({WEIGHT}, f32:[0.5,0.25], i8:[0,0]) axis=0"]
    model = emit(one_convolution(), opset=20, form=replace(PLAIN, shared_constants=False))
    assert read_aloud(model) == around_the_layer(own, "conv_weight_dq")
    assert {"conv_weight_zero", "conv_b_zero"} <= {tensor.name for tensor in model.graph.initializer}


def test_int4_is_cast_before_it_is_read() -> None:
    packed = [
        f"w_i8 = Cast({WEIGHT.replace('i8', 'i4')}) to=3",
        "w_dq = DequantizeLinear(w_i8, f32:[0.5,0.25], i8:[0,0]) axis=0",
    ]
    assert lines(one_convolution(), opset=21, packs_int4=True) == around_the_layer(packed, "w_dq")
    with pytest.raises(UserError, match="int4 weights exist from opset 21 on"):
        lines(one_convolution(), opset=20, packs_int4=True)


def test_one_scale_has_one_zero_point() -> None:
    g = HandGraph(3)
    layer = g(aten.linear.default, g.x, g.constant("w", torch.ones(2, 3)), g.constant("b", torch.ones(2)), name="fc")
    network = frozen(
        g.module(layer),
        rounded("x", "fc", zero=3),
        weights={"fc": integers([[1, 2, 3], [3, 2, 1]], 0.5)},
        biases={"fc": integers([4, 5], 0.25, bits=32)},
    )
    assert lines(network, packs_int4=True) == [  # of 8 bits nothing is packed
        "x_q = QuantizeLinear(x, f32:0.5, u8:3)",
        "x_q_dq = DequantizeLinear(x_q, f32:0.5, u8:3)",
        "w_dq = DequantizeLinear(i8:[[1,2,3],[3,2,1]], f32:0.5, i8:0)",
        "fc_b_dq = DequantizeLinear(i32:[4,5], f32:0.25, i32:0)",
        "fc = Gemm(x_q_dq, w_dq, fc_b_dq) transB=1",
    ]


def test_blocks_of_weights_are_int4_as_they_are() -> None:
    g = HandGraph(4)
    layer = g(aten.linear.default, g.x, g.constant("w", torch.ones(2, 4)), name="fc")
    blocks = integers([[1, 2, 3, 4], [-1, -2, -3, -8]], [[0.5, 1], [2, 4]], bits=4, axis=0, block=2)
    network = frozen(g.module(layer), weights={"fc": blocks})
    scales, zeros = "f32:[[0.5,1],[2,4]]", "i4:[[0,0],[0,0]]"
    assert lines(network, opset=21) == [
        f"w_dq = DequantizeLinear(i4:[[1,2,3,4],[-1,-2,-3,-8]], {scales}, {zeros}) axis=1 block_size=2",
        "fc = Gemm(x, w_dq) transB=1",
    ]
    with pytest.raises(UserError, match="--opset 20: int4 weights exist from opset 21 on"):
        lines(network, opset=20)


def test_layers_that_share_a_weight_read_one() -> None:
    g = HandGraph(3)
    w = g.constant("w", torch.ones(3, 3))
    first = g(aten.linear.default, g.x, w, name="first")
    shared = integers(np.eye(3), 0.5)
    network = frozen(
        g.module(g(aten.linear.default, first, w, name="second")), weights={"first": shared, "second": shared}
    )
    read = "DequantizeLinear(i8:[[1,0,0],[0,1,0],[0,0,1]], f32:0.5, i8:0)"
    gemms = ["first = Gemm(x, w_dq) transB=1", "second = Gemm(first, w_dq) transB=1"]
    assert lines(network) == [f"w_dq = {read}", *gemms]
    assert len(lines(network, shared_constants=False)) == 4


def test_fewer_bits_are_held_in_a_byte() -> None:
    g = HandGraph(4, 2)
    network = frozen(
        g.module(g(aten.exp.default, g.x, name="e")),
        rounded("x", "e", bits=4, scale=0.25, zero=3),
        rounded("e", "output", signed=True, scale=2, zero=-5),
    )
    assert lines(network) == [
        "x_q = QuantizeLinear(x, f32:0.25, u8:3)",
        "x_clipped = Clip(x_q, u8:0, u8:15)",
        "x_clipped_dq = DequantizeLinear(x_clipped, f32:0.25, u8:3)",
        "e = Exp(x_clipped_dq)",
        "e_q = QuantizeLinear(e, f32:2, i8:-5)",
        "e_q_dq = DequantizeLinear(e_q, f32:2, i8:-5)",
    ]


def test_who_is_no_reader_sees_the_float_value() -> None:
    g = HandGraph(4)
    nodes = [g(aten.exp.default, g.x, name="integer"), g(aten.erf.default, g.x, name="real")]
    assert lines(frozen(g.module(*nodes), rounded("x", "integer")))[2:] == [
        "integer = Exp(x_q_dq)",
        "real = Erf(x)",
    ]


def test_tensors_of_a_group_share_their_scale() -> None:
    g = HandGraph(4)
    e = g(aten.exp.default, g.x, name="e")
    network = frozen(
        g.module(g(aten.erf.default, e, name="f")), rounded("x", "e", group="e"), rounded("e", "f", group="e")
    )
    model = emit(network, opset=20, form=PLAIN)
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert scales == {"e_scale"}


POOL = "ceil_mode=0 dilations=[1,1] kernel_shape=[2,2] pads=[0,0,0,0] strides=[2,2]"


def test_what_moves_values_moves_integers_or_reals() -> None:
    g = HandGraph(4, 4, 4)
    pool = g(aten.max_pool2d.default, g.x, [2, 2], name="pool")
    flat = g(aten.view.default, pool, [-1, 16], name="flat")
    network = frozen(
        g.module(g(aten.exp.default, flat, name="e")),
        rounded("x", "pool", scale=0.25, zero=2),
        passthrough={"pool": "x", "flat": "x"},
    )
    assert lines(network) == [
        "x_q = QuantizeLinear(x, f32:0.25, u8:2)",
        f"pool = MaxPool(x_q) {POOL}",
        "flat = Reshape(pool, i64:[-1,16])",
        "flat_dq = DequantizeLinear(flat, f32:0.25, u8:2)",
        "e = Exp(flat_dq)",
    ]
    assert lines(network, movement="reals") == [
        "x_q = QuantizeLinear(x, f32:0.25, u8:2)",
        "x_q_dq = DequantizeLinear(x_q, f32:0.25, u8:2)",
        f"pool = MaxPool(x_q_dq) {POOL}",
        "flat = Reshape(pool, i64:[-1,16])",
        "e = Exp(flat)",
    ]


def moved(build: Any, *, zero: int) -> list[str]:
    """A rounded tensor through some movement, in a form that moves reals; all names of it pass through."""
    g = HandGraph(4, 4, 4)
    nodes = build(g)
    last = g(aten.exp.default, nodes[-1], name="e")
    return lines(
        frozen(
            g.module(last),
            rounded("x", *(user.name for user in g.x.users), scale=0.25, zero=zero),
            passthrough={node.name: "x" for node in nodes},
        ),
        movement="reals",
    )[1:]


@pytest.mark.parametrize("zero", [0, 2])
def test_borders_are_integers_with_all_that_moves_with_them(zero: int) -> None:
    def build(g: HandGraph) -> list[Any]:
        before = g(aten.flip.default, g.x, [2], name="flipped")
        border = g(aten.constant_pad_nd.default, before, [1, 1, 1, 1], name="border")
        return [before, border, g(aten.max_pool2d.default, border, [2, 2], name="pool")]

    flip, pad = "i64:[-1], i64:[-9223372036854775807], i64:[2], i64:[-1]", "i64:[0,0,1,1,0,0,1,1]"
    if zero:
        assert moved(build, zero=zero) == [
            f"flipped = Slice(x_q, {flip})",
            f"border = Pad(flipped, {pad}, u8:2) mode=constant",
            f"pool = MaxPool(border) {POOL}",
            "pool_dq = DequantizeLinear(pool, f32:0.25, u8:2)",
            "e = Exp(pool_dq)",
        ]
    else:
        assert moved(build, zero=zero) == [
            "x_q_dq = DequantizeLinear(x_q, f32:0.25, u8:0)",
            f"flipped = Slice(x_q_dq, {flip})",
            f"border = Pad(flipped, {pad}, f32:0) mode=constant",
            f"pool = MaxPool(border) {POOL}",
            "e = Exp(pool)",
        ]


def test_a_border_next_to_its_rounding_is_of_integers() -> None:
    def build(g: HandGraph) -> list[Any]:
        return [g(aten.constant_pad_nd.default, g.x, [1, 1], name="border")]

    assert moved(build, zero=0)[0] == "border = Pad(x_q, i64:[0,0,0,1,0,0,0,1], u8:0) mode=constant"


@pytest.mark.parametrize(
    ("axis", "written"),
    [(1, "joined = Concat(x_q_dq, x_q_dq) axis=1"), (-3, "joined = Concat(x_q_dq, x_q_dq) axis=1"),
     (2, "joined = Concat(x_q, x_q) axis=2")],
)  # fmt: skip
def test_positions_are_joined_as_integers(axis: int, written: str) -> None:
    assert written in moved(lambda g: [g(aten.cat.default, [g.x, g.x], axis, name="joined")], zero=2)


def test_dilated_maxima_are_of_integers_whatever_the_zero_point() -> None:
    def build(dilation: int) -> Any:
        return lambda g: [g(aten.max_pool2d.default, g.x, [2, 2], [1, 1], [0, 0], [1, dilation], name="pool")]

    assert moved(build(2), zero=0)[0].startswith("pool = MaxPool(x_q) ")
    assert moved(build(1), zero=0)[1].startswith("pool = MaxPool(x_q_dq) ")


def test_channels_of_several_parts_become_positions_as_integers() -> None:
    def build(*, joined: bool) -> Any:
        def nodes(g: HandGraph) -> list[Any]:
            source = g(aten.cat.default, [g.x, g.x], 1, name="both") if joined else g.x
            between = g(aten.flip.default, source, [1], name="flipped")
            return [*([source] if joined else []), between, g(aten.pixel_shuffle.default, between, 2, name="deep")]

        return nodes

    assert "deep = DepthToSpace(flipped) blocksize=2 mode=CRD" in moved(build(joined=True), zero=2)
    assert "both = Concat(x_q, x_q) axis=1" in moved(build(joined=True), zero=2)
    assert "x_q_dq = DequantizeLinear(x_q, f32:0.25, u8:2)" in moved(build(joined=False), zero=2)


def test_behind_a_border_a_transposition_is_of_reals() -> None:
    def build(g: HandGraph) -> list[Any]:
        border = g(aten.constant_pad_nd.default, g.x, [1, 1], name="border")
        return [border, g(aten.transpose.int, border, 2, 3, name="turned")]

    assert moved(build, zero=2)[1:3] == [
        "border_dq = DequantizeLinear(border, f32:0.25, u8:2)",
        "turned = Transpose(border_dq) perm=[0,1,3,2]",
    ]


def test_parts_of_integers() -> None:
    g = HandGraph(4, 2)
    halves = g(aten.split.Tensor, g.x, 2, 1, name="halves")
    first, second = (g(operator.getitem, halves, place, name=f"part{place}") for place in range(2))
    joined = g(aten.cat.default, [second, first], 1, name="joined")
    network = frozen(
        g.module(g(aten.exp.default, joined, name="e")),
        rounded("x", "halves", scale=0.25, zero=2),
        passthrough=dict.fromkeys(("halves", "part0", "part1", "joined"), "x"),
    )
    assert lines(network)[1:] == [
        "halves = Split(x_q, i64:[2,2]) axis=1 -> halves_0, halves_1",
        "joined = Concat(halves_1, halves_0) axis=1",
        "joined_dq = DequantizeLinear(joined, f32:0.25, u8:2)",
        "e = Exp(joined_dq)",
    ]


def test_a_factor_on_integers_is_the_scale() -> None:
    g = HandGraph(4)
    half = g(aten.mul.Tensor, g.x, 0.5, name="half")
    network = frozen(
        g.module(g(aten.exp.default, half, name="e")),
        rounded("x", "half", scale=0.25, zero=2),
        passthrough={"half": "x"},
    )
    assert lines(network)[1:] == ["x_q_dq = DequantizeLinear(x_q, f32:0.125, u8:2)", "e = Exp(x_q_dq)"]
    assert lines(network, movement="reals")[2] == "half = Mul(x_q_dq, f32:0.5)"


@pytest.mark.parametrize("read", ["x_q_dq", "x"])
def test_a_border_that_convolutions_read_is_their_own(read: str) -> None:
    g = HandGraph(3, 4, 4)
    border = g(aten.constant_pad_nd.default, g.x, [1, 0, 2, 0], name="border")
    conv = g(aten.conv2d.default, border, g.constant("w", torch.ones(2, 3, 1, 1)), None, [1, 1], [0, 1], name="conv")
    integer = read != "x"
    network = frozen(
        g.module(conv), rounded("x", "border" if integer else ""), passthrough={"border": "x"} if integer else {}
    )
    weight = "f32:[[[[1]],[[1]],[[1]]],[[[1]],[[1]],[[1]]]]"
    expected = f"conv = Conv({read}, {weight}) dilations=[1,1] group=1 kernel_shape=[1,1] pads=[2,2,0,1] strides=[1,1]"
    for movement in ("integers", "reals"):
        assert lines(network, movement=movement)[-1] == expected


def test_results_have_their_public_names_and_are_copied_only_where_they_must() -> None:
    g = HandGraph(4)
    e = g(aten.exp.default, g.x, name="e")
    f = g(aten.erf.default, e, name="f")
    model = emit(g.module(f, e, g.x, f, outputs=("f", "inner", "x", "again")), opset=20)
    assert read_aloud(model) == [
        "e = Exp(x)",
        "f = Erf(e) -> f_",
        "f_result = Identity(f_)",
        "inner_result = Identity(e)",
        "x_out_result = Identity(x)",
        "again_result = Identity(f_)",
    ]
    assert [output.name for output in model.graph.output] == ["f", "inner", "x_out", "again"]


def test_a_fixed_batch_is_declared() -> None:
    g = HandGraph(4)
    model = emit(g.module(g(aten.exp.default, g.x, name="e")), opset=17, batch=3)
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [3, 4]
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)


def test_equal_constants_are_one_and_unequal_ones_of_a_name_are_not() -> None:
    g = HandGraph(4)
    plus = [g(aten.add.Tensor, g.x, number, name=f"plus{place}") for place, number in enumerate((2, 2.0, 3))]
    model = emit(g.module(*plus), opset=20)
    assert [tensor.name for tensor in model.graph.initializer] == ["f32_2.0", "f32_3.0"]
    h = HandGraph(2, 4, 4)
    up = h(aten.upsample_nearest2d.vec, h.x, None, [2.0, 2.0], name="up")
    own = h.constant("up_scales", torch.ones(1))
    model = emit(h.module(h(aten.add.Tensor, up, own, name="plus")), opset=20)
    stored = {tensor.name: OnnxView(model).value(tensor.name) for tensor in model.graph.initializer}
    assert {name: value.tolist() for name, value in stored.items() if value is not None} == {
        "up_scales": [1, 1, 2, 2],
        "up_scales_": [1],
    }
