"""The oldest ONNX Runtime that runs a file, measured: every version from 1.15 on ran the embedded network's files."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from backends.onnx_file.view import OnnxView

# Opset -> the oldest release whose outputs were the oracle's to the bit; the one before refuses to load the file (of 17
# and 18 none was tried that does). Measured with 1.15.1, 1.16.3, 1.17.3, 1.18.1, 1.19.2, 1.20.1, 1.21.1, 1.22.1,
# 1.23.2 and 1.24.1 on x86-64, where 23 was refused by 1.23.2 for two nodes of one name that its own optimiser makes.
LEAST_OF_OPSET = {17: "1.15", 18: "1.15", 19: "1.16", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.24"}
# Casts of int4 to int8 have a kernel from 1.23 on: 1.18 has no such type, 1.19 to 1.22 end with "Could not find an
# implementation for Cast(21)".
_LEAST_WITH_INT4 = "1.23"
_INT4 = (TensorProto.INT4, TensorProto.UINT4)


def least_runtime(model: onnx.ModelProto, backend: str) -> dict[str, str] | None:
    """The oldest runtime of a backend that runs a model, why, and flags that make a file for an older one.

    None for backends whose older versions were not tried.
    """
    if backend != "onnxruntime":
        return None
    if any(tensor.data_type in _INT4 for tensor in model.graph.initializer):
        why, way_out = "its weights are stored in 4 bits", "--bits 8, whose weights older ones read"
        return {"name": backend, "least": _LEAST_WITH_INT4, "why": why, "way_out": way_out}
    opset = OnnxView(model).opset
    least = LEAST_OF_OPSET.get(opset, LEAST_OF_OPSET[max(LEAST_OF_OPSET)])
    oldest = min(LEAST_OF_OPSET)
    way_out = f"a lower --opset ({oldest} runs from {LEAST_OF_OPSET[oldest]} on)"
    return {"name": backend, "least": least, "why": f"its opset is {opset}", "way_out": way_out}
