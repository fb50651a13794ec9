"""What each field of a file's form makes of one operator, worked by hand, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from backends.facts.file_form import PLAIN
from backends.onnx_file.emit import emit
from backends.onnx_file.view import OnnxView
from calibration.simulation.freeze import FrozenNetwork
from tests.backends.onnx_file.hand_graphs import HandGraph, frozen, integers, read_aloud, rounded

aten: Any = torch.ops.aten
LOWEST = "f32:-3.40282e+38"


def lines(network: FrozenNetwork, *, opset: int = 20, **form: Any) -> list[str]:
    """What stands behind the rounding of the input."""
    written = read_aloud(emit(network, opset=opset, form=replace(PLAIN, **form)))
    return [line for line in written if not line.startswith(("x_q", "w_dq"))]


def one_operator(target: Any, *arguments: Any, shape: tuple[int, ...] = (2, 4, 4), **plan: Any) -> FrozenNetwork:
    """A rounded input, an operator on integers, and its rounded result."""
    g = HandGraph(*shape)
    constants = [g.constant(f"c{i}", one) if isinstance(one, torch.Tensor) else one for i, one in enumerate(arguments)]
    return frozen(
        g.module(g(target, g.x, *constants, name="node")),
        rounded("x", "node", scale=0.375, zero=100),
        rounded("node", "output"),
        **({"kinds": {"node": "here"}} | plan),
    )


ROUNDED = ["node_q = QuantizeLinear(node, f32:0.5, u8:0)", "node_q_dq = DequantizeLinear(node_q, f32:0.5, u8:0)"]


def test_a_hard_sigmoid_on_integers_is_an_addition() -> None:
    # x / 6 + 1/2, the division on the scale: 0.375 / 6.
    assert read_aloud(emit(one_operator(aten.hardsigmoid.default), opset=20, form=PLAIN)) == [
        "x_q = QuantizeLinear(x, f32:0.375, u8:100)",
        "x_q_dq = DequantizeLinear(x_q, f32:0.0625, u8:100)",
        "uint8_1_rank_4_dq = DequantizeLinear(u8:[[[[1]]]], f32:0.5, u8:0)",
        "node = Add(x_q_dq, uint8_1_rank_4_dq)",
        *ROUNDED,
    ]
    in_float = one_operator(aten.hardsigmoid.default, float_nodes={"node": "why"})
    assert lines(in_float) == ["node = HardSigmoid(x_q_dq) alpha=0.166667 beta=0.5", *ROUNDED]


def test_an_average_of_exact_sums_is_a_convolution_of_ones() -> None:
    arguments = (aten.avg_pool2d.default, [2, 3], [2, 1], [1, 1])
    average = "ceil_mode=0 count_include_pad=1 kernel_shape=[2,3] pads=[1,1,1,1] strides=[2,1]"
    averaged = [f"node = AveragePool(x_q_dq) {average}", *ROUNDED]
    assert lines(one_operator(*arguments, exact_averages=True)) == [
        "node_ones_dq = DequantizeLinear(i8:[[[[1,1,1],[1,1,1]]],[[[1,1,1],[1,1,1]]]], f32:0.166667, i8:0)",
        "node = Conv(x_q_dq, node_ones_dq) group=2 kernel_shape=[2,3] pads=[1,1,1,1] strides=[2,1]",
        *ROUNDED,
    ]
    assert lines(one_operator(*arguments)) == averaged
    assert lines(one_operator(*arguments, exact_averages=True, float_nodes={"node": "why"})) == averaged
    uncounted = one_operator(*arguments, False, False, exact_averages=True)  # windows of unequal divisors
    assert lines(uncounted) == [averaged[0].replace("count_include_pad=1", "count_include_pad=0"), *ROUNDED]


@pytest.mark.parametrize(
    ("slopes", "written"),
    [
        ([0.5, 1.0], ["node_sloping = Mul(x_q_dq, f32:[[[0.5]],[[1]]])", "node = Max(x_q_dq, node_sloping)"]),
        (
            [0.5, 1.5],
            [
                "node_below = Min(x_q_dq, f32:0)",
                "node_sloping = Mul(node_below, f32:[[[0.5]],[[1.5]]])",
                "node_above = Relu(x_q_dq)",
                "node = Add(node_above, node_sloping)",
            ],
        ),
    ],
)
def test_a_prelu_as_a_maximum(slopes: list[float], written: list[str]) -> None:
    network = one_operator(aten.prelu.default, torch.tensor(slopes))
    assert lines(network, prelu_as_maximum=True) == [*written, *ROUNDED]
    assert lines(network)[0] == f"node = PRelu(x_q_dq, f32:[[[{slopes[0]}]],[[{slopes[1]:g}]]])"


def bounded(target: Any, *arguments: Any, rounded_before: bool = False, **plan: Any) -> list[str]:
    """A bound behind a product on integers, in the form that asks for operators of two inputs."""
    g = HandGraph(3)
    product = g(aten.linear.default, g.x, g.constant("w", torch.ones(2, 3)), name="fc")
    network = frozen(
        g.module(g(target, product, *arguments, name="bound")),
        rounded("x", "fc"),
        *([rounded("fc", "bound")] if rounded_before else []),
        weights={"fc": integers([[1, 2, 3], [3, 2, 1]], 0.5)},
        **({"kinds": {"fc": "linear"}} | plan),
    )
    assert not any("Max" in line or "Min" in line for line in lines(network))
    return [line for line in lines(network, bounds_behind_products=True) if line.startswith("bound")]


def test_bounds_behind_products() -> None:
    assert bounded(aten.relu.default) == ["bound = Max(fc, f32:0)"]
    assert bounded(aten.relu6.default) == ["bound_low = Max(fc, f32:0)", "bound = Min(bound_low, f32:6)"]
    assert bounded(aten.clamp.default, -1) == ["bound = Max(fc, f32:-1)"]
    assert bounded(aten.clamp.default, None, 2) == ["bound = Min(fc, f32:2)"]
    assert bounded(aten.relu.default, absorbed={"bound": "fc"}) == ["bound = Relu(fc)"]
    assert bounded(aten.relu.default, float_nodes={"fc": "why"}) == ["bound = Relu(fc)"]
    assert bounded(aten.relu.default, rounded_before=True) == ["bound = Relu(fc_q_dq)"]


def test_a_bound_behind_another_operator_is_as_it_is() -> None:
    assert lines(one_operator(aten.relu.default), bounds_behind_products=True)[0] == "node = Relu(x_q_dq)"


def test_a_softmax_between_roundings_is_kept_apart() -> None:
    apart = ["node_kept_in_float = Max(x_q_dq, " + LOWEST + ")", "node = Softmax(node_kept_in_float) axis=1", *ROUNDED]
    assert lines(one_operator(aten.softmax.int, 1), softmax_apart=True) == apart
    assert lines(one_operator(aten.softmax.int, 1)) == ["node = Softmax(x_q_dq) axis=1", *ROUNDED]
    g = HandGraph(4, 2)
    soft = g(aten.softmax.int, g(aten.exp.default, g.x, name="e"), 1, name="node")
    before = frozen(g.module(soft), rounded("e", "node"))
    assert lines(before, softmax_apart=True)[-1] == "node = Softmax(e_q_dq) axis=1"
    h = HandGraph(4, 2)
    behind = frozen(h.module(h(aten.softmax.int, h.x, 1, name="node")), rounded("node", "output"))
    assert lines(behind, softmax_apart=True) == ["node = Softmax(x) axis=1", *ROUNDED]


def test_the_largest_of_axes_is_kept_apart() -> None:
    for target, name in ((aten.amax, "ReduceMax"), (aten.amin, "ReduceMin")):
        network = one_operator(target.default, [1], True)
        maximum = f"node = Max(node_reduced, {LOWEST})"
        assert lines(network, reductions_apart=True) == [
            f"node_reduced = {name}(x_q_dq, i64:[1]) keepdims=1",
            maximum,
            *ROUNDED,
        ]
        assert lines(network, opset=17, reductions_apart=True)[:2] == [
            f"node_reduced = {name}(x_q_dq) axes=[1] keepdims=1",
            maximum,
        ]
        assert lines(network)[0] == f"node = {name}(x_q_dq, i64:[1]) keepdims=1"
    mean = one_operator(aten.mean.dim, [1])
    assert lines(mean, reductions_apart=True)[0] == "node = ReduceMean(x_q_dq, i64:[1]) keepdims=0"


@pytest.mark.parametrize(
    ("bias", "read"),
    [(None, "f32:[1e-30,1e-30]"), ([0.0, 0.0], "f32:[1e-30,1e-30]"), ([0.0, 1.0], "f32:[0,1]")],
)
def test_every_layer_on_integers_has_a_bias(bias: list[float] | None, read: str) -> None:
    g = HandGraph(3, 4, 4)
    stored = None if bias is None else g.constant("b", torch.tensor(bias))
    conv = g(aten.conv2d.default, g.x, g.constant("w", torch.ones(2, 3, 1, 1)), stored, name="conv")
    rows = g(aten.flatten.using_ints, conv, 1, name="rows")
    fully = [g(aten.linear.default, rows, g.constant(f"v{i}", torch.ones(3, 32)), name=f"fc{i}") for i in range(2)]
    network = frozen(
        g.module(*fully),
        rounded("x", "conv"),
        weights={"conv": integers(np.ones((2, 3, 1, 1)), 0.5), "fc0": integers(np.ones((3, 32)), 0.5)},
        kinds={"conv": "conv", "fc0": "linear"},
    )
    written = lines(network, bias_everywhere=True)
    assert f"conv = Conv(x_q_dq, w_dq, {read}) " in written[0]
    assert "fc0 = Gemm(rows, v0_dq, f32:[1e-30,1e-30,1e-30]) transB=1" in written
    assert "fc1 = Gemm(rows, f32[3,32]) transB=1" in written
    assert (", f32:[0,0])" if bias == [0.0, 0.0] else ", f32:[0,1])" if bias else "x_q_dq, w_dq) ") in lines(network)[0]


def border(*, non_negative: bool = False, averaged: bool = True, value: float = 0.0, **form: Any) -> str:
    """The constant of a border of reals."""
    g = HandGraph(3, 4, 4)
    source = g(aten.relu.default, g.x, name="r") if non_negative else g.x
    around = g(aten.constant_pad_nd.default, source, [1, 0, 1, 0], value, name="border")
    pool = (aten.avg_pool2d.default, around, [2, 2]) if averaged else (aten.exp.default, around)
    (written,) = [line for line in lines(frozen(g.module(g(*pool, name="node"))), **form) if line.startswith("border")]
    return written.partition("], ")[2].partition(")")[0]


def test_a_border_into_an_average_is_next_to_zero() -> None:
    assert border(borders_next_to_zero=True) == "f32:1e-30"
    assert border(borders_next_to_zero=True, value=2.0) == "f32:2"
    assert border(borders_next_to_zero=True, non_negative=True) == "f32:0"
    assert border(borders_next_to_zero=True, averaged=False) == "f32:0"
    assert border() == "f32:0"


def test_orders_of_integers_are_whole_or_in_halves() -> None:
    g = HandGraph(4, 2)
    order = g(aten.index_select.default, g.x, 1, g.constant("o", torch.tensor([1, 2, 3, 0])), name="order")
    network = frozen(g.module(g(aten.exp.default, order, name="e")), rounded("x", "order"), passthrough={"order": "x"})
    assert lines(network)[0] == "order = Gather(x_q, i64:[1,2,3,0]) axis=1"
    assert lines(network, orders_in_halves=True)[:3] == [
        "order_0 = Gather(x_q, i64:[1,2]) axis=1",
        "order_1 = Gather(x_q, i64:[3,0]) axis=1",
        "order = Concat(order_0, order_1) axis=1",
    ]


def test_a_shuffle_of_integers_is_a_gather() -> None:
    g = HandGraph(6, 2, 2)
    shuffled = g(aten.channel_shuffle.default, g.x, 2, name="node")
    network = frozen(g.module(g(aten.exp.default, shuffled, name="e")), rounded("x", "node"), passthrough={"node": "x"})
    # Two groups of three: the first of each, then the second of each.
    assert lines(network)[0] == "node = Gather(x_q, i64:[0,3,1,4,2,5]) axis=1"


@pytest.mark.parametrize("rank", [4, 3, 2])
def test_what_has_no_batch_is_added_to_zeros_of_the_images(rank: int) -> None:
    g = HandGraph(4, 6, 2)
    row = g.constant("row", torch.ones((1, 4, 1, 2)[4 - rank :]))
    network = frozen(g.module(g(aten.expand_as.default, row, g.x, name="wide")))
    assert [line.partition("f32:[")[0] for line in lines(network, spreads_by_values=True)[:1]] == [
        "wide_once = Expand("
    ]
    assert lines(network, spreads_by_values=True)[0].endswith(", i64:[1,4,6,2])")
    assert lines(network, spreads_by_values=True)[1:] == [
        "wide_corner = Slice(x, i64:[0,0,0], i64:[1,1,1], i64:[1,2,3], i64:[1,1,1])",
        "wide_aligned = Reshape(wide_corner, i64:[-1,1,1,1])",
        "wide_zeros = Mul(wide_aligned, f32:0)",
        "wide = Add(wide_zeros, wide_once)",
    ]


def test_what_has_a_batch_is_spread_along_the_other_axes() -> None:
    g = HandGraph(4, 6, 2)
    mean = g(aten.mean.dim, g.x, [2], True, name="mean")
    network = frozen(g.module(g(aten.expand.default, mean, [-1, 4, 6, 2], name="wide")))
    assert lines(network, spreads_by_values=True)[1:] == ["wide = Expand(mean, i64:[1,4,6,2])"]


def grouped(most: int, **layers: Any) -> tuple[str, Any]:
    """Four groups of two inputs and one output: the convolution's line, and what is stored of its weight."""
    g = HandGraph(8, 2, 2)
    conv = g(aten.conv2d.default, g.x, g.constant("w", torch.ones(4, 2, 1, 1)), groups=4, name="conv")
    values = np.arange(1, 9).reshape(4, 2, 1, 1)
    network = frozen(g.module(conv), rounded("x", "conv"), **({"weights": {"conv": integers(values, 0.5)}} | layers))
    model = emit(network, opset=20, form=replace(PLAIN, merged_channels=most))
    (name,) = [tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 4]
    return read_aloud(model)[-1], OnnxView(model).value(name).reshape(4, -1).tolist()  # type: ignore[union-attr]


def test_groups_are_merged_with_zeros_between_them() -> None:
    conv = "conv = Conv(x_q_dq, {}) dilations=[1,1] group={} kernel_shape=[1,1] pads=[0,0,0,0] strides=[1,1]"
    merged = [[1, 2, 0, 0], [0, 0, 3, 4], [5, 6, 0, 0], [0, 0, 7, 8]]
    assert grouped(4) == (conv.format("w_in_2_groups_dq", 2), merged)
    apart = [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert grouped(3) == (conv.format("w_dq", 4), apart)
    weight = "f32:[[[[1]],[[1]]],[[[1]],[[1]]],[[[1]],[[1]]],[[[1]],[[1]]]]"
    assert grouped(4, weights={}) == (conv.format(weight, 4), [[1, 1]] * 4)
