"""TensorRT inside ONNX Runtime: its execution provider as an alternative way to run the same file."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from backends.base import Array, Runner
from backends.device.tensorrt_device.build import EngineOptions
from backends.facts.onnxruntime_failures import session_failures
from calibration.errors import UserError

PROVIDER = "TensorrtExecutionProvider"
_LIBRARY = "libonnxruntime_providers_tensorrt.so"
# Names of libraries as the linker writes them into the provider's file; the driver is what the provider for CUDA, which
# it needs, is linked with.
_NEEDED = re.compile(rb"lib(?:nvinfer|nvonnxparser|cublas|cublasLt|cudart|cudnn)\.so\.\d+")
_DRIVER = b"libcuda.so.1"
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
            " pip install onnxruntime-gpu (on a Jetson, the wheel of its JetPack)"
        )
    missing = missing_libraries(Path(onnxruntime.__file__).parent / "capi" / _LIBRARY)
    if not missing:
        return None
    return (
        f"ONNX Runtime {onnxruntime.__version__} here cannot load its {PROVIDER}, which needs {', '.join(missing)}:"
        " install the versions of TensorRT and CUDA that it was built with, and name their folders in LD_LIBRARY_PATH"
    )


def missing_libraries(provider: Path) -> list[str]:
    """Libraries of TensorRT and CUDA that a provider's own file needs and that do not load on this machine.

    Asked before the provider is: it would say so in several lines of its own, and start without.
    """
    with contextlib.suppress(ImportError, OSError):
        importlib.import_module("tensorrt")  # which loads the libraries that pip brought
    if not provider.is_file():
        return []  # another system's name for it: the session says what is wrong
    needed = sorted({_DRIVER, *_NEEDED.findall(provider.read_bytes())})
    return [name.decode() for name in needed if not _loads(name.decode())]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def provider_options(model: bytes, options: EngineOptions) -> dict[str, str]:
    """The provider's settings for a serialised model, by the names of its documentation."""
    graph = onnx.load_model_from_string(model)
    (image,) = graph.graph.input
    sizes = [dimension.dim_value for dimension in image.type.tensor_type.shape.dim]
    settings = {
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
        settings["trt_max_workspace_size"] = str(options.workspace_mib << 20)
    if options.level is not None:
        settings["trt_builder_optimization_level"] = str(options.level)
    if options.timing_cache is not None:
        settings["trt_timing_cache_enable"] = "True"
        settings["trt_timing_cache_path"] = str(_folder(options.timing_cache))
    if sizes and not image.type.tensor_type.shape.dim[0].HasField("dim_value"):
        for word, batch in zip(("min", "opt", "max"), options.batches, strict=True):
            shape = "x".join(map(str, (batch, *sizes[1:])))
            settings[f"trt_profile_{word}_shapes"] = f"{image.name}:{shape}"
    return settings


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
    failures: tuple[type[Exception], ...] = (RuntimeError, ValueError, *session_failures())
    try:
        # With its own fallback it would print what went wrong, and start again without the provider.
        session = onnxruntime.InferenceSession(model, settings, providers=providers, enable_fallback=0)
    except failures as error:  # the first two when a provider does not start
        raise UserError(f"ONNX Runtime {onnxruntime.__version__} with {PROVIDER}: {_one_line(error)}") from error
    if session.get_providers()[:1] != [PROVIDER]:
        raise UserError(f"ONNX Runtime {onnxruntime.__version__} could not start {PROVIDER}; its log says why (-v)")
    yield _ProviderRunner(session, options.batches)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


class _ProviderRunner:
    """A session that takes batches of the sizes that its engine was built for."""

    def __init__(self, session: Any, batches: tuple[int, int, int]) -> None:
        self._session, self._smallest, self._largest = session, batches[0], batches[2]
        self._input = str(session.get_inputs()[0].name)

    def run(self, images: Array) -> list[NDArray[Any]]:
        """Outputs in the file's order for images float32 [B, C, H, W]."""
        parts = [images[start : start + self._largest] for start in range(0, len(images), self._largest)]
        batches = [self._run_batch(np.ascontiguousarray(part, np.float32)) for part in parts]
        return [np.concatenate(outputs) for outputs in zip(*batches, strict=True)]

    def _run_batch(self, images: Array) -> list[NDArray[Any]]:
        count = len(images)
        if count < self._smallest:
            images = np.resize(images, (self._smallest, *images.shape[1:]))
        try:
            outputs = self._session.run(None, {self._input: images})
        except session_failures() as error:  # engines are built when the first images come
            raise UserError(f"ONNX Runtime with {PROVIDER}: {_one_line(error)}") from error
        return [output[:count] for output in outputs]
