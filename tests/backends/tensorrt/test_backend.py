"""TensorRT without a GPU: the artifact, the engine built ahead of time, and what is said where nothing runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backends.device.tensorrt_device.build import EngineOptions
from backends.device.tensorrt_device.kernels import parse_listing
from backends.onnx_file.exposed import exposed, rounded_tensors
from backends.onnx_file.view import OnnxView
from backends.onnxruntime.backend import OnnxRuntime
from backends.tensorrt.ahead_of_time import build_ahead_of_time
from backends.tensorrt.backend import TensorRT
from calibration.errors import MissingExtra, UserError

Build = Callable[..., Any]
BACKEND = TensorRT()


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")


def test_it_says_that_nothing_runs_here(build: Build) -> None:
    model = BACKEND.emit(build("residual", "tensorrt").frozen).SerializeToString()
    reason = BACKEND.unavailable()
    assert reason is not None and "check.py" in reason
    with pytest.raises(UserError, match="--backend tensorrt cannot run a model"):
        BACKEND.runner(model, threads=1)


def test_four_bit_weights_are_stored_as_int8(build: Build) -> None:
    built = build("residual", "tensorrt", bits=4)
    view = OnnxView(BACKEND.emit(built.frozen))
    assert view.opset == 20
    assert {view.integer_type(node) for node in view.roundings()} == {3}  # TensorProto.INT8
    weight = view.value("b_weight")
    assert weight is not None and abs(weight).max() == 7


@pytest.mark.usefixtures("rtx")
def test_an_engine_multiplies_integers(build: Build) -> None:
    built = build("residual", "tensorrt")
    engine = build_ahead_of_time(BACKEND.emit(built.frozen).SerializeToString())
    assert engine.integer_layers == ("a", "b", "down", "c", "fc")
    assert engine.float_layers == ()
    assert engine.size_bytes > 10_000 and 0 < engine.seconds < 60
    assert sum(kernel.multiplies_integers for kernel in engine.kernels) >= 5
    assert "Layers:" in engine.log


@pytest.mark.usefixtures("rtx")
def test_a_float_layer_is_seen(build: Build) -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.narrow = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)
            self.narrower, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.narrower(torch.relu(self.narrow(torch.relu(self.a(x))))))
            result: Tensor = self.fc(x.mean((2, 3)))
            return result

    built = build(Narrow(), "tensorrt")
    model = BACKEND.emit(built.frozen).SerializeToString()
    engine = build_ahead_of_time(model)
    assert "narrower" in engine.float_layers and "a" in engine.integer_layers
    census = BACKEND.census(model, ["a", "narrower"])
    assert (census.integer, census.floating) == (("a",), ("narrower",))


@pytest.mark.usefixtures("rtx")
def test_a_free_and_a_fixed_batch_build(build: Build) -> None:
    frozen = build("squeeze_excite", "tensorrt").frozen
    for batch in (None, 4):
        engine = build_ahead_of_time(
            BACKEND.emit(frozen, batch=batch).SerializeToString(), options=EngineOptions(batches=(1, 2, 4))
        )
        assert engine.float_layers == ()


@pytest.mark.usefixtures("rtx")
def test_rule_5_spares_a_rounding_in_the_addition(build: Build) -> None:
    # With both branches rounded the kernel of the addition would clip and round once more.
    built = build("residual", "tensorrt")
    engine = build_ahead_of_time(BACKEND.emit(built.frozen).SerializeToString())
    listing = engine.log.splitlines()
    (addition,) = [line for line in listing if "[ONNX Layer: add]" in line and "LayerType: kgen" in line]
    assert addition.split(",")[0].count("MinMaxRoun") == 1


@pytest.mark.usefixtures("rtx")
def test_an_engine_that_writes_its_rounded_tensors_still_multiplies_integers(build: Build) -> None:
    model = BACKEND.emit(build("residual", "tensorrt").frozen)
    extended = exposed(model, rounded_tensors(model))  # as `faqd compare` runs it
    engine = build_ahead_of_time(extended.SerializeToString())
    assert engine.float_layers == ()
    assert all(f" Name: {name}, IOMode: Output, DataType: Int8" in engine.log for name in rounded_tensors(model))


@pytest.mark.usefixtures("rtx")
def test_onnx_runtimes_file_is_refused_by_the_parser(build: Build) -> None:
    model = OnnxRuntime().emit(build("residual").frozen).SerializeToString()
    with pytest.raises(UserError, match=r"^x_q \(QuantizeLinear\): TensorRT-RTX [\d.]+ refuses it .*; rule 1: "):
        build_ahead_of_time(model)


@pytest.mark.usefixtures("rtx")
def test_what_is_no_model_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"^the model: TensorRT-RTX [\d.]+ refuses it when parsing"):
        build_ahead_of_time(b"not a model")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtra, match=r"pip install 'faqd\[tensorrt-rtx\]'"):
        build_ahead_of_time(b"")


# Two kernels of a real listing: a convolution, and the rounding in front of the next one.
LISTING = (
    "Layers:\n"
    "Name: c1_U28_myl0_1, LayerType: correlation, Inputs: [ { Name: in0, Dimensions: [8,4,16,16], Strides: "
    "[1024,1,64,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ "
    "{ Name: w, Dimensions: [16,4,3,3], Strides: [36,1,12,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) "
    "Channel major format }, { Name: s, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: "
    "(Linear) Row major linear format }], Outputs: [ { Name: out0, Dimensions: [8,16,16,16], Strides: [4096,1,256,16], "
    "StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, "
    "StreamId: 0, Metadata: [ONNX Layer: c1][ONNX Layer: x_q_dq]\n"
    "Name: __myl_MulMinMaxRounCast_myl0_2, LayerType: kgen, Inputs: [ { Name: out0, Dimensions: [8,16,16,16], Strides: "
    "[4096,1,256,16], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], Outputs: "
    "[ { Name: out1, Dimensions: [8,16,16,16], Strides: [4096,1,256,16], StrideOrder: [3,0,2,1], Datatype: Int8, "
    "Format: (NHWC) Channel major format }], TacticName: __myl, StreamId: 0, Metadata: [ONNX Layer: relu_q]\n"
    "\n"
    "I/O Tensors:\n"
    " Name: x, IOMode: Input, DataType: Float\n"
)


def test_a_listing_is_read_kernel_by_kernel() -> None:
    convolution, rounding = parse_listing(LISTING)
    assert (convolution.kind, convolution.nodes) == ("correlation", ("c1", "x_q_dq"))
    assert (convolution.inputs, convolution.weights) == (("Int8",), ("Int8",))
    assert convolution.multiplies_integers
    assert (rounding.kind, rounding.inputs, rounding.weights) == ("kgen", ("Float",), ())
    assert not rounding.multiplies_integers
