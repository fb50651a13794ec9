"""The linter's checks for OpenVINO: what moves values, behind which its passes lose the integers."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from backends.lint.openvino_passes import is_moved_to_a_layer, is_shifted
from backends.lint.rule import LintRules
from backends.onnx_file.view import OnnxView, attributes, node_name

Found = Iterator[tuple[str, str]]

_TURNS = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
_MOVES = _TURNS | {"Slice", "Gather", "Split", "Concat", "DepthToSpace", "SpaceToDepth"}
_FUNCTIONS = frozenset(
    {
        *("Relu", "Clip", "Gelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Celu", "Selu", "Softplus"),
        *("Abs", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Neg"),
    }
)
_SCALES = frozenset({"Add", "Sub", "Mul", "Div"})


def rounded_joins(view: OnnxView, rules: LintRules) -> Found:
    """Rule 50."""
    for node in view.nodes:
        if node.op_type != "Concat":
            continue
        roundings = [reader for reader in view.readers(node.output[0]) if reader.op_type == "QuantizeLinear"]
        if any(attributes(node)["axis"] != 1 or _is_taken_apart(view, rounding) for rounding in roundings):
            yield (
                node_name(node),
                "its rounding would be moved to its parts: a layer behind it runs in float, or no file",
            )


def _is_taken_apart(view: OnnxView, node: NodeProto) -> bool:
    """Whether something moves the reals of a rounded tensor, or their maxima, but for paddings."""
    for reader in view.readers(node.output[0]):
        if reader.op_type in ("DequantizeLinear", "Clip", "MaxPool", "Pad"):
            if _is_taken_apart(view, reader):
                return True
        elif node.op_type not in ("QuantizeLinear", "Clip") and reader.op_type in _MOVES:
            return True
    return False


def factors_of_convolutions(view: OnnxView, rules: LintRules) -> Found:
    """Rule 51."""
    for node in view.nodes:
        if node.op_type not in ("Mul", "Div") or all(view.value(operand) is None for operand in node.input):
            continue
        for scaled in map(view.producer, node.input):
            if scaled is None or view.only_reader(scaled.output[0]) is None:
                continue
            if _is_convolution(view, scaled) or _shifts_a_convolution(view, scaled):
                yield node_name(scaled), f"{node_name(node)} would become part of a convolution's weights, in float"


def _shifts_a_convolution(view: OnnxView, node: NodeProto) -> bool:
    values = [view.value(operand) for operand in node.input]
    if node.op_type not in ("Add", "Sub") or not any(each is not None and each.size > 1 for each in values):
        return False
    return any(layer is not None and _is_convolution(view, layer) for layer in map(view.producer, node.input))


def _is_convolution(view: OnnxView, node: NodeProto) -> bool:
    return node.op_type in ("Conv", "ConvTranspose") and view.has_integer_weight(node)


def _before(view: OnnxView, tensor: str) -> NodeProto | None:
    """What computes a tensor, before it was turned or reshaped."""
    node = view.producer(tensor)
    while node is not None and node.op_type in _TURNS:
        node = view.producer(node.input[0])
    return node


def turned_positions(view: OnnxView, rules: LintRules) -> Found:
    """Rule 52."""
    for node in view.nodes:
        if node.op_type != "Transpose" or not _is_changed(view, node):
            continue
        spread = _before(view, node.input[0])
        if spread is not None and spread.op_type == "DepthToSpace":
            yield (
                node_name(node),
                f"{node_name(spread)} would be computed behind what follows, and a layer run in float",
            )


def _is_changed(view: OnnxView, node: NodeProto) -> bool:
    """Whether a function of single values reads a tensor, reshaped or not."""
    for reader in view.readers(node.output[0]):
        numbers = [values for values in map(view.value, reader.input) if values is not None and values.size == 1]
        if reader.op_type in _FUNCTIONS or (reader.op_type in _SCALES and numbers):
            return True
        if reader.op_type in _TURNS and _is_changed(view, reader):
            return True
    return False


def parts_of_joins(view: OnnxView, rules: LintRules) -> Found:
    """Rule 53."""
    for node in view.nodes:
        if node.op_type != "Slice" or not is_moved_to_a_layer(view, node):
            continue
        join = view.producer(node.input[0])
        while join is not None and join.op_type in _MOVES - {"Concat"}:
            join = view.producer(join.input[0])
        if join is None or join.op_type != "Concat" or attributes(join)["axis"] != 1:
            continue
        if all(is_shifted(view, part) for part in join.input):
            yield (
                node_name(node),
                f"it takes a part of {node_name(join)} in reals: the layer behind it would run in float",
            )
