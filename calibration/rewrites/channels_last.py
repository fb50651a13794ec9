"""Maps taken apart into rows of positions, and put together from them, in the order in which runtimes hold maps.

Kernels for 8-bit convolutions hold a map with its channels last: [B, H, W, C]. Attention over positions reshapes
[B, C, H, W], channels first, and exchanges axes then, so the runtime must move the map before, and once more behind it.
Reshaped with channels last, one transposition remains of the two, or none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch.fx import GraphModule, Node

from calibration.graph.operators import axis_order, kind, static_shape, tensor_inputs
from calibration.normal_form.decompositions import before
from calibration.rewrites.multipliers import NUMBERS_BEFORE_PRODUCTS
from calibration.rewrites.parts import LAYERS_PER_PART
from calibration.rewrites.rewrite import Rewrite
from calibration.rewrites.subpixel import TRANSPOSED_AS_CONVOLUTIONS

aten = torch.ops.aten

_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # axes of a map with channels first to one with channels last, and back
#: What computes a map from maps of the same layout, position by position or channel by channel.
_KEEPS_LAYOUT = frozenset(
    {"relu", "clip", "leaky_relu", "sigmoid", "hardsigmoid", "gelu", "tanh", "elu", "add", "sub", "mul"}
    | {"average_pool", "max_pool", "concat", "split", "item", "pad", "resize_nearest", "resize_bilinear"}
)
# ONNX Runtime copies block by block what is no transposition of matrices, about 9 ns each. Measured, 64 KiB: 38 us in
# blocks of 16 bytes, where the two transpositions of matrices that they are instead of take 13.
_LEAST_BLOCK = 32


def _rows_of_channels_last(graph_module: GraphModule) -> bool:
    """Take rows from maps with channels last, and make them into such.

    That is where a convolution computes or reads the map and a transposition stands behind the reshape, or before it,
    and between two transpositions, as from windows to other windows.
    """
    reshapes = [node for node in graph_module.graph.nodes if kind(node) == "reshape"]
    return any([_to_rows(node) or _to_map(node) or _to_other_rows(node) for node in reshapes])


def _to_rows(reshape: Node) -> bool:
    """Rewrite a reshape of a convolution's map with the transposition that alone reads it."""
    turn, (source, *_), sizes = _turn_behind(reshape), tensor_inputs(reshape) or [reshape], static_shape(reshape)
    end = _end_of_channels(static_shape(source), sizes)
    if turn is None or end is None or not _meets_convolution([source], forward=False):
        return False
    order = _channels_behind(len(sizes), end)
    moved = [order.index(axis) for axis in axis_order(turn)]
    if not _in_blocks(moved, [sizes[axis] for axis in order], turn.users):
        return False
    last = before(turn.graph, turn, aten.permute.default, (source, _LAST))
    _turn(turn, before(turn.graph, turn, aten.reshape.default, (last, [sizes[axis] for axis in order])), moved)
    return True


def _to_map(reshape: Node) -> bool:
    """Rewrite a reshape to a map that a convolution reads with the transposition that it alone reads."""
    turn, sizes = _turn_before(reshape), static_shape(reshape)
    end = _end_of_channels(sizes, static_shape(turn)) if turn is not None else None
    if turn is None or end is None or not _meets_convolution(reshape.users, forward=True):
        return False
    axes = axis_order(turn)
    moved = [axes[axis] for axis in _channels_behind(len(axes), end)]
    if not _in_blocks(moved, static_shape(tensor_inputs(turn)[0])):
        return False
    _turn(turn, tensor_inputs(turn)[0], moved)
    arguments = (reshape.args[0], [sizes[axis] for axis in _LAST])
    last = before(reshape.graph, reshape, aten.reshape.default, arguments)
    reshape.target, reshape.args, reshape.kwargs = aten.permute.default, (last, _FIRST), {}
    return True


def _to_other_rows(reshape: Node) -> bool:
    """Rewrite a reshape between two transpositions, of which one has channels last before it and one behind it."""
    first, second = _turn_before(reshape), _turn_behind(reshape)
    if first is None or second is None:
        return False
    axes, axes_behind = axis_order(first), axis_order(second)
    sizes, rank = static_shape(reshape), len(axes)
    split = _channels_and_positions(static_shape(first), sizes)
    if split is None or axes[1 : split[0]] != list(range(rank + 1 - split[0], rank)):
        return False
    if axes_behind[1 - split[1] :] != list(range(1, split[1])):
        return False
    order = _channels_behind(len(sizes), split[1])
    _turn(first, first.args[0], [axes[axis] for axis in _channels_behind(rank, split[0])])
    arguments = (reshape.args[0], [sizes[axis] for axis in order])
    rows = before(second.graph, second, aten.reshape.default, arguments)
    _turn(second, rows, [order.index(axis) for axis in axes_behind])
    return True


def _turn_behind(reshape: Node) -> Node | None:
    """The transposition that alone reads a reshape."""
    reader = next(iter(reshape.users), None)
    return reader if reader is not None and kind(reader) == "transpose" and len(reshape.users) == 1 else None


def _turn_before(reshape: Node) -> Node | None:
    """The transposition that a reshape alone reads."""
    source = reshape.args[0]
    return source if isinstance(source, Node) and kind(source) == "transpose" and len(source.users) == 1 else None


def _turn(turn: Node, source: object, order: list[int]) -> None:
    """Make a transposition read another tensor in another order; one that moves nothing falls away."""
    assert isinstance(source, Node)
    if order == sorted(order):
        turn.replace_all_uses_with(source)
        turn.graph.erase_node(turn)
        return
    turn.target, turn.args, turn.kwargs = aten.permute.default, (source, order), {}
    turn.meta["val"] = aten.permute.default(source.meta["val"], order)


def _end_of_channels(image: Sequence[int], apart: Sequence[int]) -> int | None:
    """Where the axes of channels end in the shape that a map [B, C, H, W] has when taken apart."""
    split = _channels_and_positions(image, apart)
    return split[1] if split is not None and split[0] == 2 and len(image) == 4 else None


def _channels_and_positions(sizes: Sequence[int], others: Sequence[int]) -> tuple[int, int] | None:
    """Where the axes of channels end in two shapes of one tensor [B, channels, positions], the earliest that fit.

    None where an axis mixes the two, or a size but the batch's is free.
    """
    if min(len(sizes), len(others)) < 3 or sizes[0] != others[0] or min(*sizes[1:], *others[1:]) <= 0:
        return None
    ends = {math.prod(others[1:end]): end for end in reversed(range(2, len(others)))}
    fits = [(end, ends[count]) for end in range(2, len(sizes)) if (count := math.prod(sizes[1:end])) in ends]
    return fits[0] if fits else None


def _channels_behind(rank: int, end: int) -> list[int]:
    """The axes of a tensor, those of channels, 1 to `end`, behind those of positions."""
    return [0, *range(end, rank), *range(1, end)]


def _in_blocks(order: list[int], sizes: Sequence[int], readers: Iterable[Node] = ()) -> bool:
    """Whether a transposition moves nothing, or blocks of its last axis that are long even where readers split it."""
    parts = [int(part.shape[-1]) for node in readers if kind(node) == "split" for part in node.meta["val"]]
    return order == sorted(order) or (order[-1] == len(order) - 1 and min([sizes[-1], *parts]) >= _LEAST_BLOCK)


def _meets_convolution(nodes: Iterable[Node], *, forward: bool) -> bool:
    """Whether a convolution is among the nodes, or before or behind them with nothing that needs channels first."""
    stack, seen = list(nodes), set[Node]()
    while stack:
        node = stack.pop()
        if kind(node) == "conv":
            return True
        if kind(node) in _KEEPS_LAYOUT and node not in seen:
            seen.add(node)
            stack += node.users if forward else tensor_inputs(node)
    return False


ROWS_OF_CHANNELS_LAST = Rewrite(
    name="rows of maps with channels last",
    edit=_rows_of_channels_last,
    source="the runtime gives every integer convolution a map with channels last (measured beside the profiles)",
    behind=frozenset({TRANSPOSED_AS_CONVOLUTIONS.name, NUMBERS_BEFORE_PRODUCTS.name, LAYERS_PER_PART.name}),
)
