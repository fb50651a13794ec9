"""Transposed convolutions as convolutions that write every position of a block as a channel of its own.

Behind the convolution the channels are moved to their places (pixel shuffle). For runtimes that have no integer
transposed convolution: a convolution and movement they run on integers. The same sums of the same products: an output
position at distance r from its block's corner sees the kernel's taps r, r + stride, r + 2 stride, ...
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.fx import GraphModule, Node

from calibration.graph.constants import new_constants
from calibration.graph.operators import (
    argument,
    constant,
    is_non_negative,
    kind,
    pair,
    static_shape,
    tensor_inputs,
)
from calibration.normal_form.decompositions import before
from calibration.rewrites.affine import owns_weight
from calibration.rewrites.rewrite import Rewrite

aten = torch.ops.aten


def _all(graph_module: GraphModule) -> bool:
    transposed = [node for node in graph_module.graph.nodes if kind(node) == "conv_transpose"]
    return any([_rewrite(graph_module, node) for node in transposed])


def _of_signed_values(graph_module: GraphModule) -> bool:
    transposed = [node for node in graph_module.graph.nodes if kind(node) == "conv_transpose"]
    signed = [node for node in transposed if not is_non_negative(tensor_inputs(node)[0])]
    return any([_rewrite(graph_module, node) for node in signed])


def subpixel_weight(weight: Tensor, *, stride: int, groups: int) -> Tensor:
    """The convolution's weight [O * stride^2, I / groups, a, b] of a transposed one's [I, O / groups, kh, kw].

    a and b are the taps that one output position sees; missing ones are zeros.
    """
    inputs, outputs, height, width = weight.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = functional.pad(weight, [0, columns * stride - width, 0, rows * stride - height])
    taps = padded.reshape(groups, inputs // groups, outputs, rows, stride, columns, stride).flip(3, 5)
    placed = taps.permute(0, 2, 4, 6, 1, 3, 5)
    return placed.reshape(groups * outputs * stride**2, inputs // groups, rows, columns).contiguous()


def _convolution(layer: Node, constants: list[Node], *, taps: list[int], groups: int) -> Node:
    """Write, before a layer, the convolution of its input with weight and bias; every tap reaches beyond the border."""
    source = layer.args[0]
    assert isinstance(source, Node)
    weight, bias = (*constants, None)[:2]
    arguments = (source, weight, bias, [1, 1], [tap - 1 for tap in taps], [1, 1], groups)
    with layer.graph.inserting_before(layer):
        name = f"{layer.name}_conv2d"
        node = layer.graph.create_node("call_function", aten.conv2d.default, arguments, name=name)
    value, channels = source.meta["val"], constants[0].meta["val"].shape[0]
    sizes = [size + tap - 1 for size, tap in zip(static_shape(source)[2:], taps, strict=True)]
    node.meta = dict(layer.meta) | {"val": value.new_empty((value.shape[0], channels, *sizes))}
    return node


def _rewrite(graph_module: GraphModule, layer: Node) -> bool:
    """Rewrite a transposed convolution; not one with dilation, strides that differ or a weight that others read."""
    weight, bias = constant(graph_module, layer.args[1]), constant(graph_module, argument(layer, 2, "bias"))
    stride, padding, extra = (
        pair(argument(layer, place, name, default))
        for place, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "output_padding", 0))
    )
    groups, factor, sizes = int(argument(layer, 6, "groups", 1)), stride[0], static_shape(layer)[2:]
    if weight is None or not owns_weight(layer) or stride[0] != stride[1] or min(sizes) <= 0:
        return False
    if pair(argument(layer, 7, "dilation", 1)) != (1, 1):
        return False
    taps = [-(-size // factor) for size in weight.shape[2:]]
    # What lies behind the last position that any tap reaches would be bias alone.
    if any(e > p + factor * t - k for e, p, t, k in zip(extra, padding, taps, weight.shape[2:], strict=True)):
        return False
    merged = subpixel_weight(weight.detach(), stride=factor, groups=groups)
    constants = {"weight": merged}
    if bias is not None:
        constants["bias"] = bias.detach().repeat_interleave(factor**2)
    stored = new_constants(graph_module, layer, constants, holder="subpixel")
    graph = graph_module.graph
    written = _convolution(layer, stored, taps=taps, groups=groups)
    # A kernel performs the activation behind it; on every channel it is the same before and after the channels move.
    last = next(iter(layer.users)) if len(layer.users) == 1 else layer
    if kind(last) in {"relu", "clip"}:
        written = before(graph, layer, last.target, (written, *last.args[1:]))
    else:
        last = layer
    moves: list[tuple[Any, tuple[Any, ...]]] = []
    if factor > 1:
        moves.append((aten.pixel_shuffle.default, (factor,)))
    for axis in (2, 3):
        start, size = padding[axis - 2], sizes[axis - 2]
        if (start, size) != (0, factor * (static_shape(written)[axis])):
            moves.append((aten.slice.Tensor, (axis, start, start + size)))
    for target, arguments in moves[:-1]:
        written = before(graph, layer, target, (written, *arguments))
    if not moves:
        last.replace_all_uses_with(written)
        graph.erase_node(last)
    else:
        # The last one has the name of what it stands for.
        last.target, last.args, last.kwargs = moves[-1][0], (written, *moves[-1][1]), {}
    if last is not layer:
        graph.erase_node(layer)
    return True


TRANSPOSED_AS_CONVOLUTIONS = Rewrite(
    name="transposed convolutions as convolutions",
    edit=_all,
    source="kernels of convolutions run on integers, or faster (measurements beside each profile)",
)
SIGNED_TRANSPOSED_AS_CONVOLUTIONS = Rewrite(
    name="transposed convolutions of signed values as convolutions",
    edit=_of_signed_values,
    source="behind a zero point transposed convolutions run in float (rule 36)",
)
