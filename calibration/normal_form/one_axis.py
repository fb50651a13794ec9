"""Operators over rows [B, C, L] as the same over maps [B, C, 1, L], for which tables and runtimes have kernels.

Each function is a rule of the normal form. Left alone where the length of the rows is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from calibration.graph.operators import argument, kind, static_shape
from calibration.normal_form.decompositions import before, reshaped

aten = torch.ops.aten
Rule = Callable[[Graph, Node], Node]


def _as_map(graph: Graph, node: Node) -> Node | None:
    """The rows that a node reads, as a map of one row; None where they are none of fixed length."""
    source = node.args[0]
    assert isinstance(source, Node)
    sizes = static_shape(source)
    if len(sizes) != 3 or min(sizes[1:]) < 1 or len(static_shape(node)) != 3 or static_shape(node)[-1] < 1:
        return None
    with graph.inserting_before(node):
        return reshaped(graph, source, [sizes[0], sizes[1], 1, sizes[2]], node)


def _over_map(graph: Graph, node: Node, target: Any, arguments: Sequence[Any]) -> Node:
    """Make the node an operator over maps, and rows of its result again."""
    sizes = list(static_shape(node))
    node.target, node.args, node.kwargs = target, tuple(arguments), {}
    node.meta["val"] = node.meta["val"].unsqueeze(2)
    return reshaped(graph, node, sizes, node)


def _row(value: Any, other: int) -> list[int]:
    """A number along the row, and that of the axis of one position."""
    return [other, int(value[0]) if isinstance(value, (list, tuple)) else int(value)]


def _convolution(graph: Graph, node: Node) -> Node:
    if (source := _as_map(graph, node)) is None:
        return node
    weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
    padding, dilation = argument(node, 4, "padding", 0), _row(argument(node, 5, "dilation", 1), 1)
    if isinstance(padding, str):
        total = dilation[1] * (static_shape(weight)[2] - 1) if padding == "same" else 0
        if total % 2:
            with graph.inserting_before(node):
                ends = [total // 2, total - total // 2]
                source = before(graph, node, aten.constant_pad_nd.default, (source, ends, 0.0))
            total = 0
        padding = total // 2
    wide = before(graph, node, aten.unsqueeze.default, (weight, 2))
    arguments = [source, wide, bias, _row(argument(node, 3, "stride", 1), 1), _row(padding, 0), dilation]
    return _over_map(graph, node, aten.conv2d.default, [*arguments, argument(node, 6, "groups", 1)])


def _transposed_convolution(graph: Graph, node: Node) -> Node:
    if (source := _as_map(graph, node)) is None:
        return node
    wide = before(graph, node, aten.unsqueeze.default, (argument(node, 1, "weight"), 2))
    arguments = [
        source,
        wide,
        argument(node, 2, "bias"),
        _row(argument(node, 3, "stride", 1), 1),
        _row(argument(node, 4, "padding", 0), 0),
        _row(argument(node, 5, "output_padding", 0), 0),
        argument(node, 6, "groups", 1),
        _row(argument(node, 7, "dilation", 1), 1),
    ]
    return _over_map(graph, node, aten.conv_transpose2d.input, arguments)


def _window(node: Node) -> list[Any]:
    """Kernel, stride and padding of a pooling over rows, as those of one over maps [1, width]."""
    kernel = argument(node, 1, "kernel_size")
    stride = argument(node, 2, "stride") or kernel
    return [_row(kernel, 1), _row(stride, 1), _row(argument(node, 3, "padding", 0), 0)]


def _max_pool(graph: Graph, node: Node) -> Node:
    if (source := _as_map(graph, node)) is None:
        return node
    arguments = [
        source,
        *_window(node),
        _row(argument(node, 4, "dilation", 1), 1),
        bool(argument(node, 5, "ceil_mode", False)),
    ]
    return _over_map(graph, node, aten.max_pool2d.default, arguments)


def _average_pool(graph: Graph, node: Node) -> Node:
    if (source := _as_map(graph, node)) is None:
        return node
    arguments = [
        source,
        *_window(node),
        bool(argument(node, 4, "ceil_mode", False)),
        bool(argument(node, 5, "count_include_pad", True)),
    ]
    return _over_map(graph, node, aten.avg_pool2d.default, arguments)


def _adaptive_average_pool(graph: Graph, node: Node) -> Node:
    if (source := _as_map(graph, node)) is None:
        return node
    size = _row(argument(node, 1, "output_size"), 1)
    return _over_map(graph, node, aten.adaptive_avg_pool2d.default, [source, size])


def _adaptive_max_pool(graph: Graph, node: Node) -> Node:
    """A pooling like any other where its windows are equal; its places are read by nobody."""
    source, target = node.args[0], _row(argument(node, 1, "output_size"), 1)[1]
    assert isinstance(source, Node)
    if len(static_shape(source)) != 3 or static_shape(source)[-1] % target or static_shape(source)[-1] < 1:
        return node
    node.meta["val"] = node.meta["val"][0]
    with graph.inserting_before(node):
        whole = reshaped(graph, source, [*static_shape(source)[:2], 1, static_shape(source)[2]], node)
    kernel = [1, static_shape(source)[-1] // target]
    return _over_map(graph, node, aten.max_pool2d.default, [whole, kernel, kernel])


def _resizing(target: Any, place_of_factors: int) -> Rule:
    def rule(graph: Graph, node: Node) -> Node:
        if (source := _as_map(graph, node)) is None:
            return node
        factors = argument(node, place_of_factors, "scale_factors")
        between = node.args[2:place_of_factors]
        size, factors = ([1, static_shape(node)[-1]], None) if factors is None else (None, [1.0, *factors])
        arguments = [source, size, *between, factors]
        return _over_map(graph, node, target, arguments)

    return rule


def batch_norm_of_rows(graph: Graph, node: Node) -> Node:
    """A BatchNorm behind a convolution over rows normalises the map that this writes, so it is folded into it."""
    source = node.args[0]
    assert isinstance(source, Node)
    written = source.args[0] if kind(source) == "reshape" else None
    if not isinstance(written, Node) or kind(written) not in {"conv", "conv_transpose"}:
        return node
    sizes, rows = static_shape(written), static_shape(source)
    if len(sizes) != 4 or sizes[2] != 1 or rows != (*sizes[:2], sizes[3]):
        return node
    return _over_map(graph, node, aten.batch_norm.default, [written, *node.args[1:]])


#: Rule of the normal form per operator over rows.
OVER_ROWS: Mapping[Any, tuple[Rule, ...]] = {
    aten.conv1d.default: (_convolution,),
    aten.conv1d.padding: (_convolution,),
    aten.conv_transpose1d.default: (_transposed_convolution,),
    aten.max_pool1d.default: (_max_pool,),
    aten.avg_pool1d.default: (_average_pool,),
    aten.adaptive_avg_pool1d.default: (_adaptive_average_pool,),
    aten.adaptive_max_pool1d.default: (_adaptive_max_pool,),
    aten.upsample_nearest1d.vec: (_resizing(aten.upsample_nearest2d.vec, 2),),
    aten.upsample_linear1d.vec: (_resizing(aten.upsample_bilinear2d.vec, 3),),
}
