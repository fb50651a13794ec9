"""Translations of layers with weights, and of products."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from backends.onnx_file.translations.common import NEXT_TO_NOTHING, input_of, spatial
from backends.onnx_file.writer import Writer
from calibration.graph.operators import argument, constant, kind, pair, static_shape
from calibration.rewrites.own_borders import one_sided_border


def _inputs(e: Writer, node: Node) -> list[str]:
    """What a layer reads: its input, weight and bias."""
    inputs, bias = [e.read(input_of(node)), e.weight(input_of(node, 1))], argument(node, 2, "bias")
    values = constant(e.module, bias)
    if e.form.bias_everywhere and e.runs_on_integers(node) and (values is None or not values.any()):
        channels = static_shape(node)[-1 if kind(node) == "linear" else 1]
        return [*inputs, e.constant(np.full(channels, NEXT_TO_NOTHING, np.float32), f"no_bias_x{channels}")]
    return [*inputs, e.bias(bias)] if isinstance(bias, Node) else inputs


def _refuse_computed_weight(e: Writer, node: Node) -> None:
    if constant(e.module, argument(node, 1, "weight")) is None or isinstance(argument(node, 6, "groups", 1), Node):
        raise e.unsupported(
            "its weight is computed from the image, so it is no layer: runtimes have no integer kernel for it",
            remedy="; mix the outputs of several fixed convolutions by computed factors instead, or name the part"
            " before it with --submodule (docs/networks.md)",
        )


def conv(e: Writer, node: Node) -> list[str]:
    """Conv; the padding of "same" as torch places it, and a border of zeros in front of it."""
    stride, dilation = pair(argument(node, 3, "stride", 1)), pair(argument(node, 5, "dilation", 1))
    _refuse_computed_weight(e, node)
    padding, groups = argument(node, 4, "padding", 0), e.groups_written(input_of(node, 1))
    kernel = spatial(node, 1)
    if isinstance(padding, str):
        # torch allows "same" for stride 1 only; the odd row of an even kernel goes to the end.
        total = [dilation[i] * (kernel[i] - 1) if padding == "same" else 0 for i in range(2)]
        pads = [total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2]
    else:
        top, bottom, left, right = one_sided_border(input_of(node)) or (0, 0, 0, 0)
        rows, columns = pair(padding)
        pads = [rows + top, columns + left, rows + bottom, columns + right]
    return e.add(
        "Conv", _inputs(e, node), strides=stride, pads=pads, dilations=dilation, group=groups, kernel_shape=list(kernel)
    )


def conv_transpose(e: Writer, node: Node) -> list[str]:
    """ConvTranspose."""
    _refuse_computed_weight(e, node)
    return e.add(
        "ConvTranspose",
        _inputs(e, node),
        strides=pair(argument(node, 3, "stride", 1)),
        pads=pair(argument(node, 4, "padding", 0)) * 2,
        output_padding=pair(argument(node, 5, "output_padding", 0)),
        group=int(argument(node, 6, "groups", 1)),
        dilations=pair(argument(node, 7, "dilation", 1)),
        kernel_shape=list(spatial(node, 1)),
    )


def linear(e: Writer, node: Node) -> list[str]:
    """Gemm over one row per image."""
    if len(static_shape(input_of(node))) != 2:
        raise e.unsupported("a linear layer over more than one free dimension has no translation to ONNX")
    return e.add("Gemm", _inputs(e, node), transB=1)


def matmul(e: Writer, node: Node) -> list[str]:
    """MatMul."""
    return e.add("MatMul", [e.read(input_of(node)), e.read(input_of(node, 1))])
