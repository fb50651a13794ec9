"""The linter's checks for OpenVINO: forms that its passes lose the integers of, or compute wrongly without a word."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from backends.lint.rule import LintRules
from backends.onnx_file.view import OnnxView, attributes, node_name

Found = Iterator[tuple[str, str]]


def biased_layers(view: OnnxView, rules: LintRules) -> Found:
    """Rule 32."""
    for node in filter(view.has_integer_weight, view.nodes):
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        bias = view.input(node, 2)
        if not bias:
            yield node_name(node), "it has no bias"
        elif (values := view.value(bias)) is not None and not values.any():
            yield node_name(node), "its bias is 0, which is dropped"


def strided_pointwise(view: OnnxView, rules: LintRules) -> Found:
    """Rule 33."""
    for node in filter(view.has_integer_weight, view.nodes):
        if _leaps(view, node) and all(_leaps(view, reader) for reader in view.readers(node.input[0])):
            yield node_name(node), "only 1x1 convolutions with strides read its input: it would run in float"


def _leaps(view: OnnxView, node: NodeProto) -> bool:
    if node.op_type != "Conv":
        return False
    settings = attributes(node)
    pointwise = settings.get("kernel_shape") == [1, 1] and settings.get("group", 1) == 1
    return pointwise and settings.get("strides", [1, 1]) != [1, 1]


def borders_of_averages(view: OnnxView, rules: LintRules) -> Found:
    """Rule 34."""
    for node in view.nodes:
        if node.op_type != "AveragePool" or not attributes(node).get("count_include_pad", 0):
            continue
        if any(attributes(node).get("pads", [])) and _has_zero_point(view, node):
            yield node_name(node), "the zeros around its input have another integer than 0: its outputs would be wrong"


def lone_reductions(view: OnnxView, rules: LintRules) -> Found:
    """Rule 35."""
    for node in view.nodes:
        if node.op_type in ("ReduceMax", "ReduceMin"):
            others = [reader for reader in view.readers(node.output[0]) if reader.op_type != "Max"]
            if others:
                yield node_name(node), f"{node_name(others[0])} would become part of it, and its outputs wrong"


def unsigned_transposed(view: OnnxView, rules: LintRules) -> Found:
    """Rule 36."""
    for node in filter(view.has_integer_weight, view.nodes):
        if node.op_type == "ConvTranspose" and _has_zero_point(view, node):
            yield node_name(node), "the zero point of its input is not 0: it would run in float"


_MOVES = frozenset(
    {"Reshape", "Flatten", "Transpose", "Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "Concat", "Expand"}
)


def joined_positions(view: OnnxView, rules: LintRules) -> Found:
    """Rule 39."""
    for node in view.nodes:
        joins = node.op_type == "Concat" and attributes(node)["axis"] != 1
        if joins and is_moved_to_a_layer(view, node) and all(is_shifted(view, part) for part in node.input):
            yield (
                node_name(node),
                "it joins reals of integers with a zero point: the layer behind it would run in float",
            )


def is_shifted(view: OnnxView, tensor: str) -> bool:
    """Whether a tensor is moved from dequantised integers whose zero point is another than 0."""
    dequantise = _moved_from(view, tensor)
    zero = view.zero_point(dequantise) if dequantise is not None else None
    return zero is not None and bool(zero.any())


def _moved_from(view: OnnxView, tensor: str) -> NodeProto | None:
    """The DequantizeLinear whose values a tensor is, moved or not; None where something else computes them."""
    node = view.producer(tensor)
    while node is not None and node.op_type in _MOVES:
        node = view.producer(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def is_moved_to_a_layer(view: OnnxView, node: NodeProto) -> bool:
    """Whether a layer on integers reads what a node gives, moved or not."""
    readers = [reader for output in node.output for reader in view.readers(output)]
    return any(
        view.has_integer_weight(reader) or (reader.op_type in _MOVES and is_moved_to_a_layer(view, reader))
        for reader in readers
    )


def dilated_maxima(view: OnnxView, rules: LintRules) -> Found:
    """Rule 41."""
    for node in view.nodes:
        if node.op_type != "MaxPool" or {*attributes(node).get("dilations", [1])} == {1}:
            continue
        if _moved_from(view, node.input[0]) is not None and is_moved_to_a_layer(view, node):
            yield node_name(node), "it reads reals and is dilated: the layer behind it would run in float"


def computed_sizes(view: OnnxView, rules: LintRules) -> Found:
    """Rule 40."""
    for node in view.nodes:
        if node.op_type == "Expand" and view.value(node.input[1]) is None:
            yield node_name(node), "its size is computed: a convolution before it would lose its bias"


def _has_zero_point(view: OnnxView, node: NodeProto) -> bool:
    """Whether a node reads dequantised integers whose zero point is another than 0."""
    dequantise = view.dequantised(node, 0)
    zero = view.zero_point(dequantise) if dequantise is not None else None
    return zero is not None and bool(zero.any())
