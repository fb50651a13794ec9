"""Borders around averages and strides of 1x1 convolutions, each written as an operator of its own: the same values.

For runtimes whose passes lose integers, or the right border, where one operator does both.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from calibration.decompositions import before
from calibration.operators import argument, is_non_negative, kind, make_graph_module, pair, static_shape, tensor_inputs
from calibration.sharing import sharing_copy

aten = torch.ops.aten


def borders_before_averages(graph_module: GraphModule) -> GraphModule:
    """A copy of a folded graph whose average poolings of signed maps read their border of zeros from a padding.

    What cannot be negative stays, for its zero point is zero; so do poolings that round their size up. The graph itself
    where there are none.
    """
    changed = sharing_copy(graph_module)
    for pooling in [node for node in changed.graph.nodes if _counts_a_signed_border(node)]:
        (source,), (rows, columns) = tensor_inputs(pooling), pair(argument(pooling, 3, "padding"))
        border = [columns, columns, rows, rows]
        padded = before(changed.graph, pooling, aten.constant_pad_nd.default, (source, border, 0.0))
        pooling.args = (padded, *pooling.args[1:3], [0, 0], *pooling.args[4:])
    return _finished(changed, graph_module)


def strides_before_pointwise(graph_module: GraphModule) -> GraphModule:
    """A copy of a folded graph in which a map that only 1x1 convolutions of one stride read loses the other positions.

    A pooling over single positions leaves them out, and the convolutions read all that is left. The graph itself where
    there are none.
    """
    changed = sharing_copy(graph_module)
    for source in list(changed.graph.nodes):
        strides = {_pointwise_stride(user) if user.args[0] is source else None for user in source.users}
        stride = strides.pop() if len(strides) == 1 else None
        if stride is None:
            continue
        readers = list(source.users)
        fewer = before(changed.graph, readers[0], aten.max_pool2d.default, (source, [1, 1], list(stride)))
        for reader in readers:
            reader.args = (fewer, *reader.args[1:3], [1, 1], *reader.args[4:])
    return _finished(changed, graph_module)


def _counts_a_signed_border(node: Node) -> bool:
    if kind(node) != "average_pool" or argument(node, 4, "ceil_mode", False):
        return False
    counted = any(pair(argument(node, 3, "padding", 0))) and bool(argument(node, 5, "count_include_pad", True))
    return counted and not is_non_negative(tensor_inputs(node)[0])


def _pointwise_stride(node: Node) -> tuple[int, ...] | None:
    """The stride of a 1x1 convolution that leaps over positions and has no border; None for any other node."""
    if kind(node) != "conv" or int(argument(node, 6, "groups", 1)) != 1 or len(node.args) < 4:
        return None
    weight, stride = node.args[1], pair(argument(node, 3, "stride", 1))
    assert isinstance(weight, Node)
    if static_shape(weight)[2:] != (1, 1) or stride == (1, 1):
        return None
    padding = argument(node, 4, "padding", 0)
    return stride if not isinstance(padding, str) and not any(pair(padding)) else None


def _finished(changed: GraphModule, original: GraphModule) -> GraphModule:
    if len(changed.graph.nodes) == len(original.graph.nodes):
        return original
    made = make_graph_module(changed, changed.graph)
    made.meta["outputs"] = original.meta["outputs"]
    return made
