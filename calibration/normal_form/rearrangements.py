"""What moves values in ways of its own, as slices, concatenations and gathers: resizing, borders, windows, writes.

Spellings of the normal form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.fx import Graph, Node

from calibration.graph.factors import nearest_places, written_factor
from calibration.graph.operators import argument, pair, static_shape
from calibration.normal_form.places import picked, with_part
from calibration.normal_form.spellings import Spelling, Write, rule_of, source_of

aten = torch.ops.aten


def _nearest_exact(w: Write, node: Node) -> Node | None:
    """Resizing to the nearest, where pixels are areas: repetition by whole factors, else picked rows and columns.

    Source: torch's UpSample.h, nearest_neighbor_exact_compute_source_index, in float32 as there.
    """
    source = source_of(node)
    before, sizes = static_shape(source)[2:], static_shape(node)[2:]
    if len(before) not in (1, 2) or min(*before, *sizes) < 1:
        return None
    factors = argument(node, 2, "scale_factors")
    if len(before) == 2 and all(size % old == 0 for size, old in zip(sizes, before, strict=True)):
        return w(aten.upsample_nearest2d.vec, source, list(sizes), None)
    for axis, (size, old) in enumerate(zip(sizes, before, strict=True)):
        step = np.float32(old) / np.float32(size) if factors is None else np.float32(1.0 / float(factors[axis]))
        places = [min(int(np.float32(np.float32(i + 0.5) * step)), old - 1) for i in range(size)]
        source = picked(w, source, axis + 2, places)
    return source


def _nearest(w: Write, node: Node) -> Node | None:
    """Resizing to the nearest, as picked rows and columns where no factor in float32 says size and places both."""
    source, factors = source_of(node), argument(node, 2, "scale_factors")
    before, sizes = static_shape(source)[2:], static_shape(node)[2:]
    if min(*before, *sizes) < 1:
        return None
    exact = [size / old for size, old in zip(sizes, before, strict=True)]
    if factors is not None and any(old * own != size for old, own, size in zip(before, factors, sizes, strict=True)):
        return None  # the factor itself is written
    if all(written_factor(old, size, one, nearest=True) for old, size, one in zip(before, sizes, exact, strict=True)):
        return None
    for axis, (size, old) in enumerate(zip(sizes, before, strict=True)):
        step = np.float32(old) / np.float32(size) if factors is None else np.float32(1.0 / float(factors[axis]))
        source = picked(w, source, axis + 2, nearest_places(old, size, step).tolist())
    return source


def _circular_border(w: Write, node: Node) -> Node | None:
    """A border of what lies at the other end."""
    source, amounts = source_of(node), [int(amount) for amount in argument(node, 1, "pad")]
    rank = len(static_shape(node))
    for place in range(len(amounts) // 2):
        axis, length = rank - 1 - place, static_shape(source)[rank - 1 - place]
        start, end = amounts[2 * place : 2 * place + 2]
        if length < max(start, end, 1) or min(start, end) < 0:
            return None
        head = [w(aten.slice.Tensor, source, axis, length - start, length)] if start else []
        tail = [w(aten.slice.Tensor, source, axis, 0, end)] if end else []
        source = w(aten.cat.default, [*head, source, *tail], axis) if head or tail else source
    return source


def _windows(w: Write, node: Node) -> Node | None:
    """Windows of a map as rows of channels: a reshape where they tile it, else one slice per place in the window."""
    source = source_of(node)
    kernel, dilation, padding, stride = (pair(argument(node, place, "")) for place in range(1, 5))
    if len(static_shape(source)) != 4 or min(static_shape(source)[1:]) < 1:
        return None
    if any(padding):
        border = [padding[1], padding[1], padding[0], padding[0]]
        source = w(aten.constant_pad_nd.default, source, border, 0.0)
    _, channels, *sizes = static_shape(source)
    counts = [(n - d * (k - 1) - 1) // s + 1 for n, k, d, s in zip(sizes, kernel, dilation, stride, strict=True)]
    result = [-1, channels * kernel[0] * kernel[1], counts[0] * counts[1]]
    if (
        kernel == stride
        and dilation == (1, 1)
        and all(n == c * k for n, c, k in zip(sizes, counts, kernel, strict=True))
    ):
        apart = w(aten.reshape.default, source, [-1, channels, counts[0], kernel[0], counts[1], kernel[1]])
        return w(aten.reshape.default, w(aten.permute.default, apart, [0, 1, 3, 5, 2, 4]), result)
    parts = []
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            part = source
            for axis, place in ((2, row), (3, column)):
                start = place * dilation[axis - 2]
                end = start + (counts[axis - 2] - 1) * stride[axis - 2] + 1
                part = w(aten.slice.Tensor, part, axis, start, end, stride[axis - 2])
            parts.append(w(aten.unsqueeze.default, part, 2))
    return w(aten.reshape.default, w(aten.cat.default, parts, 2), result)


def _windows_of_axis(w: Write, node: Node) -> Node | None:
    """Windows along one axis: its places once for each window that they are in, and those of a window apart, last."""
    source, axis = source_of(node), int(argument(node, 1, "dimension")) % len(static_shape(source_of(node)))
    sizes, size, step = static_shape(source), int(argument(node, 2, "size")), int(argument(node, 3, "step"))
    if axis == 0 or min(sizes[1:]) < 1:
        return None
    count = (sizes[axis] - size) // step + 1
    windows = picked(w, source, axis, [first * step + place for first in range(count) for place in range(size)])
    apart = w(aten.reshape.default, windows, [-1, *sizes[1:axis], count, size, *sizes[axis + 1 :]])
    order = [place for place in range(len(sizes) + 1) if place != axis + 1]
    return apart if axis == len(sizes) - 1 else w(aten.permute.default, apart, [*order, axis + 1])


def _from_windows(w: Write, node: Node) -> Node | None:
    """A map put together of windows: a reshape where they tile it, a sum of shifted maps where they lie one apart."""
    source, (height, width) = source_of(node), pair(argument(node, 1, "output_size"))
    kernel, dilation, padding, stride = (pair(argument(node, place, "")) for place in range(2, 6))
    if len(static_shape(source)) != 3 or min(static_shape(source)[1:]) < 1 or dilation != (1, 1):
        return None
    channels = static_shape(source)[1] // (kernel[0] * kernel[1])
    tall, wide = height + 2 * padding[0], width + 2 * padding[1]
    counts = (tall - kernel[0]) // stride[0] + 1, (wide - kernel[1]) // stride[1] + 1
    if kernel == stride and not any(padding) and (tall, wide) == (counts[0] * kernel[0], counts[1] * kernel[1]):
        apart = w(aten.reshape.default, source, [-1, channels, *kernel, *counts])
        turned = w(aten.permute.default, apart, [0, 1, 4, 2, 5, 3])
        return w(aten.reshape.default, turned, [-1, channels, height, width])
    if stride != (1, 1):
        return None
    apart = w(aten.reshape.default, source, [-1, channels, kernel[0] * kernel[1], *counts])
    total: Node | None = None
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            part = w(aten.select.int, apart, 2, row * kernel[1] + column)
            ends = [column, kernel[1] - 1 - column, row, kernel[0] - 1 - row]
            shifted = w(aten.constant_pad_nd.default, part, ends, 0.0)
            total = shifted if total is None else w(aten.add.Tensor, total, shifted)
    for axis, size, cut in ((2, height, padding[0]), (3, width, padding[1])):
        if cut:
            total = w(aten.slice.Tensor, total, axis, cut, cut + size)
    return total


def _written_slice(w: Write, node: Node) -> Node | None:
    """A tensor of which a part is another's: what lies before it, the part, and what lies behind."""
    source, part, axis = source_of(node), argument(node, 1, "src"), int(argument(node, 2, "dim", 0))
    axis %= len(static_shape(node))
    length = static_shape(source)[axis]
    bounds = [argument(node, place, name) for place, name in ((3, "start"), (4, "end"), (5, "step"))]
    if length < 1 or any(isinstance(bound, Node) for bound in bounds):
        return None
    start, end, step = slice(*bounds).indices(length)
    return with_part(w, source, part, axis, range(start, end, step))


def _written_index(w: Write, node: Node) -> Node | None:
    axis = int(argument(node, 2, "dim")) % len(static_shape(node))
    length = static_shape(source_of(node))[axis]
    if length < 1:
        return None
    place = int(argument(node, 3, "index")) % length
    part = w(aten.unsqueeze.default, argument(node, 1, "src"), axis)
    return with_part(w, source_of(node), part, axis, range(place, place + 1))


def _copied(w: Write, node: Node) -> Node | None:
    """What is written over a whole tensor."""
    written = argument(node, 1, "src")
    if not isinstance(written, Node) or "val" not in written.meta or "val" not in node.meta:
        return None
    if written.meta["val"].dtype != node.meta["val"].dtype:
        return None
    return written if static_shape(written) == static_shape(node) else None


def _filled(w: Write, node: Node) -> Node:
    """One value over a whole tensor, as large as that: nothing of what was there, and the value."""
    return w(aten.add.Tensor, w(aten.mul.Tensor, source_of(node), 0.0), argument(node, 1, "value"))


def _side_by_side(axis: int) -> Spelling:
    """Tensors joined along an axis of their own; of fewer axes torch makes others of them, the first is the images'."""

    def spelling(w: Write, node: Node) -> Node | None:
        parts = list(argument(node, 0, "tensors"))
        ranks = [len(static_shape(part)) for part in parts]
        if min(ranks) < 2 or (axis > 1 and min(ranks) < max(ranks)):
            return None
        parts = [
            part if rank > axis else w(aten.unsqueeze.default, part, axis)
            for part, rank in zip(parts, ranks, strict=True)
        ]
        return w(aten.cat.default, parts, axis)

    return spelling


def _split(axis: int | None) -> Spelling:
    """Parts of an axis, of nearly equal sizes or between places, as parts of given sizes; none may be empty."""

    def spelling(w: Write, node: Node) -> Node | None:
        along = int(argument(node, 2, "dim", 0)) if axis is None else axis
        length, cuts = static_shape(source_of(node))[along], node.args[1]
        if length < 1:
            return None
        if isinstance(cuts, int):
            more = length % cuts
            sizes = [length // cuts + (place < more) for place in range(cuts)]
        elif isinstance(cuts, (list, tuple)) and all(isinstance(cut, int) for cut in cuts):
            bounds = [0, *(slice(cut).indices(length)[1] for cut in cuts), length]
            sizes = [end - start for start, end in pairwise(bounds)]
        else:
            return None
        return w(aten.split_with_sizes.default, source_of(node), sizes, along) if min(sizes) > 0 else None

    return spelling


def _narrowed(w: Write, node: Node) -> Node | None:
    axis, start, length = (argument(node, place, name) for place, name in ((1, "dim"), (2, "start"), (3, "length")))
    if not isinstance(start, int) or not isinstance(length, int):
        return None
    start = start if start >= 0 else start + static_shape(source_of(node))[axis]
    return w(aten.slice.Tensor, source_of(node), axis, start, start + length)


#: Rule of the normal form per operator.
REARRANGEMENTS: Mapping[Any, tuple[Callable[[Graph, Node], Node], ...]] = {
    target: (rule_of(spelling),)
    for target, spelling in {
        aten.upsample_nearest2d.vec: _nearest,
        aten._upsample_nearest_exact1d.vec: _nearest_exact,
        aten._upsample_nearest_exact2d.vec: _nearest_exact,
        aten.im2col.default: _windows,
        aten.unfold.default: _windows_of_axis,
        aten.col2im.default: _from_windows,
        aten.slice_scatter.default: _written_slice,
        aten.select_scatter.default: _written_index,
        aten.copy.default: _copied,
        aten.fill.Scalar: _filled,
        aten.fill.Tensor: _filled,
        aten.narrow.default: _narrowed,
        aten.hstack.default: _side_by_side(1),
        aten.column_stack.default: _side_by_side(1),
        aten.dstack.default: _side_by_side(2),
        aten.tensor_split.sections: _split(None),
        aten.tensor_split.indices: _split(None),
        aten.hsplit.int: _split(1),
        aten.hsplit.array: _split(1),
        aten.vsplit.int: _split(0),
        aten.vsplit.array: _split(0),
        aten.dsplit.int: _split(2),
        aten.dsplit.array: _split(2),
    }.items()
}

#: Rule of the normal form for a border of what lies at the other end.
circular_border = rule_of(_circular_border)
