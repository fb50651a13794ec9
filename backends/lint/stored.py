"""The linter's checks of what is stored: types, scales, zero points, weights and biases; one per rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from backends.lint.rule import LintRules
from backends.onnx_file.half import HALF_OPSET, SMALLEST_HALF_SCALE
from backends.onnx_file.view import INT4_OPSET, OPSETS, OnnxView, attributes, node_name

#: Inputs of a product that may share the scale of an int4 weight (see `backends.facts.tensorrt_rules.WEIGHT_ONLY`).
BLOCK_SIZES = (128, 64)

Found = Iterator[tuple[str, str]]


def _layers(view: OnnxView) -> Iterator[NodeProto]:
    """Weighted layers whose weight is stored as integers."""
    return (node for node in view.nodes if view.has_integer_weight(node))


# Rules 1 to 3: what TensorRT's parser takes.


def zero_points_are_zero(view: OnnxView, rules: LintRules) -> Found:
    """Rule 1."""
    for node in view.roundings():
        zero = view.zero_point(node)
        if zero is not None and np.any(zero != 0):
            yield node_name(node), f"its zero point is {zero.reshape(-1)[0]}, 0 is the only one"


def int8_alone(view: OnnxView, rules: LintRules) -> Found:
    """Rule 2; rule 3 is about int32, rules 25 and 30 about int4."""
    for node in view.roundings():
        kind = view.integer_type(node)
        if kind == TensorProto.UINT8:
            yield node_name(node), "it works on uint8, which would be read as int8 and clipped at 127"
        elif kind not in (None, TensorProto.INT8, TensorProto.INT32, TensorProto.INT4):
            yield node_name(node), f"it works on {TensorProto.DataType.Name(kind).lower()}, int8 alone is computed with"


def float_biases(view: OnnxView, rules: LintRules) -> Found:
    """Rule 3."""
    for node in view.roundings():
        if view.integer_type(node) == TensorProto.INT32:
            yield node_name(node), "it dequantises int32; a bias stays float"
    for node in view.nodes:
        if view.is_weighted(node) and (bias := view.input(node, 2)):
            stored = view.initialisers.get(bias)
            if stored is None or stored.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
                yield node_name(node), f"its bias {bias} is no float constant"


def one_float_type(view: OnnxView, rules: LintRules) -> Found:
    """Rule 8."""
    if not any(stored.data_type == TensorProto.FLOAT16 for stored in view.initialisers.values()):
        return
    if view.opset < HALF_OPSET:
        yield "the model", f"its opset is {view.opset}; float16 roundings exist from {HALF_OPSET} on"
    for node in view.nodes:
        if node.op_type == "Resize":
            continue  # its scales are float32 always
        for name in node.input:
            stored = view.initialisers.get(name)
            if stored is not None and stored.data_type == TensorProto.FLOAT:
                yield node_name(node), f"its constant {name} is float32 in a file of float16"


# Rules 9 to 12: scales, zero points, axes and types.


def scale_ranks(view: OnnxView, rules: LintRules) -> Found:
    """Rule 9."""
    for node in view.roundings():
        stored = view.stored_integers(node) if node.op_type == "DequantizeLinear" else None
        for word, values in (("scale", view.scale(node)), ("zero point", view.zero_point(node))):
            if values is None or values.ndim == 0:
                continue
            if stored is None:
                yield node_name(node), f"its {word} has shape {list(values.shape)}, one per tensor has rank 0"
                continue
            dims, axis = list(view.initialisers[stored].dims), attributes(node).get("axis")
            if "block_size" in attributes(node):
                continue  # rule 30
            if axis is None or values.ndim != 1 or not dims or dims[axis % len(dims)] != values.size:
                shape = list(values.shape)
                yield node_name(node), f"its {word} of shape {shape} is not one per index of axis {axis} of {dims}"


def explicit_zero_points(view: OnnxView, rules: LintRules) -> Found:
    """Rule 10."""
    for node in view.roundings():
        if view.zero_point(node) is None:
            yield node_name(node), "it has no constant zero point; runtimes then assume uint8"
        if "output_dtype" in attributes(node):
            yield node_name(node), "it has the attribute output_dtype; the zero point says the type"


def weight_axes(view: OnnxView, rules: LintRules) -> Found:
    """Rule 11."""
    for node in _layers(view):
        dequantise = view.dequantised(node, 1)
        assert dequantise is not None
        scale, stored = view.scale(dequantise), view.stored_integers(dequantise)
        if scale is None or scale.ndim == 0 or stored is None or "block_size" in attributes(dequantise):
            continue  # of scales in blocks, rule 30
        rank = len(view.initialisers[stored].dims)
        output_first = node.op_type == "Conv" or (node.op_type == "Gemm" and bool(attributes(node).get("transB", 0)))
        expected = 0 if output_first else 1 if node.op_type == "ConvTranspose" else rank - 1
        axis = attributes(dequantise).get("axis", 1) % max(rank, 1)
        if axis != expected:
            yield node_name(node), f"its weight scales lie on axis {axis}, {node.op_type} needs axis {expected}"


def uint8_activations(view: OnnxView, rules: LintRules) -> Found:
    """Rule 12."""
    for node in view.roundings():
        if node.op_type == "DequantizeLinear" and view.stored_integers(node) is not None:
            continue
        kind = view.integer_type(node)
        if kind is not None and kind != TensorProto.UINT8:
            yield node_name(node), f"its activations are {TensorProto.DataType.Name(kind).lower()}, not uint8"


# Rules 19 to 25: biases, weights and scales.


def integer_biases(view: OnnxView, rules: LintRules) -> Found:
    """Rule 19."""
    for node in view.nodes:
        if view.dequantised(node, 0) is None or not view.is_weighted(node):
            continue
        if not view.has_integer_weight(node):
            if node.op_type != "MatMul":
                yield (
                    node_name(node),
                    "its input is rounded and its weight is float: the runtime would round it per tensor",
                )
            continue
        bias = view.input(node, 2)
        if bias:
            yield from ((node_name(node), problem) for problem in _bias_problems(view, node))


def _bias_problems(view: OnnxView, node: NodeProto) -> Iterator[str]:
    dequantise = view.dequantised(node, 2)
    if dequantise is None:
        yield f"its bias {node.input[2]} is float: the runtime would round it by itself"
        return
    if view.integer_type(dequantise) != TensorProto.INT32:
        yield "its bias is not int32"
    zero = view.zero_point(dequantise)
    if zero is not None and np.any(zero != 0):
        yield "the zero point of its bias is not 0"
    data, weight = view.dequantised(node, 0), view.dequantised(node, 1)
    assert data is not None and weight is not None
    scales = [view.scale(part) for part in (dequantise, data, weight)]
    if any(each is None for each in scales):
        yield "a scale of its bias, input or weight is no constant"
        return
    scale, first, second = scales
    assert scale is not None and first is not None and second is not None
    expected = np.asarray(first, np.float32) * np.asarray(second, np.float32)
    if scale.shape != expected.shape or not np.array_equal(scale, expected):
        largest = float(np.max(np.abs(scale - expected) / expected)) if scale.shape == expected.shape else float("inf")
        yield f"the scale of its bias is not input scale times weight scale (off by up to {largest:.2g} of it)"


def no_batch_norm(view: OnnxView, rules: LintRules) -> Found:
    """Rule 20."""
    for node in view.nodes:
        if node.op_type == "BatchNormalization":
            yield node_name(node), "it was not folded into the layer before it"


def _weights(view: OnnxView) -> Iterator[tuple[NodeProto, str, NDArray[Any]]]:
    """Every layer with integer weights, with the weight's name and integers."""
    for node in _layers(view):
        dequantise = view.dequantised(node, 1)
        stored = view.stored_integers(dequantise) if dequantise is not None else None
        values = view.value(stored) if stored is not None else None
        if stored is not None and values is not None:
            yield node, stored, values


def _bits(view: OnnxView, rules: LintRules, node: NodeProto, stored: str) -> int:
    """Bits of a layer's grid: what the plan says, else what the file stores."""
    name = node.name
    if name in rules.weight_bits:
        return rules.weight_bits[name]
    return 4 if view.initialisers[stored].data_type == TensorProto.INT4 else 8


def limited_weights(view: OnnxView, rules: LintRules) -> Found:
    """Rule 22."""
    for node, _, values in _weights(view):
        largest = int(np.abs(values.astype(np.int32)).max(initial=0))
        if rules.weight_limit < 127 and largest > rules.weight_limit:
            yield node_name(node), f"a weight of magnitude {largest} is beyond {rules.weight_limit}"


def narrow_weights(view: OnnxView, rules: LintRules) -> Found:
    """Rule 23."""
    for node, stored, values in _weights(view):
        bits = max(_bits(view, rules, node, stored), 2)  # one bit is -1 and 1: what two bits hold, but for zero
        lowest = -(2 ** (bits - 1))
        if values.size and int(values.min()) <= lowest:
            yield node_name(node), f"its weight holds {int(values.min())}; {lowest + 1} is the smallest allowed"


def positive_scales(view: OnnxView, rules: LintRules) -> Found:
    """Rule 24."""
    for node in view.roundings():
        scale = view.scale(node)
        if scale is None:
            yield node_name(node), "its scale is no constant"
            continue
        smallest = SMALLEST_HALF_SCALE if scale.dtype == np.float16 else float(np.finfo(np.float32).tiny)
        if not np.all(np.isfinite(scale)) or np.any(scale < smallest):
            yield node_name(node), f"a scale of {float(np.min(scale)):.3g} is not positive, finite and normal"


def four_bit_weights(view: OnnxView, rules: LintRules) -> Found:
    """Rule 25."""
    for name in _four_bit_tensors(view):
        if not rules.form.packs_int4:
            if not _is_weight_of_floats(view, name):
                yield name, "it is stored in 4 bits; this target runs 4-bit weights as int8 and stores them so"
            continue
        for reader in view.readers(name):
            if reader.op_type != "Cast" or attributes(reader).get("to") != TensorProto.INT8:
                yield (
                    node_name(reader),
                    f"it reads the 4-bit weight {name} without a Cast to int8: it would run in float",
                )
    for node, stored_name, values in _weights(view):
        bits = _bits(view, rules, node, stored_name)
        largest, allowed = int(np.abs(values.astype(np.int32)).max(initial=0)), max(2 ** (bits - 1) - 1, 1)
        if bits < 8 and largest > allowed:
            yield node_name(node), f"its {bits}-bit weight holds {largest}, {allowed} is the largest"


def _four_bit_tensors(view: OnnxView) -> Iterator[str]:
    """Initialisers of 4-bit integers, their zero points left out."""
    zeros = {view.input(node, 2) for node in view.roundings()}
    for name, stored in view.initialisers.items():
        if stored.data_type in (TensorProto.INT4, TensorProto.UINT4) and name not in zeros:
            yield name


def _is_weight_of_floats(view: OnnxView, name: str) -> bool:
    """Whether all that a 4-bit tensor is for is the weight of products whose other operand is not rounded."""
    dequantised = view.readers(name)
    products = [product for node in dequantised for product in view.readers(node.output[0])]
    return all(node.op_type == "DequantizeLinear" for node in dequantised) and all(
        node.op_type in ("Gemm", "MatMul")
        and view.producer(node.input[1]) in dequantised
        and view.dequantised(node, 0) is None
        for node in products
    )


def blocked_weights(view: OnnxView, rules: LintRules) -> Found:
    """Rule 30."""
    for name in _four_bit_tensors(view):
        dims = list(view.initialisers[name].dims)
        for dequantise in view.readers(name):
            settings, scale = attributes(dequantise), view.scale(dequantise)
            products = view.readers(dequantise.output[0])
            if dequantise.op_type != "DequantizeLinear" or not products or len(dims) != 2:
                continue  # rule 25
            if (block := settings.get("block_size", 0)) == 0:
                yield node_name(dequantise), f"its weight {name} has no blocks: it would be expanded to floats first"
                continue
            # The inputs are the last axis of a weight [outputs, inputs], the first of [inputs, outputs].
            axis = 1 if attributes(products[0]).get("transB") else 0
            shape = [size // block if place == axis else size for place, size in enumerate(dims)]
            if block not in BLOCK_SIZES or dims[axis] % block or block == dims[axis]:
                problem = f"its blocks hold {block} of {dims[axis]} inputs; 128 or 64 are possible, two blocks or more"
                yield node_name(dequantise), problem
            elif settings.get("axis", 1) % 2 != axis or scale is None or list(scale.shape) != shape:
                form = (
                    "computed" if scale is None else f"of shape {list(scale.shape)} on axis {settings.get('axis', 1)}"
                )
                yield node_name(dequantise), f"its scales are {form}; blocks along the inputs need {shape} on {axis}"


def symmetric_weights(view: OnnxView, rules: LintRules) -> Found:
    """Rule 26."""
    for node in _layers(view):
        dequantise = view.dequantised(node, 1)
        zero = view.zero_point(dequantise) if dequantise is not None else None
        if zero is not None and np.any(zero != 0):
            yield node_name(node), f"its weight's zero point is {int(zero.flat[np.argmax(zero != 0)])}, not 0"


def opset(view: OnnxView, rules: LintRules) -> Found:
    """Rule 27."""
    name = view.model.graph.name or "the model"
    if view.opset not in OPSETS:
        yield name, f"its opset is {view.opset}; {OPSETS.start} to {OPSETS.stop - 1} are possible"
    packed = any(t.data_type in (TensorProto.INT4, TensorProto.UINT4) for t in view.initialisers.values())
    if packed and view.opset < INT4_OPSET:
        yield name, f"its opset is {view.opset}; int4 weights exist from {INT4_OPSET} on"
