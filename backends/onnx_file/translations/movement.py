"""Translations of what moves values without computing any."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from backends.onnx_file.shapes import shape_of, stored
from backends.onnx_file.translations.common import NEXT_TO_NOTHING, input_of
from backends.onnx_file.writer import Writer
from calibration.graph.operators import (
    MOVEMENT,
    WEIGHTED,
    argument,
    axis_order,
    constant,
    is_non_negative,
    kind,
    static_shape,
    tensor_inputs,
)

aten = torch.ops.aten


def reshape(e: Writer, node: Node) -> list[str]:
    """Flatten or Reshape, one dimension free at most."""
    sizes = shape_of(e, node)
    if node.target is aten.flatten.using_ints and len(sizes) == 2 and int(argument(node, 1, "start_dim", 0)) == 1:
        return e.add("Flatten", [e.read(input_of(node))], axis=1)
    shape = e.int64s(sizes) if sizes.count(-1) <= 1 else _computed_sizes(e, node)
    return e.add("Reshape", [e.read(input_of(node)), shape])


def _computed_sizes(e: Writer, node: Node) -> str:
    """The sizes of a reshape with several free ones: each is a size of the input, all but one that is inferred."""
    source, parts, inferred = input_of(node), list[str](), 0
    before, after = ((), ()) if e.free is None else (e.free.sizes[source.name], e.free.sizes[node.name])
    for axis, size in enumerate(shape_of(e, node)):
        # Of sizes that are equal, that at the same place from the end: height and width stand there.
        places = [place for place, pair in enumerate(before) if pair == after[axis]]
        if size >= 0:
            parts.append(e.int64s([size]))
        elif places:
            start = min(places, key=lambda place: abs((len(before) - place) - (len(after) - axis)))
            parts += e.add("Shape", [stored(e, [source.name])], suffix=f"_size_{axis}", start=start, end=start + 1)
        else:
            parts.append(e.int64s([-1]))
            inferred += 1
    if inferred > 1:
        raise e.unsupported("a reshape with more than one free dimension has no translation to ONNX")
    return e.add("Concat", parts, suffix="_sizes", axis=0)[0]


def transpose(e: Writer, node: Node) -> list[str]:
    """Transpose; of channels that became positions one and a Max of a row of lowest numbers, where the form asks so."""
    size = static_shape(node)[-1]
    if not e.form.turned_apart or e.moves_integers(node) or size < 2 or not _is_spread_and_changed(node):
        return e.add("Transpose", [e.read(input_of(node))], perm=axis_order(node))
    (turned,) = e.add("Transpose", [e.read(input_of(node))], perm=axis_order(node), suffix="_turned")
    row = np.full(size, np.finfo(np.float32).min, np.float32)
    return e.add("Max", [turned, e.constant(row, f"f32_lowest_x{size}")])


def _is_spread_and_changed(node: Node) -> bool:
    """Whether it turns channels that became positions, and what reads it computes with single values."""
    source = input_of(node)
    while kind(source) in ("reshape", "transpose"):
        source = input_of(source)
    return kind(source) == "depth_to_space" and _is_changed(node)


def _is_changed(node: Node) -> bool:
    return any(
        _is_changed(user) if kind(user) == "reshape" else kind(user) not in MOVEMENT | WEIGHTED | {"output"}
        for user in node.users
    )


def slice_axis(e: Writer, node: Node) -> list[str]:
    """Slice of one axis."""
    axis, start = int(argument(node, 1, "dim", 0)), argument(node, 2, "start")
    end, step = argument(node, 3, "end"), int(argument(node, 4, "step", 1))
    for bound in (start, end):
        if isinstance(bound, Node):
            raise e.unsupported("a slice whose bounds depend on the batch size has no translation to ONNX")
    bounds = [[start or 0], [sys.maxsize if end is None else end], [axis], [step]]
    return e.add("Slice", [e.read(input_of(node)), *(e.int64s(bound) for bound in bounds)])


def flip(e: Writer, node: Node) -> list[str]:
    """Slice backwards."""
    axes = [int(axis) for axis in argument(node, 1, "dims")]
    bounds = [[-1] * len(axes), [-sys.maxsize] * len(axes), axes, [-1] * len(axes)]
    return e.add("Slice", [e.read(input_of(node)), *(e.int64s(bound) for bound in bounds)])


def index_select(e: Writer, node: Node) -> list[str]:
    """Gather at constant places; of all channels in another order in two halves: any runtime may read a float file."""
    axis, places = int(argument(node, 1, "dim")), constant(e.module, argument(node, 2, "index"))
    if places is None:
        raise e.unsupported("indices that are computed at run time have no translation to ONNX")
    order = places.cpu().numpy().astype(np.int64)
    in_halves = e.form.orders_in_halves or not e.moves_integers(node)
    if in_halves and axis == 1 and _is_reordering(order, static_shape(node)[1]):
        halves = [e.constant(half, f"{node.name}_places_{i}") for i, half in enumerate(np.array_split(order, 2))]
        parts = [e.add("Gather", [e.read(input_of(node)), half], axis=1, suffix=half[-2:])[0] for half in halves]
        return e.add("Concat", parts, axis=1)
    stored = e.constant(order, f"{node.name}_places")
    return e.add("Gather", [e.read(input_of(node)), stored], axis=axis)


def _is_reordering(order: np.ndarray[Any, Any], channels: int) -> bool:
    """Whether places are all channels in an order that is not its own inverse."""
    return sorted(order) == list(range(channels)) and not np.array_equal(order[order], np.arange(channels))


def select(e: Writer, node: Node) -> list[str]:
    """Gather of one index."""
    axis, index = int(argument(node, 1, "dim")), int(argument(node, 2, "index"))
    return e.add("Gather", [e.read(input_of(node)), e.constant(np.array(index, np.int64), f"index_{index}")], axis=axis)


def split(e: Writer, node: Node) -> list[str]:
    """Split; of one part, nothing."""
    axis = int(argument(node, 2, "dim", 0))
    sizes = [int(part.shape[axis]) for part in node.meta["val"]]
    if len(sizes) == 1:
        return e.add("Identity", [e.read(input_of(node))])
    return e.add("Split", [e.read(input_of(node)), e.int64s(sizes)], outputs=len(sizes), axis=axis)


def item(e: Writer, node: Node) -> list[str]:
    """One of the tensors that a split gave."""
    return [e.lists[input_of(node)][int(argument(node, 1, "b"))]]


def pad(e: Writer, node: Node) -> list[str]:
    """Pad; its border is zero in the units of its input."""
    amounts = [int(amount) for amount in argument(node, 1, "pad")]
    mode = str(argument(node, 2, "mode", "constant")) if node.target is aten.pad.default else "constant"
    value = argument(node, 3 if node.target is aten.pad.default else 2, "value", 0.0) or 0.0
    if mode not in {"constant", "reflect", "replicate"}:
        raise e.unsupported(f"padding mode {mode} has no translation to ONNX")
    rank = len(static_shape(node))
    begins, ends = [0] * rank, [0] * rank
    for index in range(len(amounts) // 2):  # torch lists the last axis first
        begins[rank - 1 - index], ends[rank - 1 - index] = amounts[2 * index], amounts[2 * index + 1]
    inputs = [e.read(input_of(node)), e.int64s(begins + ends)]
    if mode == "constant":
        inputs.append(_border(e, node, float(value)))
    return e.add("Pad", inputs, mode={"replicate": "edge"}.get(mode, mode))


def _border(e: Writer, node: Node, value: float) -> str:
    """The constant around a map, in the units of what is padded; what copies its border from the map asks for none."""
    if value != 0.0:
        return e.scalar(value)
    if e.form.borders_next_to_zero and not e.moves_integers(node) and _is_averaged(node):
        return e.scalar(NEXT_TO_NOTHING)
    return e.border(input_of(node))


def _is_averaged(pad: Node) -> bool:
    """Whether an average pooling reads a border around values that may be negative."""
    return not is_non_negative(pad) and any(kind(user) == "average_pool" for user in pad.users)


def concat(e: Writer, node: Node) -> list[str]:
    """Concat; in float one and a Max of the lowest number, where the form keeps what follows apart from it."""
    parts = node.args[0]
    assert isinstance(parts, (list, tuple))
    names = [e.read(part) for part in parts if isinstance(part, Node)]
    axis = int(argument(node, 1, "dim", 0)) % len(static_shape(node))
    numbers = e.form.joins_apart and axis != 1 and any(map(_is_by_a_number, node.users))
    rounded = e.form.rounded_joins_apart and node.name in e.placements and (axis != 1 or _is_taken_apart(node))
    if e.moves_integers(node) or not (numbers or rounded):
        return e.add("Concat", names, axis=axis)
    (joined,) = e.add("Concat", names, axis=axis, suffix="_joined")
    return e.add("Max", [joined, e.lowest])


def _is_by_a_number(node: Node) -> bool:
    return kind(node) in ("add", "sub", "mul", "div") and len(tensor_inputs(node)) == 1


def _is_taken_apart(node: Node) -> bool:
    """Whether something moves it, or its maxima, but for paddings."""
    return any(
        _is_taken_apart(user) if kind(user) in ("max_pool", "pad") else kind(user) in MOVEMENT for user in node.users
    )


def expand(e: Writer, node: Node) -> list[str]:
    """Expand, to the batch of the input where that is free."""
    sizes = shape_of(e, node)
    if sizes.count(-1) > 1:
        raise e.unsupported("an expansion with more than one free dimension has no translation to ONNX")
    if -1 not in sizes:
        return e.add("Expand", [e.read(input_of(node)), e.int64s(sizes)])
    if e.form.spreads_by_values:
        return _spread(e, node, sizes)
    # The free dimension is the batch: it is read from the network's input.
    (batch,) = e.add("Shape", [e.first_input], suffix="_batch", start=0, end=1)
    axis = sizes.index(-1)
    before, behind = ([e.int64s(part)] if part else [] for part in (sizes[:axis], sizes[axis + 1 :]))
    parts = [*before, batch, *behind]
    (shape,) = e.add("Concat", parts, suffix="_sizes", axis=0)
    return e.add("Expand", [e.read(input_of(node)), shape])


def _spread(e: Writer, node: Node, sizes: Sequence[int]) -> list[str]:
    """Expand of all axes but the batch, and an addition of zeros, one for each image, where the source has no batch."""
    source, axis = static_shape(input_of(node)), list(sizes).index(-1)
    one = [1 if size == -1 else size for size in sizes]
    has_batch = len(source) - len(sizes) + axis >= 0 and source[len(source) - len(sizes) + axis] == -1
    spread = e.add("Expand", [e.read(input_of(node)), e.int64s(one)], suffix="" if has_batch else "_once")
    if has_batch:
        return spread
    others = list(range(1, e.input_rank))
    bounds = [[0] * len(others), [1] * len(others), others, [1] * len(others)]
    (corner,) = e.add("Slice", [e.first_input, *(e.int64s(bound) for bound in bounds)], suffix="_corner")
    (aligned,) = e.add("Reshape", [corner, e.int64s([1 if size != -1 else -1 for size in sizes])], suffix="_aligned")
    (zeros,) = e.add("Mul", [aligned, e.scalar(0.0)], suffix="_zeros")
    return e.add("Add", [zeros, *spread])


def depth_to_space(e: Writer, node: Node) -> list[str]:
    """DepthToSpace in torch's order."""
    factor = int(argument(node, 1, "upscale_factor"))
    return e.add("DepthToSpace", [e.read(input_of(node))], blocksize=factor, mode="CRD")


def channel_shuffle(e: Writer, node: Node) -> list[str]:
    """Reshape, Transpose, Reshape, or of integers a Gather of channels, which takes half the time and any size."""
    groups = int(argument(node, 1, "groups"))
    _, channels, height, width = shape_of(e, node)
    if e.moves_integers(node) or min(height, width) < 0:
        order = np.arange(channels, dtype=np.int64).reshape(groups, -1).T.reshape(-1)
        places = e.constant(order, f"shuffle_{channels}_in_{groups}")
        return e.add("Gather", [e.read(input_of(node)), places], axis=1)
    apart: Sequence[int] = (-1, groups, channels // groups, height, width)
    (split,) = e.add("Reshape", [e.read(input_of(node)), e.int64s(apart)], suffix="_apart")
    (turned,) = e.add("Transpose", [split], suffix="_turned", perm=[0, 2, 1, 3, 4])
    return e.add("Reshape", [turned, e.int64s((-1, channels, height, width))])
