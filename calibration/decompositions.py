"""Compound operators in terms of those that the tables know: attention, rolling, Einstein sums, gated activations.

Each function is a rule of the normal form: it is given the node just written at the end of a graph, writes others
around it, and returns the node that has the result.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from calibration.operators import argument, kind, shape, static_shape

aten = torch.ops.aten


def call(graph: Graph, target: Any, arguments: tuple[Any, ...], like: Node) -> Node:
    """Append an operator that says it comes from where `like` does, with the shape that its inputs give it."""
    word = str(target).split(".")[1].strip("_")
    node = graph.create_node("call_function", target, arguments, name=f"{like.name}_{word}")
    node.meta = dict(like.meta) | {"val": target(*map_arg(arguments, lambda source: source.meta["val"]))}
    return node


def reshaped(graph: Graph, source: Node, sizes: list[int], like: Node) -> Node:
    """Append a reshape; of reshapes in a row only the last is kept, and none that changes nothing.

    `sizes` hold one -1 at most.
    """
    while kind(source) == "reshape":
        inner = source.args[0]
        assert isinstance(inner, Node)
        source = inner
    if list(static_shape(source)) == sizes:
        return source
    return call(graph, aten.reshape.default, (source, sizes), like)


def before(graph: Graph, node: Node, target: Any, arguments: tuple[Any, ...]) -> Node:
    """Write an operator in front of a node."""
    with graph.inserting_before(node):
        return call(graph, target, arguments, node)


def linear_over_rows(graph: Graph, node: Node) -> Node:
    """A linear layer over tokens becomes one over the rows of a matrix, whose kernels take a bias in int32."""
    source, sizes = node.args[0], list(static_shape(node))
    assert isinstance(source, Node)
    if len(sizes) < 3 or sizes.count(-1) > 1:
        return node
    with graph.inserting_before(node):
        rows = reshaped(graph, source, [-1, static_shape(source)[-1]], node)
    node.args = (rows, *node.args[1:])
    node.meta["val"] = node.meta["val"].reshape(-1, sizes[-1])
    return reshaped(graph, node, sizes, node)


def gated(gate: Any) -> Any:
    """The rule for an activation x * gate(x)."""

    def rule(graph: Graph, node: Node) -> Node:
        source = node.args[0]
        factor = before(graph, node, gate, (source,))
        node.target, node.args, node.kwargs = aten.mul.Tensor, (source, factor), {}
        return node

    return rule


def attention(graph: Graph, node: Node) -> Node:
    """Scaled dot-product attention as two matrix products and a softmax."""
    query, key, value = node.args[:3]
    mask, causal = argument(node, 3, "attn_mask"), argument(node, 5, "is_causal", False)
    assert isinstance(query, Node) and isinstance(key, Node)
    if causal or argument(node, 7, "enable_gqa", False) or (isinstance(mask, Node) and _is_boolean(mask)):
        return node  # not in vision networks; the translation to a file names it
    scale = node.kwargs.get("scale")
    factor = 1 / math.sqrt(static_shape(query)[-1]) if scale is None else scale
    turned = before(graph, node, aten.transpose.int, (key, -2, -1))
    scores = before(graph, node, aten.mul.Tensor, (before(graph, node, aten.matmul.default, (query, turned)), factor))
    if isinstance(mask, Node):
        scores = before(graph, node, aten.add.Tensor, (scores, mask))
    weights = before(graph, node, aten.softmax.int, (scores, -1))
    node.target, node.args, node.kwargs = aten.matmul.default, (weights, value), {}
    return node


def _is_boolean(node: Node) -> bool:
    return "val" in node.meta and node.meta["val"].dtype == torch.bool


def roll(graph: Graph, node: Node) -> Node:
    """A cyclic shift as the two parts of a map in exchanged order, one axis after the other."""
    source, shifts, axes = node.args[0], argument(node, 1, "shifts"), argument(node, 2, "dims", [])
    assert isinstance(source, Node)
    if len(axes) != len(shifts) or any(static_shape(source)[axis] < 0 for axis in axes):
        return node
    for shift, axis in zip(shifts, axes, strict=True):
        length = static_shape(source)[axis]
        if shift % length:
            cut = length - shift % length
            ends = (cut, length), (0, cut)
            parts = [before(graph, node, aten.slice.Tensor, (source, axis, *pair)) for pair in ends]
            source = before(graph, node, aten.cat.default, (parts, axis))
    graph.erase_node(node)
    return source


def einstein_sum(graph: Graph, node: Node) -> Node:
    """A product of two tensors with named axes as a matrix product; left alone where it is none."""
    equation, operands = node.args[:2]
    assert isinstance(equation, str) and isinstance(operands, (list, tuple))
    terms, _, result = equation.replace(" ", "").partition("->")
    names = terms.split(",")
    if len(names) != 2 or "." in equation or any(len(set(term)) != len(term) for term in (*names, result)):
        return node
    first, second = names
    shared = [axis for axis in result if axis in first and axis in second]
    rows = [axis for axis in result if axis in first and axis not in second]
    columns = [axis for axis in result if axis in second and axis not in first]
    summed = [axis for axis in first if axis in second and axis not in result]
    if (len(rows), len(columns), len(summed)) != (1, 1, 1) or len(first) + len(second) != 2 * len(shared) + 4:
        return node
    left, right = (
        _permuted(graph, node, operand, term, wanted)
        for operand, term, wanted in (
            (operands[0], first, [*shared, *rows, *summed]),
            (operands[1], second, [*shared, *summed, *columns]),
        )
    )
    product = before(graph, node, aten.matmul.default, (left, right))
    found = _permuted(graph, node, product, "".join([*shared, *rows, *columns]), list(result))
    graph.erase_node(node)
    return found


def _permuted(graph: Graph, node: Node, operand: Any, names: str, wanted: list[str]) -> Node:
    order = [names.index(axis) for axis in wanted]
    if order == sorted(order):
        assert isinstance(operand, Node)
        return operand
    return before(graph, node, aten.permute.default, (operand, order))


def item_of_unbind(graph: Graph, node: Node) -> Node:
    """One of the tensors that a tensor is taken apart into is selected by itself."""
    whole, index = node.args
    if isinstance(whole, Node) and whole.target is aten.unbind.int:
        node.target, node.args = aten.select.int, (whole.args[0], argument(whole, 1, "dim", 0), index)
    return node


def constant_of_size(target: Any) -> Any:
    """The rule for a new tensor that takes only its type from another: one that takes nothing, and so is a constant."""

    def rule(graph: Graph, node: Node) -> Node:
        value = node.meta["val"]
        if all(isinstance(size, int) for size in shape(node)):
            node.args = ([int(size) for size in shape(node)], *node.args[2:])
            node.target, node.kwargs = target, {"dtype": value.dtype}
        return node

    return rule


def without_expansion(graph: Graph, node: Node) -> Node:
    """Let an element-wise operator broadcast an operand by itself."""
    operands = list(node.args[:2])
    for index, operand in enumerate(operands):
        if not isinstance(operand, Node) or operand.target not in (aten.expand.default, aten.expand_as.default):
            continue
        smaller = [operand.args[0] if i == index else other for i, other in enumerate(operands)]
        shapes = [shape(other) for other in smaller if isinstance(other, Node)]
        if all("val" in other.meta for other in smaller if isinstance(other, Node)):
            broadcast = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]  # torch's
            if tuple(broadcast) == shape(node):
                operands = smaller
    node.args = (*operands, *node.args[2:])
    return node
