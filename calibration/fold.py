"""BatchNorm disappears: into the layer before it, or into a depthwise 1x1 convolution of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from calibration.affine import fold_affine, fold_into, owns_weight, set_constants
from calibration.branches import merge_branches
from calibration.constants import finite_masks, fold_batches, fold_constants, own_weights_per_axis
from calibration.errors import UserError
from calibration.multipliers import constant_as_number
from calibration.operators import (
    argument,
    constant,
    is_non_negative,
    kind,
    make_graph_module,
    pair,
    shape,
    static_shape,
    tensor_inputs,
)
from calibration.own_borders import take_border_in
from calibration.products import layer_as_product, product_as_layer
from calibration.reshapes import activation_before_reshape
from calibration.sharing import sharing_copy

aten = torch.ops.aten


def fold(graph_module: GraphModule) -> GraphModule:
    """A copy in which every BatchNorm is part of a weighted layer and global poolings have one form.

    A BatchNorm whose input is a convolution, transposed convolution or linear layer read by nobody else is folded
    into that layer's weight and bias; any other becomes a depthwise 1x1 convolution, so that it too runs in integers.
    Constant tensors of one value that multiply or divide become numbers. Activations are computed before reshapes.
    Constants that are added to a layer's output, or multiply it, are folded likewise, and sums of parallel
    convolutions become one. PReLUs with one slope become leaky ReLUs, ReLUs of what is not negative disappear.
    Averages over a whole map become `adaptive_avg_pool2d(1)`, adaptive poolings of a map to its own size disappear,
    those to a part of it are average poolings, and what is computed from constants alone becomes a constant. Borders of
    zeros that are equal at both ends become the padding of the convolutions and average poolings that read them. Equal
    to the original up to float32 rounding. Raises UserError for a BatchNorm that has no running statistics. Weights
    that it leaves alone are in memory once.
    """
    graph_module = sharing_copy(graph_module)
    outputs = graph_module.meta["outputs"]
    fold_constants(graph_module)
    fold_batches(graph_module)
    finite_masks(graph_module)
    own_weights_per_axis(graph_module)
    graph_module.graph.eliminate_dead_code()  # what has become a constant is computed no more
    for node in list(graph_module.graph.nodes):
        if kind(node) == "batch_norm" and node.users:
            _fold_batch_norm(graph_module, node)
        elif kind(node) == "matmul":
            product_as_layer(graph_module, node)
        elif kind(node) == "linear":
            layer_as_product(graph_module, node)
        elif kind(node) in {"add", "sub", "mul", "div"}:
            constant_as_number(graph_module, node)
            fold_affine(graph_module, node)
        elif kind(node) in {"mean", "average_pool", "adaptive_average_pool"}:
            _canonical_pool(graph_module.graph, node)
        elif kind(node) == "pad":
            take_border_in(graph_module.graph, node)
        elif kind(node) == "prelu":
            _one_slope(graph_module, node)
        elif kind(node) == "relu" and is_non_negative(tensor_inputs(node)[0]):
            node.replace_all_uses_with(tensor_inputs(node)[0])
        if kind(node) == "add" and node.users:
            merge_branches(graph_module, node)
        activation_before_reshape(graph_module, node)
    folded = make_graph_module(graph_module, graph_module.graph)
    folded.meta["outputs"] = outputs
    return folded


def largest_difference(first: GraphModule, second: GraphModule, images: Tensor) -> float:
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


def _canonical_pool(graph: Graph, node: Node) -> None:
    """Rewrite a mean over height and width, or a pooling window as large as its map, as adaptive_avg_pool2d(1).

    An adaptive pooling of a map to its own size is dropped, as it averages single values; to a multiple, it repeats
    them; to a part, it is a pooling with equal windows.
    """
    source = node.args[0]
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
        wanted = pair(argument(node, 1, "size"))
        if wanted == sizes[2:]:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif all(want % size == 0 for want, size in zip(wanted, sizes[2:], strict=True)):
            # Every window is a single position: values are repeated, as by resizing to the nearest.
            node.target = aten.upsample_nearest2d.vec
            node.args, node.kwargs = (source, list(wanted), None), {}
        elif wanted != (1, 1) and all(size % want == 0 for want, size in zip(wanted, sizes[2:], strict=True)):
            node.target = aten.avg_pool2d.default
            kernel = [size // want for want, size in zip(wanted, sizes[2:], strict=True)]
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
