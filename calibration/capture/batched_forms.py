"""The ways to write an operator that was captured for one image so that it computes several at once.

They are proposals: `calibration.capture.one_image` takes the first one that gives every image what the operator gives
it alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch.fx import Graph, Node

from calibration.capture.batched_layout import Layout, Layouts
from calibration.graph.operators import argument
from calibration.normal_form.mutation import is_view

aten = torch.ops.aten

#: Operators on matrices whose form for stacks of them has another name.
_STACKED: dict[Any, Any] = {aten.mm.default: aten.matmul.default, aten.bmm.default: aten.matmul.default}
_ORDERS = frozenset({aten.permute.default, aten.transpose.int, aten.t.default, aten.movedim.int, aten.movedim.intlist})
_VIEWS = frozenset({aten.view.default, aten._unsafe_view.default})
_AXES = frozenset({"dim", "dims", "dim0", "dim1", "start_dim", "end_dim"})


#: Operators that make one number of all axes -> the same over named ones.
_WHOLE: Mapping[Any, Any] = {
    aten.max.default: aten.amax.default,
    aten.amax.default: aten.amax.default,
    aten.min.default: aten.amin.default,
    aten.amin.default: aten.amin.default,
    aten.sum.default: aten.sum.dim_IntList,
    aten.sum.dim_IntList: aten.sum.dim_IntList,
    aten.mean.default: aten.mean.dim,
    aten.mean.dim: aten.mean.dim,
    aten.std.correction: aten.std.correction,
    aten.var.correction: aten.var.correction,
    aten.linalg_vector_norm.default: aten.linalg_vector_norm.default,
}


class Forms:
    """Proposals for one node, written at the end of `graph`.

    `copies` and `layouts` are of the nodes before it, by the node of the graph for one image; a node without a layout
    is the same for all images. `count` is the node of the graph that has the number of images.
    """

    def __init__(self, graph: Graph, copies: dict[Node, Node], layouts: Layouts, count: Node) -> None:
        self._graph, self._copies, self._layouts, self._count = graph, copies, layouts, count

    def of(self, node: Node) -> Iterator[Callable[[], Node]]:
        """What writes a node and hands back that with the result, the likeliest first."""
        value = node.meta.get("val")
        sizes = tuple(value.shape) if isinstance(value, torch.Tensor) else None
        if node.target is operator.getitem:
            yield lambda: self._call(node, self._copies)
            return
        if node.target is aten.unbind.int and isinstance(value, (list, tuple)) and len(value) == 1:
            yield lambda: self._unbound(node)
        if sizes and (is_view(node) or node.target in _VIEWS):
            axes = sorted(range(len(sizes)), key=lambda axis: (sizes[axis] != 1, axis))
            own = sizes.count(1)
            yield from (self._reshape(node, sizes, axis) for axis in axes[:own])
            if node.target in _ORDERS:
                yield lambda: self._call(node, self._copies)
            if sizes[0] == 1:
                yield lambda: self._reshape_in_front(node, sizes)
            yield lambda: self._call(node, self._copies)
            yield from (self._reshape(node, sizes, axis) for axis in axes[own:])
            yield lambda: self._expansion(node)
        else:
            if sizes == () and node.target in _WHOLE:
                yield lambda: self._whole(node)
            yield lambda: self._call(node, self._copies)
            yield lambda: self._call(node, self._spread(node))
            yield lambda: self._call(node, self._repeated(node))
        yield from (self._image_by_image(node, sizes, shift=shift) for shift in (0, 1) if sizes)

    def in_front(self, node: Node) -> Node:
        """What was written of a node, the images on the first axis, which is one long for a single one."""
        return self._write(aten.reshape.default, (self._with_axis(node, node), [-1, *node.meta["val"].shape[1:]]), node)

    def _call(self, node: Node, copies: dict[Node, Node]) -> Node:
        called = self._graph.node_copy(node, copies.__getitem__)
        if called.target in _VIEWS:
            called.target = aten.reshape.default  # a view asks for a memory layout, which several images change
        elif called.target is aten.t.default:
            called.target, called.args = aten.transpose.int, (called.args[0], 0, -1)
        return called

    def _unbound(self, node: Node) -> Node:
        """The one part that taking the axis of a single image apart gives, with the others' behind it."""
        sizes = node.meta["val"][0].shape
        source = self._with_axis(cast(Node, node.args[0]), node)
        joined = self._write(aten.reshape.default, (source, [-1, *sizes[1:]]), node)
        return self._write(aten.unbind.int, (self._write(aten.unsqueeze.default, (joined, 0), node), 0), node)

    def _write(self, target: Any, arguments: tuple[Any, ...], like: Node) -> Node:
        word = str(target).split(".")[1].strip("_")
        node = self._graph.create_node("call_function", target, arguments, name=f"{like.name}_{word}")
        node.meta = {key: value for key, value in like.meta.items() if key != "val"}
        return node

    def _reshape(self, node: Node, sizes: tuple[int, ...], axis: int) -> Callable[[], Node]:
        """What moves no value for one image moves none for several: only the sizes are others."""
        free = [-1 if place == axis else size for place, size in enumerate(sizes)]
        source = cast(Node, node.args[0])
        return lambda: self._write(aten.reshape.default, (self._copies[source], free), node)

    def _reshape_in_front(self, node: Node, sizes: tuple[int, ...]) -> Node:
        """The same, the images brought to the first axis."""
        source = self._with_axis(cast(Node, node.args[0]), node)
        return self._write(aten.reshape.default, (source, [-1, *sizes[1:]]), node)

    def _expansion(self, node: Node) -> Node:
        """An expansion that leaves the images' axis as long as it is."""
        source = cast(Node, node.args[0])
        layout, sizes = self._layout(source), node.meta["val"].shape
        assert layout is not None
        place = layout.axis + len(sizes) - len(layout.sizes)
        free = [-1 if axis == place else size for axis, size in enumerate(sizes)]
        return self._write(aten.expand.default, (self._copies[source], free), node)

    def _whole(self, node: Node) -> Node:
        """One number of all axes but the images': one for each image."""
        source = cast(Node, node.args[0])
        axes = list(range(1, source.meta["val"].dim() + 1))
        target, kept = _WHOLE[node.target], {"correction", "dtype"}
        order = (argument(node, 1, "ord", 2),) if node.target is aten.linalg_vector_norm.default else ()
        written = self._write(target, (self._with_axis(source, node), *order, axes), node)
        written.kwargs = {key: value for key, value in node.kwargs.items() if key in kept}
        return written

    def _spread(self, node: Node) -> dict[Node, Node]:
        """The operands, with one number for each image as one along the axis that others have the images on."""
        layout = max(self._read(node), key=lambda each: len(each.sizes))
        copies = dict(self._copies)
        for source in node.all_input_nodes:
            own = self._layout(source)
            if own is not None and own.sizes == (1,) and len(layout.sizes) > 1:
                free = [-1 if axis == layout.axis else 1 for axis in range(len(layout.sizes))]
                copies[source] = self._write(aten.reshape.default, (copies[source], free), node)
        return copies

    def _repeated(self, node: Node) -> dict[Node, Node]:
        """The operands, with what is the same for all images written for each of them, where others have the images."""
        layout = self._read(node)[0]
        copies = dict(self._copies)
        for source in node.all_input_nodes:
            value = source.meta.get("val")
            if self._layout(source) or not isinstance(value, torch.Tensor):
                continue
            own, axis = [*value.shape], layout.axis
            if len(own) != len(layout.sizes) and not (layout.is_first and own[:1] == [1]):
                continue
            copies[source] = self._for_each(self._copies[source], own, axis, node)
            if own[axis] != 1:
                joined = [*own[:axis], -1, *own[axis + 1 :]]
                copies[source] = self._write(aten.reshape.default, (copies[source], joined), node)
        return copies

    def _for_each(self, source: Node, sizes: list[int], axis: int, like: Node) -> Node:
        """A tensor that is the same for all images, repeated along an axis of 1, or a new one before the axis."""
        if sizes[axis : axis + 1] != [1]:
            source = self._write(aten.unsqueeze.default, (source, axis), like)
            sizes = [*sizes[:axis], 1, *sizes[axis:]]
        free = [self._count if place == axis else size for place, size in enumerate(sizes)]
        return self._write(aten.expand.default, (source, free), like)

    def _image_by_image(self, node: Node, sizes: tuple[int, ...] | None, *, shift: int) -> Callable[[], Node]:
        """The operator behind an axis of its own for the images; numbers of axes from the front are `shift` more."""

        def build() -> Node:
            copies = {source: self._with_axis(source, node) for source in node.all_input_nodes}
            called = self._call(node, copies)
            called.target = _STACKED.get(called.target, called.target)
            if shift:
                _shift_axes(called)
            return self._write(aten.reshape.default, (called, [-1, *(sizes or ())[1:]]), node)

        return build

    def _with_axis(self, source: Node, like: Node) -> Node:
        """An operand as [B, *sizes]; what is the same for all images is repeated where it is joined to others."""
        layout, copied = self._layout(source), self._copies[source]
        if layout is None:
            value, most = source.meta.get("val"), max(len(layout.sizes) for layout in self._read(like))
            if isinstance(value, torch.Tensor) and value.dim() == most and like.target is aten.cat.default:
                unsqueezed = self._write(aten.unsqueeze.default, (copied, 0), like)
                return self._write(aten.expand.default, (unsqueezed, [self._count, *value.shape]), like)
            return copied
        before, (own, *behind) = layout.sizes[: layout.axis], layout.sizes[layout.axis :]
        split = self._write(aten.reshape.default, (copied, [*before, -1, own, *behind]), like)
        if not layout.axis:
            return split
        order = [layout.axis, *(axis for axis in range(len(layout.sizes) + 1) if axis != layout.axis)]
        return self._write(aten.permute.default, (split, order), like)

    def _read(self, node: Node) -> list[Layout]:
        return [layout for source in node.all_input_nodes if (layout := self._layout(source)) is not None]

    def _layout(self, source: Node) -> Layout | None:
        """The layout of an operand; None of what is the same for all images."""
        layout = self._layouts.get(source)
        assert not isinstance(layout, tuple), "several tensors are read one by one"
        return layout


def _shift_axes(node: Node) -> None:
    """Let numbers of axes that count from the front leave out the first."""
    schema = cast(Any, node.target)._schema.arguments

    def shifted(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [shifted(item) for item in value]
        return value + 1 if isinstance(value, int) and value >= 0 else value

    node.args = tuple(
        shifted(value) if slot.name in _AXES else value for slot, value in zip(schema, node.args, strict=False)
    )
    defaults = {slot.name: slot.default_value for slot in schema[len(node.args) :] if slot.default_value is not None}
    node.kwargs = dict(node.kwargs) | {
        key: shifted(value) for key, value in {**defaults, **node.kwargs}.items() if key in _AXES
    }
