"""One translation from ATen to ONNX per operator: a table from overload to a function that writes nodes."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import Node

from calibration.operators import argument, clip_bounds, static_shape

if TYPE_CHECKING:
    from backends.onnx_graph import Emitter

aten = torch.ops.aten
Translator = Callable[["Emitter", Node], list[str]]


def _input(node: Node, position: int = 0) -> Node:
    source = node.args[position]
    assert isinstance(source, Node)
    return source


def _pair(value: Any) -> list[int]:
    """A size given for both axes at once or for each."""
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return values * 2 if len(values) == 1 else values


def _spatial(node: Node, position: int) -> tuple[int, int]:
    sizes = static_shape(_input(node, position))
    return sizes[-2], sizes[-1]


# Weighted layers.


def _conv(e: Emitter, node: Node) -> list[str]:
    stride, dilation = _pair(argument(node, 3, "stride", 1)), _pair(argument(node, 5, "dilation", 1))
    padding, groups = argument(node, 4, "padding", 0), e.groups_written(_input(node, 1))
    kernel = _spatial(node, 1)
    if isinstance(padding, str):
        # torch allows "same" for stride 1 only; the odd row of an even kernel goes to the end.
        total = [dilation[i] * (kernel[i] - 1) if padding == "same" else 0 for i in range(2)]
        pads = [total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2]
    else:
        pads = _pair(padding) * 2
    bias = argument(node, 2, "bias")
    inputs = [e.read(_input(node)), e.weight(_input(node, 1))] + ([e.bias(bias)] if isinstance(bias, Node) else [])
    return e.add("Conv", inputs, strides=stride, pads=pads, dilations=dilation, group=groups, kernel_shape=list(kernel))


def _conv_transpose(e: Emitter, node: Node) -> list[str]:
    bias = argument(node, 2, "bias")
    inputs = [e.read(_input(node)), e.weight(_input(node, 1))] + ([e.bias(bias)] if isinstance(bias, Node) else [])
    return e.add(
        "ConvTranspose",
        inputs,
        strides=_pair(argument(node, 3, "stride", 1)),
        pads=_pair(argument(node, 4, "padding", 0)) * 2,
        output_padding=_pair(argument(node, 5, "output_padding", 0)),
        group=int(argument(node, 6, "groups", 1)),
        dilations=_pair(argument(node, 7, "dilation", 1)),
        kernel_shape=list(_spatial(node, 1)),
    )


def _linear(e: Emitter, node: Node) -> list[str]:
    bias = argument(node, 2, "bias")
    source = _input(node)
    if len(static_shape(source)) != 2:
        raise e.unsupported("a linear layer over more than one free dimension has no translation to ONNX")
    inputs = [e.read(source), e.weight(_input(node, 1))] + ([e.bias(bias)] if isinstance(bias, Node) else [])
    return e.add("Gemm", inputs, transB=1)


def _matmul(e: Emitter, node: Node) -> list[str]:
    return e.add("MatMul", [e.read(_input(node)), e.read(_input(node, 1))])


# Activations.


def _simple(operator: str, **attributes: Any) -> Translator:
    def translate(e: Emitter, node: Node) -> list[str]:
        return e.add(operator, [e.read(_input(node))], **attributes)

    return translate


def _clip(e: Emitter, node: Node) -> list[str]:
    low, high = clip_bounds(node)
    bounds = [e.scalar(low) if math.isfinite(low) else "", e.scalar(high) if math.isfinite(high) else ""]
    return e.add("Clip", [e.read(_input(node)), *bounds] if bounds[1] else [e.read(_input(node)), bounds[0]])


def _hard_sigmoid(e: Emitter, node: Node) -> list[str]:
    # torch: clip(x / 6 + 1/2, 0, 1); the rounding behind an integer addition clips by itself.
    if not e.runs_on_integers(node):
        return e.add("HardSigmoid", [e.read(_input(node))], alpha=1 / 6, beta=0.5)
    return e.add("Add", [e.read_divided(_input(node), 6), e.integer_constant(1, 0.5)])


def _leaky_relu(e: Emitter, node: Node) -> list[str]:
    return e.add("LeakyRelu", [e.read(_input(node))], alpha=float(argument(node, 1, "negative_slope", 0.01)))


def _elu(e: Emitter, node: Node) -> list[str]:
    return e.add("Elu", [e.read(_input(node))], alpha=float(argument(node, 1, "alpha", 1.0)))


def _prelu(e: Emitter, node: Node) -> list[str]:
    slope = e.module.get_parameter(str(_input(node, 1).target)).detach().cpu().float().numpy()
    rank = len(static_shape(node))
    shaped = slope.reshape(-1, *[1] * (rank - 2)) if slope.size > 1 else slope.reshape(-1)
    return e.add("PRelu", [e.read(_input(node)), e.constant(shaped, f"{node.name}_slope")])


def _silu(e: Emitter, node: Node) -> list[str]:
    source = e.read(_input(node))
    return e.add("Mul", [source, *e.add("Sigmoid", [source], suffix="_sigmoid")])


def _gelu(e: Emitter, node: Node) -> list[str]:
    source = e.read(_input(node))
    approximate = str(argument(node, 1, "approximate", "none"))
    if e.opset >= 20:
        return e.add("Gelu", [source], approximate=approximate)
    if approximate != "none":
        raise e.unsupported("GELU's tanh form needs --opset 20 or newer")
    (scaled,) = e.add("Div", [source, e.scalar(math.sqrt(2.0))], suffix="_div")
    (error,) = e.add("Erf", [scaled], suffix="_erf")
    (shifted,) = e.add("Add", [error, e.scalar(1.0)], suffix="_add")
    (product,) = e.add("Mul", [source, shifted], suffix="_mul")
    return e.add("Mul", [product, e.scalar(0.5)])


def _vector_norm(e: Emitter, node: Node) -> list[str]:
    order, axes, keep = argument(node, 1, "ord", 2), argument(node, 2, "dim"), argument(node, 3, "keepdim", False)
    if order not in (1, 2) or not isinstance(axes, (list, tuple)):
        raise e.unsupported(f"a norm of order {order} over {axes or 'all axes'} has no translation to ONNX")
    numbers, name = [int(axis) for axis in axes], f"ReduceL{int(order)}"
    if e.opset >= 18:
        return e.add(name, [e.read(_input(node)), e.int64s(numbers)], keepdims=int(bool(keep)))
    return e.add(name, [e.read(_input(node))], axes=numbers, keepdims=int(bool(keep)))


def _softmax(e: Emitter, node: Node) -> list[str]:
    return e.add("Softmax", [e.read(_input(node))], axis=int(argument(node, 1, "dim")))


def _layer_norm(e: Emitter, node: Node) -> list[str]:
    sizes, weight, bias = node.args[1], argument(node, 2, "weight"), argument(node, 3, "bias")
    assert isinstance(sizes, (list, tuple))
    ones = np.ones([int(size) for size in sizes], np.float32)  # type: ignore[arg-type]  # fx arguments are untyped
    scale = (
        e.read_float(weight) if isinstance(weight, Node) else e.constant(ones, f"ones_{'x'.join(map(str, ones.shape))}")
    )
    inputs = [e.read(_input(node)), scale] + ([e.read_float(bias)] if isinstance(bias, Node) else [])
    return e.add("LayerNormalization", inputs, axis=-len(sizes), epsilon=float(argument(node, 4, "eps", 1e-5)))


# Arithmetic.


def _binary(operator: str) -> Translator:
    def translate(e: Emitter, node: Node) -> list[str]:
        if float(argument(node, 2, "alpha", 1)) != 1.0:
            raise e.unsupported("a scaled addition (alpha) has no translation to ONNX")
        operands = [e.read(a) if isinstance(a, Node) else e.scalar(float(a)) for a in node.args[:2]]  # type: ignore[arg-type]
        return e.add(operator, operands)

    return translate


def _mean(e: Emitter, node: Node) -> list[str]:
    axes, keep = node.args[1], bool(argument(node, 2, "keepdim", False))
    assert isinstance(axes, (list, tuple))
    numbers = [int(axis) for axis in axes]  # type: ignore[arg-type]  # fx arguments are untyped
    if e.opset >= 18:
        return e.add("ReduceMean", [e.read(_input(node)), e.int64s(numbers)], keepdims=int(keep))
    return e.add("ReduceMean", [e.read(_input(node))], axes=numbers, keepdims=int(keep))


# Pooling and resizing.


def _max_pool(e: Emitter, node: Node) -> list[str]:
    kernel = _pair(node.args[1])
    return e.add(
        "MaxPool",
        [e.read(_input(node))],
        kernel_shape=kernel,
        strides=_pair(argument(node, 2, "stride") or kernel),
        pads=_pair(argument(node, 3, "padding", 0)) * 2,
        dilations=_pair(argument(node, 4, "dilation", 1)),
        ceil_mode=int(argument(node, 5, "ceil_mode", False)),
    )


def _average_pool(e: Emitter, node: Node) -> list[str]:
    if argument(node, 6, "divisor_override") is not None:
        raise e.unsupported("an average pooling with a divisor of its own has no translation to ONNX")
    kernel = _pair(node.args[1])
    return e.add(
        "AveragePool",
        [e.read(_input(node))],
        kernel_shape=kernel,
        strides=_pair(argument(node, 2, "stride") or kernel),
        pads=_pair(argument(node, 3, "padding", 0)) * 2,
        ceil_mode=int(argument(node, 4, "ceil_mode", False)),
        count_include_pad=int(argument(node, 5, "count_include_pad", True)),
    )


def _adaptive_average_pool(e: Emitter, node: Node) -> list[str]:
    wanted, sizes = _pair(node.args[1]), static_shape(_input(node))[-2:]
    if wanted == list(sizes):
        return e.add("Identity", [e.read(_input(node))])
    if wanted == [1, 1]:
        return e.add("GlobalAveragePool", [e.read(_input(node))])
    if min(sizes) <= 0:
        raise e.unsupported("an adaptive pooling of a map whose size is free has no translation to ONNX")
    if any(size % want for size, want in zip(sizes, wanted, strict=True)):
        # Windows of unequal size: a product with the matrix of shares from each side.
        rows, columns = (_shares(size, want) for size, want in zip(sizes, wanted, strict=True))
        (tall,) = e.add("MatMul", [e.constant(rows, f"{node.name}_rows"), e.read(_input(node))], suffix="_rows")
        return e.add("MatMul", [tall, e.constant(columns.T, f"{node.name}_columns")])
    kernel = [size // want for size, want in zip(sizes, wanted, strict=True)]
    return e.add("AveragePool", [e.read(_input(node))], kernel_shape=kernel, strides=kernel)


def _shares(size: int, wanted: int) -> np.ndarray[Any, Any]:
    """How much of each position an adaptive pooling's windows hold along one axis: float32 [wanted, size]."""
    shares = np.zeros((wanted, size), np.float32)
    for window in range(wanted):
        start, end = window * size // wanted, -(-(window + 1) * size // wanted)
        shares[window, start:end] = 1 / (end - start)
    return shares


def _resize(mode: str) -> Translator:
    def translate(e: Emitter, node: Node) -> list[str]:
        height, width = static_shape(node)[-2:]
        source_height, source_width = static_shape(_input(node))[-2:]
        corners = mode == "linear" and bool(argument(node, 2, "align_corners", False))
        scales = np.array([1, 1, height / source_height, width / source_width], np.float32)
        inputs = [e.read(_input(node)), "", e.constant(scales, f"{node.name}_scales")]
        transform = "align_corners" if corners else "half_pixel" if mode == "linear" else "asymmetric"
        extra: dict[str, Any] = {} if mode == "linear" else {"nearest_mode": "floor"}
        return e.add("Resize", inputs, mode=mode, coordinate_transformation_mode=transform, **extra)

    return translate


# Movement.


def _reshape(e: Emitter, node: Node) -> list[str]:
    sizes = static_shape(node)
    if node.target is aten.flatten.using_ints and len(sizes) == 2 and int(argument(node, 1, "start_dim", 0)) == 1:
        return e.add("Flatten", [e.read(_input(node))], axis=1)
    if sizes.count(-1) > 1:
        raise e.unsupported("a reshape with more than one free dimension has no translation to ONNX")
    return e.add("Reshape", [e.read(_input(node)), e.int64s(sizes)])


def _transpose(e: Emitter, node: Node) -> list[str]:
    rank = len(static_shape(node))
    if node.target is aten.permute.default:
        order = [int(axis) % rank for axis in node.args[1]]  # type: ignore[union-attr, arg-type]  # fx arguments are untyped
    else:
        order = list(range(rank))
        first, second = (int(axis) % rank for axis in node.args[1:3])  # type: ignore[arg-type]
        order[first], order[second] = order[second], order[first]
    return e.add("Transpose", [e.read(_input(node))], perm=order)


def _slice(e: Emitter, node: Node) -> list[str]:
    axis, start = int(argument(node, 1, "dim", 0)), argument(node, 2, "start")
    end, step = argument(node, 3, "end"), int(argument(node, 4, "step", 1))
    for bound in (start, end):
        if isinstance(bound, Node):
            raise e.unsupported("a slice whose bounds depend on the batch size has no translation to ONNX")
    bounds = [[start or 0], [sys.maxsize if end is None else end], [axis], [step]]
    return e.add("Slice", [e.read(_input(node)), *(e.int64s(bound) for bound in bounds)])


def _select(e: Emitter, node: Node) -> list[str]:
    axis, index = int(node.args[1]), int(node.args[2])  # type: ignore[arg-type]  # fx arguments are untyped
    return e.add("Gather", [e.read(_input(node)), e.constant(np.array(index, np.int64), f"index_{index}")], axis=axis)


def _split(e: Emitter, node: Node) -> list[str]:
    axis = int(argument(node, 2, "dim", 0))
    sizes = [int(part.shape[axis]) for part in node.meta["val"]]
    if len(sizes) == 1:
        return e.add("Identity", [e.read(_input(node))])
    return e.add("Split", [e.read(_input(node)), e.int64s(sizes)], outputs=len(sizes), axis=axis)


def _item(e: Emitter, node: Node) -> list[str]:
    return [e.lists[_input(node)][int(node.args[1])]]  # type: ignore[arg-type]  # fx arguments are untyped


def _pad(e: Emitter, node: Node) -> list[str]:
    amounts = [int(amount) for amount in node.args[1]]  # type: ignore[union-attr, arg-type]  # fx arguments are untyped
    mode = str(argument(node, 2, "mode", "constant")) if node.target is aten.pad.default else "constant"
    value = argument(node, 3 if node.target is aten.pad.default else 2, "value", 0.0) or 0.0
    if mode not in {"constant", "reflect", "replicate"}:
        raise e.unsupported(f"padding mode {mode} has no translation to ONNX")
    rank = len(static_shape(node))
    begins, ends = [0] * rank, [0] * rank
    for index in range(len(amounts) // 2):  # torch lists the last axis first
        begins[rank - 1 - index], ends[rank - 1 - index] = amounts[2 * index], amounts[2 * index + 1]
    border = e.border(_input(node)) if value == 0.0 else e.scalar(float(value))
    inputs = [e.read(_input(node)), e.int64s(begins + ends)] + ([border] if mode == "constant" else [])
    return e.add("Pad", inputs, mode={"replicate": "edge"}.get(mode, mode))


def _concat(e: Emitter, node: Node) -> list[str]:
    parts = node.args[0]
    assert isinstance(parts, (list, tuple))
    names = [e.read(part) for part in parts if isinstance(part, Node)]
    return e.add("Concat", names, axis=int(argument(node, 1, "dim", 0)))


def _expand(e: Emitter, node: Node) -> list[str]:
    sizes = static_shape(node)
    if sizes.count(-1) > 1:
        raise e.unsupported("an expansion with more than one free dimension has no translation to ONNX")
    if -1 not in sizes:
        return e.add("Expand", [e.read(_input(node)), e.int64s(sizes)])
    # The free dimension is the batch: it is read from the network's input.
    (batch,) = e.add("Shape", [e.first_input], suffix="_batch", start=0, end=1)
    axis = sizes.index(-1)
    parts = [e.int64s(sizes[:axis])] * (axis > 0) + [batch] + [e.int64s(sizes[axis + 1 :])] * (axis + 1 < len(sizes))
    (wanted,) = e.add("Concat", parts, suffix="_sizes", axis=0)
    return e.add("Expand", [e.read(_input(node)), wanted])


def _depth_to_space(e: Emitter, node: Node) -> list[str]:
    factor = int(node.args[1])  # type: ignore[arg-type]  # fx arguments are untyped
    return e.add("DepthToSpace", [e.read(_input(node))], blocksize=factor, mode="CRD")


def _channel_shuffle(e: Emitter, node: Node) -> list[str]:
    groups = int(node.args[1])  # type: ignore[arg-type]  # fx arguments are untyped
    _, channels, height, width = static_shape(node)
    apart: Sequence[int] = (-1, groups, channels // groups, height, width)
    (split,) = e.add("Reshape", [e.read(_input(node)), e.int64s(apart)], suffix="_apart")
    (turned,) = e.add("Transpose", [split], suffix="_turned", perm=[0, 2, 1, 3, 4])
    return e.add("Reshape", [turned, e.int64s((-1, channels, height, width))])


TRANSLATORS: dict[Any, Translator] = {
    operator.getitem: _item,
    aten.conv2d.default: _conv,
    aten.conv2d.padding: _conv,
    aten.conv_transpose2d.input: _conv_transpose,
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.relu.default: _simple("Relu"),
    aten.relu6.default: _clip,
    aten.hardtanh.default: _clip,
    aten.clamp.default: _clip,
    aten.clamp_min.default: _clip,
    aten.leaky_relu.default: _leaky_relu,
    aten.prelu.default: _prelu,
    aten.elu.default: _elu,
    aten.sigmoid.default: _simple("Sigmoid"),
    aten.hardsigmoid.default: _hard_sigmoid,
    aten.hardswish.default: _simple("HardSwish"),
    aten.silu.default: _silu,
    aten.gelu.default: _gelu,
    aten.tanh.default: _simple("Tanh"),
    aten.softmax.int: _softmax,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.expand.default: _expand,
    aten.exp.default: _simple("Exp"),
    aten.sqrt.default: _simple("Sqrt"),
    aten.layer_norm.default: _layer_norm,
    aten.add.Tensor: _binary("Add"),
    aten.sub.Tensor: _binary("Sub"),
    aten.mul.Tensor: _binary("Mul"),
    aten.div.Tensor: _binary("Div"),
    aten.mean.dim: _mean,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _average_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_average_pool,
    aten.upsample_nearest2d.vec: _resize("nearest"),
    aten.upsample_bilinear2d.vec: _resize("linear"),
    aten.flatten.using_ints: _reshape,
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.unflatten.int: _reshape,
    aten.squeeze.dim: _reshape,
    aten.squeeze.dims: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.permute.default: _transpose,
    aten.transpose.int: _transpose,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.chunk.default: _split,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.constant_pad_nd.default: _pad,
    aten.pad.default: _pad,
    aten.cat.default: _concat,
    aten.pixel_shuffle.default: _depth_to_space,
    aten.channel_shuffle.default: _channel_shuffle,
}
