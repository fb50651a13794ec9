"""Normalisations in terms of those that the tables know: root mean squares, running statistics, norms of old.

Spellings of the normal form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from calibration.graph.operators import argument, static_shape
from calibration.normal_form.spellings import Write, rule_of, source_of

aten = torch.ops.aten


def _root_mean_square(w: Write, node: Node) -> Node | None:
    """The quotient x / sqrt(|x|^2 / n + epsilon), and the weight; a norm runs in float, a square would be rounded.

    Source: torch.nn.RMSNorm.
    """
    source, sizes = source_of(node), [int(size) for size in argument(node, 1, "normalized_shape")]
    weight, epsilon = argument(node, 2, "weight"), argument(node, 3, "eps")
    if epsilon is None:
        epsilon = torch.finfo(torch.float32).eps
    norm = w(aten.linalg_vector_norm.default, source, 2, [-axis for axis in range(len(sizes), 0, -1)], True)
    mean = w(aten.mul.Tensor, w(aten.mul.Tensor, norm, norm), 1 / math.prod(sizes))
    root = w(aten.sqrt.default, w(aten.add.Tensor, mean, float(epsilon)))
    result = w(aten.div.Tensor, source, root)
    return result if weight is None else w(aten.mul.Tensor, result, weight)


def _instance_norm(w: Write, node: Node) -> Node | None:
    """With running statistics it is a BatchNorm, which is folded."""
    if bool(argument(node, 5, "use_input_stats")) or argument(node, 3, "running_mean") is None:
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = [argument(node, place, name) for place, name in enumerate(names, start=1)]
    momentum, epsilon = argument(node, 6, "momentum"), argument(node, 7, "eps")
    return w(aten.batch_norm.default, source_of(node), *tensors, False, momentum, epsilon, False)


def _norm(w: Write, node: Node) -> Node | None:
    axes = argument(node, 2, "dim")
    if not axes:
        return None
    order = argument(node, 1, "p")
    return _any_order(w, node, 2 if order is None else order, list(axes))


def _vector_norm(w: Write, node: Node) -> Node | None:
    """Norms of other orders than 1 and 2, for which every runtime has a reduction."""
    source, order, axes = source_of(node), float(argument(node, 1, "ord", 2)), argument(node, 2, "dim")
    keep = bool(argument(node, 3, "keepdim", False))
    if order in (1.0, 2.0) or not axes:
        return None
    sizes = w(aten.abs.default, source)
    if math.isinf(order):
        return w(aten.amax.default if order > 0 else aten.amin.default, sizes, list(axes), keep)
    if order == 0.0:
        return w(aten.sum.dim_IntList, w(aten.sign.default, sizes), list(axes), keep)
    total = w(aten.sum.dim_IntList, w(aten.pow.Tensor_Scalar, sizes, order), list(axes), keep)
    return w(aten.pow.Tensor_Scalar, total, 1 / order)


def _linear_algebra_norm(w: Write, node: Node) -> Node | None:
    """A vector's norm along one axis, or a matrix's as if it were one; other norms of matrices are left alone."""
    order, axes = argument(node, 1, "ord"), argument(node, 2, "dim")
    axes = [axes] if isinstance(axes, int) else axes
    if not axes or (len(axes) > 1 and order not in (None, "fro")) or (len(axes) == 1 and isinstance(order, str)):
        return None
    return _any_order(w, node, 2 if order in (None, "fro") else order, list(axes))


def _any_order(w: Write, node: Node, order: float, axes: list[int]) -> Node:
    keep = bool(argument(node, 3, "keepdim", False))
    plain = w(aten.linalg_vector_norm.default, source_of(node), order, axes, keep)
    return _vector_norm(w, plain) or plain


def _local_response(w: Write, node: Node) -> Node | None:
    """An average over neighbouring channels, which torch computes in three dimensions, over rows of positions.

    Written as [B, 1, C, H, W] pooled by [n, 1, 1]: the same pooling of [B, 1, C, H * W] by [n, 1].
    """
    source, kernel = source_of(node), argument(node, 1, "kernel_size")
    sizes, stride = static_shape(source), argument(node, 2, "stride") or kernel
    plain = len(sizes) == 5 and sizes[1] == 1 and min(sizes[1:]) > 0
    padding = argument(node, 3, "padding", 0)
    unpadded = not any(padding) if isinstance(padding, (list, tuple)) else not padding
    if not plain or not unpadded or list(kernel[1:]) != [1, 1] or list(stride) != [1, 1, 1]:
        return None
    rows = w(aten.reshape.default, source, [-1, 1, sizes[2], sizes[3] * sizes[4]])
    pooled = w(aten.avg_pool2d.default, rows, [int(kernel[0]), 1], [1, 1])
    return w(aten.reshape.default, pooled, [-1, 1, static_shape(node)[2], sizes[3], sizes[4]])


#: Rule of the normal form per operator.
NORMALISATIONS: Mapping[Any, tuple[Callable[[Graph, Node], Node], ...]] = {
    target: (rule_of(spelling),)
    for target, spelling in {
        aten.rms_norm.default: _root_mean_square,
        aten.instance_norm.default: _instance_norm,
        aten.norm.ScalarOpt_dim: _norm,
        aten.linalg_vector_norm.default: _vector_norm,
        aten.linalg_norm.default: _linear_algebra_norm,
        aten.linalg_norm.ord_str: _linear_algebra_norm,
        aten.linalg_matrix_norm.str_ord: lambda w, node: _any_order(w, node, 2, argument(node, 2, "dim", [-2, -1])),
        aten.avg_pool3d.default: _local_response,
    }.items()
}
