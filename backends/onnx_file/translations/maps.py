"""Translations of averages and resizings."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from backends.onnx_file.shapes import shape_of, stored
from backends.onnx_file.translations.common import Translator, input_of
from backends.onnx_file.writer import Writer
from calibration.graph.factors import written_factor
from calibration.graph.operators import argument, pair, static_shape
from calibration.graph.windows import Windows, equal_windows
from calibration.simulation.freeze import FrozenConstant


def average_pool(e: Writer, node: Node) -> list[str]:
    """AveragePool, or on integers a convolution of ones where that sums the same windows."""
    windows = equal_windows(node)
    if windows is not None and e.frozen is not None and e.frozen.plan.exact_averages and e.runs_on_integers(node):
        return _sums(e, node, windows)
    # Folding leaves none; what was not folded has no counterpart.
    if argument(node, 6, "divisor_override") is not None:
        raise e.unsupported("an average pooling with a divisor of its own has no translation to ONNX")
    kernel = pair(node.args[1])
    return e.add(
        "AveragePool",
        [e.read(input_of(node))],
        kernel_shape=kernel,
        strides=pair(argument(node, 2, "stride") or kernel),
        pads=pair(argument(node, 3, "padding", 0)) * 2,
        ceil_mode=int(argument(node, 4, "ceil_mode", False)),
        count_include_pad=int(argument(node, 5, "count_include_pad", True)),
    )


def _sums(e: Writer, node: Node, windows: Windows) -> list[str]:
    """A depthwise convolution of ones, whose scale is the division."""
    channels, scale = static_shape(node)[1], np.array(1 / windows.divisor, np.float32)
    ones = FrozenConstant(integers=np.ones((channels, 1, *windows.kernel), np.int8), scale=scale, axis=None, bits=8)
    return e.add(
        "Conv",
        [e.read(input_of(node)), e.constant_integers(ones, f"{node.name}_ones")],
        kernel_shape=windows.kernel,
        strides=windows.stride,
        pads=windows.padding * 2,
        group=channels,
    )


def adaptive_average_pool(e: Writer, node: Node) -> list[str]:
    """The pooling that gives the size: global, in equal windows, or as a product with shares."""
    target, sizes = pair(node.args[1]), shape_of(e, input_of(node))[-2:]
    if target == tuple(sizes):
        return e.add("Identity", [e.read(input_of(node))])
    if target == (1, 1):
        return e.add("GlobalAveragePool", [e.read(input_of(node))])
    if min(sizes) <= 0:
        raise e.unsupported("an adaptive pooling of a map whose size is free has no translation to ONNX")
    if any(size % side for size, side in zip(sizes, target, strict=True)):
        # Windows of unequal size: a product with the matrix of shares from each side.
        rows, columns = (shares(size, side) for size, side in zip(sizes, target, strict=True))
        (tall,) = e.add("MatMul", [e.constant(rows, f"{node.name}_rows"), e.read(input_of(node))], suffix="_rows")
        shared = [tall, e.constant(columns.T, f"{node.name}_columns")]
        if not e.form.shares_apart:
            return e.add("MatMul", shared)
        (product,) = e.add("MatMul", shared, suffix="_product")
        return e.add("Max", [product, e.lowest])
    kernel = [size // side for size, side in zip(sizes, target, strict=True)]
    return e.add("AveragePool", [e.read(input_of(node))], kernel_shape=kernel, strides=kernel)


def shares(size: int, windows: int) -> np.ndarray[Any, Any]:
    """How much of each position an adaptive pooling's windows hold along one axis: float32 [wanted, size]."""
    shares = np.zeros((windows, size), np.float32)
    for window in range(windows):
        start, end = window * size // windows, -(-(window + 1) * size // windows)
        shares[window, start:end] = 1 / (end - start)
    return shares


def _target_size(e: Writer, node: Node, mode: str) -> list[str]:
    """The factors of a resize; where the size of images is free, the size of the tensor that it follows."""
    channels, *sizes = static_shape(node)[1:]
    if e.free is None or node.args[1] is None:
        before = static_shape(input_of(node))[-2:]
        factors = [size / one for size, one in zip(sizes, before, strict=True)]
        own = argument(node, 2 if mode == "nearest" else 3, "scale_factors")
        if own is not None and node.args[1] is None:
            # Where positions lie follows the factor itself, also where the size is less than it says.
            exact = [size == one * factor for size, one, factor in zip(sizes, before, own, strict=True)]
            if e.free is not None or not all(exact):
                factors = [float(factor) for factor in own]
        written = [
            written_factor(one, size, factor, nearest=mode == "nearest") or np.float32(factor)
            for factor, one, size in zip(factors, before, sizes, strict=True)
        ]
        return [e.constant(np.array([1, 1, *written], np.float32), f"{node.name}_scales")]
    (batch,) = e.add("Shape", [e.first_input], suffix="_batch", start=0, end=1)
    if node.name in e.free.follows:
        (size,) = e.add("Shape", [stored(e, e.free.follows[node.name])], suffix="_size", start=2, end=4)
    else:
        size = e.int64s(sizes)
    return ["", *e.add("Concat", [batch, e.int64s([channels]), size], suffix="_sizes", axis=0)]


def resize(mode: str) -> Translator:
    """Resize in a mode of ONNX, by the factors of the sizes."""

    def translate(e: Writer, node: Node) -> list[str]:
        corners = mode != "nearest" and bool(argument(node, 2, "align_corners", False))
        inputs = [e.read(input_of(node)), "", *_target_size(e, node, mode)]
        transform = "align_corners" if corners else "half_pixel" if mode != "nearest" else "asymmetric"
        extra: dict[str, Any] = {"nearest_mode": "floor"} if mode == "nearest" else {}
        if mode == "cubic":
            extra["cubic_coeff_a"] = -0.75  # torch's
        return e.add("Resize", inputs, mode=mode, coordinate_transformation_mode=transform, **extra)

    return translate
