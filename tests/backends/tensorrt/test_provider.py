"""TensorRT inside ONNX Runtime: how its provider is asked for, and what is said where it does not start."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from backends.device.tensorrt_device.build import EngineOptions
from backends.tensorrt import provider
from backends.tensorrt.backend import TensorRT
from backends.tensorrt.provider import missing_libraries, provider_options
from calibration.errors import UserError

Build = Callable[..., Any]


@pytest.fixture(scope="module")
def model(build: Build) -> bytes:
    return bytes(TensorRT().emit(build("residual", "tensorrt").frozen).SerializeToString())


def test_onnx_runtimes_provider_is_asked_for_by_its_names(model: bytes, tmp_path: Path) -> None:
    options = EngineOptions(
        batches=(1, 2, 4), workspace_mib=8, level=4, hardware="ampere-plus", timing_cache=tmp_path / "t.cache"
    )
    assert provider_options(model, options) == {
        "trt_int8_enable": "True",
        "trt_fp16_enable": "False",
        "trt_engine_hw_compatible": "True",
        "trt_max_workspace_size": str(8 << 20),
        "trt_builder_optimization_level": "4",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(tmp_path),
        "trt_profile_min_shapes": "x:1x3x12x12",
        "trt_profile_opt_shapes": "x:2x3x12x12",
        "trt_profile_max_shapes": "x:4x3x12x12",
    }
    with pytest.raises(UserError, match="--runner onnxruntime knows"):
        provider_options(model, EngineOptions(version_compatible=True))


def test_without_the_provider_the_line_says_what_to_install(model: bytes) -> None:
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has the provider here")
    backend = TensorRT(runner="onnxruntime")
    with pytest.raises(UserError, match=r"--backend tensorrt cannot run a model: .*pip install onnxruntime-gpu"):
        backend.runner(model, threads=1)


def test_libraries_that_its_file_needs_are_named(tmp_path: Path) -> None:
    file = tmp_path / "provider.so"
    assert missing_libraries(file) == [], "a system that calls it otherwise"
    file.write_bytes(b"\x7fELF\0libc.so.6\0libnvinfer.so.99\0libcudart.so.99\0libnvinfer.so.99\0")
    missing = missing_libraries(file)
    assert [name for name in missing if name != "libcuda.so.1"] == ["libcudart.so.99", "libnvinfer.so.99"]


def test_an_installed_provider_without_its_libraries_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider.PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setattr(provider, "missing_libraries", lambda file: ["libcuda.so.1", "libnvinfer.so.10"])
    reason = TensorRT(runner="onnxruntime").unavailable()
    assert reason is not None
    assert f"cannot load its {provider.PROVIDER}, which needs libcuda.so.1, libnvinfer.so.10: install" in reason
    assert reason.endswith("on the target run faqd validate BUNDLE --runner onnxruntime") and "\n" not in reason


def test_a_session_that_starts_without_the_provider_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    # As where the provider fails after all: this build of ONNX Runtime has none, warns, and would take the CPU.
    monkeypatch.setattr(provider, "provider_missing", lambda: None)
    if provider.PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has the provider here")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError) as refused, provider.provider_runner(model, EngineOptions()):
            pass
    text = str(refused.value)
    assert text.startswith("ONNX Runtime ") and provider.PROVIDER in text and "\n" not in text
    assert "Falling back" not in capfd.readouterr().out
