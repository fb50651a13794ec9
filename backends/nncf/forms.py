"""A file that another tool wrote, in the form that a runtime asks for of ours."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, helper

from backends.facts.profile import Profile
from backends.lint.openvino_kernels import (
    clipped_integers,
    maxima_before_falling,
    mish_behind_products,
    negative_factors,
    normalised_products,
    numbers_behind_joins,
    products_before_channels,
    stored_on_the_left,
)
from backends.lint.openvino_movement import factors_of_convolutions, rounded_joins
from backends.lint.openvino_passes import borders_of_averages, lone_reductions
from backends.lint.rule import lint_rules
from backends.nncf.editing import Names, add_constant
from backends.onnx_file.translations.common import NEXT_TO_NOTHING
from backends.onnx_file.view import OnnxView, attributes, node_name


def in_form(model: onnx.ModelProto, profile: Profile) -> None:
    """Give layers a bias, averages of signed maps a border of their own, and what has to stand apart a Max.

    Each where the profile's form asks for it and as in our own files: nothing that is computed changes, but for sums of
    exactly 0, which become 1e-30.
    """
    names, rules, form = Names(model), lint_rules(profile), profile.form
    if form.bias_everywhere:
        _biases(model, names)
    if form.borders_next_to_zero:
        for name in {name for name, _ in borders_of_averages(OnnxView(model), rules)}:
            _border(model, _named(model, name), names)
    for asked, check in (
        (form.reductions_apart, lone_reductions),
        (form.maxima_apart, maxima_before_falling),
        (form.shares_apart, products_before_channels),
        (form.shares_apart, stored_on_the_left),
        (form.negative_factors_apart, negative_factors),
        (form.joins_apart, numbers_behind_joins),
        (form.mish_in_parts, mish_behind_products),
        (form.rounded_joins_apart, rounded_joins),
        (form.factors_apart, factors_of_convolutions),
    ):
        if asked:
            for name in {name: None for name, _ in check(OnnxView(model), rules)}:
                _maximum(model, _named(model, name), names)
    for asked, check in ((form.normalised_apart, normalised_products), (form.clips_apart, clipped_integers)):
        if asked:
            for name in {name: None for name, _ in check(OnnxView(model), rules)}:
                _maximum_before(model, _named(model, name), names)


def _named(model: onnx.ModelProto, name: str) -> NodeProto:
    node: NodeProto = next(node for node in model.graph.node if node_name(node) == name)
    return node


def _biases(model: onnx.ModelProto, names: Names) -> None:
    view = OnnxView(model)
    for node in filter(view.has_integer_weight, view.nodes):
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        bias = view.input(node, 2)
        values = view.value(bias) if bias else None
        if bias and (values is None or values.any()):
            continue
        weight = view.dequantised(node, 1)
        stored = None if weight is None else view.value(view.stored_integers(weight) or "")
        assert stored is not None  # it has an integer weight
        if node.op_type == "Gemm":
            count = stored.shape[0 if attributes(node).get("transB", 0) else 1]
        else:
            groups = attributes(node).get("group", 1) if node.op_type == "ConvTranspose" else 1
            count = stored.shape[1] * groups if node.op_type == "ConvTranspose" else stored.shape[0]
        base = names.fresh(f"{node.name or node.output[0]}_bias")
        nothing = add_constant(model, base, np.full(count, NEXT_TO_NOTHING, np.float32))
        del node.input[2:]
        node.input.append(nothing)


def _border(model: onnx.ModelProto, node: NodeProto, names: Names) -> None:
    """Put a padding in front of an average pooling; one that rounds its size up divides otherwise and stays."""
    settings = attributes(node)
    if settings.get("ceil_mode", 0):
        return
    half = len(settings["pads"]) // 2
    pads = np.array([0, 0, *settings["pads"][:half], 0, 0, *settings["pads"][half:]], np.int64)
    base = names.fresh(f"{node.name or node.output[0]}_border")
    inputs = [
        node.input[0],
        add_constant(model, names.fresh(f"{base}_sizes"), pads),
        add_constant(model, names.fresh(f"{base}_value"), np.array(NEXT_TO_NOTHING, np.float32)),
    ]
    position = list(model.graph.node).index(node)
    model.graph.node.insert(position, helper.make_node("Pad", inputs, [base], name=base, mode="constant"))
    node.input[0] = base
    next(attribute for attribute in node.attribute if attribute.name == "pads").ints[:] = [0] * (2 * half)


def _maximum(model: onnx.ModelProto, node: NodeProto, names: Names) -> None:
    """Put a Max with the lowest number behind a node."""
    result, node.output[0] = node.output[0], names.fresh(f"{node.output[0]}_alone")
    _insert_maximum(model, list(model.graph.node).index(node) + 1, node.output[0], result, names)


def _maximum_before(model: onnx.ModelProto, node: NodeProto, names: Names) -> None:
    """Put a Max with the lowest number before a node's first input."""
    source, node.input[0] = node.input[0], names.fresh(f"{node.input[0]}_apart")
    _insert_maximum(model, list(model.graph.node).index(node), source, node.input[0], names)


def _insert_maximum(model: onnx.ModelProto, position: int, source: str, result: str, names: Names) -> None:
    name = names.fresh(f"{result}_max")
    lowest = add_constant(model, names.fresh(f"{name}_lowest"), np.array(np.finfo(np.float32).min, np.float32))
    model.graph.node.insert(position, helper.make_node("Max", [source, lowest], [result], name=name))
