"""What a network computes from constants alone is computed once: the result is a constant as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from calibration.operators import attribute


def new_constants(graph_module: GraphModule, like: Node, tensors: dict[str, Tensor], *, holder: str) -> list[Node]:
    """Store tensors under a sub-module named after the node `like` and `holder`; their nodes, written before it.

    A parameter or a tensor of floating point becomes a parameter (it is trained), any other a buffer.
    """
    module, path = nn.Module(), f"{like.name}_{holder}"
    while hasattr(graph_module, path):
        path += "_"
    graph_module.add_module(path, module)
    nodes = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            module.register_parameter(name, nn.Parameter(tensor.detach()))
        else:
            module.register_buffer(name, tensor)
        with graph_module.graph.inserting_before(like):
            node = graph_module.graph.get_attr(f"{path}.{name}")
        node.meta["val"] = torch.empty_like(tensor, device="meta")  # what is read of it is shape and type
        nodes.append(node)
    return nodes


def fold_constants(graph_module: GraphModule) -> None:
    """Replace, in place, every operator that reads constants only by its result.

    Standardised or re-parametrised weights become plain ones, which can be quantised; positions and masks become
    tables. Operators that draw random numbers, or whose shape depends on the batch, are left alone.
    """
    known: dict[Node, Any] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            known[node] = attribute(graph_module, str(node.target))
        elif node.op == "call_function" and all(source in known for source in node.all_input_nodes) and _is_pure(node):
            with torch.no_grad():
                known[node] = node.target(
                    *map_arg(node.args, known.__getitem__), **map_arg(node.kwargs, known.__getitem__)
                )
    for node in list(graph_module.graph.nodes):
        if node not in known or node.op == "get_attr" or not isinstance(known[node], Tensor):
            continue
        if any(user not in known for user in node.users):
            (constant,) = new_constants(graph_module, node, {"value": known[node].clone()}, holder="constant")
            node.replace_all_uses_with(constant)


def _is_pure(node: Node) -> bool:
    """Whether the operator is an ATen operator that gives the same tensors every time."""
    tags = getattr(node.target, "tags", None)
    return tags is not None and torch.Tag.nondeterministic_seeded not in tags and not node.is_impure()
