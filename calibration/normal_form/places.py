"""Reading and writing at constant places: gathers along one axis, and concatenations.

Spellings of the normal form. Places on several neighbouring axes are those of one, as which these are written. Left
alone where the places are computed from the image or on an axis of free size, or are on axes that are no neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from calibration.graph.operators import argument, static_shape
from calibration.normal_form.comparisons import filled, is_number, number_in
from calibration.normal_form.known_values import known_value
from calibration.normal_form.spellings import Write, rule_of, source_of

aten = torch.ops.aten


def numbers(w: Write, places: Sequence[int]) -> Node:
    """A list of whole numbers as a tensor, in runs of consecutive ones; a constant once constants are folded."""
    starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(places)) if b != a + 1), len(places)]
    runs = [w(aten.arange.start, places[start], places[start] + end - start) for start, end in pairwise(starts)]
    return runs[0] if len(runs) == 1 else w(aten.cat.default, runs, 0)


def picked(w: Write, source: Node, axis: int, places: Sequence[int]) -> Node:
    """The places of an axis in this order; nothing where they are all in their own."""
    if list(places) == list(range(static_shape(source)[axis])):
        return source
    return w(aten.index_select.default, source, axis, numbers(w, places))


def with_part(w: Write, source: Node, part: Node, axis: int, places: Sequence[int]) -> Node | None:
    """A tensor of which these places of an axis are another's, the last one where a place is named twice."""
    length, sizes = static_shape(source)[axis], list(static_shape(source))
    sizes[axis] = len(places)
    if static_shape(part) != tuple(sizes):
        return None
    first = places[0] if places else 0
    if list(places) == list(range(first, first + len(places))):
        end = first + len(places)
        head = [w(aten.slice.Tensor, source, axis, 0, first)] if first else []
        tail = [w(aten.slice.Tensor, source, axis, end, length)] if end < length else []
        return w(aten.cat.default, [*head, part, *tail], axis) if head or tail else part
    last = {place: length + index for index, place in enumerate(places)}
    order = [last.get(place, place) for place in range(length)]
    return w(aten.index_select.default, w(aten.cat.default, [source, part], axis), axis, numbers(w, order))


def _indexed(node: Node) -> tuple[int, list[Tensor]] | None:
    """The first axis that an operator indexes and the places on it and its neighbours, none negative."""
    source, indices = source_of(node), list(argument(node, 1, "indices"))
    axes = [axis for axis, places in enumerate(indices) if places is not None]
    sizes = static_shape(source)
    if not axes or axes != list(range(axes[0], axes[-1] + 1)) or min(sizes[axes[0] : axes[-1] + 1]) < 1:
        return None
    tensors = []
    for axis in axes:
        places = known_value(indices[axis])
        if places is None or places.dtype not in (torch.int64, torch.int32):
            return None
        tensors.append(places.long() % sizes[axis])
    return axes[0], list(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]  # torch's


def _where_true(node: Node) -> tuple[int, list[Tensor]] | None:
    """The same of one constant mask of neighbouring axes: the places where it is true."""
    named = [(axis, mask) for axis, mask in enumerate(argument(node, 1, "indices")) if mask is not None]
    mask = known_value(named[0][1]) if len(named) == 1 else None
    if mask is None or mask.dtype != torch.bool or not bool(mask.any()):
        return None
    axis = named[0][0]
    sizes = static_shape(source_of(node))[axis : axis + mask.dim()]
    return (axis, list(mask.nonzero(as_tuple=True))) if sizes == tuple(mask.shape) else None


def _as_one_axis(w: Write, source: Node, axis: int, count: int) -> Node | None:
    """A tensor whose axes, `count` of them, are one."""
    sizes = list(static_shape(source))
    if count == 1:
        return source
    joined = [*sizes[:axis], _product(sizes[axis : axis + count]), *sizes[axis + count :]]
    return None if joined.count(-1) > 1 else w(aten.reshape.default, source, joined)


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def _on_one_axis(places: Sequence[Tensor], sizes: Sequence[int]) -> list[int]:
    """Places on several axes as those on the one that they are together."""
    together = torch.zeros_like(places[0])
    for tensor, size in zip(places, sizes, strict=True):
        together = together * size + tensor
    return [int(place) for place in together.reshape(-1)]


def _index(w: Write, node: Node) -> Node | None:
    listed = _indexed(node)
    indexed = listed or _where_true(node)
    if indexed is None or (listed is not None and len(listed[1]) == 1 and listed[1][0].dim() == 1):
        return _index_of_one_axis(w, node)
    axis, tensors = indexed
    sizes = list(static_shape(source_of(node)))
    joined = _as_one_axis(w, source_of(node), axis, len(tensors))
    if joined is None:
        return None
    rows = picked(w, joined, axis, _on_one_axis(tensors, sizes[axis : axis + len(tensors)]))
    shaped = [*sizes[:axis], *tensors[0].shape, *sizes[axis + len(tensors) :]]
    return rows if list(static_shape(rows)) == shaped else w(aten.reshape.default, rows, shaped)


def _index_of_one_axis(w: Write, node: Node) -> Node | None:
    """Places along one axis, which need not be known yet: what is computed of constants becomes one."""
    named = [(axis, places) for axis, places in enumerate(argument(node, 1, "indices")) if places is not None]
    if len(named) != 1 or len(static_shape(named[0][1])) != 1 or named[0][1].meta["val"].dtype == torch.bool:
        return None
    ((axis, places),) = named
    if is_number(places):
        return None  # truths computed from the image, or whole numbers
    size = static_shape(source_of(node))[axis]
    # Places from the end are negative; a selection takes none such.
    from_start = places if size < 0 else w(aten.remainder.Scalar, places, size)
    return w(aten.index_select.default, source_of(node), axis, from_start)


def _written(w: Write, node: Node) -> Node | None:
    """Values written at places: `x[:, [0, 2]] = y`; one number where a mask of all is true: `x[x < 0] = 0`."""
    source, values = source_of(node), argument(node, 2, "values")
    mask = _mask_of_all(node)
    if mask is not None:
        number = number_in(values)
        return None if number is None else filled(w, source, mask, number)
    indexed = _indexed(node) or _where_true(node)
    if indexed is None or values.meta["val"].dtype != source.meta["val"].dtype:
        return None
    axis, tensors = indexed
    sizes = list(static_shape(source))
    joined = _as_one_axis(w, source, axis, len(tensors))
    if joined is None:
        return None
    places = _on_one_axis(tensors, sizes[axis : axis + len(tensors)])
    rows = [*sizes[:axis], len(places), *sizes[axis + len(tensors) :]]
    shaped = [*sizes[:axis], *tensors[0].shape, *sizes[axis + len(tensors) :]]
    part = _spread(w, values, shaped, rows, lambda: picked(w, joined, axis, places))
    result = None if part is None else with_part(w, joined, part, axis, places)
    return result if result is None or len(tensors) == 1 else w(aten.reshape.default, result, sizes)


def _mask_of_all(node: Node) -> Node | None:
    """The mask of an index that has one for every place of the tensor."""
    mask, *others = argument(node, 1, "indices")
    if others or not isinstance(mask, Node):
        return None
    shapes = [[str(size) for size in each.meta["val"].shape] for each in (mask, source_of(node))]
    is_mask = is_number(mask) or mask.meta["val"].dtype == torch.bool
    return mask if is_mask and shapes[0] == shapes[1] else None


def _spread(w: Write, values: Node, shaped: list[int], rows: list[int], there: Callable[[], Node]) -> Node | None:
    """Values as large as the rows that they are written over; smaller ones are added to those times 0."""
    if list(static_shape(values)) == shaped and shaped.count(-1) <= 1:
        return values if shaped == rows else w(aten.reshape.default, values, rows)
    if len(shaped) != len(rows) and values.meta["val"].numel() != 1:
        return None
    zeros = w(aten.mul.Tensor, there(), 0.0)
    number = number_in(values)
    return w(aten.add.Tensor, zeros, values if number is None else number)


def _along_axis(node: Node) -> tuple[int, list[int]] | None:
    """The axis and the known places, none negative, of an operator that takes a list of them."""
    source, places = source_of(node), known_value(argument(node, 2, "index"))
    axis = int(argument(node, 1, "dim")) % max(len(static_shape(source)), 1)
    if places is None or places.dim() > 1 or static_shape(source)[axis] < 1:
        return None
    return axis, [int(place) % static_shape(source)[axis] for place in places.reshape(-1)]


def _index_filled(w: Write, node: Node) -> Node | None:
    named, number = _along_axis(node), number_in(argument(node, 3, "value"))
    if named is None or number is None:
        return None
    axis, places = named
    zeros = w(aten.mul.Tensor, picked(w, source_of(node), axis, places), 0.0)
    return with_part(w, source_of(node), w(aten.add.Tensor, zeros, number), axis, places)


def _index_copied(w: Write, node: Node) -> Node | None:
    named = _along_axis(node)
    return None if named is None else with_part(w, source_of(node), argument(node, 3, "source"), *named)


def _index_added(w: Write, node: Node) -> Node | None:
    named, factor = _along_axis(node), argument(node, 4, "alpha", 1)
    if named is None or len(set(named[1])) != len(named[1]):
        return None
    added = argument(node, 3, "source")
    added = added if factor == 1 else w(aten.mul.Tensor, added, factor)
    return with_part(w, source_of(node), w(aten.add.Tensor, picked(w, source_of(node), *named), added), *named)


#: Rule of the normal form per operator.
PLACES: Mapping[Any, tuple[Callable[[Graph, Node], Node], ...]] = {
    target: (rule_of(spelling),)
    for target, spelling in {
        aten.index.Tensor: _index,
        aten.index_put.default: _written,
        aten.index_fill.int_Scalar: _index_filled,
        aten.index_fill.int_Tensor: _index_filled,
        aten.index_copy.default: _index_copied,
        aten.index_add.default: _index_added,
    }.items()
}
