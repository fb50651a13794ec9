"""Compound operators in terms of those that the tables know: rolling, Einstein sums, gated activations.

Each function is a rule of the normal form: it is given the node just written at the end of a graph, writes others
around it, and returns the node that has the result.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from calibration.graph.operators import argument, kind, shape, static_shape

aten = torch.ops.aten


def call(graph: Graph, target: Any, arguments: tuple[Any, ...], like: Node) -> Node:
    """Append an operator that says it comes from where `like` does, with the shape that its inputs give it."""
    word = str(target).split(".")[1].strip("_")
    node = graph.create_node("call_function", target, arguments, name=f"{like.name}_{word}")
    # A new tensor (aten.full) has as few values as all others here.
    with getattr(like.meta.get("val"), "fake_mode", None) or contextlib.nullcontext():
        value = _value(target, map_arg(arguments, lambda source: source.meta["val"]))
    node.meta = dict(like.meta) | {"val": value}
    return node


def _value(target: Any, arguments: tuple[Any, ...]) -> Any:
    """What an operator gives for tensors without values.

    Torch's own form of some fixes every free size, that of the batch for all of the graph (of a product in torch 2.11).
    """
    if target is aten.matmul.default and min(value.ndim for value in arguments) > 1:
        return _product_of(*arguments)
    if target is aten.upsample_nearest2d.vec and arguments[1] is not None:
        return arguments[0].new_empty((*arguments[0].shape[:2], *arguments[1]))
    if target is not aten.constant_pad_nd.default:
        return target(*arguments)
    source, amounts, *_ = arguments
    sizes = list(source.shape)
    for place, amount in enumerate(amounts):
        sizes[-1 - place // 2] += amount
    return source.new_empty(sizes)


def _product_of(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The product of matrices [..., R, S] and [..., S, C], whose leading axes are broadcast, without values."""
    count = max(left.ndim, right.ndim)
    first, second = ([*[1] * (count - one.ndim), *one.shape[:-2]] for one in (left, right))
    leading = [a if isinstance(b, int) and b == 1 else b for a, b in zip(first, second, strict=True)]
    return left.new_empty((*leading, left.shape[-2], right.shape[-1]))


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
    """A product of two tensors with named axes as a matrix product; left alone where it is none.

    Axes that both have and the result has are those of several products; others are rows, columns or summed over, each
    of several where they are (one of these may be free).
    """
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
    everything = len(set(first)) + len(set(second)) == 2 * (len(shared) + len(summed)) + len(rows) + len(columns)
    sizes = {axis: size for term, operand in zip(names, operands, strict=True)
             for axis, size in zip(term, static_shape(operand), strict=True)}  # fmt: skip
    kept = [sizes[axis] for axis in shared]
    if not rows or not columns or not summed or not everything or len(set(result)) != len(result):
        return node
    if (kept + [_product(sizes, group) for group in (rows, summed, columns)]).count(-1) > 1:
        return node
    left = _permuted(graph, node, operands[0], first, [*shared, *rows, *summed])
    right = _permuted(graph, node, operands[1], second, [*shared, *summed, *columns])
    if (len(rows), len(columns), len(summed)) != (1, 1, 1):
        parts = [_product(sizes, group) for group in (rows, summed, columns)]
        with graph.inserting_before(node):
            left = reshaped(graph, left, [*kept, *parts[:2]], node)
            right = reshaped(graph, right, [*kept, *parts[1:]], node)
    product = before(graph, node, aten.matmul.default, (left, right))
    if len(rows) > 1 or len(columns) > 1:
        whole = [*kept, *(sizes[axis] for axis in (*rows, *columns))]
        if whole.count(-1) > 1:
            return node
        with graph.inserting_before(node):
            product = reshaped(graph, product, whole, node)
    result_node = _permuted(graph, node, product, "".join([*shared, *rows, *columns]), list(result))
    graph.erase_node(node)
    return result_node


def _product(sizes: Mapping[str, int], axes: Sequence[str]) -> int:
    """Positions of several axes together; -1 where one of them is free."""
    lengths = [sizes[axis] for axis in axes]
    return -1 if min(lengths) < 0 else math.prod(lengths)


def _permuted(graph: Graph, node: Node, operand: Any, names: str, axes: list[str]) -> Node:
    order = [names.index(axis) for axis in axes]
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


def constant_like(target: Any) -> Any:
    """The rule for a new tensor of another's size, where that is known: one that takes nothing, so a constant."""

    def rule(graph: Graph, node: Node) -> Node:
        value = node.meta["val"]
        if all(isinstance(size, int) for size in shape(node)):
            node.args = ([int(size) for size in shape(node)], *node.args[1:])
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
