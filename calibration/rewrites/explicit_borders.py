"""Borders around averages and strides of 1x1 convolutions, each written as an operator of its own: the same values.

For runtimes whose passes lose integers, or the right border, where one operator does both.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from calibration.graph.operators import argument, is_non_negative, kind, pair, static_shape, tensor_inputs
from calibration.normal_form.decompositions import before
from calibration.rewrites.rewrite import Rewrite
from calibration.rewrites.subpixel import SIGNED_TRANSPOSED_AS_CONVOLUTIONS, TRANSPOSED_AS_CONVOLUTIONS

aten = torch.ops.aten


def _borders_before_averages(graph_module: GraphModule) -> bool:
    """Let average poolings of signed maps read their border of zeros from a padding.

    What cannot be negative stays, for its zero point is zero; so do poolings that round their size up.
    """
    concerned = [node for node in graph_module.graph.nodes if _counts_a_signed_border(node)]
    for pooling in concerned:
        (source,), (rows, columns) = tensor_inputs(pooling), pair(argument(pooling, 3, "padding"))
        border = [columns, columns, rows, rows]
        padded = before(graph_module.graph, pooling, aten.constant_pad_nd.default, (source, border, 0.0))
        pooling.args = (padded, *pooling.args[1:3], [0, 0], *pooling.args[4:])
    return bool(concerned)


def _strides_before_pointwise(graph_module: GraphModule) -> bool:
    """Take from a map that only 1x1 convolutions of one stride read the positions that they leap over.

    A pooling over single positions leaves them out, and the convolutions read all that is left. A border of theirs
    becomes a padding in front: of what has both, OpenVINO's outputs are of another size.
    """
    changed = False
    for source in list(graph_module.graph.nodes):
        strides = {_pointwise_stride(user) if user.args[0] is source else None for user in source.users}
        stride = strides.pop() if len(strides) == 1 else None
        if stride is None:
            continue
        readers = list(source.users)
        bordered = dict[tuple[int, ...], list[Node]]()
        for reader in readers:
            bordered.setdefault(pair(argument(reader, 4, "padding", 0)), []).append(reader)
        for (rows, columns), alike in bordered.items():
            read = source
            if rows or columns:
                amounts = [columns, columns, rows, rows]
                read = before(graph_module.graph, readers[0], aten.constant_pad_nd.default, (source, amounts, 0.0))
            fewer = before(graph_module.graph, readers[0], aten.max_pool2d.default, (read, [1, 1], list(stride)))
            for reader in alike:
                reader.args = (fewer, *reader.args[1:3], [1, 1], [0, 0], *reader.args[5:])
        changed = True
    return changed


def _counts_a_signed_border(node: Node) -> bool:
    if kind(node) != "average_pool" or argument(node, 4, "ceil_mode", False):
        return False
    counted = any(pair(argument(node, 3, "padding", 0))) and bool(argument(node, 5, "count_include_pad", True))
    return counted and not is_non_negative(tensor_inputs(node)[0])


def _pointwise_stride(node: Node) -> tuple[int, ...] | None:
    """The stride of a 1x1 convolution that leaps over positions; None for any other node."""
    if kind(node) != "conv" or int(argument(node, 6, "groups", 1)) != 1 or len(node.args) < 4:
        return None
    weight, stride = node.args[1], pair(argument(node, 3, "stride", 1))
    assert isinstance(weight, Node)
    if static_shape(weight)[2:] != (1, 1) or stride == (1, 1):
        return None
    return None if isinstance(argument(node, 4, "padding", 0), str) else stride


BORDERS_BEFORE_AVERAGES = Rewrite(
    name="borders in front of averages",
    edit=_borders_before_averages,
    source="poolings of integers take 0 for the border's integer, whatever the zero point is (rule 34)",
)
STRIDES_BEFORE_POINTWISE = Rewrite(
    name="strides in front of 1x1 convolutions",
    edit=_strides_before_pointwise,
    source="a pooling of the runtime's own between rounding and convolution makes both float (rule 33)",
    behind=frozenset({TRANSPOSED_AS_CONVOLUTIONS.name, SIGNED_TRANSPOSED_AS_CONVOLUTIONS.name}),
)
