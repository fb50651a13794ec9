"""A model whose rounded tensors are outputs as well, so that two executions can be compared tensor by tensor."""

from __future__ import annotations

import onnx
from onnx import helper

from backends.onnx_file.view import OnnxView


def rounded_tensors(model: onnx.ModelProto) -> list[str]:
    """The tensors that a QuantizeLinear writes, in file order."""
    return [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def exposed(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy with the rounded tensors of these names as outputs behind the model's own.

    Runtimes compute the same integers: a kernel that rounds its own output writes that tensor anyway.
    """
    view, extended = OnnxView(model), onnx.ModelProto()
    extended.CopyFrom(model)
    for name in names:
        quantise = view.producer(name)
        kind = None if quantise is None else view.integer_type(quantise)
        if quantise is None or kind is None or quantise.op_type != "QuantizeLinear":
            raise ValueError(f"{name} is not written by a QuantizeLinear with an explicit zero point")
        extended.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return extended
