"""Poolings that round their size up, or divide by a number of their own, in the form that all runtimes compute alike.

A window that reaches beyond the map and its border is cut short. Where the border counts in an average, torch divides
by the places inside of the two, and so does ONNX Runtime's float kernel, while its integer kernel divides by the whole
window; where no border counts they agree. A last window that would start behind the map is left out by torch and ONNX
Runtime, not by OpenVINO; all agree where nothing is rounded up (each measured). No runtime has a divisor of its own.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from calibration.errors import UserError
from calibration.graph.operators import argument, kind, pair, static_shape, tensor_inputs
from calibration.normal_form.decompositions import before

aten = torch.ops.aten

_WAYS_ROUND = (
    "ceil_mode=False has one, in a builder given as --teacher python:package.module:function; or leave out"
    " --dynamic-size"
)


def cut_windows(graph: Graph, node: Node) -> None:
    """Let a max or average pooling round its size up only where windows are cut, and no border count in these.

    A border that counted becomes a padding. Raises UserError where that depends on a size that is free.
    """
    (_average if kind(node) == "average_pool" else _maximum)(graph, node)


def _maximum(graph: Graph, node: Node) -> None:
    if not argument(node, 5, "ceil_mode", False):
        return
    (source,) = tensor_inputs(node)
    kernel = pair(argument(node, 1, "kernel_size"))
    stride, padding = pair(argument(node, 2, "stride") or kernel), pair(argument(node, 3, "padding", 0))
    dilation = pair(argument(node, 4, "dilation", 1))
    spans = [d * (length - 1) + 1 for d, length in zip(dilation, kernel, strict=True)]
    reach = _reach(node, stride, spans)
    if reach is None:
        return
    rounded = []
    for axis, size in enumerate(static_shape(source)[2:]):
        start = -padding[axis] % dilation[axis]
        if spans[axis] <= size + 2 * padding[axis] or start >= size:
            rounded.append(reach[axis] > size + 2 * padding[axis])
            continue
        # The one window is larger than map and border, which OpenVINO refuses: the places that it has in the map.
        if start:
            source = before(graph, node, aten.slice.Tensor, (source, axis + 2, start, size))
        kernel = _with(kernel, axis, -(-(size - start) // dilation[axis]))
        stride, padding = _with(stride, axis, size), _with(padding, axis, 0)
        rounded.append(False)
    rows, columns = rounded
    if rows == columns:
        node.args, node.kwargs = (source, list(kernel), list(stride), list(padding), list(dilation), rows), {}
        return
    # A maximum of maxima: each axis by itself, as one alone is rounded up.
    alone = (source, [kernel[0], 1], [stride[0], 1], [padding[0], 0], [dilation[0], 1], rows)
    first = before(graph, node, aten.max_pool2d.default, alone)
    node.args = (first, [1, kernel[1]], [1, stride[1]], [0, padding[1]], [1, dilation[1]], columns)
    node.kwargs = {}


def _with(numbers: tuple[int, ...] | list[int], axis: int, value: int) -> tuple[int, ...]:
    return tuple(value if index == axis else number for index, number in enumerate(numbers))


def _average(graph: Graph, node: Node) -> None:
    divisor = argument(node, 6, "divisor_override")
    if divisor is not None:
        _own_divisor(graph, node, int(divisor))
        return
    if not argument(node, 4, "ceil_mode", False):
        return
    (source,) = tensor_inputs(node)
    kernel = pair(argument(node, 1, "kernel_size"))
    stride, padding = pair(argument(node, 2, "stride") or kernel), pair(argument(node, 3, "padding", 0))
    counted, sizes, reach = bool(argument(node, 5, "count_include_pad", True)), static_shape(source)[2:], None
    if (reach := _reach(node, stride, kernel)) is not None:
        if all(end <= size + 2 * border for end, size, border in zip(reach, sizes, padding, strict=True)):
            node.args, node.kwargs = (source, list(kernel), list(stride), list(padding), False, counted), {}
            return
        if counted and any(padding):
            # Places behind the last window's end are left out, or there would be one more.
            bottom, right = (
                min(border, end - size - border) for border, end, size in zip(padding, reach, sizes, strict=True)
            )
            # A window may be larger than map and border.
            inside = (size + front + end for size, front, end in zip(sizes, padding, (bottom, right), strict=True))
            kernel = tuple(map(min, kernel, inside))
            amounts = [padding[1], right, padding[0], bottom]
            source, padding = before(graph, node, aten.constant_pad_nd.default, (source, amounts, 0.0)), (0, 0)
        else:
            source = _without_rest(graph, node, source, reach, padding)
            # A window that is larger than map and border holds the map alone, as no border counts.
            sides = [
                (size, 0) if length > size + 2 * border else (length, border)
                for length, size, border in zip(kernel, sizes, padding, strict=True)
            ]
            kernel, padding = tuple(length for length, _ in sides), tuple(border for _, border in sides)
            cut = [end > size + 2 * border for border, end, size in zip(padding, reach, sizes, strict=True)]
            if any(border and not short for border, short in zip(padding, cut, strict=True)):
                # Each axis by itself, as one alone is rounded up: as many columns count in every row.
                alone = (source, [kernel[0], 1], [stride[0], 1], [padding[0], 0], cut[0], False)
                first = before(graph, node, aten.avg_pool2d.default, alone)
                node.args = (first, [1, kernel[1]], [1, stride[1]], [0, padding[1]], cut[1], False)
                node.kwargs = {}
                return
    elif counted and any(padding):
        raise UserError(
            f"{node.name}: an average pooling with ceil_mode=True and a border of zeros that counts, over a map whose"
            f" size is free, has no translation: count_include_pad=False or {_WAYS_ROUND}"
        )
    node.args, node.kwargs = (source, list(kernel), list(stride), list(padding), True, False), {}


def _without_rest(
    graph: Graph, node: Node, source: Node, reach: list[int], padding: tuple[int, ...] | list[int]
) -> Node:
    """A map without the rows and columns that no window reads, or rounding up would make one more window of them."""
    for axis, (end, border) in enumerate(zip(reach, padding, strict=True), start=2):
        if not border and end < static_shape(source)[axis]:
            source = before(graph, node, aten.slice.Tensor, (source, axis, 0, end))
    return source


def _own_divisor(graph: Graph, node: Node, divisor: int) -> None:
    """Let an average pooling with a divisor of its own be one over whole windows, multiplied by a number.

    What lies outside of the map is zero, whether borders count or not: the divisor is the same everywhere.
    """
    (source,) = tensor_inputs(node)
    kernel = pair(argument(node, 1, "kernel_size"))
    stride, padding = pair(argument(node, 2, "stride") or kernel), pair(argument(node, 3, "padding", 0))
    if argument(node, 4, "ceil_mode", False):
        reach, sizes = _reach(node, stride, kernel), static_shape(source)[2:]
        if reach is None:
            raise UserError(
                f"{node.name}: an average pooling with ceil_mode=True and a divisor of its own, over a map whose size"
                f" is free, has no translation: {_WAYS_ROUND}"
            )
        if any(end > size + 2 * border for end, size, border in zip(reach, sizes, padding, strict=True)):
            bottom, right = (
                max(end - size - border, 0) for border, end, size in zip(padding, reach, sizes, strict=True)
            )
            amounts = [padding[1], right, padding[0], bottom]
            source, padding = before(graph, node, aten.constant_pad_nd.default, (source, amounts, 0.0)), (0, 0)
    node.args, node.kwargs = (source, list(kernel), list(stride), list(padding), False, True), {}
    number = kernel[0] * kernel[1] / divisor
    if number == 1:
        return
    with graph.inserting_after(node):
        result = graph.call_function(aten.mul.Tensor, (node, number))
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result, delete_user_cb=lambda user: user is not result)


def _reach(node: Node, stride: tuple[int, ...], spans: tuple[int, ...] | list[int]) -> list[int] | None:
    """Where the last window ends along each axis, the border in front included; None where a size is free."""
    results, sizes = static_shape(node)[2:], static_shape(tensor_inputs(node)[0])[2:]
    if len(sizes) != 2 or min(*results, *sizes) < 1:
        return None
    return [(count - 1) * step + span for count, step, span in zip(results, stride, spans, strict=True)]
