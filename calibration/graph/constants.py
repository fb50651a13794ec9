"""What a network computes from constants alone is computed once: the result is a constant as well."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from calibration.graph.operators import WEIGHTED, argument, attribute, kind, static_shape

aten = torch.ops.aten
#: The lowest number: what a mask adds to scores instead of minus infinity, which is no value that training may leave.
LOWEST = float(torch.finfo(torch.float32).min)
_ELEMENTWISE = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})


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
    known = _evaluated(graph_module, batch=None)
    for node in list(graph_module.graph.nodes):
        if node not in known or node.op == "get_attr" or not isinstance(known[node], Tensor):
            continue
        if any(user not in known for user in node.users):
            (constant,) = new_constants(graph_module, node, {"value": known[node].clone()}, holder="constant")
            node.replace_all_uses_with(constant)


def finite_masks(graph_module: GraphModule) -> None:
    """Replace, in place, constants that are added and hold minus infinity by such that hold the lowest number there.

    A softmax makes exactly 0 of either, unless it masks a whole row: of that torch's attention makes zeros, and so does
    a factor behind the softmax.
    """
    for node in list(graph_module.graph.nodes):
        values = attribute(graph_module, str(node.target)) if node.op == "get_attr" else None
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.is_meta:
            continue
        adders = [user for user in node.users if user.target is aten.add.Tensor]
        hidden = torch.isneginf(values)
        if adders and bool(hidden.any()):
            (finite,) = new_constants(graph_module, node, {"value": values.clamp_min(LOWEST)}, holder="finite")
            for adder in adders:
                adder.replace_input_with(node, finite)
                if values.dim() and bool(hidden.all(-1).any()):
                    _zero_rows(graph_module, adder, ~hidden.all(-1, keepdim=True))


def _zero_rows(graph_module: GraphModule, scores: Node, seen: Tensor) -> None:
    """Multiply a softmax over the last axis of scores by 0 where nothing of a row is seen."""
    for softmax in [user for user in scores.users if user.target is aten.softmax.int]:
        if argument(softmax, 1, "dim") not in (-1, len(static_shape(softmax)) - 1):
            continue
        readers = list(softmax.users)
        # Truths: no training changes them.
        (factor,) = new_constants(graph_module, softmax, {"value": seen}, holder="seen")
        with graph_module.graph.inserting_after(softmax):
            zeroed = graph_module.graph.call_function(aten.mul.Tensor, (softmax, factor))
        zeroed.meta = dict(softmax.meta)
        for reader in readers:
            reader.replace_input_with(softmax, zeroed)


def own_weights_per_axis(graph_module: GraphModule) -> None:
    """Give transposed convolutions, in place, a copy of a weight that other layers read as well.

    Their output channels lie on another axis of it, and a stored weight has one scale per channel. The two are trained
    apart from then on.
    """
    layers: dict[str, list[Node]] = {}
    for node in graph_module.graph.nodes:
        if kind(node) in WEIGHTED and isinstance(node.args[1], Node) and node.args[1].op == "get_attr":
            layers.setdefault(str(node.args[1].target), []).append(node)
    for path, readers in layers.items():
        transposed = [node for node in readers if kind(node) == "conv_transpose"]
        if not transposed or len(transposed) == len(readers):
            continue
        values = attribute(graph_module, path)
        (copy,) = new_constants(graph_module, transposed[0], {"weight": values.detach().clone()}, holder="own")
        for node in transposed:
            node.args = (node.args[0], copy, *node.args[2:])


def fold_batches(graph_module: GraphModule) -> None:
    """Replace, in place, what repeats a constant for every image where the reader broadcasts it by itself.

    Positions that a network computes for a whole batch become a table for one image.
    """
    nodes = list(graph_module.graph.nodes)
    if not any(node.target is torch.ops.aten.sym_size.int for node in nodes):
        return
    one, three = (_evaluated(graph_module, batch=batch) for batch in (1, 3))
    for node in nodes:
        single, several = one.get(node), three.get(node)
        if not (isinstance(single, Tensor) and isinstance(several, Tensor)) or single.shape == several.shape:
            continue
        if single.shape[:1] != (1,) or single.shape[1:] != several.shape[1:]:
            continue
        readers = [user for user in node.users if user not in one and _broadcasts(user, node)]
        if readers and torch.equal(single.expand_as(several), several):
            (constant,) = new_constants(graph_module, node, {"value": single.clone()}, holder="constant")
            for reader in readers:
                reader.replace_input_with(node, constant)


def _broadcasts(reader: Node, operand: Node) -> bool:
    """Whether an element-wise operator has another operand of the result's shape."""
    others = [source for source in reader.all_input_nodes if source is not operand and "val" in source.meta]
    return reader.target in _ELEMENTWISE and any(
        source.meta["val"].shape == reader.meta["val"].shape for source in others
    )


def _evaluated(graph_module: GraphModule, *, batch: int | None) -> dict[Node, Any]:
    """The value of every node that depends on constants alone, and with `batch` on that number of images."""
    known: dict[Node, Any] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            known[node] = attribute(graph_module, str(node.target))
        elif node.op == "call_function" and batch is not None and _is_batch_size(node):
            known[node] = batch
        elif node.op == "call_function" and all(source in known for source in node.all_input_nodes) and is_pure(node):
            with torch.no_grad():
                known[node] = node.target(
                    *map_arg(node.args, known.__getitem__), **map_arg(node.kwargs, known.__getitem__)
                )
    return known


def _is_batch_size(node: Node) -> bool:
    if node.target is not torch.ops.aten.sym_size.int:
        return False
    source, axis = node.args
    return isinstance(source, Node) and source.op == "placeholder" and isinstance(axis, int) and axis == 0


def is_pure(node: Node) -> bool:
    """Whether the operator is an ATen operator that gives the same tensors every time."""
    if getattr(node.target, "__module__", None) == operator.add.__module__:
        return True  # arithmetic of sizes
    tags = getattr(node.target, "tags", None)
    return tags is not None and torch.Tag.nondeterministic_seeded not in tags and not node.is_impure()
