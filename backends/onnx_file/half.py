"""A Q/DQ file whose rest is float16: scales, biases and every operator between the roundings (rule 8)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from backends.onnx_file.int4 import int4_tensor
from backends.onnx_file.view import OnnxView, attributes, node_name
from calibration.errors import UserError

#: The opset from which QuantizeLinear and DequantizeLinear take float16.
HALF_OPSET = 19
#: The smallest scale that is kept in float16 [ours]: below it the next float16 is more than 6 % away.
SMALLEST_HALF_SCALE = 2.0**-20
_LARGEST = float(np.finfo(np.float16).max)
#: Inputs that ONNX wants in float32 whatever the data are.
_ALWAYS_FLOAT = {"Resize": (1, 2)}


def half_rest(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a Q/DQ model in float32 that computes in float16 outside of its integer kernels.

    Inputs and results stay float32 behind a Cast. A scale becomes the nearest float16, and a weight whose scale moves
    for it is rounded anew to the grid that it then has; integers of 8 bits or fewer keep their values wherever the
    scale is a normal float16. Raises UserError for an opset below 19 and for a constant beyond float16's 65504.
    """
    view = OnnxView(model)
    if view.opset < HALF_OPSET:
        raise UserError(f"--rest fp16 with --opset {view.opset}: float16 roundings exist from opset {HALF_OPSET} on")
    half = onnx.ModelProto()
    half.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in half.graph.initializer}
    untouched = {
        view.input(node, place) for node in view.nodes for place in _ALWAYS_FLOAT.get(node.op_type, ())
    } & constants.keys()
    for node in view.roundings():
        if node.op_type == "DequantizeLinear" and (stored := view.stored_integers(node)) is not None:
            _round_anew(view, node, constants[stored])
    scales = {view.input(node, 1) for node in view.roundings()}
    for name, tensor in constants.items():
        if tensor.data_type == TensorProto.FLOAT and name not in untouched:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(_half(values, name, is_scale=name in scales), name))
    for node in half.graph.node:
        _retype(node)
    _cast_ends(half)
    onnx.checker.check_model(half)
    return half


def half_scale(scale: NDArray[np.float32]) -> NDArray[np.float16]:
    """The float16 scales that stand for float32 ones: the nearest, never smaller where float16 is no longer normal."""
    kept = np.maximum(scale, np.float32(SMALLEST_HALF_SCALE))
    rounded = kept.astype(np.float16)
    is_low = (rounded.astype(np.float32) < kept) & (rounded < np.finfo(np.float16).tiny)
    return np.where(is_low, np.nextafter(rounded, np.float16(1)), rounded).astype(np.float16)


def _half(values: NDArray[Any], name: str, *, is_scale: bool) -> NDArray[np.float16]:
    if is_scale:
        return half_scale(values)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    if largest > _LARGEST:
        raise UserError(f"{name} holds {largest:.6g}: float16 ends at {_LARGEST:.0f}; use --rest fp32")
    halves = values.astype(np.float16)
    if values.ndim == 0 and values != 0 and halves == 0:
        # A number that keeps a divisor or a root from zero must not become it.
        return np.array(np.copysign(np.finfo(np.float16).smallest_subnormal, values), np.float16)
    return halves


def _round_anew(view: OnnxView, dequantise: NodeProto, stored: TensorProto) -> None:
    """Give a weight the integers of its float16 scale; they differ only where the scale had to move far."""
    scale, integers = view.scale(dequantise), view.value(stored.name)
    if scale is None or integers is None or stored.data_type not in (TensorProto.INT8, TensorProto.INT4):
        return
    settings = attributes(dequantise)
    axis, block = settings.get("axis", 1), settings.get("block_size", 0)
    ratio = scale / half_scale(scale).astype(np.float32)
    if block:
        ratio = ratio.repeat(block, axis)
    elif scale.ndim:
        shape = [1] * integers.ndim
        shape[axis] = -1
        ratio = ratio.reshape(shape)
    reach = int(np.abs(integers.astype(np.int32)).max(initial=0))
    moved = np.clip(np.rint(integers * ratio), -reach, reach).astype(np.int8)
    if not np.array_equal(moved, integers):
        packed = stored.data_type == TensorProto.INT4
        stored.CopyFrom(int4_tensor(moved, stored.name) if packed else numpy_helper.from_array(moved, stored.name))


def _retype(node: NodeProto) -> None:
    """Let a node that names float32 in an attribute name float16."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(attribute.t)
            attribute.t.CopyFrom(numpy_helper.from_array(_half(values, node_name(node), is_scale=False)))


def _cast_ends(model: onnx.ModelProto) -> None:
    """Put a Cast behind every float32 input and before every float32 result."""
    graph = model.graph
    nodes, taken = list(graph.node), {name for node in graph.node for name in (*node.input, *node.output)}

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    first, last = [], []
    for entry in graph.input:
        if entry.type.tensor_type.elem_type == TensorProto.FLOAT:
            inside = fresh(f"{entry.name}_half")
            for node in nodes:
                for place, name in enumerate(node.input):
                    if name == entry.name:
                        node.input[place] = inside
            first.append(helper.make_node("Cast", [entry.name], [inside], name=inside, to=TensorProto.FLOAT16))
    for entry in graph.output:
        if entry.type.tensor_type.elem_type == TensorProto.FLOAT:
            inside = fresh(f"{entry.name}_half")
            for node in nodes:
                for names in (node.input, node.output):
                    for place, name in enumerate(names):
                        if name == entry.name:
                            names[place] = inside
            last.append(helper.make_node("Cast", [inside], [entry.name], name=inside, to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend([*first, *nodes, *last])
