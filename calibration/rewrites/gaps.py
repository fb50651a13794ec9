"""The largest value of windows with gaps, as maxima of gathered rows and columns: the same values.

For runtimes without a pooling that is dilated.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from calibration.graph.constants import new_constants
from calibration.graph.operators import argument, kind, pair, shape, static_shape, tensor_inputs
from calibration.normal_form.decompositions import before
from calibration.rewrites.rewrite import Rewrite

aten = torch.ops.aten


def _gaps_gathered(graph_module: GraphModule) -> bool:
    """Write dilated maxima over maps of fixed size along one axis after the other; no border of the lowest number."""
    concerned = [node for node in graph_module.graph.nodes if _has_gaps(node)]
    for node in concerned:
        kernel = pair(argument(node, 1, "kernel_size"))
        stride = pair(argument(node, 2, "stride") or kernel)
        padding, gaps = pair(argument(node, 3, "padding", 0)), pair(argument(node, 4, "dilation", 1))
        (source,), counts = tensor_inputs(node), static_shape(node)[2:]
        for axis, (length, gap) in enumerate(zip(kernel, gaps, strict=True)):
            starts = torch.arange(counts[axis]) * stride[axis] - padding[axis]
            taps = starts + gap * torch.arange(length)[:, None]
            source = _largest(graph_module, node, source, _inside(taps, static_shape(source)[2 + axis]), axis=2 + axis)
        node.replace_all_uses_with(source)
        graph_module.graph.erase_node(node)
    return bool(concerned)


def _has_gaps(node: Node) -> bool:
    if kind(node) != "max_pool" or min(static_shape(node)[2:] + static_shape(tensor_inputs(node)[0])[2:]) < 1:
        return False
    return any(gap > 1 for gap in pair(argument(node, 4, "dilation", 1)))


def _inside(taps: Tensor, size: int) -> Tensor:
    """The places [taps, windows] that windows read; in place of one beside the map another of the same window."""
    known = (taps >= 0) & (taps < size)
    first = taps.gather(0, known.int().argmax(0, keepdim=True))
    return torch.where(known, taps, first)


def _largest(graph_module: GraphModule, node: Node, source: Node, places: Tensor, *, axis: int) -> Node:
    """The larger of all that is gathered, in front of a node; what is gathered twice is gathered once."""
    rows = list(dict.fromkeys(tuple(row) for row in places.tolist()))
    result: Node | None = None
    for number, row in enumerate(rows):
        part = source
        if row != tuple(range(static_shape(source)[axis])):
            values = {f"places_{axis}_{number}": torch.tensor(row)}
            (stored,) = new_constants(graph_module, node, values, holder="gaps")
            with graph_module.graph.inserting_before(node):
                part = graph_module.graph.call_function(aten.index_select.default, (source, axis, stored))
            sizes = [len(row) if place == axis else size for place, size in enumerate(shape(source))]
            part.meta = dict(node.meta) | {"val": source.meta["val"].new_empty(sizes)}
        result = part if result is None else before(graph_module.graph, node, aten.maximum.default, (result, part))
    assert result is not None
    return result


GAPS_GATHERED = Rewrite(
    name="windows with gaps",
    edit=_gaps_gathered,
    source="TensorRT's parser refuses a MaxPool with dilations (measured on TensorRT-RTX 1.7.1)",
)
