"""A linear layer whose result is taken apart, as into query, key and value, as one layer for each part.

For runtimes whose compiler would take such a layer apart by itself, after its weights have become floats again. The
same sums of the same products: a part is some of the output channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from calibration.graph.constants import new_constants
from calibration.graph.operators import argument, axis_order, constant, kind, static_shape
from calibration.normal_form.decompositions import before
from calibration.rewrites.affine import owns_weight
from calibration.rewrites.multipliers import NUMBERS_BEFORE_PRODUCTS
from calibration.rewrites.rewrite import Rewrite

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What a node takes out of a tensor: indices `start` to `stop` of an axis; `drops`: the axis itself goes too."""

    node: Node
    axis: int
    start: int
    stop: int
    drops: bool


def _layers_per_part(graph_module: GraphModule) -> bool:
    """Make layers over tokens whose channels are taken apart one layer per part.

    That is all whose parts are selected, sliced or split off behind a reshape and a transposition at most, and whose
    weights nobody else reads.
    """
    changed = False
    for node in list(graph_module.graph.nodes):
        if _parts(node):
            _rewrite(graph_module, node)
            changed = True
    return changed


def _moves(layer: Node) -> list[Node]:
    """The reshape and the transposition behind a layer, each where there is one and nobody else reads its input."""
    moves, node = list[Node](), layer
    for word in ("reshape", "transpose"):
        user = next(iter(node.users), None)
        if len(node.users) == 1 and user is not None and kind(user) == word:
            moves.append(user)
            node = user
    return moves


def _parts(layer: Node) -> list[_Part]:
    """The parts that a linear layer's channels are taken apart into, all along one axis; none where it is not so."""
    if kind(layer) != "linear" or not owns_weight(layer):
        return []
    whole = [layer, *_moves(layer)][-1]
    parts = [part for reader in whole.users for part in _taken(reader)]
    if not parts or any(not _taken(reader) for reader in whole.users):
        return []
    axis, taken = parts[0].axis, sorted((part.start, part.stop) for part in parts)
    if len(taken) < 2 or any(part.axis != axis for part in parts) or _factor(layer, axis) is None:
        return []
    # Of parts that overlap the products would be computed twice.
    return parts if all(first[1] <= second[0] for first, second in pairwise(taken)) else []


def _taken(reader: Node) -> list[_Part]:
    """What a node takes out of the tensor that it reads; nothing where it does more than take."""
    if kind(reader) == "split":
        return _split_off(reader)
    source = reader.args[0]
    if not isinstance(source, Node) or reader.target not in (aten.select.int, aten.slice.Tensor):
        return []
    sizes = static_shape(source)
    axis = int(argument(reader, 1, "dim", 0)) % len(sizes)
    bounds = [argument(reader, 2, "start"), argument(reader, 3, "end")]
    if sizes[axis] <= 0 or any(isinstance(bound, Node) for bound in bounds):
        return []
    if reader.target is aten.select.int:
        index = int(argument(reader, 2, "index")) % sizes[axis]
        return [_Part(node=reader, axis=axis, start=index, stop=index + 1, drops=True)]
    if argument(reader, 4, "step", 1) != 1:
        return []
    start, stop, _ = slice(*bounds).indices(sizes[axis])
    return [_Part(node=reader, axis=axis, start=start, stop=stop, drops=False)]


def _split_off(reader: Node) -> list[_Part]:
    axis = int(argument(reader, 2, "dim", 0)) % len(reader.meta["val"][0].shape)
    ends, parts = [0], []
    for value in reader.meta["val"]:
        ends.append(ends[-1] + int(value.shape[axis]))
    for item in reader.users:
        index = int(argument(item, 1, "b"))
        parts.append(_Part(node=item, axis=axis, start=ends[index], stop=ends[index + 1], drops=False))
    return parts


def _factor(layer: Node, axis: int) -> int | None:
    """Of an axis behind a layer's moves its place among those that the output channels are reshaped to, or None."""
    moves, sizes, channels = _moves(layer), static_shape(layer), static_shape(layer)[-1]
    for move in moves:
        if kind(move) == "transpose":
            axis = axis_order(move)[axis]
        else:
            sizes = static_shape(move)
    if sizes.count(-1) > 1:
        return None
    first = _first_channel_axis(sizes, channels)
    return axis - first if first is not None and axis >= first else None


def _first_channel_axis(sizes: tuple[int, ...], channels: int) -> int | None:
    """Where the last axes begin that all the output channels, and nothing else, are reshaped to."""
    return next(
        (k for k in reversed(range(len(sizes))) if math.prod(sizes[k:]) == channels and min(sizes[k:]) > 0), None
    )


def _rewrite(graph_module: GraphModule, layer: Node) -> None:
    weight, bias = constant(graph_module, layer.args[1]), constant(graph_module, argument(layer, 2, "bias"))
    moves, parts, source = _moves(layer), _parts(layer), layer.args[0]
    assert weight is not None and isinstance(source, Node)
    reshaped = [move for move in moves if kind(move) == "reshape"]
    sizes = static_shape(reshaped[0] if reshaped else layer)
    first = _first_channel_axis(sizes, len(weight))
    place = _factor(layer, parts[0].axis)
    assert first is not None and place is not None
    for index, part in enumerate(parts):
        rows = torch.arange(len(weight)).reshape(sizes[first:]).narrow(place, part.start, part.stop - part.start)
        constants = {"weight": weight.detach()[rows.reshape(-1)]}
        if bias is not None:
            constants["bias"] = bias.detach()[rows.reshape(-1)]
        own_layer = _layer(graph_module, layer, constants, index)
        own_sizes = list(sizes)
        own_sizes[first + place] = part.stop - part.start
        order = axis_order(moves[-1]) if moves and kind(moves[-1]) == "transpose" else list(range(len(sizes)))
        if part.drops:
            del own_sizes[first + place]
            order = [axis - (axis > first + place) for axis in order if axis != first + place]
        _moved(part.node, own_layer, own_sizes, order)


def _layer(graph_module: GraphModule, layer: Node, constants: dict[str, Tensor], index: int) -> Node:
    """Write, before a layer, one of the same input with weight and bias of its own."""
    stored = new_constants(graph_module, layer, constants, holder="part")
    with layer.graph.inserting_before(layer):
        arguments = (layer.args[0], *stored)
        node = layer.graph.create_node("call_function", layer.target, arguments, name=f"{layer.name}_{index}")
    value: Any = layer.meta["val"]
    node.meta = dict(layer.meta) | {"val": value.new_empty((value.shape[0], len(constants["weight"])))}
    return node


def _moved(taking: Node, part: Node, sizes: list[int], order: list[int]) -> None:
    """Let what took a part be the part, brought into the form that it had."""
    steps: list[tuple[Any, tuple[Any, ...]]] = []
    if list(static_shape(part)) != sizes:
        steps.append((aten.reshape.default, (sizes,)))
    if order != sorted(order):
        steps.append((aten.permute.default, (order,)))
    for target, arguments in steps[:-1]:
        part = before(taking.graph, taking, target, (part, *arguments))
    if steps:
        # The last one has the name of what it stands for.
        taking.target, taking.args, taking.kwargs = steps[-1][0], (part, *steps[-1][1]), {}
    else:
        taking.replace_all_uses_with(part)
        taking.graph.erase_node(taking)


LAYERS_PER_PART = Rewrite(
    name="layers per part",
    edit=_layers_per_part,
    source="the compiler takes the layer apart by itself, and expands its weight to floats for that (rule 37)",
    behind=frozenset({NUMBERS_BEFORE_PRODUCTS.name}),
)
