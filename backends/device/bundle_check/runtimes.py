"""ONNX Runtime and OpenVINO on the device: which version is needed, loaded as faqd loads them, timed."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError
from .manifest import Manifest, Needed

# A measurement ends after so many calls, or so many seconds with at least three.
_CALLS, _SECONDS = 100, 5.0


class OpenVINOSession:
    """A model compiled by OpenVINO as faqd compiles it, with those methods of a session of ONNX Runtime used here."""

    def __init__(self, path: Path, threads: int) -> None:
        # The package sends an event when it is imported, unless the one that sends is missing.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as Python documents it
        import openvino

        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        self.compiled = openvino.compile_model(str(path), "CPU", options)

    def get_inputs(self) -> list[SimpleNamespace]:
        """Name and shape of every input; free sizes are no numbers."""
        return [_described(port) for port in self.compiled.inputs]

    def get_outputs(self) -> list[SimpleNamespace]:
        """Name and shape of every output, in the file's order."""
        return [_described(port) for port in self.compiled.outputs]

    def run(self, _: None, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """All outputs, in the file's order."""
        return [np.array(value) for value in self.compiled(inputs).to_tuple()]


def _described(port: Any) -> SimpleNamespace:
    sizes = [size.get_length() if size.is_static else None for size in port.partial_shape]
    return SimpleNamespace(name=port.any_name, shape=sizes)


def load(model: Path, manifest: Manifest, threads: int) -> tuple[Any, str]:
    """A session of the bundle's runtime with the options that its manifest asks for, and the runtime's name.

    Raises DeviceError where the runtime is missing, too old for the model, or refuses it.
    """
    name = "openvino" if manifest.backend == "openvino" else "onnxruntime"
    try:
        runtime = __import__(name) if name == "onnxruntime" else None
        version = _openvino_version() if runtime is None else str(runtime.__version__)
    except ImportError as error:
        raise DeviceError(f"the package {name} is not installed here ({error}): pip install {name}") from error
    shown = f"{'ONNX Runtime' if name == 'onnxruntime' else 'OpenVINO'} {version}"
    refuse_old(name, version, manifest.runtime)
    try:
        if runtime is None:
            return OpenVINOSession(model, threads), shown
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        for key, value in {"session.intra_op.allow_spinning": "0", **manifest.session_options}.items():
            options.add_session_config_entry(key, value)
        return runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]), shown
    except (RuntimeError, ValueError) as error:
        raise DeviceError(f"{shown} cannot load {model}: {str(error)[:400]}") from error
    except Exception as error:  # ONNX Runtime's own exceptions have no public base but this
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise DeviceError(f"{shown} cannot load {model}: {str(error)[:400]}") from error


def suits(target: str | None) -> bool:
    """Whether this machine's processor is of the kind that a bundle was made for, whose integers are its own."""
    arm = platform.machine().lower() in ("aarch64", "arm64")
    return target is None or (target == "arm64") == arm


def _openvino_version() -> str:
    from importlib.metadata import version

    return version("openvino")


def refuse_old(name: str, version: str, needed: Needed | None) -> None:
    """Raise DeviceError where a runtime is older than the oldest that runs the model."""
    if needed is not None and needed.name == name and _numbers(version) < _numbers(needed.least):
        raise DeviceError(
            f"{name} {version} is too old for this bundle's model, which needs {needed.least} or newer ({needed.why}):"
            f" pip install --upgrade {name}, or make the bundle with {needed.way_out}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split(".")[:3]:
        digits = "".join(character for character in part if character.isdigit())
        parts.append(int(digits or 0))
    return tuple(parts)


def run_all(session: Any, inputs: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Every output by name; inputs are filled up by repetition where the model has a batch size of its own."""
    entry = session.get_inputs()[0]
    size = entry.shape[0] if isinstance(entry.shape[0], int) else len(inputs)
    parts = []
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        outputs = session.run(None, {entry.name: np.resize(part, (size, *part.shape[1:]))})
        parts.append([values[: len(part)] for values in outputs])
    names = [output.name for output in session.get_outputs()]
    return {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}


def latency(session: Any, inputs: NDArray[np.float32], batch: int) -> dict[str, Any]:
    """Median and 90th percentile of one call, milliseconds, at a batch that the model's own size overrules."""
    entry = session.get_inputs()[0]
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else batch
    images = np.ascontiguousarray(np.resize(inputs, (batch, *inputs.shape[1:])))
    times = _timed(lambda: session.run(None, {entry.name: images}))
    median, p90 = (float(value) for value in np.percentile(times, (50, 90)))
    return {"batch": batch, "median_ms": median, "p90_ms": p90, "calls": len(times)}


def _timed(call: Callable[[], object]) -> list[float]:
    """Milliseconds of each call, after three that warm up."""
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _CALLS and (len(times) < 3 or time.perf_counter() < end):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return times
