"""The few calls of the CUDA runtime that running an engine needs, straight from its library: no binding to install."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

from .errors import DeviceError

#: Versions of the runtime's library that TensorRT 10 and 11 come with, the newest first.
_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
#: Where pip packages keep it, below the namespace package `nvidia`.
_WHEELS = ("cu13/lib", "cuda_runtime/lib")

# driver_types.h; these values have not changed since CUDA 10.
_TO_DEVICE, _TO_HOST = 1, 2
_CAPTURE_THREAD_LOCAL = 1
_OUT_OF_MEMORY = 2
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76


class Cuda:
    """The runtime on its present device; every method raises DeviceError with CUDA's own words when it fails.

    Streams, events, graphs and memory are plain integers: addresses, or handles that the library gave.
    """

    def __init__(self) -> None:
        self._library = _library()
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        if count.value < 1:
            raise DeviceError("CUDA finds no GPU here")

    def _call(self, name: str, *arguments: Any) -> None:
        status = int(getattr(self._library, name)(*arguments))
        if status:
            said = self._library.cudaGetErrorString(status)
            text = said.decode() if said else f"error {status}"
            fix = ": free GPU memory or use a smaller batch (--batches)" if status == _OUT_OF_MEMORY else ""
            raise DeviceError(f"CUDA: {name} failed, {text}{fix}")

    def _new(self, name: str, *arguments: Any) -> int:
        """A handle that the library makes."""
        handle = ctypes.c_void_p()
        self._call(name, ctypes.byref(handle), *arguments)
        return int(handle.value or 0)

    def compute_capability(self) -> str:
        """Of the present device, such as "8.7"."""
        device = ctypes.c_int()
        self._call("cudaGetDevice", ctypes.byref(device))
        parts = []
        for attribute in (_COMPUTE_MAJOR, _COMPUTE_MINOR):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
            parts.append(str(value.value))
        return ".".join(parts)

    def device_name(self) -> str:
        """Of the first visible device, as the driver names it."""
        try:
            driver = ctypes.CDLL("libcuda.so.1")
        except OSError:
            return "unknown GPU"
        name = ctypes.create_string_buffer(256)
        if driver.cuInit(0) or driver.cuDeviceGetName(name, ctypes.c_int(len(name)), ctypes.c_int(0)):
            return "unknown GPU"
        return name.value.decode(errors="replace")

    # Memory.

    def allocate(self, size: int) -> int:
        """Device memory of at least one byte; its address."""
        return self._new("cudaMalloc", ctypes.c_size_t(max(size, 1)))

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def to_device(self, address: int, host: int, size: int, stream: int) -> None:
        """Copy bytes from the host's address, in the order of the stream."""
        self._copy(address, host, size, _TO_DEVICE, stream)

    def to_host(self, host: int, address: int, size: int, stream: int) -> None:
        """Copy bytes to the host's address, in the order of the stream."""
        self._copy(host, address, size, _TO_HOST, stream)

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            ctypes.c_int(kind),
            ctypes.c_void_p(stream),
        )

    # Streams, events, graphs.

    def stream(self) -> int:
        """A new stream."""
        return self._new("cudaStreamCreate")

    def synchronise(self, stream: int) -> None:
        """Wait for all that was put into a stream."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def event(self) -> int:
        """A new event that takes the time."""
        return self._new("cudaEventCreate")

    def record(self, event: int, stream: int) -> None:
        """Put an event into a stream."""
        self._call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def elapsed_ms(self, first: int, second: int) -> float:
        """Time between two events, milliseconds; waits for the second."""
        self._call("cudaEventSynchronize", ctypes.c_void_p(second))
        time = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(time), ctypes.c_void_p(first), ctypes.c_void_p(second))
        return float(time.value)

    def destroy_event(self, event: int) -> None:
        """Give an event back."""
        self._call("cudaEventDestroy", ctypes.c_void_p(event))

    def begin_capture(self, stream: int) -> None:
        """From here on what is put into the stream is recorded, not done."""
        self._call("cudaStreamBeginCapture", ctypes.c_void_p(stream), ctypes.c_int(_CAPTURE_THREAD_LOCAL))

    def end_capture(self, stream: int) -> int:
        """An executable graph of what was recorded."""
        graph = ctypes.c_void_p()
        self._call("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            # The form with flags has one signature from CUDA 11.4 to 13, unlike cudaGraphInstantiate.
            return self._new("cudaGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """Put a recorded graph into a stream."""
        self._call("cudaGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        """Give an executable graph back."""
        self._call("cudaGraphExecDestroy", ctypes.c_void_p(graph))


def _library() -> ctypes.CDLL:
    """The runtime's library: the system's, or one that a pip package brought."""
    folders: list[Path] = []
    package = importlib.util.find_spec("nvidia")
    for place in (package.submodule_search_locations or ()) if package else ():
        folders += [Path(place) / wheel for wheel in _WHEELS]
    names = [*_LIBRARIES, *(str(path) for folder in folders for path in sorted(folder.glob("libcudart.so*")))]
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DeviceError(
        "the CUDA runtime (libcudart) is not here: JetPack and the CUDA toolkit bring it,"
        " elsewhere pip install nvidia-cuda-runtime"
    )
