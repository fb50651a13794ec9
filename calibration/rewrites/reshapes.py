"""Functions of single values before reshapes instead of behind them, where layers can perform them."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from calibration.graph.operators import kind, static_shape
from calibration.normal_form.decompositions import call

#: Kinds of operator that compute every value from one.
POINTWISE = frozenset({"relu", "clip", "leaky_relu", "sigmoid", "hardsigmoid", "gelu", "tanh", "elu"})


def activation_before_reshape(graph_module: GraphModule, node: Node) -> None:
    """Let an activation read what the reshape before it reads, and reshape its result; left alone where others read it.

    Linear layers over tokens have a reshape on either side: between two of them, both disappear.
    """
    reshape = node.args[0] if kind(node) in POINTWISE else None
    if not isinstance(reshape, Node) or kind(reshape) != "reshape" or len(reshape.users) > 1:
        return
    source, sizes = reshape.args[0], list(static_shape(reshape))
    if not isinstance(source, Node) or sizes.count(-1) > 1:
        return
    readers = list(node.users)
    node.replace_input_with(reshape, source)
    node.meta["val"] = node.meta["val"].new_empty(source.meta["val"].shape)
    graph = graph_module.graph
    behind: Node | None = None
    for reader in readers:
        if kind(reader) == "reshape" and static_shape(reader) == static_shape(source):
            reader.replace_all_uses_with(node)
            graph.erase_node(reader)
        elif kind(reader) != "reshape" or reader.target is not torch.ops.aten.reshape.default:
            if behind is None:
                with graph.inserting_after(node):
                    behind = call(graph, torch.ops.aten.reshape.default, (node, sizes), reshape)
            reader.replace_input_with(node, behind)
