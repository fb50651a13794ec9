"""Scaled dot-product attention as two matrix products and a softmax, as torch's own plain implementation has it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Graph, Node

from calibration.graph.constants import LOWEST
from calibration.graph.operators import argument, static_shape
from calibration.normal_form.comparisons import chosen, was_truth
from calibration.normal_form.decompositions import before, reshaped
from calibration.normal_form.known_values import known_value

aten = torch.ops.aten


def attention(graph: Graph, node: Node) -> Node:
    """The rule of the normal form: masks of either type, causal ones, heads that share keys and values.

    Left alone where it drops scores, or where heads share keys and a size is free.
    Source: torch.nn.functional.scaled_dot_product_attention, whose documentation has the plain form.
    """
    query, key, value = (argument(node, place, name) for place, name in enumerate(("query", "key", "value")))
    mask, causal = argument(node, 3, "attn_mask"), bool(argument(node, 5, "is_causal", False))
    heads, rows = static_shape(query)[:-2], static_shape(query)[-2]
    shared = static_shape(key)[:-2] != heads and bool(argument(node, 7, "enable_gqa", False))
    if float(argument(node, 4, "dropout_p", 0.0)) or (causal and min(rows, static_shape(key)[-2]) < 1):
        return node
    if shared and (len(heads) != 2 or min(heads[1], rows, static_shape(key)[1]) < 1):
        return node
    if shared:
        # The heads of one key stand below each other: one product takes them all, and no key is repeated.
        groups = static_shape(key)[1]
        with graph.inserting_before(node):
            query = reshaped(graph, query, [-1, groups, heads[1] // groups * rows, static_shape(query)[-1]], node)
    scale = argument(node, 6, "scale")
    factor = 1 / math.sqrt(static_shape(query)[-1]) if scale is None else float(scale)
    turned = before(graph, node, aten.transpose.int, (key, -2, -1))
    scores = before(graph, node, aten.mul.Tensor, (before(graph, node, aten.matmul.default, (query, turned)), factor))
    columns = static_shape(key)[-2]
    if shared and (causal or mask is not None):
        with graph.inserting_before(node):
            scores = reshaped(graph, scores, [-1, heads[1], rows, columns], node)
    if causal:
        mask = _causal(graph, node, rows, columns)
    seen = None
    if isinstance(mask, Node):
        added, seen = _added(graph, node, mask, truths=causal or was_truth(node, 3, "attn_mask"))
        scores = before(graph, node, aten.add.Tensor, (scores, added))
    weights = before(graph, node, aten.softmax.int, (scores, -1))
    if seen is not None:
        weights = before(graph, node, aten.mul.Tensor, (weights, seen))
    if not shared:
        node.target, node.args, node.kwargs = aten.matmul.default, (weights, value), {}
        return node
    with graph.inserting_before(node):
        weights = reshaped(graph, weights, [-1, groups, heads[1] // groups * rows, columns], node)
    product = before(graph, node, aten.matmul.default, (weights, value))
    sizes = list(static_shape(node))
    graph.erase_node(node)
    return reshaped(graph, product, sizes, product)


def _causal(graph: Graph, node: Node, rows: int, columns: int) -> Node:
    """Which keys every query may see: those up to its own place."""
    return before(graph, node, aten.tril.default, (before(graph, node, aten.full.default, ([rows, columns], True)),))


def _added(graph: Graph, node: Node, mask: Node, *, truths: bool) -> tuple[Node, Node | None]:
    """What is added to the scores, and what the weights are multiplied by, None where that is 1.

    Added is nothing where a boolean mask is true, minus infinity where it is not. Of a query that may see no key torch
    makes zeros, and a softmax of minus infinity alone is NaN: there the lowest number is added, and 0 multiplied.
    """

    def write(target: Any, *arguments: Any) -> Node:
        return before(graph, node, target, arguments)

    values = known_value(mask)
    if values is None:
        if not truths:
            return mask, None
        # Computed from the image, which may hide whatever it likes.
        seen = before(graph, node, aten.amax.default, (chosen(write, mask, 1.0, 0.0), [-1], True))
        return chosen(write, mask, 0.0, LOWEST), seen
    hidden = (~values if truths else values.isneginf()).all(-1)
    added = before(graph, node, aten.where.Scalar, (mask, 0.0, -math.inf)) if truths else mask
    if not bool(hidden.any()):
        return added, None
    largest = before(graph, node, aten.amax.default, (added, [-1], True))
    seen = before(graph, node, aten.gt.Scalar, (largest, -math.inf))  # truths: no training changes them
    return before(graph, node, aten.clamp_min.default, (added, LOWEST)), seen
