"""Regions of a network with settings of their own, such as autocast: torch.export keeps each in a graph of its own."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from calibration.errors import UserError
from calibration.graph.operators import attribute
from calibration.graph.origin import module_path

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_REGIONS = frozenset({_AUTOCAST, torch.ops.higher_order.wrap_with_set_grad_enabled})


def without_regions(captured: GraphModule, source: str) -> GraphModule:
    """Write the operators of regions with settings of their own (autocast, gradients) into the graph around them.

    A network that is quantised computes in float32 wherever it is not integer, so settings that have no effect here
    say nothing; raises UserError for autocast on the processor, whose float16 no artifact would reproduce.
    """
    graph = captured.graph
    for node in list(graph.nodes):
        if node.target not in _REGIONS:
            continue
        _check_autocast(node, source)
        region = next(argument for argument in node.args if isinstance(argument, Node) and argument.op == "get_attr")
        inner: GraphModule = attribute(captured, str(region.target))
        operands = node.args[node.args.index(region) + 1 :]
        places = [place for place in inner.graph.nodes if place.op == "placeholder"]
        copies: dict[Node, Any] = dict(zip(places, operands, strict=True))
        with graph.inserting_before(node):
            results = graph.graph_copy(inner.graph, copies)
        for copied in copies.values():
            if isinstance(copied, Node) and copied.op == "get_attr" and copied not in operands:
                copied.target = f"{region.target}.{copied.target}"
        values = results if isinstance(results, (list, tuple)) else (results,)
        for user in list(node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(values[user.args[1]])
                graph.erase_node(user)
        if node.users:
            node.replace_all_uses_with(values[0])
        graph.erase_node(node)
        if not region.users:
            graph.erase_node(region)
    return captured


def _check_autocast(node: Node, source: str) -> None:
    if node.target is _AUTOCAST and node.args[0] == "cpu" and node.args[2]:
        kind = str(node.args[1]).removeprefix("torch.")
        raise UserError(
            f"{source}: {module_path(node) or 'the network'} computes in {kind} under torch.autocast, and what is no"
            " integer is computed in float32 here: leave autocast out, or give it enabled=False, in a builder given as"
            " --teacher python:package.module:function"
        )
