"""The version of the format and of the runtime that a file needs, no newer than its opset and types ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from backends.artifact import linted_artifact
from backends.onnx_file.view import OPSETS
from backends.onnxruntime.backend import OnnxRuntime
from backends.onnxruntime.oldest_version import LEAST_OF_OPSET, least_runtime
from tests.versions import older


def test_every_opset_has_a_measured_runtime() -> None:
    assert set(LEAST_OF_OPSET) == set(OPSETS)


@pytest.mark.parametrize(
    ("border", "operator", "own", "least"),
    [
        (0, "AveragePool", [1, 1, 1, 1], "1.17"),
        (0, "AveragePool", [1, 0, 1, 0], "1.25"),
        (0, "MaxPool", [1, 0, 1, 0], "1.17"),
        (1, "MaxPool", [0, 0, 0, 0], "1.17"),
        (2, "MaxPool", [0, 0, 0, 0], "1.32"),
        (1, "AveragePool", [1, 1, 1, 1], "1.32"),
    ],
)
def test_poolings_need_a_newer_runtime_than_their_opset(border: int, operator: str, own: list[int], least: str) -> None:
    image, pooled = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    nodes = [
        helper.make_node("Pad", ["x", "amounts"], ["wider"]),
        helper.make_node(operator, ["wider"], ["y"], "pooling", kernel_shape=[2, 2], pads=own),
    ]
    amounts = helper.make_tensor("amounts", TensorProto.INT64, [8], [0, 0, border, border] * 2)
    graph = helper.make_graph(nodes, "g", [image], [pooled], initializer=[amounts])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    needed = least_runtime(model, "onnxruntime")
    assert needed is not None and needed["least"] == least
    assert ("pooling" in needed["why"]) == (least != "1.17")
    inputs = np.random.default_rng(0).normal(size=(1, 2, 7, 7)).astype(np.float32)
    if not older("onnxruntime", least):
        with OnnxRuntime().runner(model.SerializeToString(), threads=1) as runner:
            (result,) = runner.run(inputs)
        if operator == "AveragePool":  # onnx's reference has other maxima at borders than torch
            expected: Any = ReferenceEvaluator(model).run(None, {"x": inputs})
            np.testing.assert_allclose(result, expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("opset", "ceil", "counted", "least"),
    [(17, 1, 1, "1.29"), (18, 1, 1, "1.29"), (19, 1, 1, "1.16"), (18, 1, 0, "1.15"), (18, 0, 1, "1.15")],
)
def test_windows_cut_short_whose_border_counts_need_a_newer_runtime_before_opset_19(
    opset: int, ceil: int, counted: int, least: str
) -> None:
    settings: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 6, 6])
    pooled = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("AveragePool", ["x"], ["y"], "pool", ceil_mode=ceil, count_include_pad=counted, **settings)
    graph = helper.make_graph([node], "g", [image], [pooled])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    needed = least_runtime(model, "onnxruntime")
    assert needed is not None and needed["least"] == least
    assert ("--opset 19" in needed["way_out"]) == (least == "1.29")
    if not older("onnxruntime", least):
        inputs = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
        with OnnxRuntime().runner(model.SerializeToString(), threads=1) as runner:
            (result,) = runner.run(inputs.numpy())
        expected = F.avg_pool2d(inputs, 3, 2, 1, bool(ceil), bool(counted))
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("opset", "ir_version", "least"), [(17, 8, "1.15"), (20, 9, "1.17"), (21, 10, "1.18")])
def test_files_are_no_newer_than_their_opset(
    opset: int, ir_version: int, least: str, build: Callable[..., Any]
) -> None:
    """IR version 10 in every file kept bundles off ONNX Runtime 1.15 to 1.17, which run the same nodes to the bit."""
    frozen = build("residual", "onnxruntime").frozen
    model = linted_artifact(frozen, OnnxRuntime().profile, opset=opset, batch=None)
    assert (model.ir_version, model.opset_import[0].version) == (ir_version, opset)
    needed = least_runtime(model, "onnxruntime")
    assert needed is not None and needed["least"] == least and f"its opset is {opset}" in needed["why"]


def test_int4_needs_a_newer_runtime_than_its_opset() -> None:
    tensor = helper.make_tensor("w", TensorProto.INT4, [2], [1, -1])
    graph = helper.make_graph([], "g", [], [], initializer=[tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    needed = least_runtime(model, "onnxruntime")
    assert needed is not None and needed["least"] == "1.23" and "--bits 8" in needed["way_out"]
    assert least_runtime(onnx.ModelProto(), "tensorrt") is None
