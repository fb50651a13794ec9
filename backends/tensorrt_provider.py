"""TensorRT inside ONNX Runtime: its execution provider as an alternative way to run the same file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from backends.base import Array, Runner
from backends.tensorrt_device.build import EngineOptions
from calibration.errors import UserError

PROVIDER = "TensorrtExecutionProvider"
_LOG_ERRORS = 3


def provider_missing() -> str | None:
    """None where ONNX Runtime has the provider, else why not, with the way to get there."""
    try:
        import onnxruntime
    except ImportError:
        return "the package onnxruntime is not installed here: pip install onnxruntime-gpu"
    if PROVIDER not in onnxruntime.get_available_providers():
        return (
            f"ONNX Runtime {onnxruntime.__version__} here has no {PROVIDER}: in place of onnxruntime,"
            " pip install onnxruntime-gpu (1.27 or newer for TensorRT 11; on a Jetson, the wheel of its JetPack)"
        )
    return None


def provider_options(model: bytes, options: EngineOptions) -> dict[str, str]:
    """The provider's settings for a serialised model, by the names of its documentation."""
    graph = onnx.load_model_from_string(model)
    (given,) = graph.graph.input
    sizes = [dimension.dim_value for dimension in given.type.tensor_type.shape.dim]
    found = {
        # Needed up to TensorRT 10, where the provider builds weakly typed networks; 11 knows types alone.
        "trt_int8_enable": "True",
        "trt_fp16_enable": str(any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.graph.initializer)),
        "trt_engine_hw_compatible": str(options.hardware == "ampere-plus"),
    }
    if options.hardware == "same-compute-capability" or options.version_compatible:
        raise UserError(
            "--runner onnxruntime knows --hardware-compatibility none and ampere-plus alone, and no"
            " --version-compatible: use --runner tensorrt"
        )
    if options.workspace_mib is not None:
        found["trt_max_workspace_size"] = str(options.workspace_mib << 20)
    if options.level is not None:
        found["trt_builder_optimization_level"] = str(options.level)
    if options.timing_cache is not None:
        found["trt_timing_cache_enable"] = "True"
        found["trt_timing_cache_path"] = str(_folder(options.timing_cache))
    if sizes and not given.type.tensor_type.shape.dim[0].HasField("dim_value"):
        for word, batch in zip(("min", "opt", "max"), options.batches, strict=True):
            shape = "x".join(map(str, (batch, *sizes[1:])))
            found[f"trt_profile_{word}_shapes"] = f"{given.name}:{shape}"
    return found


def _folder(timing_cache: Path) -> Path:
    """The provider names its own files, in a folder."""
    return timing_cache.parent


@contextmanager
def provider_runner(model: bytes, options: EngineOptions) -> Iterator[Runner]:
    """A session whose every node runs in TensorRT, or an error: nothing falls back to another provider unseen.

    Raises UserError when the provider is missing, or when it leaves a node to the CPU.
    """
    missing = provider_missing()
    if missing is not None:
        raise UserError(f"--runner onnxruntime cannot run a model: {missing}")
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _LOG_ERRORS
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [(PROVIDER, provider_options(model, options))]
    try:
        session = onnxruntime.InferenceSession(model, settings, providers=providers)
    except (RuntimeError, ValueError) as error:  # what its binding raises for providers
        raise UserError(f"ONNX Runtime {onnxruntime.__version__} with {PROVIDER}: {str(error)[:400]}") from error
    if session.get_providers()[:1] != [PROVIDER]:
        raise UserError(f"ONNX Runtime {onnxruntime.__version__} could not start {PROVIDER}; its log says why (-v)")
    session.disable_fallback()
    yield _ProviderRunner(session, options.batches)


class _ProviderRunner:
    """A session that takes batches of the sizes that its engine was built for."""

    def __init__(self, session: Any, batches: tuple[int, int, int]) -> None:
        self._session, self._smallest, self._largest = session, batches[0], batches[2]
        self._input = str(session.get_inputs()[0].name)

    def run(self, images: Array) -> list[NDArray[Any]]:
        """Outputs in the file's order for images float32 [B, C, H, W]."""
        parts = [images[start : start + self._largest] for start in range(0, len(images), self._largest)]
        found = [self._run_batch(np.ascontiguousarray(part, np.float32)) for part in parts]
        return [np.concatenate(outputs) for outputs in zip(*found, strict=True)]

    def _run_batch(self, images: Array) -> list[NDArray[Any]]:
        count = len(images)
        if count < self._smallest:
            images = np.resize(images, (self._smallest, *images.shape[1:]))
        return [output[:count] for output in self._session.run(None, {self._input: images})]
