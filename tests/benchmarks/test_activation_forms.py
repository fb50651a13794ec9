"""Ways to compute an activation between two roundings, in ONNX Runtime: what the table of placement rules rests on.

python3 -m pytest -m benchmark tests/benchmarks/test_activation_forms.py -s
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto

from tests.benchmarks.forms import Forms, Step, compare

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.conftest import Results

pytestmark = pytest.mark.benchmark

SHAPE = (1, 96, 56, 56)
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
    "zero": np.float32(0),
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
_IN: Step = ("DequantizeLinear", "x sx zx", "a", {})
_OUT: Step = ("QuantizeLinear", "b sy zy", "y", {})
_GATE: list[Step] = [("QuantizeLinear", "g sg zg", "gq", {}), ("DequantizeLinear", "gq sg zg", "gd", {})]
_SUM: list[Step] = [
    ("DequantizeLinear", "x sixth zx", "a6", {}),
    ("DequantizeLinear", "one half zg", "c", {}),
    ("Add", "a6 c", "g", {}),
]
_LAYER: list[Step] = [
    ("DequantizeLinear", "weight sw zw", "w", {"axis": 0}),
    ("DequantizeLinear", "bias sb zb", "wb", {"axis": 0}),
]
_WEIGHTS: Step = ("Softmax", "a", "p", {"axis": -1})
FORMS: Forms = {
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
    ("PReLU", "float, max(x, slope * x)"): [
        _IN,
        ("Mul", "a slope", "left", {}),
        ("Max", "a left", "b", {}),
        _OUT,
    ],
    ("PReLU", "float, relu(x) + slope * min(x, 0)"): [
        _IN,
        ("Relu", "a", "r", {}),
        ("Min", "a zero", "n", {}),
        ("Mul", "n slope", "left", {}),
        ("Add", "left r", "b", {}),
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


def test_forms(results: Results, tmp_path: Path) -> None:
    compare(FORMS, SHAPE, _CONSTANTS, title="Activations between two roundings", results=results, folder=tmp_path)
