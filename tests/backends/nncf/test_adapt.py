"""Files of other tools in a target's own form: nothing that they compute changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from backends.device.bundle_check.records import from_json
from backends.facts.file_form import FileForm
from backends.facts.onnxruntime_rules import X64
from backends.facts.openvino_rules import PROFILE
from backends.lint.rule import lint_rules
from backends.lint.table import lint
from backends.nncf.adapt import adapted
from backends.nncf.plan_of_file import plan_of_file
from backends.onnx_file.emit import emit
from backends.onnx_file.view import OnnxView
from backends.oracle.backend import IntegerOracle
from calibration.grid import Grid
from calibration.plan import Plan

Build = Callable[..., Any]
SIGNED = Grid(bits=8, signed=True, symmetric=True)
#: A file as other tools write it: int8 activations, float biases, movement between DequantizeLinear and its reader.
FOREIGN = replace(PROFILE, non_negative=SIGNED, signed=SIGNED, form=FileForm(movement="reals", packs_int4=True))
MOVING = ["shortcut_a", "pad_reflect", "max_pool_signed", "concat", "split_shuffle", "upsample", "linear"]


def foreign(build: Build, network: str) -> tuple[Any, onnx.ModelProto]:
    built = build(network, FOREIGN)
    return built, emit(built.frozen, opset=20, form=FOREIGN.form)


def plainly(model: onnx.ModelProto, images: Any) -> NDArray[Any]:
    """The file as it is written: ONNX Runtime without any optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    return output


@pytest.mark.parametrize("network", MOVING)
def test_unsigned_activations_and_moved_integers_are_the_same_reals(network: str, build: Build) -> None:
    built, model = foreign(build, network)
    before = model.SerializeToString()
    result = adapted(model, replace(X64, integer_bias=False))
    assert model.SerializeToString() == before
    view = OnnxView(result)
    kinds = {view.integer_type(node) for node in view.roundings() if view.stored_integers(node) is None}
    assert kinds == {TensorProto.UINT8}
    moving = {"Slice", "Pad", "MaxPool", "Concat", "Split", "Resize", "Reshape", "Flatten"}
    read = [node for node in view.nodes if node.op_type in moving for name in node.input[:1] if "_dq" in name]
    assert read == []
    np.testing.assert_array_equal(plainly(result, built.images), plainly(model, built.images))


def test_a_target_that_finds_integers_behind_movement_keeps_it(build: Build) -> None:
    _, model = foreign(build, "shortcut_a")
    moved = [node.op_type for node in adapted(model, PROFILE).graph.node]
    assert moved == [node.op_type for node in model.graph.node]


def test_biases_become_int32_at_the_scale_of_the_sums(build: Build) -> None:
    built, model = foreign(build, "residual")
    result = adapted(model, X64)
    view, before = OnnxView(result), OnnxView(model)
    assert not [violation for violation in lint(result, lint_rules(X64)) if violation.rule in (12, 19)]
    for node in view.nodes:
        if node.op_type in ("Conv", "Gemm"):
            dequantise, data, weight = (view.dequantised(node, position) for position in (2, 0, 1))
            assert dequantise is not None and data is not None and weight is not None
            step = view.scale(data) * view.scale(weight)  # type: ignore[operator]
            integers = view.value(dequantise.input[0])
            original = next(other for other in before.nodes if other.name == node.name)
            bias = before.value(original.input[2])
            assert integers is not None and bias is not None and integers.dtype == np.int32
            np.testing.assert_array_equal(integers, np.rint(bias.astype(np.float64) / step))
    plain, rounded = plainly(model, built.images), plainly(result, built.images)
    assert np.abs(plain - rounded).max() < 0.02 * np.abs(plain).max()


def test_the_oracle_computes_the_adapted_file_as_onnx_runtime_does(build: Build) -> None:
    built, model = foreign(build, "shortcut_a")
    result = adapted(model, X64)
    session = onnxruntime.InferenceSession(result.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"x": built.images.numpy()})
    (mine,), _ = IntegerOracle(result).run(built.images)
    np.testing.assert_allclose(theirs, mine.numpy(), atol=1e-5)


def test_the_plan_of_a_file_is_what_the_file_shows(build: Build) -> None:
    built = build("residual")
    plan = plan_of_file(built.model(), backend="onnxruntime", left="left")
    assert [placement.layer for placement in plan.weights] == [placement.layer for placement in built.plan.weights]
    assert {placement.grid.channel_axis for placement in plan.weights} == {0}
    assert all(placement.integer_bias for placement in plan.weights) and not plan.float_nodes
    mine = {placement.tensor: placement for placement in built.plan.activations}
    for placement in plan.activations:
        own = mine[placement.tensor]
        assert (placement.grid, set(placement.readers)) == (own.grid, set(own.readers))
    assert from_json(Plan, plan.to_json(), where="plan") == plan


def test_a_float_layer_is_named_with_the_reason(build: Build) -> None:
    plan = plan_of_file(emit(build("linear").folded, opset=20), backend="openvino", left="left in float")
    assert plan.weights == () and dict(plan.float_nodes) == dict.fromkeys(("a", "b", "c"), "left in float")
    assert set(plan.kinds.values()) == {"linear"}
