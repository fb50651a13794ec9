"""Every operator of a float file, read from the file itself: its inputs, attributes and constants, worked by hand."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from calibration.errors import UserError
from tests.backends.onnx_file.hand_graphs import HandGraph, eighths, lines, refused

aten: Any = torch.ops.aten

SIMPLE = {
    "clone": "Identity",
    "hardswish": "HardSwish",
    **{name: name.capitalize() for name in ("abs", "atan", "cos", "cosh", "erf", "exp", "floor", "log", "reciprocal")},
    **{name: name.capitalize() for name in ("round", "selu", "sigmoid", "sign", "sin", "sinh", "softplus", "sqrt")},
    **{name: name.capitalize() for name in ("relu", "tan", "tanh")},
}


def test_operators_without_attributes() -> None:
    g = HandGraph(2)
    nodes = [g(getattr(aten, name).default, g.x, name=f"its_{name}") for name in SIMPLE]
    assert lines(g, *nodes) == [f"its_{name} = {operator}(x)" for name, operator in SIMPLE.items()]


def test_convolutions() -> None:
    g = HandGraph(4, 8, 6)
    w, b, grouped = (
        g.constant("w", eighths(6, 4, 3, 2)),
        g.constant("b", eighths(3)),
        g.constant("v", eighths(3, 1, 3, 3)),
    )
    three = g(aten.slice.Tensor, g.x, 1, 1, name="three")
    nodes = [
        g(aten.conv2d.default, g.x, w, None, [2, 1], [1, 0], [1, 2], name="conv"),
        g(aten.conv2d.default, three, grouped, b, [1, 1], [1, 2], [1, 1], 3, name="grouped"),
        g(aten.conv2d.default, three, grouped, groups=3, name="plain"),
        g(aten.conv2d.padding, g.x, w, None, [2, 3], "valid", name="valid"),
    ]
    with warnings.catch_warnings(action="ignore"):  # torch says that it copies the map for an even kernel
        nodes.append(g(aten.conv2d.padding, g.x, w, None, [1, 1], "same", [2, 1], name="same"))
    assert lines(g, *nodes)[1:] == [
        "conv = Conv(x, f32[6,4,3,2]) dilations=[1,2] group=1 kernel_shape=[3,2] pads=[1,0,1,0] strides=[2,1]",
        "grouped = Conv(three, f32[3,1,3,3], f32:[0.125,0.25,0.375])"
        " dilations=[1,1] group=3 kernel_shape=[3,3] pads=[1,2,1,2] strides=[1,1]",
        "plain = Conv(three, f32[3,1,3,3]) dilations=[1,1] group=3 kernel_shape=[3,3] pads=[0,0,0,0] strides=[1,1]",
        "valid = Conv(x, f32[6,4,3,2]) dilations=[1,1] group=1 kernel_shape=[3,2] pads=[0,0,0,0] strides=[2,3]",
        # The odd column of an even kernel is at the end.
        "same = Conv(x, f32[6,4,3,2]) dilations=[2,1] group=1 kernel_shape=[3,2] pads=[2,0,2,1] strides=[1,1]",
    ]


def test_other_layers() -> None:
    g = HandGraph(4, 8, 6)
    w, b = g.constant("w", eighths(4, 1, 3, 2)), g.constant("b", eighths(2))
    rows, tokens = g(aten.flatten.using_ints, g.x, 1, name="rows"), g(aten.flatten.using_ints, g.x, 2, name="tokens")
    turned, v = g(aten.transpose.int, tokens, 1, 2, name="turned"), g.constant("v", eighths(2, 192))
    nodes = [
        g(aten.conv_transpose2d.input, g.x, w, b, [2, 3], [1, 0], [1, 2], 2, [2, 1], name="up"),
        g(aten.conv_transpose2d.input, g.x, w, name="up_plain"),
        g(aten.linear.default, rows, v, b, name="linear"),
        g(aten.linear.default, rows, v, name="no_bias"),
        g(aten.matmul.default, g.x, g.constant("m", eighths(6, 2)), name="product"),
        g(aten.bmm.default, tokens, turned, name="products"),
    ]
    up = "dilations=[1,1] group=1 kernel_shape=[3,2] output_padding=[0,0] pads=[0,0,0,0] strides=[1,1]"
    whole = "dilations=[2,1] group=2 kernel_shape=[3,2] output_padding=[1,2] pads=[1,0,1,0] strides=[2,3]"
    assert lines(g, *nodes)[3:] == [
        f"up = ConvTranspose(x, f32[4,1,3,2], f32:[0.125,0.25]) {whole}",
        f"up_plain = ConvTranspose(x, f32[4,1,3,2]) {up}",
        "linear = Gemm(rows, f32[2,192], f32:[0.125,0.25]) transB=1",
        "no_bias = Gemm(rows, f32[2,192]) transB=1",
        "product = MatMul(x, f32:[[0.125,0.25],[0.375,0.5],[0.625,0.75],[0.875,1],[1.125,1.25],[1.375,1.5]])",
        "products = MatMul(tokens, turned)",
    ]


@pytest.mark.parametrize("layer", ["conv2d.default", "conv_transpose2d.input"])
def test_a_computed_weight_is_no_layer(layer: str) -> None:
    g = HandGraph(4, 8, 6)
    weight = g(aten.relu.default, g.constant("w", eighths(4, 4, 1, 1)), name="weight")
    name, overload = layer.split(".")
    said = refused(g, g(getattr(getattr(aten, name), overload), g.x, weight, name="layer"))
    assert said.startswith(f"layer (aten.{layer}, in the top module): its weight is computed from the image")


def test_a_linear_layer_over_tokens_is_refused() -> None:
    g = HandGraph(4, 6)
    said = refused(g, g(aten.linear.default, g.x, g.constant("w", eighths(5, 6)), name="layer"))
    assert "a linear layer over more than one free dimension has no translation to ONNX; rewrite that part" in said


def test_activations() -> None:
    g = HandGraph(4, 2, 2)
    x = g.x
    nodes = [
        g(aten.relu6.default, x, name="six"),
        g(aten.hardtanh.default, x, name="one"),
        g(aten.hardtanh.default, x, -2, 3, name="wide"),
        g(aten.clamp.default, x, 0.5, name="low"),
        g(aten.clamp.default, x, None, 2, name="high"),
        g(aten.clamp.default, x, -1, 2, name="both"),
        g(aten.clamp_min.default, x, 0.25, name="at_least"),
        g(aten.leaky_relu.default, x, name="leaky"),
        g(aten.leaky_relu.default, x, 0.25, name="leakier"),
        g(aten.celu.default, x, name="plain_celu"),
        g(aten.celu.default, x, 0.5, name="half_celu"),
        g(aten.elu.default, x, name="plain_elu"),
        g(aten.elu.default, x, 0.5, name="half_elu"),
        g(aten.prelu.default, x, g.constant("slopes", eighths(4)), name="sloped"),
        g(aten.silu.default, x, name="silu"),
        g(aten.hardsigmoid.default, x, name="hard"),
    ]
    assert lines(g, *nodes) == [
        "six = Clip(x, f32:0, f32:6)",
        "one = Clip(x, f32:-1, f32:1)",
        "wide = Clip(x, f32:-2, f32:3)",
        "low = Clip(x, f32:0.5)",
        "high = Clip(x, -, f32:2)",
        "both = Clip(x, f32:-1, f32:2)",
        "at_least = Clip(x, f32:0.25)",
        "leaky = LeakyRelu(x) alpha=0.01",
        "leakier = LeakyRelu(x) alpha=0.25",
        "plain_celu = Celu(x) alpha=1",
        "half_celu = Celu(x) alpha=0.5",
        "plain_elu = Elu(x) alpha=1",
        "half_elu = Elu(x) alpha=0.5",
        "sloped = PRelu(x, f32:[[[0.125]],[[0.25]],[[0.375]],[[0.5]]])",
        "silu_sigmoid = Sigmoid(x)",
        "silu = Mul(x, silu_sigmoid)",
        "hard = HardSigmoid(x) alpha=0.166667 beta=0.5",
    ]


def test_gelu_by_opset() -> None:
    def gelu(opset: int, **form: str) -> list[str]:
        g = HandGraph(2)
        return lines(g, g(aten.gelu.default, g.x, name="gelu", **form), opset=opset)

    assert gelu(20) == ["gelu = Gelu(x) approximate=none"]
    assert gelu(23, approximate="tanh") == ["gelu = Gelu(x) approximate=tanh"]
    assert gelu(19) == [
        "gelu_div = Div(x, f32:1.41421)",
        "gelu_erf = Erf(gelu_div)",
        "gelu_add = Add(gelu_erf, f32:1)",
        "gelu_mul = Mul(x, gelu_add)",
        "gelu = Mul(gelu_mul, f32:0.5)",
    ]
    with pytest.raises(UserError, match="GELU's tanh form needs --opset 20 or newer"):
        gelu(19, approximate="tanh")


def test_arithmetic() -> None:
    g = HandGraph(4, 3, 2)
    x, c = g.x, g.constant("c", eighths(4, 1, 1))
    y = g(aten.exp.default, x, name="y")
    nodes = [
        g(aten.add.Tensor, x, y, name="plus"),
        g(aten.add.Tensor, x, 2, name="plus_two"),
        g(aten.sub.Tensor, x, c, name="minus"),
        g(aten.mul.Tensor, y, 0.5, name="half"),
        g(aten.div.Tensor, y, x, name="over"),
        g(aten.softmax.int, x, 1, name="soft"),
        g(aten.log_softmax.int, x, -1, name="log_soft"),
        g(aten.minimum.default, x, y, name="smaller"),
        g(aten.max.other, y, x, name="larger"),
        g(aten.pow.Tensor_Scalar, x, 3, name="cube"),
        g(aten.fmod.Scalar, x, 2, name="rest"),
        g(aten.linalg_vector_norm.default, x, 1, [1], True, name="first"),
        g(aten.linalg_vector_norm.default, x, dim=[2], name="second"),
    ]
    assert lines(g, *nodes)[1:] == [
        "plus = Add(x, y)",
        "plus_two = Add(x, f32:2)",
        "minus = Sub(x, f32:[[[0.125]],[[0.25]],[[0.375]],[[0.5]]])",
        "half = Mul(y, f32:0.5)",
        "over = Div(y, x)",
        "soft = Softmax(x) axis=1",
        "log_soft = LogSoftmax(x) axis=-1",
        "smaller = Min(x, y)",
        "larger = Max(y, x)",
        "cube = Pow(x, f32:3)",
        "rest = Mod(x, f32:2) fmod=1",
        "first = ReduceL1(x, i64:[1]) keepdims=1",
        "second = ReduceL2(x, i64:[2]) keepdims=0",
    ]


@pytest.mark.parametrize("opset", [17, 18])
def test_axes_of_reductions_by_opset(opset: int) -> None:
    g = HandGraph(4, 3, 2)
    nodes = [
        g(aten.mean.dim, g.x, [2, 3], name="average"),
        g(aten.mean.dim, g.x, [-1], True, name="kept"),
        g(aten.amax.default, g.x, [1], name="largest"),
        g(aten.amin.default, g.x, [2], True, name="smallest"),
        g(aten.sum.dim_IntList, g.x, [1], name="total"),
    ]
    rows = ["average = ReduceMean", "kept = ReduceMean", "largest = ReduceMax", "smallest = ReduceMin"]
    axes = list(zip(rows, ("[2,3]", "[-1]", "[1]", "[2]"), (0, 1, 0, 1), strict=True))
    before = [f"{row}(x) axes={place} keepdims={keep}" for row, place, keep in axes]
    after = [f"{row}(x, i64:{place}) keepdims={keep}" for row, place, keep in axes]
    total = "total = ReduceSum(x, i64:[1]) keepdims=0"
    assert lines(g, *nodes, opset=opset) == [*(before if opset == 17 else after), total]


@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        (aten.add.Tensor, ("x",), "a scaled addition (alpha)"),
        (aten.sum.dim_IntList, ([],), "ReduceSum over all axes"),
        (aten.linalg_vector_norm.default, (3, [1]), "a norm of order 3"),
        (aten.avg_pool2d.default, ([2, 2], [2, 2], [0, 0], False, True, 3), "an average pooling with a divisor"),
        (aten.pad.default, ([1, 1, 1, 1], "circular"), "padding mode circular"),
    ],
)
def test_arguments_without_a_counterpart_are_named(target: Any, arguments: tuple[Any, ...], said: str) -> None:
    g = HandGraph(4, 3, 2)
    plain = [g.x if value == "x" else value for value in arguments]
    line = refused(g, g(target, g.x, *plain, name="node", **({"alpha": 2} if target is aten.add.Tensor else {})))
    assert line.startswith(f"node ({target}, in the top module): {said}") and "has no translation to ONNX" in line


def test_normalisations() -> None:
    g = HandGraph(4, 3, 2)
    x, w, b = g.x, g.constant("w", eighths(4)), g.constant("b", eighths(4) + 1)
    scale, shift = g.constant("scale", eighths(3, 2)), g.constant("shift", eighths(3, 2) + 1)
    nodes = [
        g(aten.instance_norm.default, x, w, b, None, None, True, 0.1, 1e-3, False, name="own"),
        g(aten.instance_norm.default, x, None, None, None, None, True, 0.1, 1e-5, False, name="bare"),
        g(aten.group_norm.default, x, 2, w, b, 1e-3, name="two"),
        g(aten.group_norm.default, x, 4, name="each"),
        g(aten.layer_norm.default, x, [3, 2], scale, shift, 1e-3, name="both"),
        g(aten.layer_norm.default, x, [2], name="row"),
        g(aten.layer_norm.default, x, [3, 2], scale, name="scaled"),
    ]
    four, more = "f32:[0.125,0.25,0.375,0.5]", "f32:[1.125,1.25,1.375,1.5]"
    tall, taller = (text.replace(",", "]],[[").replace(":[", ":[[[") + "]]" for text in (four, more))
    six = "f32:[[0.125,0.25],[0.375,0.5],[0.625,0.75]]"
    assert lines(g, *nodes) == [
        f"own = InstanceNormalization(x, {four}, {more}) epsilon=0.001",
        "bare = InstanceNormalization(x, f32:[1,1,1,1], f32:[0,0,0,0]) epsilon=1e-05",
        "two_rows = Reshape(x, i64:[-1,2,12])",
        "two_rows_norm = InstanceNormalization(two_rows, f32:[1,1], f32:[0,0]) epsilon=0.001",
        "two_map = Reshape(two_rows_norm, i64:[-1,4,3,2])",
        f"two_mul = Mul(two_map, {tall})",
        f"two_add = Add(two_mul, {taller})",
        "each_rows = Reshape(x, i64:[-1,4,6])",
        "each_rows_norm = InstanceNormalization(each_rows, f32:[1,1,1,1], f32:[0,0,0,0]) epsilon=1e-05",
        "each_map = Reshape(each_rows_norm, i64:[-1,4,3,2])",
        f"both = LayerNormalization(x, {six}, f32:[[1.125,1.25],[1.375,1.5],[1.625,1.75]]) axis=-2 epsilon=0.001",
        "row = LayerNormalization(x, f32:[1,1]) axis=-1 epsilon=1e-05",
        f"scaled = LayerNormalization(x, {six}) axis=-2 epsilon=1e-05",
    ]


def test_running_statistics_are_refused() -> None:
    g = HandGraph(2, 3, 2)
    mean, variance = g.constant("mean", eighths(2)), g.constant("variance", eighths(2))
    node = g(aten.instance_norm.default, g.x, None, None, mean, variance, False, 0.1, 1e-5, False, name="node")
    assert "an instance normalisation with running statistics" in refused(g, node)
