"""BatchNorm disappears: into the layer before it, or into a depthwise 1x1 convolution of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from calibration.errors import UserError
from calibration.graph.constants import finite_masks, fold_batches, fold_constants, own_weights_per_axis
from calibration.graph.operators import (
    argument,
    constant,
    is_non_negative,
    kind,
    pair,
    shape,
    static_shape,
    tensor_inputs,
)
from calibration.graph.sharing import sharing_copy
from calibration.rewrites.affine import fold_affine, fold_into, owns_weight, set_constants
from calibration.rewrites.branches import merge_branches
from calibration.rewrites.cut_windows import cut_windows
from calibration.rewrites.multipliers import constant_as_number
from calibration.rewrites.own_borders import take_border_in
from calibration.rewrites.products import layer_as_product, product_as_layer
from calibration.rewrites.reshapes import POINTWISE, activation_before_reshape
from calibration.rewrites.rewrite import Rewrite, edits, rewritten

aten = torch.ops.aten


def fold(graph_module: GraphModule, *, check: Tensor | None = None) -> GraphModule:
    """A copy in which every BatchNorm is part of a weighted layer and global poolings have one form: all of `FOLDING`.

    A BatchNorm whose input is a convolution, transposed convolution or linear layer read by nobody else is folded
    into that layer's weight and bias; any other becomes a depthwise 1x1 convolution, so that it too runs in integers.
    Equal to the original up to float32 rounding; `check` as of `rewritten`. Raises UserError for a BatchNorm that has
    no running statistics. Weights that it leaves alone are in memory once.
    """
    folded = rewritten(graph_module, FOLDING, check=check)
    return sharing_copy(graph_module) if folded is graph_module else folded


def difference_of_graphs(first: GraphModule, second: GraphModule, images: Tensor) -> float:
    """Largest absolute difference between two graphs' outputs, relative to the first one's largest value.

    `images` float32 [B, C, H, W]. The largest over all outputs; 0 where both are zero everywhere.
    """
    with torch.no_grad():
        pairs = zip(first(images), second(images), strict=True)
    # The floor only keeps 0 / 0 apart: outputs that small are zero for every purpose.
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in pairs)


def _affine(graph_module: GraphModule, node: Node) -> tuple[Tensor, Tensor]:
    """The multiplier and offset [C], float64, that a BatchNorm in evaluation mode applies."""
    _, gamma, beta, mean, variance, training, _, epsilon, *_ = node.args
    running_mean, running_variance = constant(graph_module, mean), constant(graph_module, variance)
    if running_mean is None or running_variance is None or training:
        raise UserError(
            f"{node.name}: a BatchNorm that normalises by the statistics of its batch cannot be folded, as an image's"
            " result would depend on the others; use running statistics (track_running_stats=True, training=False)"
        )
    assert isinstance(epsilon, float)
    multiplier = (running_variance.double() + epsilon).rsqrt()
    scale, shift = constant(graph_module, gamma), constant(graph_module, beta)
    if scale is not None:
        multiplier = multiplier * scale.detach().double()
    offset = -running_mean.double() * multiplier
    if shift is not None:
        offset = offset + shift.detach().double()
    return multiplier, offset


def _fold_batch_norm(graph_module: GraphModule, node: Node) -> None:
    multiplier, offset = _affine(graph_module, node)
    layer = node.args[0]
    assert isinstance(layer, Node)
    # The channel axis of a BatchNorm is the second; a linear layer's outputs lie on the last.
    on_channels = kind(layer) in {"conv", "conv_transpose"} or (kind(layer) == "linear" and len(shape(layer)) == 2)
    if on_channels and len(layer.users) == 1 and owns_weight(layer):
        fold_into(graph_module, layer, multiplier, offset)
        node.replace_all_uses_with(layer)
        graph_module.graph.erase_node(node)
    else:
        _as_depthwise(graph_module, node, multiplier, offset)


def _as_depthwise(graph_module: GraphModule, node: Node, multiplier: Tensor, offset: Tensor) -> None:
    """Make a BatchNorm a depthwise 1x1 convolution; vectors [B, C] and rows [B, C, L] take the form of maps for it."""
    source, graph, channels = node.args[0], graph_module.graph, multiplier.numel()
    assert isinstance(source, Node)
    sizes = static_shape(source)
    if len(sizes) > 4:
        raise UserError(
            f"{node.name}: a BatchNorm over a volume of shape {list(sizes)}: faqd quantises images, whose tensors have"
            " 2 to 4 dimensions; give the third axis to the batch or to the channels in a builder given as --teacher"
            " python:package.module:function"
        )
    if -1 in sizes[1:]:
        raise UserError(
            f"{node.name}: a BatchNorm over a tensor of shape {list(sizes)} with no layer before it cannot be folded;"
            " all dimensions but the batch must be of fixed size"
        )
    with graph.inserting_before(node):
        as_map = source
        if len(sizes) < 4:
            map_sizes = [-1, *sizes[1:], *[1] * (4 - len(sizes))]
            as_map = _call(graph, aten.reshape.default, (source, map_sizes), node)
            as_map.meta["val"] = source.meta["val"].new_empty((*shape(source), *[1] * (4 - len(sizes))))
        layer = _call(graph, aten.conv2d.default, (as_map, None, None, [1, 1], [0, 0], [1, 1], channels), node)
        layer.meta["val"] = as_map.meta["val"]
        result = layer if len(sizes) == 4 else _call(graph, aten.reshape.default, (layer, [-1, *sizes[1:]]), node)
    _replace(graph, node, result, heir=layer)
    set_constants(graph_module, layer, multiplier.float().reshape(channels, 1, 1, 1), offset.float())


def _one_slope(graph_module: GraphModule, node: Node) -> None:
    """Make a PReLU with one slope for all channels a leaky ReLU, which has integer kernels."""
    slope = constant(graph_module, argument(node, 1, "weight"))
    if slope is not None and slope.numel() == 1:
        node.target, node.args, node.kwargs = aten.leaky_relu.default, (node.args[0], slope.item()), {}


def _call(graph: Graph, target: Any, arguments: tuple[Any, ...], like: Node) -> Node:
    """A new operator that says it comes from where `like` does and has its shape."""
    node = graph.call_function(target, arguments)
    node.meta = dict(like.meta)
    return node


def _canonical_pool(graph_module: GraphModule, node: Node) -> None:
    """Rewrite a mean over height and width, or a pooling window as large as its map, as adaptive_avg_pool2d(1).

    An adaptive pooling of a map to its own size is dropped, as it averages single values; to a multiple, it repeats
    them; to a part, it is a pooling with equal windows.
    """
    graph, source = graph_module.graph, node.args[0]
    assert isinstance(source, Node)
    sizes = static_shape(source)
    if len(sizes) != 4 or -1 in sizes[2:]:
        return
    keeps = True
    if kind(node) == "mean":
        axes = argument(node, 1, "dim")
        if not isinstance(axes, (list, tuple)) or sorted(axis % 4 for axis in axes) != [2, 3]:
            return
        keeps = bool(argument(node, 2, "keepdim", False))
    elif kind(node) == "average_pool":
        has_own_divisor = argument(node, 6, "divisor_override") is not None
        if (
            pair(argument(node, 1, "size")) != sizes[2:]
            or pair(argument(node, 3, "padding", 0)) != (0, 0)
            or has_own_divisor
        ):
            return
    else:
        target = pair(argument(node, 1, "size"))
        if target == sizes[2:]:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif all(side % size == 0 for side, size in zip(target, sizes[2:], strict=True)):
            # Every window is a single position: values are repeated, as by resizing to the nearest.
            node.target = aten.upsample_nearest2d.vec
            node.args, node.kwargs = (source, list(target), None), {}
        elif target != (1, 1) and all(size % side == 0 for side, size in zip(target, sizes[2:], strict=True)):
            node.target = aten.avg_pool2d.default
            kernel = [size // side for side, size in zip(target, sizes[2:], strict=True)]
            node.args, node.kwargs = (source, kernel, kernel), {}
        return
    with graph.inserting_before(node):
        pooled = _call(graph, aten.adaptive_avg_pool2d.default, (source, [1, 1]), node)
        pooled.meta["val"] = source.meta["val"].new_empty((*shape(source)[:2], 1, 1))
        result = pooled if keeps else _call(graph, aten.flatten.using_ints, (pooled, 1), node)
    _replace(graph, node, result, heir=pooled)


def _replace(graph: Graph, node: Node, result: Node, *, heir: Node) -> None:
    """Let `result` be read instead of a node that disappears, and `heir` have its name."""
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    heir.name = node.name  # renaming proper would number it, as the graph remembers every name


def _each(rule: Callable[[GraphModule, Node], None], *words: str) -> Callable[[GraphModule], bool]:
    """The edit that asks a rule of every node of these kinds which is still read, in order."""

    def change(graph_module: GraphModule) -> None:
        for node in list(graph_module.graph.nodes):
            if kind(node) in words and node.users:
                rule(graph_module, node)

    return edits(change)


def _layer_rule(graph_module: GraphModule, node: Node) -> None:
    """What a node adds to the layer before it; one walk for all, as each makes room for the next."""
    if kind(node) == "batch_norm":
        _fold_batch_norm(graph_module, node)
        return
    constant_as_number(graph_module, node)
    fold_affine(graph_module, node)
    if kind(node) == "add" and node.users:
        merge_branches(graph_module, node)


def _products(graph_module: GraphModule, node: Node) -> None:
    (product_as_layer if kind(node) == "matmul" else layer_as_product)(graph_module, node)


def _without_useless_relu(graph_module: GraphModule, node: Node) -> None:
    if is_non_negative(tensor_inputs(node)[0]):
        node.replace_all_uses_with(tensor_inputs(node)[0])


_CONSTANTS = frozenset({"constants", "tables of positions"})

FOLDING: tuple[Rewrite, ...] = (
    Rewrite(
        name="constants",
        edit=edits(fold_constants),
        source="what is computed from constants alone is computed once, and a computed weight can be quantised",
    ),
    Rewrite(
        name="tables of positions",
        edit=edits(fold_batches),
        source="what repeats a constant for every image is a table for one",
        behind=frozenset({"constants"}),
    ),
    Rewrite(
        name="finite masks",
        edit=edits(finite_masks),
        source="minus infinity is no value that training may leave",
        behind=_CONSTANTS,
    ),
    Rewrite(
        name="weights per axis",
        edit=edits(own_weights_per_axis),
        source="a stored weight has one scale per output channel, along one axis",
        behind=_CONSTANTS,
    ),
    Rewrite(
        name="products and layers",
        edit=_each(_products, "matmul", "linear"),
        source="a constant matrix is a weight, and a computed weight is none",
        behind=_CONSTANTS,
    ),
    Rewrite(
        name="windows cut short",
        edit=_each(lambda module, node: cut_windows(module.graph, node), "average_pool", "max_pool"),
        source="runtimes disagree on windows beyond map and border, and on how many there are",
    ),
    Rewrite(
        name="borders as paddings",
        edit=_each(lambda module, node: take_border_in(module.graph, node), "pad"),
        source="a padding of its own reads and writes the map once more",
    ),
    Rewrite(
        name="layers",
        edit=_each(_layer_rule, "batch_norm", "add", "sub", "mul", "div"),
        source="BatchNorms, constants and parallel convolutions are part of one layer's weight and bias (rule 20)",
        behind=_CONSTANTS | {"weights per axis", "products and layers", "borders as paddings"},
    ),
    Rewrite(
        name="poolings",
        edit=_each(_canonical_pool, "mean", "average_pool", "adaptive_average_pool"),
        source="runtimes have integer kernels for averages over a whole map in one form alone (rule 17)",
        behind=frozenset({"borders as paddings"}),
    ),
    Rewrite(
        name="slopes",
        edit=_each(_one_slope, "prelu"),
        source="a leaky ReLU has integer kernels, a PReLU has none",
        behind=_CONSTANTS,
    ),
    Rewrite(
        name="useless ReLUs",
        edit=_each(_without_useless_relu, "relu"),
        source="a ReLU that no kernel performs runs in float",
        behind=frozenset({"poolings", "layers"}),
    ),
    Rewrite(
        name="activations before reshapes",
        edit=_each(activation_before_reshape, *POINTWISE),
        source="a kernel performs the activation that stands behind it",
        behind=frozenset({"layers", "useless ReLUs"}),
    ),
)
