"""BatchNorm disappears: into the layer before it, or into a depthwise 1x1 convolution of its own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from calibration.errors import UserError
from calibration.operators import attribute, constant, kind, make_graph_module, shape, static_shape

aten = torch.ops.aten


def fold(graph_module: GraphModule) -> GraphModule:
    """A copy in which every BatchNorm is part of a weighted layer and global poolings have one form.

    A BatchNorm whose input is a convolution, transposed convolution or linear layer read by nobody else is folded
    into that layer's weight and bias; any other becomes a depthwise 1x1 convolution, so that it too runs in
    integers. Averages over a whole map become `adaptive_avg_pool2d(1)`. Equal to the original up to float32
    rounding. Raises UserError for a BatchNorm that has no running statistics.
    """
    graph_module = copy.deepcopy(graph_module)
    outputs = graph_module.meta["outputs"]
    for node in list(graph_module.graph.nodes):
        if kind(node) == "batch_norm":
            _fold_batch_norm(graph_module, node)
        elif kind(node) in {"mean", "average_pool"}:
            _canonical_global_pool(graph_module.graph, node)
    folded = make_graph_module(graph_module, graph_module.graph)
    folded.meta["outputs"] = outputs
    return folded


def largest_difference(first: GraphModule, second: GraphModule, images: Tensor) -> float:
    """Largest absolute difference between two graphs' outputs, relative to the first one's largest output."""
    with torch.no_grad():
        pairs = list(zip(first(images), second(images), strict=True))
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in pairs)


def _affine(graph_module: GraphModule, node: Node) -> tuple[Tensor, Tensor]:
    """The multiplier and offset [C], float64, that a BatchNorm in evaluation mode applies."""
    _, gamma, beta, mean, variance, _, _, epsilon, *_ = node.args
    running_mean, running_variance = constant(graph_module, mean), constant(graph_module, variance)
    if running_mean is None or running_variance is None:
        raise UserError(f"{node.name}: a BatchNorm without running statistics cannot be folded; set track_running_stats")
    multiplier = (running_variance.double() + float(epsilon)).rsqrt()  # type: ignore[arg-type]  # fx arguments are untyped
    scale = constant(graph_module, gamma)
    if scale is not None:
        multiplier = multiplier * scale.detach().double()
    offset = -running_mean.double() * multiplier
    shift = constant(graph_module, beta)
    if shift is not None:
        offset = offset + shift.detach().double()
    return multiplier, offset


def _fold_batch_norm(graph_module: GraphModule, node: Node) -> None:
    multiplier, offset = _affine(graph_module, node)
    layer = node.args[0]
    assert isinstance(layer, Node)
    if kind(layer) in {"conv", "conv_transpose", "linear"} and len(layer.users) == 1 and _owns_weight(graph_module, layer):
        if kind(layer) == "linear" and len(shape(layer)) != 2:
            raise UserError(f"{node.name}: a BatchNorm over the tokens of a linear layer is not supported")
        _fold_into(graph_module, layer, multiplier, offset)
        node.replace_all_uses_with(layer)
    else:
        node.replace_all_uses_with(_as_depthwise(graph_module, node, multiplier, offset))
    graph_module.graph.erase_node(node)


def _owns_weight(graph_module: GraphModule, layer: Node) -> bool:
    """Whether the layer's weight is a constant that no other node reads."""
    weight = layer.args[1]
    if constant(graph_module, weight) is None or not isinstance(weight, Node):
        return False
    readers = {
        user
        for node in graph_module.graph.nodes
        if node.op == "get_attr" and node.target == weight.target
        for user in node.users
    }
    return readers == {layer}


def _fold_into(graph_module: GraphModule, layer: Node, multiplier: Tensor, offset: Tensor) -> None:
    weight, bias = constant(graph_module, layer.args[1]), None
    assert weight is not None
    if len(layer.args) > 2:
        bias = constant(graph_module, layer.args[2])
    folded = weight.detach().double()
    if kind(layer) == "conv_transpose":  # weight [Cin, Cout/groups, kh, kw]: output channels group by group
        groups = int(layer.args[6]) if len(layer.args) > 6 else 1  # type: ignore[arg-type]  # fx arguments are untyped
        per_group = multiplier.reshape(groups, 1, -1, 1, 1)
        folded = (folded.reshape(groups, -1, *folded.shape[1:]) * per_group).reshape(folded.shape)
    else:
        folded = folded * multiplier.reshape(-1, *[1] * (folded.dim() - 1))
    shift = offset if bias is None else bias.detach().double() * multiplier + offset
    _set_constants(graph_module, layer, folded.float(), shift.float())


def _set_constants(graph_module: GraphModule, layer: Node, weight: Tensor, bias: Tensor) -> None:
    """Give a layer a weight and bias of its own, stored under the layer's name."""
    holder = nn.Module()
    holder.weight, holder.bias = nn.Parameter(weight), nn.Parameter(bias)
    graph_module.add_module(f"{layer.name}_folded", holder)
    with graph_module.graph.inserting_before(layer):
        nodes = []
        for name in ("weight", "bias"):
            node = graph_module.graph.get_attr(f"{layer.name}_folded.{name}")
            node.meta["val"] = attribute(graph_module, str(node.target))
            nodes.append(node)
    layer.args = (layer.args[0], *nodes, *layer.args[3:])


def _as_depthwise(graph_module: GraphModule, node: Node, multiplier: Tensor, offset: Tensor) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    graph = graph_module.graph
    if len(shape(source)) != 4:
        raise UserError(f"{node.name}: a BatchNorm over {len(shape(source))} dimensions with no layer before it is not supported")
    channels = multiplier.numel()
    with graph.inserting_before(node):
        layer = graph.call_function(aten.conv2d.default, (source, None, None, [1, 1], [0, 0], [1, 1], channels))
    layer.meta = dict(node.meta)
    layer._rename(node.name)
    _set_constants(graph_module, layer, multiplier.float().reshape(channels, 1, 1, 1), offset.float())
    return layer


def _canonical_global_pool(graph: Graph, node: Node) -> None:
    """Rewrite a mean over height and width, or a pooling window as large as its map, as adaptive_avg_pool2d(1)."""
    source = node.args[0]
    assert isinstance(source, Node)
    sizes = static_shape(source)
    if len(sizes) != 4:
        return
    keeps = True
    if kind(node) == "mean":
        axes = node.args[1]
        if not isinstance(axes, (list, tuple)) or sorted(int(axis) % 4 for axis in axes) != [2, 3]:  # type: ignore[arg-type]
            return
        keeps = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    else:
        window = node.args[1]
        padding = node.args[3] if len(node.args) > 3 else [0, 0]
        if list(window) not in ([sizes[2], sizes[3]], [sizes[2]] if sizes[2] == sizes[3] else None) or any(padding):  # type: ignore[arg-type]
            return
    with graph.inserting_before(node):
        pooled = graph.call_function(aten.adaptive_avg_pool2d.default, (source, [1, 1]))
        pooled.meta = dict(node.meta)
        pooled.meta["val"] = source.meta["val"].new_empty((*shape(source)[:2], 1, 1))
        result = pooled
        if not keeps:
            result = graph.call_function(aten.flatten.using_ints, (pooled, 1))
            result.meta = dict(node.meta)
    name = node.name
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    pooled._rename(name)
