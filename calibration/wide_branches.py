"""Narrow activations on the way into layers alone: what else reads a tensor goes on reading all of its 8 bits.

Papers of 2 to 4-bit activations round what a convolution multiplies and leave the sums of a residual network as they
are. A tensor has one grid for all its readers here, so where a branch reads what a layer reads, the layer gets a copy.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from calibration.operators import WEIGHTED, has_weighted, kind, make_graph_module, tensor_inputs
from calibration.sharing import sharing_copy

aten = torch.ops.aten


def with_wide_branches(graph_module: GraphModule) -> GraphModule:
    """A copy of a folded graph in which narrow layers read copies of the tensors that others read as well.

    Narrow are all weighted layers but the first and the last. The graph itself where no tensor has both readers.
    """
    shared = [node.name for node in graph_module.graph.nodes if _is_shared(node)]
    if not shared:
        return graph_module
    changed = sharing_copy(graph_module)
    for node in list(changed.graph.nodes):
        if node.name in shared:
            layers = [reader for reader in node.users if _is_narrow(reader, node)]
            with changed.graph.inserting_after(node):
                copied = changed.graph.call_function(aten.clone.default, (node,))
            copied.meta = dict(node.meta)
            for layer in layers:
                layer.replace_input_with(node, copied)
    made = make_graph_module(changed, changed.graph)
    made.meta["outputs"] = graph_module.meta["outputs"]
    return made


def _is_shared(node: Node) -> bool:
    narrow = [_is_narrow(reader, node) for reader in node.users]
    return any(narrow) and not all(narrow)


def _is_narrow(reader: Node, tensor: Node) -> bool:
    """Whether a reader is a layer with others before and behind it whose data, not its weight, the tensor is."""
    if kind(reader) not in WEIGHTED or tensor_inputs(reader)[:1] != [tensor]:
        return False
    return all(has_weighted(reader, forward=forward) for forward in (True, False))
