"""The linter's checks for OpenVINO: what has to be kept out of the kernel before it, which computes it wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray
from onnx import NodeProto

from backends.lint.rule import LintRules
from backends.onnx_file.carried import carries_factor, carries_integers, normalised
from backends.onnx_file.view import OnnxView, attributes, node_name

Found = Iterator[tuple[str, str]]

_SCALES = frozenset({"Add", "Sub", "Mul", "Div", "BatchNormalization"})
_FALL = frozenset({"Abs", "Gelu", "Mish"})
_RISE = frozenset({"Relu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Identity"})
#: Activations with a slope that turns them round where it is negative, and what it is without being written.
_SLOPES = {"LeakyRelu": 0.01, "Elu": 1.0}
#: Of several that read the same map these may be parts of one activation.
_PARTS = frozenset({"Mul", "Div", "Sub"})


def maxima_before_falling(view: OnnxView, rules: LintRules) -> Found:
    """Rule 42."""
    for node in view.nodes:
        if node.op_type == "MaxPool" and _is_of_sums(view, node.input[0]):
            falling = _falling(view, node.output[0])
            if falling is not None:
                yield node_name(node), f"{node_name(falling)} would be computed before it, and outputs be wrong"


def _is_of_sums(view: OnnxView, tensor: str) -> bool:
    """Whether a tensor is what a convolution gives, added to and scaled or not."""
    stack, seen = [tensor], set[str]()
    while stack:
        node = view.producer(stack.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if node.op_type == "Conv":
            return True
        if node.op_type in _SCALES:
            stack.extend(node.input)
    return False


def _falling(view: OnnxView, tensor: str) -> NodeProto | None:
    """What reads a tensor, at once or behind what rises, and may give less for a larger value; None: nothing."""
    readers = view.readers(tensor)
    if len(readers) > 1:
        return next((node for node in readers if node.op_type in _PARTS), None)
    for node in readers:
        if node.op_type in _FALL or _slopes_down(view, node):
            return node
        if node.op_type in _RISE or node.op_type in _SLOPES or node.op_type == "PRelu":
            return _falling(view, node.output[0])
    return None


def _slopes_down(view: OnnxView, node: NodeProto) -> bool:
    if node.op_type == "PRelu":
        slopes = view.value(node.input[1])
        return slopes is None or bool((slopes < 0).any())
    return node.op_type in _SLOPES and attributes(node).get("alpha", _SLOPES[node.op_type]) < 0


def products_before_channels(view: OnnxView, rules: LintRules) -> Found:
    """Rule 43."""
    for node in view.nodes:
        if node.op_type == "MatMul" and view.is_weighted(node):
            reader = _of_channels(view, node.output[0])
            if reader is not None:
                yield node_name(node), f"{node_name(reader)} would be part of its kernel, and the file wrong or refused"


def _of_channels(view: OnnxView, tensor: str) -> NodeProto | None:
    """What reads a tensor, at once or behind an activation, with a number for each place of another axis than the last.

    None: nothing does.
    """
    for node in view.readers(tensor):
        if node.op_type in _SCALES or node.op_type == "PRelu":
            constants = [values for values in map(view.value, node.input) if values is not None]
            if any(values.size > 1 and values.ndim > 1 and values.shape[-1] == 1 for values in constants):
                return node
        elif node.op_type in _RISE | _FALL or node.op_type in _SLOPES:
            behind = _of_channels(view, node.output[0])
            if behind is not None:
                return behind
    return None


def negative_factors(view: OnnxView, rules: LintRules) -> Found:
    """Rule 44."""
    for node in view.nodes:
        places = {"Mul": node.input, "Div": node.input[1:], "LayerNormalization": node.input[1:2]}
        if not any(map(_turns_some, map(view.value, places.get(node.op_type, ())))):
            continue
        others = [reader for reader in view.readers(node.output[0]) if reader.op_type != "Max"]
        if others:
            yield (
                node_name(node),
                f"its negative factors would be part of a rounding behind it ({node_name(others[0])}), which would"
                " be wrong",
            )


def stored_on_the_left(view: OnnxView, rules: LintRules) -> Found:
    """Rule 45."""
    for node in view.nodes:
        weights = view.dequantised(node, 0) if node.op_type == "MatMul" else None
        if weights is not None and view.stored_integers(weights) is not None:
            yield node_name(weights), f"{node_name(node)} reads them first: its outputs would be wrong"


def numbers_behind_joins(view: OnnxView, rules: LintRules) -> Found:
    """Rule 46."""
    for node in view.nodes:
        if node.op_type == "Concat" and attributes(node)["axis"] != 1:
            for reader in view.readers(node.output[0]):
                if reader.op_type in _SCALES and any(map(_is_one_number, map(view.value, reader.input))):
                    yield node_name(node), f"behind it and {node_name(reader)} a layer would run in float"


def normalised_products(view: OnnxView, rules: LintRules) -> Found:
    """Rule 48."""
    for node in view.nodes:
        if normalised(node.op_type, node.input, view.producer) and carries_factor(
            node.input[0], view.producer, view.value
        ):
            yield node_name(node), "a factor of what it normalises would be dropped and its epsilon stay: wrong outputs"


def clipped_integers(view: OnnxView, rules: LintRules) -> Found:
    """Rule 49."""
    for node in view.nodes:
        if node.op_type == "Clip" and carries_integers(node.input[0], view.producer, view.value):
            yield node_name(node), "it would clip integers, at bounds that are rounded to them"


def _is_one_number(values: NDArray[Any] | None) -> bool:
    return values is not None and values.size == 1


def mish_behind_products(view: OnnxView, rules: LintRules) -> Found:
    """Rule 47."""
    for node in view.nodes:
        gate = view.producer(node.input[0]) if node.op_type == "Tanh" else None
        if gate is None or gate.op_type != "Softplus" or not _is_of_a_product(view, gate.input[0]):
            continue
        if any(reader.op_type != "Max" for reader in view.readers(node.output[0])):
            yield node_name(node), "it is part of a Mish behind a product of two activations: the file would not load"


def _is_of_a_product(view: OnnxView, tensor: str) -> bool:
    """Whether a tensor is a product of two that are computed, moved or changed value by value since, or not."""
    node = view.producer(tensor)
    while node is not None and node.op_type != "MatMul":
        computed = [name for name in node.input if view.producer(name) is not None]
        if len(computed) != 1 or node.op_type in ("Conv", "Gemm", "QuantizeLinear", "DequantizeLinear"):
            return False
        node = view.producer(computed[0])
    return node is not None and not view.is_weighted(node)


def _turns_some(values: NDArray[Any] | None) -> bool:
    return values is not None and values.size > 1 and bool((values < 0).any())
