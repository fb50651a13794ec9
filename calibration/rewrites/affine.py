"""Multiplications and additions of constants disappear into the layer before them, as a BatchNorm does."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from calibration.graph.constants import new_constants
from calibration.graph.operators import (
    WEIGHTED,
    argument,
    axis_order,
    constant,
    kind,
    output_groups,
    static_shape,
    tensor_inputs,
)


def owns_weight(layer: Node) -> bool:
    """Whether the layer's weight is a constant that no other node reads."""
    weight = layer.args[1]
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return False
    readers = {
        user
        for node in layer.graph.nodes
        if node.op == "get_attr" and node.target == weight.target
        for user in node.users
    }
    return readers == {layer}


def fold_into(graph_module: GraphModule, layer: Node, multiplier: Tensor, offset: Tensor) -> None:
    """Let a weighted layer compute multiplier * output + offset; both [C], float64."""
    weight, bias = constant(graph_module, layer.args[1]), constant(graph_module, argument(layer, 2, "bias"))
    assert weight is not None
    folded = weight.detach().double()
    if kind(layer) == "conv_transpose":  # weight [Cin, Cout/groups, kh, kw]: output channels group by group
        groups = output_groups(layer)
        per_group = multiplier.reshape(groups, 1, -1, 1, 1)
        folded = (folded.reshape(groups, -1, *folded.shape[1:]) * per_group).reshape(folded.shape)
    else:
        folded = folded * multiplier.reshape(-1, *[1] * (folded.dim() - 1))
    shift = offset if bias is None else bias.detach().double() * multiplier + offset
    set_constants(graph_module, layer, folded.float(), shift.float())


def set_constants(graph_module: GraphModule, layer: Node, weight: Tensor, bias: Tensor) -> None:
    """Give a layer a weight and bias of its own, stored under the layer's name."""
    nodes = new_constants(graph_module, layer, {"weight": weight, "bias": bias}, holder="folded")
    layer.args = (layer.args[0], *nodes, *layer.args[3:])


def fold_affine(graph_module: GraphModule, node: Node) -> None:
    """Fold an addition or multiplication of a number or a constant per channel into the layer that it follows.

    Reshapes and transpositions may lie between them. A subtraction of a layer's output becomes an addition of the
    negated one. Left alone where no layer of its own comes before, or the constant is no number per channel.
    """
    sources = tensor_inputs(node)
    if kind(node) == "sub" and len(sources) == 2 == len(node.args):
        layer, _ = _layer_before(sources[1], None)
        # Of x - x the layer has one reader, which reads it twice: negated, it would be negated in both places.
        if layer is not None and len(sources[1].users) == 1 and sources[0] is not sources[1]:
            fold_into(graph_module, layer, *_per_channel(layer, torch.tensor(-1.0), torch.tensor(0.0)))
            node.target = torch.ops.aten.add.Tensor
        return
    if len(sources) != 1 or len(node.args) != 2 or (kind(node) == "div" and node.args[0] is not sources[0]):
        return
    (other,) = (operand for operand in node.args if operand is not sources[0])
    values = torch.tensor(float(other)) if isinstance(other, (int, float)) else constant(graph_module, other)
    if values is None or static_shape(sources[0]) != static_shape(node) or not values.is_floating_point():
        return
    values, rank = values.detach().double(), len(static_shape(node))
    axes = [rank - values.dim() + axis for axis, size in enumerate(values.shape) if size != 1]
    if len(axes) > 1:
        return
    layer, axis = _layer_before(sources[0], axes[0] if axes else None)
    if layer is None or (axes and axis != _channel_axis(layer)):
        return
    one, zero, vector = torch.tensor(1.0), torch.tensor(0.0), values.reshape(-1) if axes else values.reshape(())
    taken_away = (one, -vector) if node.args[0] is sources[0] else (-one, vector)
    affine = {"mul": (vector, zero), "div": (1 / vector, zero), "add": (one, vector), "sub": taken_away}
    fold_into(graph_module, layer, *_per_channel(layer, *affine[kind(node)]))
    node.replace_all_uses_with(sources[0])
    graph_module.graph.erase_node(node)


def _channel_axis(layer: Node) -> int:
    return len(static_shape(layer)) - 1 if kind(layer) == "linear" else 1


def _per_channel(layer: Node, *values: Tensor) -> list[Tensor]:
    return [value.double().expand(static_shape(layer)[_channel_axis(layer)]) for value in values]


def _layer_before(node: Node, axis: int | None) -> tuple[Node | None, int | None]:
    """The layer whose output this is, over movement that keeps `axis` whole and read by nobody else; the axis there."""
    while len(node.users) == 1:
        if kind(node) in WEIGHTED:
            return (node, axis) if owns_weight(node) else (None, None)
        if kind(node) not in {"reshape", "transpose"}:
            return None, None
        (source,) = tensor_inputs(node)
        if axis is not None:
            axis = _axis_before(node, source, axis)
            if axis is None:
                return None, None
        node = source
    return None, None


def _axis_before(node: Node, source: Node, axis: int) -> int | None:
    """The axis of a reshape's or transposition's input that is this axis of its output."""
    sizes, before = static_shape(node), static_shape(source)
    if kind(node) == "transpose":
        return axis_order(node)[axis]
    behind = math.prod(sizes[axis + 1 :])
    for candidate, size in enumerate(before):
        if size == sizes[axis] > 0 and behind > 0 and math.prod(before[candidate + 1 :]) == behind:
            return candidate
    return None
