"""Ways to pool, move, join, resize, shift and gate maps between roundings, in ONNX Runtime.

python3 -m pytest -m benchmark tests/benchmarks/test_map_forms.py -s
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.benchmarks.forms import Forms, Step, compare

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.conftest import Results

pytestmark = pytest.mark.benchmark

SHAPE = (1, 96, 56, 56)
_NUMBERS = np.random.default_rng(1)
_TABLE = _NUMBERS.normal(size=(1, 96, 56, 56)).astype(np.float32)
_DOWN, _UP = (_NUMBERS.integers(-127, 128, sizes).astype(np.int8) for sizes in ((24, 96, 1, 1), (96, 24, 1, 1)))
_TABLE_SCALE = np.float32(np.abs(_TABLE).max() / 127)


_CONSTANTS: dict[str, Any] = {
    "sx": np.float32(0.03),
    "zx": np.uint8(100),
    "s2": np.float32(0.021),
    "z2": np.uint8(90),
    "sy": np.float32(0.04),
    "zy": np.uint8(110),
    "wide": np.float32(0.066),
    "middle": np.uint8(114),
    "sg": np.float32(1 / 255),
    "zg": np.uint8(0),
    "table": _TABLE,
    "rounded": np.clip(np.round(_TABLE / _TABLE_SCALE) + 128, 0, 255).astype(np.uint8),
    "st": _TABLE_SCALE,
    "zt": np.uint8(128),
    "vector": np.full((1, 96, 1, 1), 0.9, np.float32),
    "shift": np.full((1, 96, 1, 1), 0.3, np.float32),
    "shift_vector": np.full(96, 0.03, np.float32),
    "gain": np.full(96, 0.9, np.float32),
    "mean": np.full(96, -0.3, np.float32),
    "variance": np.ones(96, np.float32),
    "one_by_one": np.full((96, 1, 1, 1), 113, np.int8),
    "weights_scale": np.full(96, 0.9 / 113, np.float32),
    "zeros": np.zeros(96, np.int8),
    "bias": np.full(96, round(0.3 / (0.03 * 0.9 / 113)), np.int32),
    "bias_scale": np.full(96, 0.03 * (0.9 / 113), np.float32),
    "bias_zeros": np.zeros(96, np.int32),
    "ones3": np.ones((96, 1, 3, 3), np.int8),
    "ones2": np.ones((96, 1, 2, 2), np.int8),
    "ninth": np.full(96, 1 / 9, np.float32),
    "fourth": np.full(96, 1 / 4, np.float32),
    "apart": np.array([1, 2, 48, 56, 56]),
    "together": np.array([1, 96, 56, 56]),
    "order": np.arange(96).reshape(2, 48).T.reshape(-1).copy(),
    "halves": np.array([48, 48]),
    "first": np.array([0]),
    "half": np.array([48]),
    "last": np.array([96]),
    "channels": np.array([1]),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "nothing": np.array([], np.float32),
    "pooled": np.float32(0.0034),
    "squeezed": np.float32(0.008),
    "excited": np.float32(0.004),
    "down": _DOWN,
    "down_scale": np.full(24, 0.001, np.float32),
    "down_zeros": np.zeros(24, np.int8),
    "down_float": _DOWN * np.float32(0.001),
    "up": _UP,
    "up_scale": np.full(96, 0.001, np.float32),
    "up_float": _UP * np.float32(0.001),
}
_IN: Step = ("DequantizeLinear", "x sx zx", "a", {})
_OUT: Step = ("QuantizeLinear", "b sy zy", "y", {})
_WIDE: Step = ("QuantizeLinear", "b wide middle", "y", {})
_SECOND: Step = ("DequantizeLinear", "x s2 z2", "c", {})
_LAYER: list[Step] = [
    ("DequantizeLinear", "one_by_one weights_scale zeros", "w", {"axis": 0}),
    ("DequantizeLinear", "bias bias_scale bias_zeros", "wb", {"axis": 0}),
]
_PLACES = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", "mode": "nearest"}
_THREE = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
_TWO = {"kernel_shape": [2, 2], "strides": [2, 2]}


def _rounded(source: str, scale: str, target: str) -> list[Step]:
    """The roundings that let the operator before them write integers."""
    return [
        ("QuantizeLinear", f"{source} {scale}", f"{target}_q", {}),
        ("DequantizeLinear", f"{target}_q {scale}", target, {}),
    ]


def _squeezed(integers: bool) -> list[Step]:
    """Squeeze and excite: mean, two layers, sigmoid, product."""
    down, up = ("down_w", "up_w") if integers else ("down_float", "up_float")
    steps: list[Step] = [("GlobalAveragePool", "a", "p", {})]
    steps += _rounded("p", "pooled zg", "pd") if integers else [("Identity", "p", "pd", {})]
    steps += [("Conv", f"pd {down}", "d", {}), ("Relu", "d", "r", {})]
    steps += _rounded("r", "squeezed zg", "rd") if integers else [("Identity", "r", "rd", {})]
    steps += [("Conv", f"rd {up}", "u", {})]
    steps += _rounded("u", "excited zt", "ud") if integers else [("Identity", "u", "ud", {})]
    steps += [("Sigmoid", "ud", "g", {})]
    steps += _rounded("g", "sg zg", "gd") if integers else [("Identity", "g", "gd", {})]
    return [*steps, ("Mul", "a gd", "b", {})]


FORMS: Forms = {
    ("addition of a constant map", "float"): [_IN, ("Add", "a table", "b", {}), _WIDE],
    ("addition of a constant map", "QLinearAdd of the rounded constant"): [
        _IN,
        ("DequantizeLinear", "rounded st zt", "t", {}),
        ("Add", "a t", "b", {}),
        _WIDE,
    ],
    ("addition of a constant map, result float", "float"): [_IN, ("Add", "a table", "y", {})],
    ("BatchNorm without a layer", "float, Mul and Add"): [
        _IN,
        ("Mul", "a vector", "m", {}),
        ("Add", "m shift", "b", {}),
        _OUT,
    ],
    ("BatchNorm without a layer", "float, BatchNormalization"): [
        _IN,
        ("BatchNormalization", "a gain shift_vector mean variance", "b", {}),
        _OUT,
    ],
    ("BatchNorm without a layer", "depthwise 1x1 QLinearConv"): [
        _IN,
        *_LAYER,
        ("Conv", "a w wb", "b", {"group": 96}),
        _OUT,
    ],
    ("squeeze and excite", "float"): [_IN, *_squeezed(False), _OUT],
    ("squeeze and excite", "integer"): [
        _IN,
        ("DequantizeLinear", "down down_scale down_zeros", "down_w", {"axis": 0}),
        ("DequantizeLinear", "up up_scale zeros", "up_w", {"axis": 0}),
        *_squeezed(True),
        _OUT,
    ],
    ("average pooling 2x2, stride 2", "float"): [_IN, ("AveragePool", "a", "b", _TWO), _OUT],
    ("average pooling 2x2, stride 2", "QLinearAveragePool"): [
        _IN,
        ("AveragePool", "a", "b", _TWO),
        _OUT,
    ],
    ("average pooling 2x2, stride 2", "depthwise QLinearConv of ones"): [
        _IN,
        ("DequantizeLinear", "ones2 fourth zeros", "w", {"axis": 0}),
        ("Conv", "a w", "b", {"group": 96, "strides": [2, 2]}),
        _OUT,
    ],
    ("average pooling 3x3", "float"): [_IN, ("AveragePool", "a", "b", _THREE), _OUT],
    ("average pooling 3x3", "QLinearAveragePool"): [_IN, ("AveragePool", "a", "b", _THREE), _OUT],
    ("average pooling 3x3", "depthwise QLinearConv of ones"): [
        _IN,
        ("DequantizeLinear", "ones3 ninth zeros", "w", {"axis": 0}),
        ("Conv", "a w", "b", {"group": 96, "pads": [1, 1, 1, 1]}),
        _OUT,
    ],
    ("mean over the map", "float"): [_IN, ("GlobalAveragePool", "a", "b", {}), _OUT],
    ("mean over the map", "QLinearGlobalAveragePool"): [_IN, ("GlobalAveragePool", "a", "b", {}), _OUT],
    ("channel shuffle", "float"): [
        _IN,
        ("Reshape", "a apart", "r", {}),
        ("Transpose", "r", "t", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", "t together", "b", {}),
        _OUT,
    ],
    ("channel shuffle", "Reshape, Transpose, Reshape of bytes"): [
        ("Reshape", "x apart", "r", {}),
        ("Transpose", "r", "t", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", "t together", "y", {}),
    ],
    ("channel shuffle", "Gather of bytes"): [("Gather", "x order", "y", {"axis": 1})],
    ("split and concat in exchanged order", "Split of bytes"): [
        ("Split", "x halves", "p q", {"axis": 1}),
        ("Concat", "q p", "y", {"axis": 1}),
    ],
    ("split and concat in exchanged order", "Slices of bytes"): [
        ("Slice", "x first half channels", "p", {}),
        ("Slice", "x half last channels", "q", {}),
        ("Concat", "q p", "y", {"axis": 1}),
    ],
    ("concat of two", "float"): [
        _IN,
        _SECOND,
        ("Concat", "a c", "b", {"axis": 1}),
        _OUT,
    ],
    ("concat of two", "QLinearConcat, scales differ"): [_IN, _SECOND, ("Concat", "a c", "b", {"axis": 1}), _OUT],
    ("concat of two", "bytes, one scale"): [("Concat", "x x", "y", {"axis": 1})],
    ("resize to the nearest, twice the size", "float"): [
        _IN,
        ("Resize", "a nothing twice", "b", _PLACES),
        _OUT,
    ],
    ("resize to the nearest, twice the size", "bytes"): [("Resize", "x nothing twice", "y", _PLACES)],
    ("bilinear, twice the size", "float"): [
        _IN,
        ("Resize", "a nothing twice", "b", {"mode": "linear"}),
        _OUT,
    ],
    ("bilinear, twice the size", "bytes (truncates)"): [("Resize", "x nothing twice", "y", {"mode": "linear"})],
}


def test_forms(results: Results, tmp_path: Path) -> None:
    compare(FORMS, SHAPE, _CONSTANTS, title="Maps between two roundings", results=results, folder=tmp_path)
