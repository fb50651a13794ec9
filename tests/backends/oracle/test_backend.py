"""The oracle against a slow, independent execution of the same file, and as a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator

from backends.onnx_file.view import OnnxView, attributes
from backends.oracle.backend import IntegerOracle, Reference
from calibration.errors import UserError
from tests.backends.conftest import AS_IT_IS

Build = Callable[..., Any]
BACKEND = Reference()


def slow_convolution(model: onnx.ModelProto, layer: str, x: Any) -> Any:
    """One convolution of a file and the rounding behind it, in Python integers and float32, position by position."""
    view = OnnxView(model)
    node = next(node for node in view.nodes if node.name == layer)
    data, weight, bias = (view.dequantised(node, position) for position in range(3))
    assert data is not None and weight is not None
    stored = view.stored_integers(weight)
    assert stored is not None
    w, x_scale, w_scale = view.value(stored), view.scale(data), view.scale(weight)
    assert w is not None and x_scale is not None and w_scale is not None
    b = np.zeros(len(w), np.int32) if bias is None else view.value(bias.input[0])
    behind = view.readers(node.output[0])[0]
    behind = behind if behind.op_type == "QuantizeLinear" else view.readers(behind.output[0])[0]
    y_scale, y_zero = view.scale(behind), view.zero_point(behind)
    assert b is not None and y_scale is not None and y_zero is not None
    told = attributes(node)
    (top, left, bottom, right), strides, dilations = told["pads"], told["strides"], told["dilations"]
    x = np.pad(x.astype(np.int64) - int(view.zero_point(data)), ((0, 0), (0, 0), (top, bottom), (left, right)))  # type: ignore[arg-type]
    outputs, inputs, rows, columns = w.shape
    height = (x.shape[2] - dilations[0] * (rows - 1) - 1) // strides[0] + 1
    width = (x.shape[3] - dilations[1] * (columns - 1) - 1) // strides[1] + 1
    result = np.zeros((len(x), outputs, height, width), np.int64)
    per_group = outputs // told["group"]
    for channel in range(outputs):
        first = channel // per_group * inputs
        multiplier = np.float32(np.float32(x_scale * w_scale[channel]) / y_scale)
        for row in range(height):
            for column in range(width):
                rows_read = slice(row * strides[0], row * strides[0] + dilations[0] * (rows - 1) + 1, dilations[0])
                read = slice(column * strides[1], column * strides[1] + dilations[1] * (columns - 1) + 1, dilations[1])
                window = x[:, first : first + inputs, rows_read, read]
                sums = (window * w[channel].astype(np.int64)).sum((1, 2, 3)) + int(b[channel])
                scaled = np.rint(sums.astype(np.float32) * multiplier).astype(np.int64) + int(y_zero)
                result[:, channel, row, column] = np.clip(scaled, 0, 255)
    return result


@pytest.mark.parametrize("network", ["conv", "grouped", "dilated", "depthwise", "same_padding"])
def test_convolutions_equal_a_slow_execution(network: str, build: Build) -> None:
    built = build(network, saturating=True)
    model = built.model()
    _, rounded = IntegerOracle(model).run(built.images[:2], trace=True)
    view, names = OnnxView(model), list(rounded)
    for node in [node for node in view.nodes if node.op_type == "Conv"]:
        data = view.dequantised(node, 0)
        assert data is not None
        behind = view.readers(node.output[0])[0]
        behind = behind if behind.op_type == "QuantizeLinear" else view.readers(behind.output[0])[0]
        assert behind.output[0] in names
        expected = slow_convolution(model, node.name, rounded[data.input[0]].numpy())
        np.testing.assert_array_equal(rounded[behind.output[0]].numpy(), expected)


@pytest.mark.parametrize("network", ["residual", "squeeze_excite", "mixed_concat", "shortcut_a", "leaky_relu"])
def test_whole_files_are_near_the_standards_own_evaluator(network: str, build: Build) -> None:
    # ONNX's evaluator computes in float between the roundings: a tie may fall the other way, and then spread.
    built = build(network)
    model = built.model()
    mine, _ = IntegerOracle(model).run(built.images)
    with np.errstate(invalid="ignore"):  # the evaluator's MaxPool casts its NaN border to uint8
        theirs = ReferenceEvaluator(model).run(None, {"x": built.images.numpy()})
    assert isinstance(theirs, list)
    assert float(np.abs(mine[0].numpy() - theirs[0]).max()) <= 0.03 * float(np.abs(theirs[0]).max())


def test_a_trace_holds_every_rounded_tensor(build: Build) -> None:
    built = build("residual")
    model = built.model()
    outputs, rounded = IntegerOracle(model).run(built.images, trace=True)
    quantisers = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert sorted(rounded) == sorted(quantisers)
    assert {values.dtype for values in rounded.values()} == {torch.int32}
    again, nothing = IntegerOracle(model).run(built.images)
    assert nothing == {} and torch.equal(outputs[0], again[0])


def test_tensors_are_dropped_after_their_last_reader(build: Build) -> None:
    oracle = IntegerOracle(build("residual").model())
    dropped = [name for names in oracle.finished.values() for name in names]
    written = {name for node in oracle.view.nodes for name in node.output} - set(oracle.outputs)
    assert written <= set(dropped)
    assert not set(oracle.outputs) & set(dropped)


def test_a_clip_beyond_the_grid_is_not_performed_by_the_rounding(build: Build) -> None:
    built = build("depthwise")
    model = built.model()
    oracle = IntegerOracle(model)
    assert len(oracle.targets) == 3
    for tensor in model.graph.initializer:
        if tensor.name == "relu6_scale":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(7 / 255, np.float32), tensor.name))
    assert len(IntegerOracle(model).targets) == 2


def test_an_unknown_operator_is_named(build: Build) -> None:
    model = build("conv").model()
    model.graph.node.append(helper.make_node("Einsum", ["output"], ["other"], name="strange", equation="ab->ba"))
    with pytest.raises(UserError, match=r"^strange: the reference backend does not know Einsum$"):
        IntegerOracle(model)


def test_its_runner_gives_the_threads_back(build: Build) -> None:
    model, before = BACKEND.emit(build("conv").frozen).SerializeToString(), torch.get_num_threads()
    with BACKEND.runner(model, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="inside"), BACKEND.runner(model, threads=before + 1):
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


def test_its_census_is_what_the_oracle_executes(build: Build) -> None:
    built = build("transposed", AS_IT_IS)
    layers = [placement.layer for placement in built.plan.weights]
    census = BACKEND.census(BACKEND.emit(built.frozen).SerializeToString(), layers)
    assert census.integer == ("a", "b")
    assert census.floating == ("t",)
    tokens = build("tokens")
    census = BACKEND.census(BACKEND.emit(tokens.frozen).SerializeToString(), ["a", "l", "p"])
    assert census.integer == ("a", "l", "p")


def test_it_agrees_with_onnx_runtime_on_what_is_integer(exact_network: str, build: Build) -> None:
    built = build(exact_network)
    layers = [placement.layer for placement in built.plan.weights]
    assert BACKEND.census(BACKEND.emit(built.frozen).SerializeToString(), layers).integer == tuple(layers)
