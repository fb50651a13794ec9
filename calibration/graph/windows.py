"""Average poolings whose windows all hold the same number of positions: sums of integers, rescaled once."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from calibration.graph.operators import argument, kind, pair, static_shape


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The windows of an average pooling, and what each of their sums is divided by."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    divisor: int


def equal_windows(node: Node) -> Windows | None:
    """The windows of an average pooling; None for any other operator, and where some are divided by another number.

    That is where a border of zeros is not counted, or where the last windows reach beyond the border.
    """
    if kind(node) != "average_pool":
        return None
    kernel = pair(argument(node, 1, "kernel_size"))
    stride, padding = pair(argument(node, 2, "stride") or kernel), pair(argument(node, 3, "padding", 0))
    divisor = argument(node, 6, "divisor_override")
    if divisor is None and any(padding) and not argument(node, 5, "count_include_pad", True):
        return None
    if argument(node, 4, "ceil_mode", False):
        source = node.args[0]
        assert isinstance(source, Node)
        sizes = zip(static_shape(source)[2:], kernel, stride, padding, strict=True)
        if any(size < 0 or (size + 2 * border - length) % step for size, length, step, border in sizes):
            return None
    return Windows(kernel=kernel, stride=stride, padding=padding, divisor=int(divisor or kernel[0] * kernel[1]))
