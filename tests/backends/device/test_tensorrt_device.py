"""TensorRT on the device: what is shared with TensorRT-RTX on TensorRT-RTX, the rest on a stand-in (see there)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from backends.device.bundle_check.compare import compared, same_share
from backends.device.bundle_check.images import normalised
from backends.device.bundle_check.manifest import InputPixels, OutputEntry
from backends.device.bundle_check.same_answer import WITH_FLOAT
from backends.device.tensorrt_device.build import EngineOptions, build_engine
from backends.device.tensorrt_device.compare import sampled, sqnr_db
from backends.device.tensorrt_device.cuda import Cuda
from backends.device.tensorrt_device.engine import load_refusal, loaded_engine
from backends.device.tensorrt_device.errors import DeviceError
from backends.device.tensorrt_device.refusals import REFUSALS, builder_refusal, explained, parser_refusal, refused_node
from backends.device.tensorrt_device.sdk import load_sdk, product, version_of
from backends.lint.table import RULES
from backends.oracle.backend import IntegerOracle
from backends.tensorrt.backend import TensorRT
from tests.backends.device import tensorrt_stand_in as stand_in
from tests.backends.device.cuda_stand_in import FakeCuda

Build = Callable[..., Any]
HERE = Path(__file__).parent


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")


@pytest.fixture
def cuda() -> Any:
    return FakeCuda()


@pytest.fixture(scope="module")
def model(build: Build) -> bytes:
    return bytes(TensorRT().emit(build("residual", "tensorrt").frozen).SerializeToString())


# On TensorRT-RTX: every call of a build, with every option.


def test_every_option_of_a_build_is_taken_by_the_real_builder(rtx: Any, model: bytes, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    options = EngineOptions(
        batches=(1, 2, 4), workspace_mib=64, level=2, hardware="ampere-plus", timing_cache=tmp_path / "timing.cache"
    )
    built = build_engine(rtx, model, options, step=lambda *step: steps.append(step))
    assert len(built.plan) > 10_000 and built.listing.startswith("Layers:")
    assert {done <= total for _, done, total in steps} == {True}
    assert not (tmp_path / "timing.cache").exists(), "TensorRT-RTX has no timings to keep"


def test_an_interrupted_build_stops_at_its_next_step(rtx: Any, model: bytes) -> None:
    steps: list[tuple[str, int]] = []

    def step(phase: str, done: int, total: int) -> None:
        steps.append((phase, done))
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engine(rtx, model, EngineOptions(), step=step)
    assert steps and signal.getsignal(signal.SIGINT) is before


def test_layers_can_be_written_beside_the_results(rtx: Any, model: bytes) -> None:
    built = build_engine(rtx, model, EngineOptions(), outputs=["relu", "a"])
    plain = build_engine(rtx, model, EngineOptions())
    for name in ("relu", "a"):
        assert f" Name: {name}, IOMode: Output" in built.listing
        assert f" Name: {name}, IOMode: Output" not in plain.listing
    with pytest.raises(DeviceError, match="no tensor nowhere"):
        build_engine(rtx, model, EngineOptions(), outputs=["nowhere"])


def test_names_used_on_the_device_exist_in_the_sdk(rtx: Any) -> None:
    # Names that only enterprise TensorRT lacks or has are in docs/tensorrt.md, read from both bindings' wheels.
    used = {
        "Builder": [
            "create_network",
            "create_builder_config",
            "create_optimization_profile",
            "build_serialized_network",
        ],
        "IBuilderConfig": [
            *("profiling_verbosity", "progress_monitor", "builder_optimization_level", "hardware_compatibility_level"),
            *("set_memory_pool_limit", "set_flag", "add_optimization_profile"),
            *("create_timing_cache", "set_timing_cache", "get_timing_cache"),
        ],
        "ITimingCache": ["serialize"],
        "OnnxParser": ["parse", "num_errors", "get_error"],
        "ParserError": ["node_name", "node_operator", "desc"],
        "INetworkDefinition": ["get_input", "get_output", "get_layer", "num_layers", "num_outputs", "mark_output"],
        "Runtime": ["deserialize_cuda_engine", "engine_host_code_allowed"],
        "ICudaEngine": [
            *("create_execution_context", "create_engine_inspector", "num_io_tensors", "get_tensor_name"),
            *("get_tensor_mode", "get_tensor_shape", "get_tensor_dtype", "get_tensor_profile_shape"),
        ],
        "IExecutionContext": ["set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3"],
        "EngineInspector": ["execution_context", "get_engine_information"],
        "BuilderFlag": ["VERSION_COMPATIBLE"],
        "HardwareCompatibilityLevel": ["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"],
        "MemoryPoolType": ["WORKSPACE"],
        "LayerInformationFormat": ["JSON"],
        "TensorIOMode": ["INPUT", "OUTPUT"],
    }
    for kind, names in used.items():
        assert [name for name in names if not hasattr(getattr(rtx, kind), name)] == [], kind


def test_an_engine_of_something_else_does_not_load(rtx: Any, cuda: Any) -> None:
    message = r"^bad.plan does not load with TensorRT-RTX [\d.]+, Stand-in"
    with pytest.raises(DeviceError, match=message), loaded_engine(rtx, b"not an engine", cuda, where="bad.plan"):
        pass


def test_a_machine_without_a_gpu_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceError, match=r"CUDA runtime \(libcudart\) is not here|cudaGetDeviceCount failed"):
        Cuda()


# Refusals, in our words beside the SDK's.


def test_every_rule_that_a_refusal_names_is_one_of_the_linters() -> None:
    assert {row.rule for row in REFUSALS if row.rule is not None} <= {rule.number for rule in RULES}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported.", "rule 1: a zero point"),
        ("[graph] input has type Int32 but must have type FP8, FP4, Int4, Int8", "rule 3: it dequantises int32"),
        ("Assertion failed: scaleAllPositive: scale must be positive", "rule 24: a scale is not positive"),
        ("No importer registered for op: Einsum", "has no such operator"),
        ("Error Code 1: Cuda Runtime (out of memory)", "memory does not suffice"),
        ("Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)", "memory does not suffice"),
        ("something new", "the SDK says: something new"),
    ],
)
def test_refusals_are_explained(text: str, words: str) -> None:
    assert words in explained(text)
    assert "the SDK says: " in explained(text)


def test_a_builders_refusal_names_the_layer() -> None:
    text = "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[conv1...relu]}.)"
    assert refused_node(text) == "the layers conv1 to relu"
    error = builder_refusal("TensorRT 10.3.0", ["cudaError 35: no driver", "build failed", text])
    assert str(error).startswith("the layers conv1 to relu: TensorRT 10.3.0 builds no engine; TensorRT has no kernel")
    assert str(builder_refusal("TensorRT 10.3.0", [])).startswith("the model: TensorRT 10.3.0 builds no engine")
    assert str(parser_refusal("TensorRT 11", "x_q", "QuantizeLinear", "why")).startswith("x_q (QuantizeLinear): ")


def test_an_sdk_that_cannot_begin_for_want_of_memory_is_one_line(model: bytes, cuda: Any) -> None:
    said = "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)"
    sdk = stand_in.stand_in(cuda)

    def refuse(log: Any) -> None:
        log.log(1, said)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    plan, sdk.Builder, sdk.Runtime = build_engine(sdk, model, EngineOptions()).plan, refuse, refuse
    with pytest.raises(DeviceError, match=r"^the model: TensorRT 10\.3\.0 builds no engine; the device's memory"):
        build_engine(sdk, model, EngineOptions())
    with pytest.raises(DeviceError, match="does not fit the GPU's memory"), loaded_engine(sdk, plan, cuda):
        pass


# Versions.


def test_an_sdk_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, cuda: Any) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.stand_in(cuda, version="8.6.1.post1"))
    with pytest.raises(DeviceError, match=r"^TensorRT 8\.6\.1\.post1 is here, 10\.0 is the oldest"):
        load_sdk()
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.stand_in(cuda, version="10.14.1.48.post1"))
    assert version_of(load_sdk()) == (10, 14, 1, 48)
    assert product(load_sdk()) == "TensorRT 10.14.1.48.post1"


def test_a_missing_sdk_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DeviceError, match=r"python3-libnvinfer.*pip install tensorrt"):
        load_sdk()


def test_both_versions_are_named_when_an_engine_is_of_another() -> None:
    here = "TensorRT 10.3.0, Orin, compute capability 8.7"
    facts = {"sdk": "TensorRT 10.9.0", "gpu": "RTX 4090", "compute": "8.9"}
    known = str(load_refusal("model.plan", ["whatever"], here, facts))
    assert known.startswith("model.plan was built with TensorRT 10.9.0, RTX 4090, compute capability 8.9; here is ")
    text = "The engine plan file is generated on an incompatible device, expecting compute 8.7 got compute 8.9"
    assert "(here 8.7, the engine's 8.9)" in str(load_refusal("model.plan", [text], here, None))
    text = "not compatible with this version of TensorRT, expecting library version 8.0.0 got 8.0.1, please rebuild."
    assert "(here 8.0.0, the engine's 8.0.1)" in str(load_refusal("model.plan", [text], here, None))
    text = "Version tag does not match. Note: Current Version: 213, Serialized Engine Version: 205)"
    assert "(here 213, the engine's 205)" in str(load_refusal("model.plan", [text], here, None))
    text = "Error Code 1: Cuda Runtime (out of memory)"
    assert "does not fit the GPU's memory" in str(load_refusal("model.plan", [text], here, facts))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batches": (2, 1, 4)}, "batches"),
        ({"batches": (0, 1, 4)}, "batches"),
        ({"workspace_mib": 0}, "workspace of 0 MiB"),
        ({"level": 6}, "optimisation level 6: must be 0 to 5"),
        ({"hardware": "any"}, "hardware compatibility any"),
    ],
)
def test_wrong_options_are_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        EngineOptions(**wrong)


# On the stand-in: what needs a device.


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_an_engine_runs_in_batches_of_its_sizes(version: str, model: bytes, cuda: Any, build: Build) -> None:
    sdk, images = stand_in.stand_in(cuda, version=version), build("residual", "tensorrt").images.numpy()
    built = build_engine(sdk, model, EngineOptions(batches=(2, 3, 3)))
    with loaded_engine(sdk, built.plan, cuda) as engine:
        outputs = engine.run(images)["output"]  # 3, 3 and 2 of 8
        np.testing.assert_array_equal(engine.run(images[:1])["output"], outputs[:1])
    assert outputs.shape == (8, 10)
    (expected,), _ = IntegerOracle(__import__("onnx").load_model_from_string(model), fused_rounding=False).run(
        torch.from_numpy(images)
    )
    assert np.abs(outputs - expected.numpy()).max() <= 0.02 * np.abs(expected.numpy()).max()
    assert cuda.memory == {} and cuda.alive == set(), "everything on the device was given back"


def test_a_fixed_batch_is_filled_up(cuda: Any, build: Build) -> None:
    built, sdk = build("residual", "tensorrt"), stand_in.stand_in(cuda)
    model = TensorRT().emit(built.frozen, batch=4).SerializeToString()
    with loaded_engine(sdk, build_engine(sdk, model, EngineOptions()).plan, cuda) as engine:
        assert (engine.smallest, engine.largest) == (4, 4)
        assert engine.run(built.images.numpy()[:6])["output"].shape == (6, 10)


@pytest.mark.parametrize("capturable", [True, False])
def test_latency_is_the_devices_own(capturable: bool, model: bytes, cuda: Any, build: Build) -> None:
    sdk = stand_in.stand_in(cuda, capturable=capturable)
    built = build_engine(sdk, model, EngineOptions(batches=(2, 2, 2)))
    with loaded_engine(sdk, built.plan, cuda) as engine:
        latency = engine.latency(build("residual", "tensorrt").images.numpy()[:2], samples=7)
        assert (latency.batch, latency.samples, latency.graph) == (2, 7, capturable)
        assert latency.median_ms == latency.p90_ms == 0.25  # the stand-in's clock
    assert cuda.memory == {} and cuda.alive == set()


def test_timings_are_kept_between_builds_and_begun_anew_elsewhere(model: bytes, cuda: Any, tmp_path: Path) -> None:
    options = EngineOptions(timing_cache=tmp_path / "timing.cache", version_compatible=True, workspace_mib=3)
    sdk = stand_in.stand_in(cuda)
    assert build_engine(sdk, model, options).notes == ()
    assert (tmp_path / "timing.cache").read_bytes() == b"timings 8.7"
    assert build_engine(sdk, model, options).notes == ()
    assert sdk.built[-1].cache.content == b"timings 8.7"
    assert sdk.built[-1].pools == {sdk.MemoryPoolType.WORKSPACE: 3 << 20}
    assert sdk.built[-1].flags == [sdk.BuilderFlag.VERSION_COMPATIBLE]
    other = stand_in.stand_in(cuda, gpu="8.9", version="11.4.0")
    (note,) = build_engine(other, model, options).notes
    assert "timing.cache is of another GPU or SDK (TensorRT 11.4.0 is here): begun anew" in note
    assert (tmp_path / "timing.cache").read_bytes() == b"timings 8.9"
    assert list(tmp_path.iterdir()) == [tmp_path / "timing.cache"]
    with pytest.raises(DeviceError, match="no hardware compatibility same-compute-capability"):
        build_engine(sdk, model, EngineOptions(hardware="same-compute-capability"))


def test_progress_is_that_of_the_outermost_phase(model: bytes, cuda: Any) -> None:
    steps: list[tuple[str, int, int]] = []
    build_engine(stand_in.stand_in(cuda), model, EngineOptions(), step=lambda *step: steps.append(step))
    assert steps == [("Building", 0, 2), ("Building", 1, 2), ("Building", 2, 2)]


# Comparing.


def test_noise_by_hand() -> None:
    reference, values = np.array([3.0, 4.0]), np.array([3.0, 4.5])
    assert sqnr_db(reference, values) == pytest.approx(10 * np.log10(12.5 / 0.125))
    assert sqnr_db(reference, reference) == 120.0
    assert sqnr_db(np.zeros(3), np.ones(3)) is None
    assert sqnr_db(reference, np.array([np.inf, 1.0])) == float("-inf")


def test_samples_come_from_the_same_places() -> None:
    values = np.arange(2 * 3 * 10 * 10, dtype=np.float32).reshape(2, 3, 10, 10)
    assert sampled(values, 4).tolist() == [[0, 99, 199, 299], [300, 399, 499, 599]]
    assert sampled(values).shape == (2, 300)
    assert sampled(np.ones((2, 1), np.float32)).shape == (2, 1)


def test_answers_are_counted_by_what_an_output_holds() -> None:
    first = np.array([[[1.0, 5.0], [2.0, 0.0]]])
    kinds: tuple[Literal["classes", "labels", "values"], ...] = ("classes", "labels", "values")
    classes, labels, values = (OutputEntry(name="y", holds=holds) for holds in kinds)
    assert same_share(first, first, classes) == 1 and same_share(first, first[:, ::-1], classes) == 0
    assert same_share(first, first - 1.5, labels) == 0.75
    assert same_share(first, first - 0.3, replace(labels, threshold=1.8)) == 0.75
    # By hand: squared errors 4 * 0.01 over a variance of 1 + 9 + 0 + 4 around the mean 2.
    assert same_share(first + 0.1, first, values) == pytest.approx(1 - 0.04 / 14)
    assert same_share(-first, first, values) == 0 and same_share(first * np.nan, first, values) == 0
    assert same_share(np.full(4, 3.3), np.full(4, 3.0), values) == pytest.approx(1 - 0.01)


def test_ties_may_flip_a_pixel_of_a_map_and_no_class_of_few_images() -> None:
    cases = {(16, 16): True, (15, 16): False, (99, 100): True, (98, 100): False, (0, 1): False}
    for (same, count), passed in cases.items():
        expected = np.tile(np.array([1, 0], np.float32), (count, 1))
        output = np.concatenate([expected[:same], expected[same:, ::-1]])
        entry = compared(output, expected, OutputEntry(name="y", holds="classes"), WITH_FLOAT)
        assert (entry["same"], entry["answers"], entry["passed"]) == (same, count, passed)


def test_images_are_normalised_per_channel() -> None:
    images = np.array([0, 255], np.uint8).reshape(1, 2, 1, 1)
    pixels = InputPixels(channels=2, height=1, width=1, channel_order="LA", mean=(0.5, 0.25), std=(0.5, 0.25))
    assert normalised(images, pixels).reshape(-1).tolist() == [-1.0, 3.0]
