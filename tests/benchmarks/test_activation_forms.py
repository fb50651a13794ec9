"""Ways to compute an activation between two roundings, in ONNX Runtime: what the table of placement rules rests on.

python3 -m pytest -m benchmark tests/benchmarks/test_activation_forms.py -s
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Columns, Results

pytestmark = pytest.mark.benchmark

SHAPE = (1, 96, 56, 56)
ROUNDS = 60
COLUMNS: Columns = {
    "function": lambda row: row["key"]["function"],
    "form": lambda row: row["key"]["form"],
    "ns per value": lambda row: f"{row['nanoseconds']:.2f}",
    "kernels": lambda row: ", ".join(row["kernels"]),
}

_CONSTANTS: dict[str, Any] = {
    "sx": np.float32(0.03),
    "zx": np.uint8(100),
    "sy": np.float32(0.02),
    "zy": np.uint8(20),
    "sg": np.float32(1 / 255),
    "zg": np.uint8(0),
    "one": np.uint8(1),
    "half": np.float32(0.5),
    "sixth": np.float32(0.005),
    "table": np.arange(256, dtype=np.uint8),
    "slope": np.full((96, 1, 1), 0.2, np.float32),
}
_Step = tuple[str, str, str, dict[str, Any]]
_IN: _Step = ("DequantizeLinear", "x sx zx", "a", {})
_OUT: _Step = ("QuantizeLinear", "b sy zy", "y", {})
_GATE: list[_Step] = [("QuantizeLinear", "g sg zg", "gq", {}), ("DequantizeLinear", "gq sg zg", "gd", {})]
_SUM: list[_Step] = [
    ("DequantizeLinear", "x sixth zx", "a6", {}),
    ("DequantizeLinear", "one half zg", "c", {}),
    ("Add", "a6 c", "g", {}),
]
#: Nodes as (operator, inputs, output, attributes), from the uint8 tensor x to the uint8 tensor y.
FORMS: dict[tuple[str, str], list[tuple[str, str, str, dict[str, Any]]]] = {
    ("any", "roundings alone"): [_IN, ("QuantizeLinear", "a sy zy", "y", {})],
    ("any", "Gather from a table of 256"): [
        ("Cast", "x", "i", {"to": TensorProto.INT32}),
        ("Gather", "table i", "y", {}),
    ],
    ("GELU", "float"): [_IN, ("Gelu", "a", "b", {}), _OUT],
    ("GELU", "float, tanh form"): [_IN, ("Gelu", "a", "b", {"approximate": "tanh"}), _OUT],
    ("SiLU", "float"): [_IN, ("Sigmoid", "a", "g", {}), ("Mul", "a g", "b", {}), _OUT],
    ("SiLU", "integer"): [_IN, ("Sigmoid", "a", "g", {}), *_GATE, ("Mul", "a gd", "b", {}), _OUT],
    ("HardSwish", "float"): [_IN, ("HardSwish", "a", "b", {}), _OUT],
    ("HardSwish", "integer"): [_IN, *_SUM, *_GATE, ("Mul", "a gd", "b", {}), _OUT],
    ("HardSigmoid", "float"): [_IN, ("HardSigmoid", "a", "b", {"alpha": 1 / 6}), _OUT],
    ("HardSigmoid", "integer"): [*_SUM, ("QuantizeLinear", "g sg zg", "y", {})],
    ("Sigmoid", "float"): [("DequantizeLinear", "x sx zx", "a", {}), ("Sigmoid", "a", "y", {})],
    ("Sigmoid", "integer"): [_IN, ("Sigmoid", "a", "b", {}), ("QuantizeLinear", "b sg zg", "y", {})],
    ("LeakyRelu", "integer"): [_IN, ("LeakyRelu", "a", "b", {}), _OUT],
    ("PReLU", "float"): [_IN, ("PRelu", "a slope", "b", {}), _OUT],
    ("Tanh", "float"): [_IN, ("Tanh", "a", "b", {}), _OUT],
}


def model_of(nodes: list[tuple[str, str, str, dict[str, Any]]]) -> onnx.ModelProto:
    used = {name for _, inputs, _, _ in nodes for name in inputs.split()}
    kind = TensorProto.UINT8 if nodes[-1][0] in ("QuantizeLinear", "Gather") else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, inputs.split(), [output], **extra) for operator, inputs, output, extra in nodes],
        "form",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, SHAPE)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in _CONSTANTS.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_forms(results: Results, tmp_path: Any) -> None:
    import onnxruntime

    images = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    sessions, kernels = {}, {}
    for key, nodes in FORMS.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        model = model_of(nodes).SerializeToString()
        sessions[key] = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        kernels[key] = [node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node]
    seconds: dict[Any, list[float]] = {key: [] for key in sessions}
    for _ in range(ROUNDS):
        for key, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"x": images})
            seconds[key].append(time.perf_counter() - start)
    for function, form in sessions:
        nanoseconds = statistics.median(seconds[function, form]) / images.size * 1e9
        results.add({"function": function, "form": form}, nanoseconds=nanoseconds, kernels=kernels[function, form])
    results.publish(
        "Activations between two roundings",
        COLUMNS,
        results.newest(),
        notes=[f"one thread, a tensor of {'x'.join(map(str, SHAPE))}, medians of {ROUNDS} interleaved rounds"],
    )
