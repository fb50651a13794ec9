"""OpenVINO's own behaviour: how near its integers are to exact ones, its census, its rules and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from backends import backend_named
from backends.facts.cpu import host_cpu
from backends.facts.openvino_rules import PROFILE, VNNI, WITHOUT_VNNI
from backends.lint.rule import lint_rules
from backends.lint.table import lint
from backends.onnx_file.emit import emit
from backends.onnx_file.view import OPSETS, OnnxView
from backends.openvino.backend import OpenVINO
from backends.oracle.backend import IntegerOracle
from calibration.errors import MissingExtra, UserError

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")

Build = Callable[..., Any]
BACKEND = OpenVINO()
AS_IT_IS = replace(BACKEND.profile, rewrites=())


def run(model: onnx.ModelProto, images: torch.Tensor) -> list[NDArray[Any]]:
    with BACKEND.runner(model.SerializeToString(), threads=1) as runner:
        return runner.run(images.numpy())


def layers_of(built: Any) -> list[str]:
    return [placement.layer for placement in built.plan.weights]


def rounded_tensor(built: Any, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The integers of a rounded tensor: the runtime's own, of a file that ends there, and the oracle's.

    The images lie on the grid of the network's input, so that no rounding before the one asked for can differ.
    """
    model, view = built.model(), OnnxView(built.model())
    first, quantise = view.producer("x_q"), view.producer(name)
    assert first is not None and quantise is not None
    (step, middle), (scale, zero) = ((view.scale(node), view.zero_point(node)) for node in (first, quantise))
    assert step is not None and middle is not None and scale is not None and zero is not None
    _, rounded = IntegerOracle(model).run(built.images, trace=True)
    images = (rounded["x_q"] - int(middle)).float() * torch.tensor(step)
    _, exact = IntegerOracle(model).run(images, trace=True)
    inferred = onnx.shape_inference.infer_shapes(model)
    part = Extractor(inferred).extract_model([model.graph.input[0].name], [f"{name}_dq"])
    return np.rint(run(part, images)[0] / scale) + zero, exact[name].numpy()


# How near: one float multiplication and one addition per rounding, so that values beside a tie may fall to either side.


def test_outputs_are_those_of_the_oracle_but_for_ties(exact_network: str, build: Build) -> None:
    built = build(exact_network, "openvino", bits=4 if exact_network in ("conv", "residual", "depthwise") else 8)
    model = BACKEND.emit(built.frozen)
    assert lint(model, lint_rules(PROFILE, built.plan)) == []
    assert BACKEND.census(model.SerializeToString(), layers_of(built)).integer == tuple(layers_of(built))
    outputs, _ = IntegerOracle(model).run(built.images)
    for mine, theirs, simulated in zip(outputs, run(model, built.images), built.simulate(), strict=True):
        torch.testing.assert_close(simulated, mine, rtol=1e-5, atol=1e-5)
        largest = float(mine.abs().max())
        difference = np.abs(mine.numpy() - theirs)
        assert np.mean(difference <= 2e-6 * largest) >= 0.98
        assert difference.max() <= 0.02 * largest


@pytest.mark.parametrize("network", ["conv", "residual", "depthwise", "squeeze_excite"])
def test_a_rounded_tensor_differs_by_one_step_beside_ties(network: str, build: Build) -> None:
    built = build(network, "openvino", inputs=torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(2)))
    _, second, *_ = (node.output[0] for node in built.model().graph.node if node.op_type == "QuantizeLinear")
    theirs, mine = rounded_tensor(built, second)
    assert len(np.unique(mine)) > 100
    assert np.mean(theirs != mine) < 1e-3
    assert np.abs(theirs - mine).max() <= 1


def test_a_rounding_before_a_residual_addition_is_dropped_by_the_runtime(build: Build) -> None:
    """Why this profile rounds the skip branch alone: ONNX Runtime's rounds both, and that cannot be simulated."""
    theirs, mine = rounded_tensor(build("residual", "onnxruntime"), "relu_2_q")
    assert np.mean(theirs != mine) > 0.05
    theirs, mine = rounded_tensor(build("residual", "openvino"), "relu_2_q")
    assert np.mean(theirs != mine) < 1e-3


def test_weights_stay_within_63_where_sums_of_two_products_saturate(build: Build) -> None:
    """Rule 22 on the runtime itself: with all of int8 a processor without VNNI is far off, within 63 it is not."""
    assert {cpu: profiles[0].weight_limit for cpu, profiles in OpenVINO.cpu_profiles.items()} == {
        "x86-vnni": None,
        "x86-avx2": 63,
        "arm64": None,
    }
    if host_cpu() != "x86-avx2":
        pytest.skip("this processor adds products of 8 bits exactly")
    for profile, holds in ((WITHOUT_VNNI, True), (VNNI, False)):
        built = build("conv", profile)
        (mine,), _ = IntegerOracle(built.model()).run(built.images)
        (theirs,) = run(built.model(), built.images)
        difference = float(np.abs(mine.numpy() - theirs).max() / mine.abs().max())
        assert (difference < 0.02) is holds, difference


# The census.


@pytest.mark.parametrize("network", ["tokens", "attention", "transposed", "hard_swish", "silu", "bilinear", "clamp"])
def test_the_census_finds_layers_beside_float_operators(network: str, build: Build) -> None:
    built = build(network, "openvino")
    census = BACKEND.census(BACKEND.emit(built.frozen).SerializeToString(), layers_of(built))
    assert census.integer == tuple(layers_of(built))


@pytest.mark.parametrize("network", ["residual", "shortcut_a", "linear", "transposed", "tokens"])
def test_the_census_of_a_float_model_is_all_float(network: str, build: Build) -> None:
    built = build(network, "openvino")
    census = BACKEND.census(emit(built.folded, opset=20).SerializeToString(), layers_of(built))
    assert census.floating == tuple(layers_of(built)) and census.integer == ()


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_is_read_and_fused(opset: int, build: Build) -> None:
    built = build("squeeze_excite", "openvino", bits=4 if opset >= 21 else 8)
    model = BACKEND.emit(built.frozen, opset=opset)
    assert BACKEND.census(model.SerializeToString(), layers_of(built)).floating == ()


# Rules that the runtime itself shows.


def test_four_bit_weights_behind_a_cast_run_on_integers_and_without_it_in_float(build: Build) -> None:
    built = build("residual", "openvino", bits=4)
    model = BACKEND.emit(built.frozen)
    assert model.opset_import[0].version == 21
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored["b_weight"] == TensorProto.INT4
    direct, (zero,) = onnx.ModelProto(), [t for t in model.graph.initializer if t.name == "int8_0x16"]
    direct.CopyFrom(model)
    dequantise = next(node for node in direct.graph.node if node.name == "b_weight_dq")
    dequantise.input[0] = "b_weight"
    dequantise.input[2] = "int4_zeros"
    zeros = TensorProto(name="int4_zeros", data_type=TensorProto.INT4, dims=zero.dims, raw_data=bytes(8))
    direct.graph.initializer.append(zeros)
    assert 25 in {violation.rule for violation in lint(direct, lint_rules(PROFILE, built.plan))}
    assert BACKEND.census(direct.SerializeToString(), layers_of(built)).floating == ("b",)


def test_a_weight_with_a_zero_point_runs_in_float_and_is_refused(build: Build) -> None:
    built = build("residual", "openvino")
    model = BACKEND.emit(built.frozen)
    shifted = next(node for node in model.graph.node if node.name == "c_weight_dq")
    model.graph.initializer.append(numpy_helper.from_array(np.full(32, 3, np.int8), "three"))
    shifted.input[2] = "three"
    assert [(v.rule, v.node) for v in lint(model, lint_rules(PROFILE, built.plan))] == [(26, "c")]
    assert BACKEND.census(model.SerializeToString(), layers_of(built)).floating == ("c",)


def test_int8_behind_a_concatenation_gives_wrong_outputs_and_is_refused(build: Build) -> None:
    built = build("concat", "tensorrt")
    model = built.model()
    assert {violation.rule for violation in lint(model, lint_rules(PROFILE, built.plan))} == {12}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (plain,) = session.run(None, {"x": built.images.numpy()})
    (exact,), _ = IntegerOracle(model).run(built.images)
    np.testing.assert_allclose(plain, exact.numpy(), atol=1e-5)
    assert np.abs(run(model, built.images)[0] - plain).max() > 0.05 * np.abs(plain).max()


# The runner.


#: Networks of forms that OpenVINO loses the integers of or computes wrongly, unless they are written as they are here.
REWRITTEN = (
    *("bordered_average", "bordered_average_of_a_part", "bordered_average_of_a_sum"),
    "bordered_part",
    *("strided_pointwise", "signed_transposed", "largest", "largest_and_shifted", "smallest_of_tokens"),
    *("sum_without_bias", "tokens_without_bias"),
)


def wrong(built: Any, model: onnx.ModelProto) -> bool:
    """Whether the runtime's outputs for a file are far from the oracle's for the legal one."""
    exact, _ = IntegerOracle(BACKEND.emit(built.frozen)).run(built.images)
    pairs = zip(exact, run(model, built.images), strict=True)
    return any(float((mine - torch.from_numpy(theirs)).norm() / mine.norm()) > 0.05 for mine, theirs in pairs)


@pytest.mark.parametrize("network", REWRITTEN)
def test_forms_that_its_passes_mistake_are_written_so_that_they_do_not(network: str, build: Build) -> None:
    built = build(network, "openvino")
    model = BACKEND.emit(built.frozen)
    assert lint(model, lint_rules(PROFILE, built.plan)) == []
    assert BACKEND.census(model.SerializeToString(), layers_of(built)).integer == tuple(layers_of(built))
    assert not wrong(built, model)


def test_a_sum_of_a_layer_without_a_bias_is_wrong_and_refused(build: Build) -> None:
    built = build("sum_without_bias", "openvino")
    for bias in (None, np.zeros(16, np.float32)):
        model = BACKEND.emit(built.frozen)
        layer = next(node for node in model.graph.node if node.name == "a")
        if bias is None:
            del layer.input[2]
        else:
            stored = next(tensor for tensor in model.graph.initializer if tensor.name == layer.input[2])
            stored.CopyFrom(numpy_helper.from_array(bias, stored.name))
        assert [(v.rule, v.node) for v in lint(model, lint_rules(PROFILE, built.plan))] == [(32, "a")]
        assert wrong(built, model)


def test_tokens_of_a_layer_without_a_bias_do_not_load_and_are_refused(build: Build) -> None:
    built = build("tokens_without_bias", "openvino")
    model = BACKEND.emit(built.frozen)
    layer = next(node for node in model.graph.node if node.name == "l")
    del layer.input[2]
    assert [(v.rule, v.node) for v in lint(model, lint_rules(PROFILE, built.plan))] == [(32, "l")]
    with pytest.raises(UserError, match="cannot load the model"):
        run(model, built.images)


def test_strides_of_pointwise_convolutions_run_in_float_and_are_refused(build: Build) -> None:
    built = build("strided_pointwise", AS_IT_IS)
    model = built.model()
    assert [(v.rule, v.node) for v in lint(model, lint_rules(PROFILE, built.plan))] == [(33, "b"), (33, "d")]
    assert BACKEND.census(model.SerializeToString(), layers_of(built)).floating == ("b", "d")


def test_a_border_around_signed_averages_is_wrong_and_refused(build: Build) -> None:
    built, suited = (build("bordered_average", profile) for profile in (AS_IT_IS, "openvino"))
    model = built.model()
    assert [(v.rule, v.node) for v in lint(model, lint_rules(PROFILE, built.plan))] == [(34, "avg_pool2d")]
    assert wrong(suited, model)


def test_what_follows_a_largest_value_makes_it_wrong_and_is_refused(build: Build) -> None:
    built = build("largest", "openvino")
    model = BACKEND.emit(built.frozen)
    maximum = next(node for node in model.graph.node if node.op_type == "Max")
    for node in model.graph.node:
        node.input[:] = [maximum.input[0] if name == maximum.output[0] else name for name in node.input]
    model.graph.node.remove(maximum)
    assert {violation.rule for violation in lint(model, lint_rules(PROFILE, built.plan))} == {35}
    assert wrong(built, model)


def test_transposed_convolutions_of_signed_values_run_in_float_and_are_refused(build: Build) -> None:
    built = build("signed_transposed", AS_IT_IS)
    model = built.model()
    assert [(v.rule, v.node) for v in lint(model, lint_rules(PROFILE, built.plan))] == [(36, "t")]
    assert BACKEND.census(model.SerializeToString(), layers_of(built)).floating == ("t",)


def test_importing_the_runtime_tells_nobody(tmp_path: Path) -> None:
    """The package's own import sends an event and keeps an identifier in the home folder."""
    code = (
        "import sys; from backends.openvino.backend import _compiled\n"
        "try: _compiled(b'no model', threads=1)\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print([name for name in sys.modules if 'openvino_telemetry' in name])"
    )
    environment = os.environ | {"HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split("\n") == ["UserError", "[]", ""]
    assert list(tmp_path.iterdir()) == []


def test_outputs_belong_to_the_caller_and_a_runner_ends_with_its_context(build: Build) -> None:
    built = build("conv", "openvino")
    images = built.images.numpy()
    with BACKEND.runner(BACKEND.emit(built.frozen).SerializeToString(), threads=2) as runner:
        (first,) = runner.run(images)
        kept = first.copy()
        runner.run(-images)
        np.testing.assert_array_equal(first, kept)
        strided = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(runner.run(strided.astype(np.float64))[0], kept)
    with pytest.raises(RuntimeError, match="context has ended"):
        runner.run(images)


def test_an_operator_that_is_not_there_is_explained_in_one_line(build: Build) -> None:
    model = BACKEND.emit(build("conv", "openvino").frozen)
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(helper.make_node("NoSuchOperator", ["inner"], ["output"], name="strange"))
    with pytest.raises(UserError, match=r"^OpenVINO 20.* cannot load the model: .*NoSuchOperator[^\n]*$"):
        run(model, torch.zeros(1, 3, 12, 12))


def test_without_the_package_a_run_does_not_start(monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    model = BACKEND.emit(build("conv", "openvino").frozen).SerializeToString()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    line = "--backend openvino needs the package openvino, which is not installed: pip install 'faqd[openvino]'"
    with pytest.raises(MissingExtra) as caught:
        backend_named("openvino")
    assert str(caught.value) == BACKEND.unavailable() == line
    with pytest.raises(MissingExtra, match="pip install"), BACKEND.runner(model, threads=1):
        pass
