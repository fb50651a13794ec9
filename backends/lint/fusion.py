"""The linter's checks of fusion: where ONNX Runtime makes one integer kernel of an operator and its roundings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from backends.lint.rule import LintRules
from backends.onnx_file.view import INTEGER_RANGES, OnnxView, attributes, node_name

Found = Iterator[tuple[str, str]]

#: Operators whose integer kernels read rounded inputs; how many of their inputs must be.
_KERNEL_INPUTS = {
    **dict.fromkeys(("Conv", "Gemm", "MatMul", "Add", "Mul"), 2),
    **dict.fromkeys(("GlobalAveragePool", "AveragePool", "Sigmoid", "LeakyRelu"), 1),
}
#: Kernels that are tables of 256 entries: what an activation behind them does, they could not.
_TABLES = frozenset({"Sigmoid", "LeakyRelu"})
_MOVEMENT = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "DepthToSpace", "Slice", "Gather"}
    | {"Squeeze", "Unsqueeze", "Split", "Resize"}
)


def _runs_on_integers(view: OnnxView, node: NodeProto | None) -> bool:
    """Whether all inputs that an integer kernel of this operator needs are rounded."""
    if node is None or node.op_type not in _KERNEL_INPUTS:
        return False
    return all(view.dequantised(node, position) is not None for position in range(_KERNEL_INPUTS[node.op_type]))


def _rounded_by(view: OnnxView, tensor: str) -> NodeProto | None:
    reader = view.only_reader(tensor)
    return reader if reader is not None and reader.op_type == "QuantizeLinear" else None


def _is_rounded(view: OnnxView, tensor: str) -> bool:
    """Whether a kernel that writes the tensor can round it, over a ReLU or Clip that it performs."""
    reader = view.only_reader(tensor)
    if reader is not None and reader.op_type in ("Relu", "Clip"):
        reader = view.only_reader(reader.output[0])
    return reader is not None and reader.op_type == "QuantizeLinear"


def _rounding(view: OnnxView, quantise: NodeProto) -> tuple[float, int, int, int] | None:
    """Scale, zero point, smallest and largest integer of a QuantizeLinear with one scale in all."""
    scale, zero, kind = view.scale(quantise), view.zero_point(quantise), view.integer_type(quantise)
    if scale is None or zero is None or kind is None or scale.size != 1 or zero.size != 1:
        return None
    return float(scale.reshape(())), int(zero.reshape(())), *INTEGER_RANGES[kind]


def _same_scale(first: NDArray[Any] | None, second: NDArray[Any] | None) -> bool:
    """Whether two scales are one, as far as they are constants."""
    return first is None or second is None or np.array_equal(first, second)


def absorbed_relus(view: OnnxView, rules: LintRules) -> Found:
    """Rule 13."""
    for node in view.nodes:
        if node.op_type != "Relu":
            continue
        quantise = _rounded_by(view, node.output[0])
        rounding = _rounding(view, quantise) if quantise is not None else None
        if rounding is not None and _runs_on_integers(view, view.producer(node.input[0])):
            _, zero, lowest, _ = rounding
            if zero != lowest:
                yield node_name(node), f"the zero point behind it is {zero}, not {lowest}: the layer would stay float"
        dequantise = view.dequantised(node, 0)
        before = view.producer(dequantise.input[0]) if dequantise is not None else None
        if dequantise is None or before is None or before.op_type != "QuantizeLinear":
            continue
        if not _same_scale(view.scale(before), view.scale(dequantise)):
            continue  # a number multiplies the tensor between them: no rounding behind the ReLU could be the kernel's
        alone = view.only_reader(dequantise.output[0]) is not None and view.only_reader(before.output[0]) is not None
        producer = view.producer(before.input[0])
        if alone and producer is not None and producer.op_type not in _TABLES and _runs_on_integers(view, producer):
            yield node_name(node), f"{node_name(before)} rounds between the layer and its ReLU"


def absorbed_clips(view: OnnxView, rules: LintRules) -> Found:
    """Rule 14."""
    for node in view.nodes:
        if node.op_type != "Clip" or not _runs_on_integers(view, view.producer(node.input[0])):
            continue
        quantise = _rounded_by(view, node.output[0])
        rounding = _rounding(view, quantise) if quantise is not None else None
        if rounding is None:
            continue
        scale, zero, lowest, highest = rounding
        low, high = (view.value(view.input(node, position)) for position in (1, 2))
        floor = -np.inf if low is None else float(low.reshape(()))
        ceiling = np.inf if high is None else float(high.reshape(()))
        reach = scale * (highest - zero), scale * (lowest - zero)
        if reach[0] > ceiling or reach[1] < floor:
            covered = f"{reach[1]:.6g} to {reach[0]:.6g}"
            yield node_name(node), f"the rounding behind it covers {covered}, the clip {floor:.6g} to {ceiling:.6g}"


def rounded_convolutions(view: OnnxView, rules: LintRules) -> Found:
    """Rule 15."""
    for node in filter(view.has_integer_weight, view.nodes):
        if node.op_type != "Conv":
            continue
        if view.dequantised(node, 0) is None:
            yield node_name(node), "its weight is integers but its input is float"
        if not _is_rounded(view, node.output[0]):
            yield node_name(node), "its output reaches no QuantizeLinear: it would run in float"


def _is_silu(view: OnnxView, sigmoid: NodeProto) -> bool:
    """Whether the sigmoid is half of x * sigmoid(x), which this target runs in float as a whole."""
    reader = view.only_reader(sigmoid.output[0])
    return reader is not None and reader.op_type == "Mul" and sigmoid.input[0] in reader.input


def rounded_activations(view: OnnxView, rules: LintRules) -> Found:
    """Rule 16."""
    for node in view.nodes:
        if node.op_type not in _TABLES or node.name in rules.planned_float or view.dequantised(node, 0) is None:
            continue
        if _rounded_by(view, node.output[0]) is None and not _is_silu(view, node):
            yield node_name(node), "its input is rounded and its output is not: it would run in float"


def rounded_poolings(view: OnnxView, rules: LintRules) -> Found:
    """Rule 17."""
    for node in view.nodes:
        if node.name in rules.planned_float:
            continue
        if node.op_type in ("GlobalAveragePool", "AveragePool") and view.dequantised(node, 0) is not None:
            if not _is_rounded(view, node.output[0]):
                yield node_name(node), "its input is rounded and its output is not: it would run in float"
        elif node.op_type == "ReduceMean" and _reduces_a_map(view, node):
            yield node_name(node), "a mean over height and width has an integer kernel as GlobalAveragePool only"
        elif node.op_type == "Concat":
            inputs = [view.dequantised(node, position) is not None for position in range(len(node.input))]
            if all(inputs) and _rounded_by(view, node.output[0]) is None:
                yield node_name(node), "its inputs are rounded and its output is not: it would run in float"
        elif node.op_type in ("Gemm", "MatMul") and view.has_integer_weight(node) and view.dequantised(node, 0) is None:
            yield node_name(node), "its weight is integers but its input comes from no DequantizeLinear"


def _reduces_a_map(view: OnnxView, node: NodeProto) -> bool:
    stored = view.value(view.input(node, 1))
    axes = attributes(node).get("axes") if stored is None else stored.tolist()
    return axes is not None and sorted(axes) in ([2, 3], [-2, -1]) and view.dequantised(node, 0) is not None


def unchanged_movement(view: OnnxView, rules: LintRules) -> Found:
    """Rule 18."""
    for node in view.nodes:
        before = view.dequantised(node, 0)
        if node.op_type not in _MOVEMENT or before is None or _is_linear_resize(node):
            continue
        for output in node.output:
            behind = _rounded_by(view, output)
            if behind is None:
                continue
            pairs = ((view.scale(before), view.scale(behind)), (view.zero_point(before), view.zero_point(behind)))
            if any(a is None or b is None or not np.array_equal(a, b) for a, b in pairs):
                yield node_name(node), "scale and zero point differ before and behind it: it would run in float"


def _is_linear_resize(node: NodeProto) -> bool:
    return node.op_type == "Resize" and attributes(node).get("mode", "nearest") != "nearest"


def one_rounding(view: OnnxView, rules: LintRules) -> Found:
    """Rule 21."""
    for node in view.nodes:
        for tensor in node.output:
            readers = view.readers(tensor)
            roundings = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
            if len(roundings) > 1:
                yield node_name(node), f"its output is rounded by {' and by '.join(map(node_name, roundings))}"
            elif rules.form.rounded_for_all and roundings and _runs_on_integers(view, node):
                if len(readers) > 1:
                    other = next(reader for reader in readers if reader.op_type != "QuantizeLinear")
                    yield node_name(node), f"its output is rounded for some and read as float by {node_name(other)}"
                elif tensor in view.outputs:
                    yield node_name(node), f"its output is rounded and is also the model's float output {tensor}"


def products_before_activations(view: OnnxView, rules: LintRules) -> Found:
    """Rule 31."""
    for node in view.nodes:
        if node.op_type not in ("Gemm", "MatMul") or not _runs_on_integers(view, node):
            continue
        reader = view.only_reader(node.output[0])
        if reader is None or reader.op_type not in ("Relu", "Clip") or reader.output[0] in view.outputs:
            continue
        if _rounded_by(view, reader.output[0]) is None:
            yield node_name(node), f"{node_name(reader)} behind it is not rounded: it would run in float"
