"""Translations of arithmetic, reductions, softmax and normalisations."""

from __future__ import annotations

import math

import numpy as np
from torch.fx import Node

from backends.onnx_file.shapes import shape_of
from backends.onnx_file.translations.common import Translator, input_of, per_channel
from backends.onnx_file.writer import Writer
from calibration.graph.operators import argument, constant, kind, static_shape, tensor_inputs


def binary(operator: str) -> Translator:
    """An operator of two tensors, or of a tensor and a number."""

    def translate(e: Writer, node: Node) -> list[str]:
        if float(argument(node, 2, "alpha", 1)) != 1.0:
            raise e.unsupported("a scaled addition (alpha) has no translation to ONNX")
        operands = [argument(node, position, "other") for position in range(2)]
        names = [e.read(a) if isinstance(a, Node) else e.scalar(float(a)) for a in operands]
        if e.form.factors_apart and operator in ("Mul", "Div") and isinstance(operands[0], Node):
            apart = _is_of_a_convolution(e, operands[0]) and (
                not isinstance(operands[1], Node) or constant(e.module, operands[1]) is not None
            )
            if apart:
                names[:1] = e.add("Max", [names[0], e.lowest], suffix="_apart")
        return e.add(operator, names)

    return translate


def _is_of_a_convolution(e: Writer, node: Node) -> bool:
    """Whether it is a convolution's output that its own weights do not scale, with constants added or not."""
    if len(node.users) > 1:
        return False
    if kind(node) in ("conv", "conv_transpose"):
        return e.runs_on_integers(node)
    sources = tensor_inputs(node)
    if kind(node) not in ("add", "sub") or len(sources) != 1 or isinstance(argument(node, 1, "other"), (int, float)):
        return False
    return kind(sources[0]) in ("conv", "conv_transpose") and e.runs_on_integers(sources[0])


def reduction(operator: str) -> Translator:
    """A reduction over named axes; over all axes there is none, as the batch is one of them."""

    def translate(e: Writer, node: Node) -> list[str]:
        return _reduce(e, node, operator, argument(node, 1, "dim"), argument(node, 2, "keepdim", False))

    return translate


def vector_norm(e: Writer, node: Node) -> list[str]:
    """ReduceL1 or ReduceL2."""
    order = argument(node, 1, "ord", 2)
    if order not in (1, 2):
        raise e.unsupported(f"a norm of order {order} has no translation to ONNX")
    return _reduce(e, node, f"ReduceL{int(order)}", argument(node, 2, "dim"), argument(node, 3, "keepdim", False))


def _reduce(e: Writer, node: Node, operator: str, axes: object, keep: object) -> list[str]:
    if not isinstance(axes, (list, tuple)) or not axes:
        raise e.unsupported(f"{operator} over all axes has no translation to ONNX")
    numbers, kept = [int(axis) for axis in axes], int(bool(keep))
    if e.form.reductions_apart and operator in ("ReduceMax", "ReduceMin"):
        # Nothing is lower: it only keeps what lies behind out of the reduction's kernel.
        (reduced,) = _reduced(e, node, operator, numbers, kept, suffix="_reduced")
        return e.add("Max", [reduced, e.lowest])
    return _reduced(e, node, operator, numbers, kept)


def _reduced(e: Writer, node: Node, operator: str, numbers: list[int], kept: int, *, suffix: str = "") -> list[str]:
    # ReduceSum took its axes as an input five versions before the others.
    if e.opset >= (13 if operator == "ReduceSum" else 18):
        return e.add(operator, [e.read(input_of(node)), e.int64s(numbers)], suffix=suffix, keepdims=kept)
    return e.add(operator, [e.read(input_of(node))], suffix=suffix, axes=numbers, keepdims=kept)


def softmax(operator: str) -> Translator:
    """Softmax or LogSoftmax along one axis."""

    def translate(e: Writer, node: Node) -> list[str]:
        source = e.read(input_of(node))
        if e.form.softmax_apart and node.name in e.placements and input_of(node) in e.integers:
            # Not below the lowest number: nothing changes but what the runtime sees between the two roundings.
            (source,) = e.add("Max", [source, e.lowest], suffix="_kept_in_float")
        return e.add(operator, [source], axis=int(argument(node, 1, "dim")))

    return translate


def smaller_or_larger(operator: str) -> Translator:
    """Min or Max of two tensors."""
    return lambda e, node: e.add(operator, [e.read(input_of(node)), e.read(input_of(node, 1))])


def power(e: Writer, node: Node) -> list[str]:
    """Pow to a number."""
    return e.add("Pow", [e.read(input_of(node)), e.scalar(float(argument(node, 1, "exponent")))])


def rest(e: Writer, node: Node) -> list[str]:
    """Mod as C's fmod: what a division by a number leaves, of the dividend's sign."""
    return e.add("Mod", [e.read(input_of(node)), e.scalar(float(argument(node, 1, "other")))], fmod=1)


def instance_norm(e: Writer, node: Node) -> list[str]:
    """InstanceNormalization; statistics of the image itself alone."""
    weight, bias = (argument(node, place, name) for place, name in ((1, "weight"), (2, "bias")))
    if not argument(node, 5, "use_input_stats"):
        raise e.unsupported("an instance normalisation with running statistics has no translation to ONNX")
    channels = static_shape(node)[1]
    scale = e.read_float(weight) if isinstance(weight, Node) else e.constant(np.ones(channels, np.float32), "ones")
    shift = e.read_float(bias) if isinstance(bias, Node) else e.constant(np.zeros(channels, np.float32), "zeros")
    epsilon = float(argument(node, 7, "eps"))
    return e.add("InstanceNormalization", [e.read(input_of(node)), scale, shift], epsilon=epsilon)


def group_norm(e: Writer, node: Node) -> list[str]:
    """InstanceNormalization over the rows of groups, then scale and shift of each channel.

    ONNX's own GroupNormalization has a scale per channel from opset 21 on only; this form is right in all.
    """
    groups, sizes = int(argument(node, 1, "num_groups")), shape_of(e, node)
    if min(sizes[1:]) < 0:
        raise e.unsupported("a group normalisation of a map whose size is free has no translation to ONNX")
    scale, shift = (e.constant(np.full(groups, value, np.float32), f"f32_{value}x{groups}") for value in (1, 0))
    grouped = e.int64s((-1, groups, math.prod(sizes[1:]) // groups))
    (rows,) = e.add("Reshape", [e.read(input_of(node)), grouped], suffix="_rows")
    epsilon = float(argument(node, 4, "eps", 1e-5))
    (result,) = e.add("InstanceNormalization", [rows, scale, shift], suffix="_rows_norm", epsilon=epsilon)
    (result,) = e.add("Reshape", [result, e.int64s((-1, *sizes[1:]))], suffix="_map")
    for operator, position, name in (("Mul", 2, "weight"), ("Add", 3, "bias")):
        parameter = argument(node, position, name)
        if isinstance(parameter, Node):
            operand = per_channel(e, parameter, len(sizes))
            (result,) = e.add(operator, [result, operand], suffix=f"_{operator.lower()}")
    return [result]


def layer_norm(e: Writer, node: Node) -> list[str]:
    """LayerNormalization; a scale of ones where there is none."""
    sizes = [int(size) for size in argument(node, 1, "normalized_shape")]
    weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
    if isinstance(weight, Node):
        scale = e.read_float(weight)
    else:
        scale = e.constant(np.ones(sizes, np.float32), f"ones_{'x'.join(map(str, sizes))}")
    inputs = [e.read(input_of(node)), scale] + ([e.read_float(bias)] if isinstance(bias, Node) else [])
    return e.add("LayerNormalization", inputs, axis=-len(sizes), epsilon=float(argument(node, 4, "eps", 1e-5)))
