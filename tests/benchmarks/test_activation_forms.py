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
    "rest": np.full((96, 1, 1), 0.8, np.float32),
    "quarter": np.float32(0.25),
    "scale": np.full(56, 1.5, np.float32),
    "shift": np.full(56, 0.5, np.float32),
    "weight": np.full((96, 1, 1, 1), 25, np.int8),
    "sw": np.full(96, 0.008, np.float32),
    "zw": np.zeros(96, np.int8),
    "bias": np.zeros(96, np.int32),
    "sb": np.full(96, 0.03 * 0.008, np.float32),
    "zb": np.zeros(96, np.int32),
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
_LAYER: list[_Step] = [
    ("DequantizeLinear", "weight sw zw", "w", {"axis": 0}),
    ("DequantizeLinear", "bias sb zb", "wb", {"axis": 0}),
]
_WEIGHTS: _Step = ("Softmax", "a", "p", {"axis": -1})
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
    ("PReLU", "float, slope * x + (1 - slope) * relu(x)"): [
        _IN,
        ("Relu", "a", "r", {}),
        ("Mul", "a slope", "left", {}),
        ("Mul", "r rest", "right", {}),
        ("Add", "left right", "b", {}),
        _OUT,
    ],
    ("PReLU", "integer: two depthwise 1x1 convolutions and their sum"): [
        _IN,
        *_LAYER,
        ("Conv", "a w wb", "left", {"group": 96}),
        ("QuantizeLinear", "left sy zy", "lq", {}),
        ("DequantizeLinear", "lq sy zy", "ld", {}),
        ("Conv", "a w wb", "right", {"group": 96}),
        ("Relu", "right", "r", {}),
        ("QuantizeLinear", "r sg zg", "rq", {}),
        ("DequantizeLinear", "rq sg zg", "rd", {}),
        ("Add", "ld rd", "b", {}),
        _OUT,
    ],
    ("LayerNorm of rows of 56", "float"): [
        _IN,
        ("LayerNormalization", "a scale shift", "b", {"axis": -1}),
        _OUT,
    ],
    ("softmax of rows of 56", "float, its reader too"): [_IN, ("Softmax", "a", "y", {"axis": -1})],
    ("softmax of rows of 56", "integer"): [_IN, _WEIGHTS, ("QuantizeLinear", "p sg zg", "y", {})],
    ("attention, scores (56 x 56 x 56)", "float"): [
        _IN,
        ("Mul", "a quarter", "q", {}),
        ("MatMul", "q a", "b", {}),
        _OUT,
    ],
    ("attention, scores (56 x 56 x 56)", "integer"): [_IN, ("MatMul", "a a", "b", {}), _OUT],
    ("attention, softmax and values (56 x 56 x 56)", "float"): [_IN, _WEIGHTS, ("MatMul", "p a", "b", {}), _OUT],
    ("attention, softmax and values (56 x 56 x 56)", "softmax in float, product integer"): [
        _IN,
        _WEIGHTS,
        ("Identity", "p", "same", {}),
        ("QuantizeLinear", "same sg zg", "pq", {}),
        ("DequantizeLinear", "pq sg zg", "pd", {}),
        ("MatMul", "pd a", "b", {}),
        _OUT,
    ],
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
            start = time.process_time()
            session.run(None, {"x": images})
            seconds[key].append(time.process_time() - start)
    for function, form in sessions:
        nanoseconds = statistics.median(seconds[function, form]) / images.size * 1e9
        results.add({"function": function, "form": form}, nanoseconds=nanoseconds, kernels=kernels[function, form])
    results.publish(
        "Activations between two roundings",
        COLUMNS,
        results.newest(),
        notes=[
            f"one thread, a tensor of {'x'.join(map(str, SHAPE))},"
            f" medians of {ROUNDS} interleaved rounds of processor time",
        ],
    )
