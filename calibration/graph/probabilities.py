"""Outputs of a sigmoid or softmax: between 0 and 1, and as good as 0 below what any reader of them tells apart."""

from __future__ import annotations

from torch.fx import Node

from calibration.graph.operators import MOVEMENT, kind, multiplier, tensor_inputs

# What moves values, or takes means or the largest of them, leaves them between 0 and 1.
_KEEPS = MOVEMENT | {"average_pool", "adaptive_average_pool", "mean", "resize_bilinear"}


def is_probability(node: Node) -> bool:
    """Whether a node's values are those of a sigmoid or softmax, moved, averaged, or multiplied with one another."""
    if kind(node) in {"sigmoid", "softmax"}:
        return True
    sources = tensor_inputs(node)
    product = kind(node) == "mul" and len(sources) == len(node.args) and multiplier(node) is None
    return (product or kind(node) in _KEEPS) and bool(sources) and all(is_probability(source) for source in sources)
