"""A Q/DQ file that another tool wrote, brought into the form in which a target's kernels take it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from backends.facts.profile import Profile
from backends.nncf.editing import Names, add_constant
from backends.nncf.forms import in_form
from backends.onnx_file.view import OnnxView, attributes
from backends.oracle.plain_operators import moves_values

_INT32_MAX = 2**31 - 1


def adapted(model: onnx.ModelProto, profile: Profile) -> onnx.ModelProto:
    """A copy of a file that moves reals in the form of a profile's own files; what it computes stays the same.

    Activations in int8 become uint8 with a zero point that is 128 greater, where the profile's grids are unsigned:
    the same reals. What only moves dequantised values moves integers where the profile has that: the same reals. A
    float bias becomes int32 at input scale times weight scale where the profile's kernels want one, as ONNX Runtime
    itself rounds it when it loads the file: half a step of that tiny scale at most. What the profile's
    form says of biases, borders and reductions is written as in our own files.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if not profile.signed.signed:
        _activations_to_uint8(copy)
    if profile.form.movement == "integers":
        _movement_on_integers(copy)
    if profile.integer_bias:
        _biases_to_int32(copy)
    in_form(copy, profile)
    _drop_unread(copy)
    onnx.checker.check_model(copy)
    return copy


def _activations_to_uint8(model: onnx.ModelProto) -> None:
    view, names = OnnxView(model), Names(model)
    for node in view.roundings():
        zero = view.zero_point(node)
        is_weight = node.op_type == "DequantizeLinear" and view.stored_integers(node) is not None
        if is_weight or zero is None or view.integer_type(node) != TensorProto.INT8:
            continue
        shifted = np.asarray(zero.astype(np.int16) + 128).astype(np.uint8)
        node.input[2] = add_constant(model, names.fresh(f"{node.name or node.output[0]}_uint8"), shifted)


def _movement_on_integers(model: onnx.ModelProto) -> None:
    """Write every movement of dequantised values before the DequantizeLinear instead of behind it."""
    names, changed = Names(model), True
    while changed:
        view, changed = OnnxView(model), False
        for index, node in enumerate(view.nodes):
            sources = _dequantised_data(view, node)
            if sources:
                _swap(model, index, node, sources, names)
                changed = True
                break


def _dequantised_data(view: OnnxView, node: NodeProto) -> list[NodeProto]:
    """The DequantizeLinear of each data input of a movement, if it can run on their integers; else none."""
    if not moves_values(node.op_type, attributes(node)) or node.op_type == "Cast":
        return []
    count = len(node.input) if node.op_type == "Concat" else 1
    dequantised = [view.dequantised(node, position) for position in range(count)]
    sources = [source for source in dequantised if source is not None and view.stored_integers(source) is None]
    if len(sources) < count:
        return []
    grids = [(view.scale(source), view.zero_point(source)) for source in sources]
    scale, zero = grids[0]
    if scale is None or zero is None or scale.ndim or any(grid[0] != scale or grid[1] != zero for grid in grids):
        return []
    if node.op_type == "Pad" and attributes(node).get("mode", "constant") == "constant":
        border = view.value(view.input(node, 2))
        if view.input(node, 2) and (border is None or np.any(border != 0)):
            return []
    return sources


def _swap(model: onnx.ModelProto, index: int, node: NodeProto, sources: list[NodeProto], names: Names) -> None:
    scale, zero = sources[0].input[1], sources[0].input[2]
    for position, source in enumerate(sources):
        node.input[position] = source.input[0]
    if node.op_type == "Pad" and attributes(node).get("mode", "constant") == "constant":
        # A border of the real number zero is one of zero points.
        rest = list(node.input)[3:]
        del node.input[2:]
        node.input.extend([zero, *rest])
    for output in range(len(node.output)):
        real = node.output[output]
        node.output[output] = names.fresh(f"{real}_q")
        name = names.fresh(f"{real}_dq")
        dequantise = helper.make_node("DequantizeLinear", [node.output[output], scale, zero], [real], name=name)
        model.graph.node.insert(index + 1 + output, dequantise)


def _biases_to_int32(model: onnx.ModelProto) -> None:
    view, names = OnnxView(model), Names(model)
    for node in view.nodes:
        bias, data, weight = view.value(view.input(node, 2)), view.dequantised(node, 0), view.dequantised(node, 1)
        if node.op_type not in ("Conv", "Gemm") or bias is None or data is None or weight is None:
            continue
        first, second = view.scale(data), view.scale(weight)
        if first is None or second is None or first.ndim:
            continue
        scale = np.asarray(first * second, np.float32)
        integers = np.rint(bias.astype(np.float64) / scale)
        if np.abs(integers).max(initial=0) > _INT32_MAX:
            continue
        base = node.name or node.output[0]
        inputs = [
            add_constant(model, names.fresh(f"{base}_{word}"), values)
            for word, values in (
                ("bias_int32", integers.astype(np.int32)),
                ("bias_scale", scale),
                ("bias_zero", np.zeros(scale.shape, np.int32)),
            )
        ]
        output = names.fresh(f"{base}_bias_dq")
        axis: dict[str, Any] = {"axis": 0} if scale.ndim else {}
        position = list(model.graph.node).index(node)
        model.graph.node.insert(position, helper.make_node("DequantizeLinear", inputs, [output], name=output, **axis))
        node.input[2] = output


def _drop_unread(model: onnx.ModelProto) -> None:
    """Remove roundings and constants that nobody reads any more."""
    graph = model.graph
    results = {output.name for output in graph.output}
    while True:
        read = results | {name for node in graph.node for name in node.input}
        unread = [node for node in graph.node if not read & set(node.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    # Shapes noted for tensors that no longer are, or hold integers now, would contradict the graph.
    del graph.value_info[:]
