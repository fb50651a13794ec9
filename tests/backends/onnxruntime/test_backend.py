"""ONNX Runtime's own behaviour: files, sessions, and the census of its optimised graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from backends.onnx_file.emit import emit
from backends.onnx_file.view import OnnxView
from backends.onnxruntime.backend import OnnxRuntime
from backends.oracle.backend import IntegerOracle
from calibration.errors import UserError
from tests.opsets import RUNNABLE_OPSETS

Build = Callable[..., Any]
BACKEND = OnnxRuntime()


def test_four_bit_weights_are_stored_as_int4_and_run_as_int8(build: Build) -> None:
    eight, four = build("residual"), build("residual", bits=4)
    wide, packed = BACKEND.emit(eight.frozen), BACKEND.emit(four.frozen)
    assert packed.opset_import[0].version == 21
    types = {name: tensor.data_type for name, tensor in OnnxView(packed).initialisers.items()}
    expected = {"a": "INT8", "b": "INT4", "down": "INT4", "c": "INT4", "fc": "INT8"}
    assert {name: onnx.TensorProto.DataType.Name(types[f"{name}_weight"]) for name in expected} == expected
    census = BACKEND.census(packed.SerializeToString(), list(expected))
    assert census.floating == () and census.histogram["QLinearConv"] == 4
    # Three of the five weights take half the bytes.
    saved = sum(eight.frozen.weights[name].integers.size // 2 for name in ("b", "down", "c"))
    assert len(wide.SerializeToString()) - len(packed.SerializeToString()) > 0.8 * saved


def test_four_bits_need_an_opset_that_has_them(build: Build) -> None:
    with pytest.raises(UserError, match="int4 weights exist from opset 21 on"):
        BACKEND.emit(build("residual", bits=4).frozen, opset=20)


@pytest.mark.parametrize("opset", RUNNABLE_OPSETS)
def test_every_opset_fuses(opset: int, build: Build) -> None:
    built = build("squeeze_excite", bits=4 if opset >= 21 else 8)
    layers = [placement.layer for placement in built.plan.weights]
    model = BACKEND.emit(built.frozen, opset=opset)
    assert BACKEND.census(model.SerializeToString(), layers).floating == ()
    outputs, _ = IntegerOracle(model).run(built.images)
    with BACKEND.runner(model.SerializeToString(), threads=1) as runner:
        np.testing.assert_array_equal(runner.run(built.images.numpy())[0], outputs[0].numpy())


def test_threads_do_not_change_the_integers(build: Build) -> None:
    built = build("residual")
    model = BACKEND.emit(built.frozen).SerializeToString()
    with BACKEND.runner(model, threads=1) as one, BACKEND.runner(model, threads=3) as three:
        np.testing.assert_array_equal(one.run(built.images.numpy())[0], three.run(built.images.numpy())[0])


def test_a_runner_ends_with_its_context(build: Build) -> None:
    built = build("conv")
    with BACKEND.runner(BACKEND.emit(built.frozen).SerializeToString(), threads=1) as runner:
        runner.run(built.images.numpy())
    with pytest.raises(RuntimeError, match="context has ended"):
        runner.run(built.images.numpy())


def test_any_layout_and_precision_of_images_is_taken(build: Build) -> None:
    built = build("conv")
    images = built.images.numpy()
    with BACKEND.runner(BACKEND.emit(built.frozen).SerializeToString(), threads=1) as runner:
        expected = runner.run(images)[0]
        channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(runner.run(channels_last)[0], expected)
        np.testing.assert_array_equal(runner.run(images.astype(np.float64))[0], expected)


def test_a_model_from_the_future_is_explained(build: Build) -> None:
    model = BACKEND.emit(build("conv").frozen)
    model.opset_import[0].version = 99
    message = r"^ONNX Runtime \d+\.\d+.* cannot load the model: .* lower --opset or an update"
    with pytest.raises(UserError, match=message), BACKEND.runner(model.SerializeToString(), threads=1):
        pass


def test_an_operator_that_is_not_there_is_explained(build: Build) -> None:
    model = BACKEND.emit(build("conv").frozen)
    model.graph.node.append(helper.make_node("NoSuchOperator", ["output"], ["other"], name="strange"))
    with pytest.raises(UserError, match="NoSuchOperator"), BACKEND.runner(model.SerializeToString(), threads=1):
        pass


# The census: every layer of every network is found under its own name.


def test_the_census_finds_every_integer_layer(exact_network: str, build: Build) -> None:
    built = build(exact_network)
    layers = [placement.layer for placement in built.plan.weights]
    census = BACKEND.census(BACKEND.emit(built.frozen).SerializeToString(), layers)
    assert census.integer == tuple(layers)
    assert census.floating == ()


@pytest.mark.parametrize(("network", "layers"), [("tokens", ["a", "l", "p"]), ("attention", ["a", "k", "v", "o"])])
def test_the_census_finds_layers_over_tokens(network: str, layers: list[str], build: Build) -> None:
    built = build(network)
    census = BACKEND.census(BACKEND.emit(built.frozen).SerializeToString(), layers)
    assert census.integer == tuple(layers)
    assert census.histogram["QGemm"] == len(layers) - 1


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("network", "kernels"),
    [
        ("relu_of_tokens", {"Max": 1}),
        ("relu6_of_tokens", {"Max": 1, "Min": 1}),
        ("least_of_tokens", {"Max": 1}),
        ("most_of_tokens", {"Min": 1}),
        ("clamp_of_tokens", {"Max": 1, "Min": 1}),
        ("clamp_between_layers", {"Max": 1, "Min": 1}),
        ("relu_of_scores", {"Max": 1, "MatMulIntegerToFloat": 1}),
    ],
)
def test_products_stay_integer_before_an_activation_that_is_read_in_float(
    network: str, kernels: dict[str, int], bits: int, build: Build
) -> None:
    built = build(network, bits=bits)
    layers = [placement.layer for placement in built.plan.weights]
    model = BACKEND.emit(built.frozen)
    census = BACKEND.census(model.SerializeToString(), layers)
    assert census.integer == tuple(layers)
    assert kernels.items() <= census.histogram.items()


def test_the_census_of_a_float_model_is_all_float(exact_network: str, build: Build) -> None:
    built = build(exact_network)
    layers = [placement.layer for placement in built.plan.weights]
    census = BACKEND.census(emit(built.folded, opset=20).SerializeToString(), layers)
    assert census.integer == ()
    assert census.floating == tuple(layers)


def test_the_census_counts_a_kernel_once(build: Build) -> None:
    built = build("shared_weight")
    layers = [placement.layer for placement in built.plan.weights]
    assert layers == ["i", "a", "a_1", "b"]
    model = BACKEND.emit(built.frozen)
    without = onnx.ModelProto()
    without.CopyFrom(model)
    # The second call of the shared layer loses the rounding of its input: it alone turns float.
    node = next(node for node in without.graph.node if node.name == "a_1")
    source = OnnxView(without).producer(node.input[0])
    assert source is not None
    quantise = OnnxView(without).producer(source.input[0])
    assert quantise is not None
    node.input[0] = quantise.input[0]
    assert BACKEND.census(model.SerializeToString(), layers).floating == ()
    assert "a_1" in BACKEND.census(without.SerializeToString(), layers).floating


def test_it_is_available_here() -> None:
    assert BACKEND.unavailable() is None


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    model = BACKEND.emit(build("conv").frozen).SerializeToString()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert BACKEND.unavailable() == "the package onnxruntime is not installed: pip install onnxruntime"
    with pytest.raises(UserError, match="pip install onnxruntime"), BACKEND.runner(model, threads=1):
        pass
