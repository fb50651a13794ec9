"""Where two executions differ, where that arises and why: real models, changed on purpose, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from backends.onnx_file.exposed import exposed
from backends.onnx_file.view import OnnxView
from backends.onnxruntime.backend import OnnxRuntime
from backends.oracle.differences import Comparison, why

Build = Callable[..., Any]


def compare(model: onnx.ModelProto, other: onnx.ModelProto | None, images: torch.Tensor) -> Comparison:
    """The oracle over `model` against ONNX Runtime over `other`, or over the same model."""
    comparison = Comparison(model, other)
    running = model if other is None else other
    with OnnxRuntime().runner(exposed(running, comparison.names).SerializeToString(), threads=1) as runner:
        for batch in torch.split(images, 4):
            values = runner.run(batch.numpy())[len(running.graph.output) :]
            comparison.add(batch, {name: torch.from_numpy(v) for name, v in zip(comparison.names, values, strict=True)})
    return comparison


def changed(model: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> onnx.ModelProto:
    """A copy with another constant."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), name))
    return copy


def rounding(view: OnnxView, tensor: str) -> onnx.NodeProto:
    producer = view.producer(tensor)
    assert producer is not None
    return producer


def test_equal_executions_have_nothing_to_say(build: Build) -> None:
    built = build("residual")
    comparison = compare(built.model(), None, built.images)
    assert comparison.first() is None and len(comparison.tensors) > 4
    assert all(entry.elements > 100 and not entry.arises for entry in comparison.tensors.values())


def test_a_changed_scale_is_found_where_it_acts_and_handed_on_behind(build: Build) -> None:
    built = build("residual")
    model = built.model()
    view, tensor = Comparison(model).oracle.view, Comparison(model).names[3]
    scale = rounding(view, tensor).input[1]
    comparison = compare(model, changed(model, scale, lambda values: values * 1.5), built.images)
    first = comparison.first()
    assert first is not None and first.name == tensor and first.arises
    value = float(numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == scale)))
    assert f"{scale} is {value:.6g} here and {1.5 * value:.6g} there" in why(first, saturating_products=False)
    assert first.example.startswith("first at [") and first.largest > 1
    before = comparison.names[: comparison.names.index(tensor)]
    assert not any(comparison.tensors[name].differing for name in before)
    behind = [entry for entry in comparison.tensors.values() if entry.differing and not entry.constants]
    assert behind and {why(entry, saturating_products=False) for entry in behind} == {
        "handed on from the tensors before it"
    }


def test_a_changed_weight_is_counted(build: Build) -> None:
    built = build("conv")
    model = built.model()

    def flip(values: Any) -> Any:
        values = values.copy()
        values[0, 0, 0, 0] += 40 if values[0, 0, 0, 0] < 0 else -40
        return values

    comparison = compare(model, changed(model, "b_weight", flip), built.images)
    first = comparison.first()
    assert first is not None and first.operators[0] == "Conv"
    assert "b_weight differs in 1 of" in why(first, saturating_products=False)


def averages(scale: float) -> onnx.ModelProto:
    """Means over 2x2 windows on the grid of their inputs: of sums of four integers, a quarter lies on a tie."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"]),
        helper.make_node("AveragePool", ["x_dq"], ["pool"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("QuantizeLinear", ["pool", "s", "z"], ["pool_q"]),
        helper.make_node("DequantizeLinear", ["pool_q", "s", "z"], ["output"]),
    ]
    values = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 3, None, None]) for n in ("x", "output")
    ]
    constants = [numpy_helper.from_array(np.array(v, t), n) for n, v, t in (("s", scale, "f"), ("z", 7, np.uint8))]
    graph = helper.make_graph(nodes, "averages", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def unfused(model: onnx.ModelProto, images: torch.Tensor) -> torch.Tensor:
    """ONNX Runtime as it computes without its optimiser: an average in float between two roundings."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = exposed(model, ["pool_q"]).SerializeToString()
    session = onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["pool_q"], {"x": images.numpy()})[0])


def test_ties_of_average_pools_are_named_as_such() -> None:
    """The oracle equals the runtime's integer kernel; without the optimiser the same runtime decides ties otherwise."""
    scale = 0.0317
    integers = torch.randint(0, 256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0)) - 7
    images = integers * torch.tensor(scale)
    comparison = compare(averages(scale), None, images)
    assert comparison.first() is None
    theirs = comparison.oracle.run(images, trace=True)[1]
    comparison.add(images, theirs | {"pool_q": unfused(averages(scale), images)})
    entry = comparison.tensors["pool_q"]
    exact = integers.double().unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2)) / 4
    ties = int((exact % 1 == 0.5).sum())
    assert not comparison.tensors["x_q"].differing
    assert 0 < entry.differing == entry.own == entry.ties <= ties
    assert "AveragePool adds up its window in another order" in why(entry, saturating_products=False)
    # An error of one step that is no tie has no such excuse.
    comparison = Comparison(averages(scale))
    wrong = theirs["pool_q"] + (exact % 1 == 0.25)
    comparison.add(images, theirs | {"pool_q": wrong.to(torch.int32)})
    assert comparison.tensors["pool_q"].own == int((exact % 1 == 0.25).sum())
    assert why(comparison.tensors["pool_q"], saturating_products=False).startswith("unknown, 0 of ")


def test_float_islands_and_saturation_are_named(build: Build) -> None:
    built = build("bilinear")
    model = built.model()
    comparison = Comparison(model)
    name = next(name for name, entry in comparison.tensors.items() if "Resize" in entry.operators)
    theirs = comparison.oracle.run(built.images, trace=True)[1]
    spoilt = theirs[name].clone()
    spoilt[spoilt == 128] += 3
    comparison.add(built.images, dict(theirs) | {name: spoilt})
    assert "run in float and differ by more than rounding" in why(comparison.tensors[name], saturating_products=False)

    built = build("conv")
    comparison = Comparison(built.model())
    theirs = comparison.oracle.run(built.images, trace=True)[1]
    name = comparison.names[1]
    clipped = dict(theirs) | {name: theirs[name].clamp(max=200)}
    comparison.add(built.images, clipped)
    entry = comparison.tensors[name]
    assert entry.own == int((theirs[name] > 200).sum()) > 0
    assert "no VNNI" in why(entry, saturating_products=True)
    assert why(entry, saturating_products=False).startswith("unknown")


def test_only_rounded_tensors_can_be_exposed(build: Build) -> None:
    with pytest.raises(ValueError, match="not written by a QuantizeLinear"):
        exposed(build("conv").model(), ["output"])


def test_nudging_changes_roundings_alone(build: Build) -> None:
    comparison = Comparison(build("residual").model())
    images = build("residual").images
    plain, tensors = comparison.oracle.run(images, trace=True)
    for oracle in comparison.nudged:
        _, nudged = oracle.run(images, trace=True, instead=tensors)
        for name, values in tensors.items():
            assert int((values - nudged[name]).abs().max()) <= 1
            assert float((values != nudged[name]).float().mean()) < 0.01
    assert np.isfinite(plain[0].numpy()).all()
