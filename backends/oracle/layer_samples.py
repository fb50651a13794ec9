"""What the oracle says of every layer, as a bundle holds it for the comparison on the device."""

from __future__ import annotations

import io

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor

from backends.device.tensorrt_device.compare import sampled
from backends.oracle.backend import IntegerOracle
from calibration.plan import Plan


def layer_tensors(model: onnx.ModelProto, plan: Plan) -> dict[str, str]:
    """Every planned layer -> the tensor of the file that its kernel writes: behind the activation it absorbs."""
    last = {layer.layer: layer.layer for layer in plan.weights}
    for activation, producer in plan.absorbed.items():  # in graph order: of a written-out SiLU the product is last
        if producer in last:
            last[producer] = activation
    written = {node.name: node.output[0] for node in model.graph.node}
    return {layer: written[name] for layer, name in last.items() if name in written}


def oracle_layers(model: onnx.ModelProto, plan: Plan, images: Tensor) -> bytes:
    """An npz of the layers' names and tensors, and of each some of the oracle's values for images [B, C, H, W]."""
    tensors = layer_tensors(model, plan)
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    results = {entry.name for entry in model.graph.output}
    for name in dict.fromkeys(tensors.values()):
        if name not in results:
            extended.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    oracle = IntegerOracle(extended, fused_rounding=False)
    values = dict(zip(oracle.outputs, oracle.run(images)[0], strict=True))
    arrays = {f"values_{index}": sampled(values[name].numpy()) for index, name in enumerate(tensors.values())}
    buffer = io.BytesIO()
    np.savez(buffer, layers=np.array(list(tensors)), tensors=np.array(list(tensors.values())), **arrays)  # type: ignore[arg-type]  # numpy's stub takes keywords for its own options
    return buffer.getvalue()
