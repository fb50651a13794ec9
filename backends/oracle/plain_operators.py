"""Plain ONNX operators in torch, for whatever the oracle does not execute on integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from calibration.arithmetic.logistic import logistic

Attributes = dict[str, Any]
aten = torch.ops.aten
Operator = Callable[[Sequence[Tensor | None], Attributes], list[Tensor]]


def _one(function: Callable[..., Tensor]) -> Operator:
    """An operator that reads its inputs in order, has no attribute that matters, and writes one tensor."""

    def run(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
        return [function(*inputs)]

    return run


def _integers(values: Tensor | None) -> list[int]:
    assert values is not None
    return [int(v) for v in values.reshape(-1)]


def symmetric_padding(values: Tensor, pads: Sequence[int], fill: float) -> tuple[Tensor, list[int]]:
    """Split ONNX pads [top, left, bottom, right] into what torch's operators take and explicit padding for the rest."""
    top, left, bottom, right = pads
    if top == bottom and left == right:
        return values, [top, left]
    return functional.pad(values, [left, right, top, bottom], value=fill), [0, 0]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, attributes: Attributes) -> Tensor:
    """ONNX Conv in the precision of its inputs; x [B, C, H, W], weight [O, C/g, kh, kw]."""
    x, padding = symmetric_padding(x, attributes.get("pads", [0, 0, 0, 0]), 0.0)
    return functional.conv2d(
        x,
        weight,
        bias,
        attributes.get("strides", [1, 1]),
        padding,
        attributes.get("dilations", [1, 1]),
        attributes.get("group", 1),
    )


def _conv(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    x, weight, bias = (*inputs, None)[:3]
    assert x is not None and weight is not None
    return [convolve(x, weight, bias, attributes)]


def _conv_transpose(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    x, weight, bias = (*inputs, None)[:3]
    assert x is not None and weight is not None
    pads = attributes.get("pads", [0, 0, 0, 0])
    return [
        functional.conv_transpose2d(
            x,
            weight,
            bias,
            attributes.get("strides", [1, 1]),
            pads[:2],
            attributes.get("output_padding", [0, 0]),
            attributes.get("group", 1),
            attributes.get("dilations", [1, 1]),
        )
    ]


def _gemm(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    x, weight, bias = (*inputs, None)[:3]
    assert x is not None and weight is not None
    if attributes.get("transB"):
        return [functional.linear(x, weight, bias)]  # as the simulation multiplies
    product = x @ weight
    return [product if bias is None else product + bias]


def _max_pool(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    x = inputs[0]
    assert x is not None
    # Integers of 8 bits go through float32, which holds them exactly; torch pads with minus infinity, as ONNX does.
    pooled = functional.max_pool2d(
        x if x.is_floating_point() else x.float(),
        attributes["kernel_shape"],
        attributes["strides"],
        attributes.get("pads", [0, 0, 0, 0])[:2],
        attributes.get("dilations", [1, 1]),
        bool(attributes.get("ceil_mode", 0)),
    )
    return [pooled.to(x.dtype)]


def window_sums(x: Tensor, attributes: Attributes) -> tuple[Tensor, Tensor]:
    """Sums over the windows of an AveragePool, added up row by row in the precision of x [B, C, H, W].

    Returns the sums [B, C, h, w] and what they are divided by, [h, w]: the window's size, or where the border does
    not count the positions inside the map.
    """
    kernel, strides = attributes["kernel_shape"], attributes["strides"]
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    rounding = math.ceil if attributes.get("ceil_mode", 0) else math.floor
    sizes = [
        rounding((n + p - k) / s) + 1
        for n, p, k, s in zip(x.shape[2:], (top + bottom, left + right), kernel, strides, strict=True)
    ]
    # A window that would start behind the map and its border is left out, as ONNX does.
    sizes = [
        count - ((count - 1) * stride >= size + begin)
        for count, stride, size, begin in zip(sizes, strides, x.shape[2:], (top, left), strict=True)
    ]
    reach = [(count - 1) * stride + k for count, stride, k in zip(sizes, strides, kernel, strict=True)]
    margins = [left, max(reach[1] - x.shape[3] - left, 0), top, max(reach[0] - x.shape[2] - top, 0)]
    values, inside = functional.pad(x, margins), functional.pad(torch.ones(x.shape[2:]), margins)
    total, count = torch.zeros((*x.shape[:2], *sizes), dtype=x.dtype), torch.zeros(sizes)
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            rows = slice(row, row + (sizes[0] - 1) * strides[0] + 1, strides[0])
            columns = slice(column, column + (sizes[1] - 1) * strides[1] + 1, strides[1])
            total += values[:, :, rows, columns]
            count += inside[rows, columns]
    return total, torch.full_like(count, kernel[0] * kernel[1]) if attributes.get("count_include_pad", 0) else count


def _average_pool(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    total, count = window_sums(inputs[0], attributes)
    return [total / count]


def _clip(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    x, low, high = (*inputs, None, None)[:3]
    assert x is not None
    return [x.clamp(None if low is None else float(low), None if high is None else float(high))]


def _slice(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    x = inputs[0]
    assert x is not None
    starts, ends, axes, steps = (_integers(values) for values in inputs[1:5])
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))  # torch's own slices go forward only
        x = x.index_select(axis, torch.tensor(places, device=x.device))
    return [x]


def _pad(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    x, pads = inputs[0], _integers(inputs[1])
    assert x is not None
    rank = len(pads) // 2
    amounts = [amount for axis in reversed(range(rank)) for amount in (pads[axis], pads[axis + rank])]
    mode = str(attributes.get("mode", "constant")).replace("edge", "replicate")
    if mode != "constant":
        return [functional.pad(x.float(), amounts[:4], mode=mode).to(x.dtype)]
    fill = inputs[2] if len(inputs) > 2 else None
    return [functional.pad(x, amounts, value=0 if fill is None else fill.item())]


def _split(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    return list(torch.split(inputs[0], _integers(inputs[1]), attributes.get("axis", 0)))


def _reshape(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    return [inputs[0].reshape(_integers(inputs[1]))]


def _flatten(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    return [inputs[0].flatten(attributes.get("axis", 1))]


def _concat(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    return [torch.cat([x for x in inputs if x is not None], attributes["axis"])]


def _transpose(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    return [inputs[0].permute(attributes["perm"])]


def _gather(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    x, places = inputs
    assert x is not None and places is not None
    axis = attributes.get("axis", 0)
    return [x.select(axis, int(places)) if places.dim() == 0 else x.index_select(axis, places.reshape(-1))]


def _depth_to_space(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    return [functional.pixel_shuffle(inputs[0].float(), attributes["blocksize"]).to(inputs[0].dtype)]


def _resize(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    x, _, scales, sizes = (*inputs, None, None)[:4]
    assert x is not None
    if scales is None:
        size = _integers(sizes)[2:]
    else:
        # Down where the factor does not divide; a factor that float32 holds a little too small does.
        size = [math.floor(x.shape[axis] * float(scales[axis]) + 1e-3) for axis in (2, 3)]
    # Positions follow a factor that does not divide as it stands, as torch's interpolation by factors has them.
    factors = [] if scales is None else [float(scales[axis]) for axis in (2, 3)]
    exact = all(
        abs(x.shape[axis] * factor - round(x.shape[axis] * factor)) <= 1e-3 for axis, factor in enumerate(factors, 2)
    )
    own = (None, None) if exact else tuple(factors)
    if attributes["mode"] == "nearest":
        return [aten.upsample_nearest2d.default(x.float(), size, *own).to(x.dtype)]
    corners = attributes.get("coordinate_transformation_mode") == "align_corners"
    resize = aten.upsample_bicubic2d if attributes["mode"] == "cubic" else aten.upsample_bilinear2d
    return [resize.default(x, size, corners, *own)]


def _softmax_by(function: Callable[..., Tensor]) -> Operator:
    return lambda inputs, attributes: [function(inputs[0], attributes.get("axis", -1))]


def _layer_normalization(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    x, weight, bias = (*inputs, None)[:3]
    assert x is not None and weight is not None
    axes = list(range(attributes.get("axis", -1) % x.dim(), x.dim()))
    return [functional.layer_norm(x, [x.shape[a] for a in axes], weight, bias, attributes.get("epsilon", 1e-5))]


def _reduction(function: Callable[..., Tensor]) -> Operator:
    """A reduction over axes: `function` of tensor, axes and keepdim."""

    def run(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
        assert inputs[0] is not None
        axes = _integers(inputs[1]) if len(inputs) > 1 else attributes["axes"]
        return [function(inputs[0], axes, keepdim=bool(attributes.get("keepdims", 1)))]

    return run


def _instance_normalization(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    x, scale, shift = inputs
    assert x is not None
    return [functional.instance_norm(x, None, None, scale, shift, True, 0.0, attributes.get("epsilon", 1e-5))]


def _gelu(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    return [functional.gelu(inputs[0], approximate=attributes.get("approximate", "none"))]


def _hard_sigmoid(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    # In torch's order of operations, hardsigmoid's and the simulation's: (x + beta / alpha) / (1 / alpha).
    assert inputs[0] is not None
    alpha, beta = (np.float32(attributes.get(name, value)) for name, value in (("alpha", 0.2), ("beta", 0.5)))
    shift, width = float(beta / alpha), float(np.float32(1) / alpha)
    return [(inputs[0] + shift).clamp(0, width) / width]


def _leaky_relu(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    return [functional.leaky_relu(inputs[0], attributes.get("alpha", 0.01))]


def _alpha(function: Callable[..., Tensor]) -> Operator:
    return lambda inputs, attributes: [function(inputs[0], attributes.get("alpha", 1.0))]


def _global_average_pool(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    return [functional.adaptive_avg_pool2d(inputs[0], 1)]  # as the simulation sums


def _cast(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    return [inputs[0]]  # the emitter casts int4 to int8 only, and both are held as int32 here


def _shape(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    return [torch.tensor(inputs[0].shape[attributes.get("start", 0) : attributes.get("end")])]


def _expand(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[Tensor]:
    assert inputs[0] is not None
    sizes = torch.broadcast_shapes(inputs[0].shape, tuple(_integers(inputs[1])))  # type: ignore[no-untyped-call]  # torch's
    return [inputs[0].expand(sizes)]


#: Operators that only move values and so take integers as they are; a Resize does where it takes the nearest one.
MOVES: dict[str, Operator] = {
    "Cast": _cast,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _one(lambda x: x),
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}

#: Operators that compute in float32.
FLOATS: dict[str, Operator] = {
    "Abs": _one(torch.abs),
    "Add": _one(torch.add),
    "Atan": _one(torch.atan),
    "AveragePool": _average_pool,
    "Celu": _alpha(functional.celu),
    "Clip": _clip,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _one(torch.cos),
    "Cosh": _one(torch.cosh),
    "Div": _one(torch.div),
    "Elu": _alpha(functional.elu),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Floor": _one(torch.floor),
    "Round": _one(torch.round),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _one(functional.hardswish),
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _leaky_relu,
    "Log": _one(torch.log),
    "LogSoftmax": _softmax_by(torch.log_softmax),
    "MatMul": _one(torch.matmul),
    "Max": _one(torch.maximum),
    "Min": _one(torch.minimum),
    "Mod": _one(torch.fmod),  # with the attribute fmod, the only form that files hold
    "Mul": _one(torch.mul),
    "Pow": _one(torch.pow),
    "PRelu": _one(lambda x, slope: torch.where(x < 0, x * slope, x)),
    "Reciprocal": _one(torch.reciprocal),
    "ReduceL1": _reduction(lambda x, axes, keepdim: torch.linalg.vector_norm(x, 1, axes, keepdim)),
    "ReduceL2": _reduction(lambda x, axes, keepdim: torch.linalg.vector_norm(x, 2, axes, keepdim)),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "Relu": _one(torch.relu),
    "Resize": _resize,
    "Selu": _one(functional.selu),
    "Sigmoid": _one(logistic),
    "Sign": _one(torch.sign),
    "Sin": _one(torch.sin),
    "Sinh": _one(torch.sinh),
    "Softmax": _softmax_by(torch.softmax),
    "Softplus": _one(functional.softplus),
    "Sqrt": _one(torch.sqrt),
    "Sub": _one(torch.sub),
    "Tan": _one(torch.tan),
    "Tanh": _one(torch.tanh),
}


def moves_values(operator: str, attributes: Attributes) -> bool:
    """Whether an operator hands values on as they are."""
    return operator in MOVES and (operator != "Resize" or attributes.get("mode", "nearest") == "nearest")
