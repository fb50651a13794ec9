"""Every plain operator alone, with its options and its defaults, beside ONNX Runtime's kernel of the same name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from backends.oracle.plain_operators import FLOATS, MOVES, moves_values

Inputs = tuple[NDArray[Any] | None, ...]


def drawn(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


MAP, WEIGHT = drawn(2, 4, 7, 6), drawn(6, 2, 3, 2, seed=1)
MATRIX, TOKENS = drawn(3, 5), drawn(2, 3, 5)
POOLS: tuple[dict[str, Any], ...] = (
    {"kernel_shape": [2, 3], "strides": [1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1},
    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]},
)
CASES: list[tuple[str, Inputs, dict[str, Any]]] = [
    ("Conv", (MAP, WEIGHT), {"group": 2}),
    ("Conv", (MAP, WEIGHT, drawn(6)), {"group": 2, "strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 1, 0]}),
    ("Conv", (MAP, drawn(6, 4, 2, 3)), {"pads": [1, 2, 0, 1]}),
    ("Conv", (MAP, drawn(6, 4, 2, 3)), {"pads": [0, 2, 0, 1]}),
    ("ConvTranspose", (MAP, drawn(4, 3, 2, 3)), {}),
    (
        "ConvTranspose",
        (MAP, drawn(4, 3, 2, 3), drawn(6)),
        {"group": 2, "strides": [2, 3], "pads": [1, 0, 1, 0], "output_padding": [1, 2], "dilations": [2, 1]},
    ),
    ("Gemm", (MATRIX, drawn(5, 4)), {}),
    ("Gemm", (MATRIX, drawn(5, 4), drawn(4)), {}),
    ("Gemm", (MATRIX, drawn(4, 5), drawn(4)), {"transB": 1}),
    *(("MaxPool", (MAP,), pool) for pool in POOLS),
    ("MaxPool", (MAP,), {"kernel_shape": [2, 2], "strides": [1, 1], "dilations": [2, 3]}),
    *(("AveragePool", (MAP,), pool | {"count_include_pad": count}) for pool in POOLS for count in (0, 1)),
    ("AveragePool", (MAP,), {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}),
    ("Clip", (MAP, np.array(-0.5, np.float32), np.array(0.25, np.float32)), {}),
    ("Clip", (MAP, None, np.array(0.25, np.float32)), {}),
    ("Clip", (MAP, np.array(-0.5, np.float32)), {}),
    ("Slice", (MAP, whole(1, 5), whole(6, -7), whole(2, 3), whole(2, -2)), {}),
    ("Pad", (MAP, whole(0, 0, 1, 2, 0, 0, 3, 0)), {}),
    ("Pad", (MAP, whole(0, 1, 1, 2, 0, 0, 3, 0), np.array(0.5, np.float32)), {"mode": "constant"}),
    ("Pad", (MAP, whole(0, 0, 1, 2, 0, 0, 3, 1)), {"mode": "edge"}),
    ("Pad", (MAP, whole(0, 0, 1, 2, 0, 0, 3, 1)), {"mode": "reflect"}),
    ("Split", (MAP, whole(1, 3)), {"axis": 1}),
    ("Split", (MAP, whole(1, 1)), {}),
    ("Reshape", (MAP, whole(2, 8, 21)), {}),
    ("Flatten", (MAP,), {}),
    ("Concat", (MAP, drawn(2, 4, 7, 2)), {"axis": 3}),
    ("Transpose", (MAP,), {"perm": [0, 3, 1, 2]}),
    ("Gather", (MAP, np.array(2)), {"axis": 1}),
    ("Gather", (MAP, whole(1)), {}),
    ("Gather", (MAP, whole(2, 0)), {"axis": 2}),
    ("DepthToSpace", (MAP,), {"blocksize": 2, "mode": "CRD"}),
    ("Expand", (drawn(4, 1, 6), whole(2, 1, 7, 1)), {}),
    ("Identity", (MAP,), {}),
    ("Shape", (MAP,), {}),
    ("Shape", (MAP,), {"start": 1, "end": 3}),
    ("LayerNormalization", (TOKENS, drawn(5)), {}),
    ("LayerNormalization", (TOKENS, drawn(3, 5), drawn(3, 5, seed=1)), {"axis": 1, "epsilon": 0.1}),
    ("InstanceNormalization", (MAP, drawn(4), drawn(4, seed=1)), {}),
    ("InstanceNormalization", (MAP, drawn(4), drawn(4, seed=1)), {"epsilon": 0.1}),
    *((name, (TOKENS,), {}) for name in ("Softmax", "LogSoftmax")),
    *((name, (TOKENS,), {"axis": 1}) for name in ("Softmax", "LogSoftmax")),
    *((f"Reduce{name}", (MAP, whole(1, 3)), {}) for name in ("L1", "L2", "Max", "Mean", "Min", "Sum")),
    *((f"Reduce{name}", (MAP, whole(2)), {"keepdims": 0}) for name in ("L1", "L2", "Max", "Mean", "Min", "Sum")),
    ("Gelu", (MAP,), {}),
    ("Gelu", (MAP,), {"approximate": "tanh"}),
    ("HardSigmoid", (4 * MAP,), {}),
    ("HardSigmoid", (4 * MAP,), {"alpha": 1 / 6, "beta": 0.4}),
    *((name, (MAP,), {}) for name in ("LeakyRelu", "Elu", "Celu", "Selu", "HardSwish", "GlobalAveragePool", "Sigmoid")),
    *((name, (MAP,), {"alpha": 0.3}) for name in ("LeakyRelu", "Elu", "Celu")),
    *((name, (MAP,), {}) for name in ("Abs", "Atan", "Cos", "Cosh", "Erf", "Exp", "Floor", "Reciprocal", "Relu")),
    *((name, (MAP,), {}) for name in ("Sign", "Sin", "Sinh", "Softplus", "Tan", "Tanh")),
    ("Round", (np.array([0.5, 1.5, -2.5, 0.4], np.float32),), {}),
    *((name, (np.abs(MAP),), {}) for name in ("Log", "Sqrt")),
    *((name, (MAP, drawn(4, 1, 6, seed=1)), {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    ("Mod", (MAP, drawn(4, 1, 6, seed=1)), {"fmod": 1}),
    ("Pow", (np.abs(MAP), drawn(4, 1, 6, seed=1)), {}),
    ("PRelu", (MAP, drawn(4, 1, 1)), {}),
    ("MatMul", (TOKENS, drawn(2, 5, 4)), {}),
]
RESIZES: list[tuple[Inputs, dict[str, Any]]] = [
    ((MAP, None, np.array([1, 1, 2, 3], np.float32)), {"mode": "nearest", "nearest_mode": "floor"}),
    ((MAP, None, None, whole(2, 4, 3, 12)), {"mode": "nearest", "nearest_mode": "floor"}),
    # 7 x 1.2 is 8.4: the last of eight rows is 7 / 1.2, the fifth; by 7 / 8 it would be the sixth.
    ((MAP, None, np.array([1, 1, 1.2, 1.2], np.float32)), {"mode": "nearest", "nearest_mode": "floor"}),
    ((MAP, None, np.array([1, 1, 2, 3], np.float32)), {"mode": "linear"}),
    ((MAP, None, None, whole(2, 4, 14, 9)), {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ((MAP, None, None, whole(2, 4, 14, 9)), {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
    ((MAP, None, np.array([1, 1, 2, 2], np.float32)), {"mode": "cubic", "cubic_coeff_a": -0.75}),
    # 7 x 1.5 is 10.5: ten rows, at positions of the factor as it stands.
    ((MAP, None, np.array([1, 1, 1.5, 1.5], np.float32)), {"mode": "linear"}),
]


def on_the_runtime(operator: str, inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray[Any]]:
    names = ["" if values is None else f"x{index}" for index, values in enumerate(inputs)]
    feeds = {name: values for name, values in zip(names, inputs, strict=True) if values is not None}
    described = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
        for name, values in feeds.items()
    ]
    outputs = [f"y{index}" for index in range(2 if operator == "Split" else 1)]
    kind = TensorProto.INT64 if operator == "Shape" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, **attributes)],
        "one",
        described,
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[NDArray[Any]] = session.run(None, feeds)
    return results


def same_as_the_runtime(operator: str, inputs: Inputs, attributes: dict[str, Any]) -> None:
    function = (FLOATS | MOVES)[operator]
    ours = function([None if values is None else torch.from_numpy(np.array(values)) for values in inputs], attributes)
    theirs = on_the_runtime(operator, inputs, attributes)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one.numpy(), other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"), CASES, ids=[f"{case[0]}-{index}" for index, case in enumerate(CASES)]
)
def test_an_operator_alone(operator: str, inputs: Inputs, attributes: dict[str, Any]) -> None:
    same_as_the_runtime(operator, inputs, attributes)


@pytest.mark.parametrize(("inputs", "attributes"), RESIZES)
def test_resizes(inputs: Inputs, attributes: dict[str, Any]) -> None:
    nearest = {"coordinate_transformation_mode": "asymmetric"} if attributes["mode"] == "nearest" else {}
    same_as_the_runtime("Resize", inputs, attributes | nearest)


def test_every_operator_has_a_case_here() -> None:
    assert {case[0] for case in CASES} == (FLOATS.keys() | MOVES.keys()) - {"Resize", "Cast"}


def test_integers_are_handed_on_as_integers() -> None:
    integers = torch.arange(-64, 64, dtype=torch.int32).reshape(1, 4, 4, 8)
    for operator, inputs, attributes in (
        ("MaxPool", [integers], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Pad", [integers, torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])], {"mode": "reflect"}),
        ("Pad", [integers, torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])], {}),
        ("Resize", [integers, None, torch.tensor([1.0, 1, 2, 2])], {"mode": "nearest"}),
        ("DepthToSpace", [integers], {"blocksize": 2}),
        ("Cast", [integers], {}),
    ):
        (result,) = MOVES[operator](inputs, attributes)
        assert result.dtype == torch.int32, operator
    assert moves_values("Resize", {"mode": "nearest"}) and moves_values("Resize", {}) and moves_values("Pad", {})
    assert not moves_values("Resize", {"mode": "linear"}) and not moves_values("Relu", {})
