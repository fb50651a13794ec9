"""Scaled dot-product attention as two matrix products and a softmax, as torch's own plain implementation has it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Graph, Node

from calibration.graph.operators import argument, static_shape
from calibration.normal_form.decompositions import before, reshaped

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
    if isinstance(mask, Node):
        scores = before(graph, node, aten.add.Tensor, (scores, _added(graph, node, mask)))
    weights = before(graph, node, aten.softmax.int, (scores, -1))
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


def _added(graph: Graph, node: Node, mask: Node) -> Node:
    """What is added to the scores: nothing where a boolean mask is true, minus infinity where it is not."""
    if _type(mask) != torch.bool:
        return mask
    return before(graph, node, aten.where.Scalar, (mask, 0.0, -math.inf))


def _type(mask: Node) -> Any:
    return mask.meta["val"].dtype if "val" in mask.meta else None
