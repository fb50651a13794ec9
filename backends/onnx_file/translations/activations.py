"""Translations of activations."""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from backends.onnx_file.translations.common import input_of, per_channel
from backends.onnx_file.writer import Writer
from calibration.graph.operators import WEIGHTED, argument, attribute, clip_bounds, kind, static_shape, tensor_inputs

aten = torch.ops.aten


def relu(e: Writer, node: Node) -> list[str]:
    """Relu, or Max with 0 behind an integer product where the form asks for it."""
    source = e.read(input_of(node))
    return e.add("Max", [source, e.scalar(0.0)]) if _behind_float_product(e, node) else e.add("Relu", [source])


def clip(e: Writer, node: Node) -> list[str]:
    """Clip, with the bounds that are finite; or Max and Min behind an integer product where the form asks for it."""
    low, high = clip_bounds(node)
    if _behind_float_product(e, node):
        bounded = e.read(input_of(node))
        for operator, bound, suffix in (("Max", low, "_low" if math.isfinite(high) else ""), ("Min", high, "")):
            if math.isfinite(bound):
                (bounded,) = e.add(operator, [bounded, e.scalar(bound)], suffix=suffix)
        return [bounded]
    bounds = [e.scalar(low) if math.isfinite(low) else "", e.scalar(high) if math.isfinite(high) else ""]
    return e.add("Clip", [e.read(input_of(node)), *bounds] if bounds[1] else [e.read(input_of(node)), bounds[0]])


def _behind_float_product(e: Writer, node: Node) -> bool:
    """Whether a matrix product on integers writes floats that this node then changes, as it is not absorbed."""
    producer = input_of(node)
    return (
        e.frozen is not None
        and e.form.bounds_behind_products
        and kind(producer) in ("linear", "matmul")
        and e.runs_on_integers(producer)
        and producer not in e.integers
        and node.name not in e.frozen.plan.absorbed
    )


def hard_sigmoid(e: Writer, node: Node) -> list[str]:
    """HardSigmoid, or on integers an addition whose rounding clips."""
    # torch: clip(x / 6 + 1/2, 0, 1); the rounding behind an integer addition clips by itself.
    if not e.runs_on_integers(node):
        return e.add("HardSigmoid", [e.read(input_of(node))], alpha=1 / 6, beta=0.5)
    return e.add("Add", [e.read_divided(input_of(node), 6), e.integer_constant(1, 0.5, rank=len(static_shape(node)))])


def leaky_relu(e: Writer, node: Node) -> list[str]:
    """LeakyRelu."""
    return e.add("LeakyRelu", [e.read(input_of(node))], alpha=float(argument(node, 1, "negative_slope", 0.01)))


def celu(e: Writer, node: Node) -> list[str]:
    """Celu."""
    return e.add("Celu", [e.read(input_of(node))], alpha=float(argument(node, 1, "alpha", 1.0)))


def elu(e: Writer, node: Node) -> list[str]:
    """Elu."""
    return e.add("Elu", [e.read(input_of(node))], alpha=float(argument(node, 1, "alpha", 1.0)))


def prelu(e: Writer, node: Node) -> list[str]:
    """PRelu, its slopes along the channels; or the same values by Mul and Max, and with slopes above 1 by two parts."""
    source, parameter = e.read(input_of(node)), input_of(node, 1)
    slopes = per_channel(e, parameter, len(static_shape(node)))
    if not e.form.prelu_as_maximum:
        return e.add("PRelu", [source, slopes])
    if bool((attribute(e.module, str(parameter.target)) <= 1).all()):
        return e.add("Max", [source, *e.add("Mul", [source, slopes], suffix="_sloping")])
    (below,) = e.add("Min", [source, e.scalar(0.0)], suffix="_below")
    (sloping,) = e.add("Mul", [below, slopes], suffix="_sloping")
    return e.add("Add", [*e.add("Relu", [source], suffix="_above"), sloping])


def silu(e: Writer, node: Node) -> list[str]:
    """X * Sigmoid(x)."""
    source = e.read(input_of(node))
    return e.add("Mul", [source, *e.add("Sigmoid", [source], suffix="_sigmoid")])


def tanh(e: Writer, node: Node) -> list[str]:
    """Tanh; in a Mish one and a Max of the lowest number, where the form keeps its parts from becoming one."""
    gate = input_of(node)
    if not e.form.mish_in_parts or gate.target is not aten.softplus.default or _behind_a_layer(input_of(gate)):
        return e.add("Tanh", [e.read(gate)])
    (whole,) = e.add("Tanh", [e.read(gate)], suffix="_whole")
    return e.add("Max", [whole, e.lowest])


def _behind_a_layer(source: Node) -> bool:
    """Whether it is what a layer's kernel gives, which takes in a Mish as a whole, added to another map or not."""
    return kind(source) in WEIGHTED or (kind(source) == "add" and len(tensor_inputs(source)) == 2)


def gelu(e: Writer, node: Node) -> list[str]:
    """Gelu, before opset 20 by the error function."""
    source = e.read(input_of(node))
    approximate = str(argument(node, 1, "approximate", "none"))
    if e.opset >= 20:
        return e.add("Gelu", [source], approximate=approximate)
    if approximate != "none":
        raise e.unsupported("GELU's tanh form needs --opset 20 or newer")
    (scaled,) = e.add("Div", [source, e.scalar(math.sqrt(2.0))], suffix="_div")
    (error,) = e.add("Erf", [scaled], suffix="_erf")
    (shifted,) = e.add("Add", [error, e.scalar(1.0)], suffix="_add")
    (product,) = e.add("Mul", [source, shifted], suffix="_mul")
    return e.add("Mul", [product, e.scalar(0.5)])
