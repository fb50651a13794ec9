"""A loaded engine: images in, outputs out, timed on the device."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cuda import Cuda
from .errors import DeviceError
from .sdk import message_log, product

_WARM_UP = 10


@dataclass(frozen=True, kw_only=True)
class DeviceLatency:
    """Time of one inference on the device, data already there, milliseconds; `graph`: launched as one CUDA graph."""

    batch: int
    median_ms: float
    p90_ms: float
    samples: int
    graph: bool


class LoadedEngine:
    """An engine, its context and its buffers on the device; made by `loaded_engine`, dead when that ends."""

    def __init__(self, sdk: Any, engine: Any, cuda: Cuda) -> None:
        self._sdk, self._engine, self._cuda = sdk, engine, cuda
        self._context = engine.create_execution_context()
        if self._context is None:
            raise DeviceError("the engine has no context: GPU memory does not suffice; free some, or use --batches")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == sdk.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == sdk.TensorIOMode.OUTPUT]
        if len(self.inputs) != 1:
            raise DeviceError(f"the engine has {len(self.inputs)} inputs: one tensor of images is expected")
        declared = tuple(engine.get_tensor_shape(self.inputs[0]))
        self.smallest = self.largest = declared[0]
        if declared[0] == -1:
            shapes = engine.get_tensor_profile_shape(self.inputs[0], 0)
            self.smallest, self.largest = int(shapes[0][0]), int(shapes[2][0])
        self._stream = cuda.stream()
        self._buffers: dict[str, tuple[int, int]] = {}
        self._batch = 0
        #: The inference as a CUDA graph: of the present buffers, None where it cannot be captured.
        self._graph: int | None = None
        self._is_warm = False

    def close(self) -> None:
        """Give graph, memory and stream back."""
        self._forget_graph()
        for address, _ in self._buffers.values():
            self._cuda.free(address)
        self._buffers.clear()
        self._cuda.destroy_stream(self._stream)

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Every output for images float32 [B, C, H, W], in batches that the engine takes."""
        parts = [images[start : start + self.largest] for start in range(0, len(images), self.largest)]
        batches = [self._run_batch(part) for part in parts]
        return {name: np.concatenate([outputs[name] for outputs in batches]) for name in self.outputs}

    def _run_batch(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        count = len(images)
        if count < self.smallest:  # the rest is repeated images, whose outputs are dropped
            images = np.resize(images, (self.smallest, *images.shape[1:]))
        self._load(images)
        if not self._context.execute_async_v3(self._stream):
            raise DeviceError("TensorRT could not run the engine; its log has more (run with -v)")
        results = {}
        for name in self.outputs:
            values = np.empty(tuple(self._context.get_tensor_shape(name)), self._dtype(name))
            self._cuda.to_host(values.ctypes.data, self._buffers[name][0], values.nbytes, self._stream)
            results[name] = values
        self._cuda.synchronise(self._stream)
        return {name: values[:count] for name, values in results.items()}

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self._sdk.nptype(self._engine.get_tensor_dtype(name)))
        return dtype

    def _load(self, images: NDArray[np.float32]) -> None:
        """Put images on the device and give every tensor its address."""
        source = self.inputs[0]
        images = np.ascontiguousarray(images, self._dtype(source))
        if len(images) != self._batch:
            self._forget_graph()  # it holds the addresses and the shape
            if not self._context.set_input_shape(source, images.shape):
                raise DeviceError(f"the engine takes no input of shape {images.shape}")
            for name in (source, *self.outputs):
                shape = images.shape if name == source else tuple(self._context.get_tensor_shape(name))
                self._context.set_tensor_address(
                    name, self._buffer(name, math.prod(shape) * self._dtype(name).itemsize)
                )
            self._batch = len(images)
        self._cuda.to_device(self._buffers[source][0], images.ctypes.data, images.nbytes, self._stream)
        self._cuda.synchronise(self._stream)  # the host's array may go now

    def _buffer(self, name: str, size: int) -> int:
        """The tensor's memory on the device, grown where it is too small."""
        address, held = self._buffers.get(name, (0, 0))
        if held < size:
            if address:
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._buffers[name] = (address, size)
        return address

    def latency(self, images: NDArray[np.float32], *, samples: int = 200) -> DeviceLatency:
        """Time of the device for one batch, between CUDA events, as one captured graph where that is possible."""
        self._load(images)
        if not self._is_warm:
            for _ in range(_WARM_UP):  # the first run also does what must not be captured
                self._enqueue()
            self._cuda.synchronise(self._stream)
            self._graph, self._is_warm = self._captured(), True
        graph = self._graph
        first, second = self._cuda.event(), self._cuda.event()
        try:
            times = []
            for _ in range(samples):
                self._cuda.record(first, self._stream)
                if graph is None:
                    self._enqueue()
                else:
                    self._cuda.launch(graph, self._stream)
                self._cuda.record(second, self._stream)
                times.append(self._cuda.elapsed_ms(first, second))
        finally:
            self._cuda.destroy_event(first)
            self._cuda.destroy_event(second)
        ordered = sorted(times)
        return DeviceLatency(
            batch=len(images),
            median_ms=float(np.median(ordered)),
            p90_ms=ordered[math.ceil(0.9 * len(ordered)) - 1],
            samples=len(ordered),
            graph=graph is not None,
        )

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
        self._graph, self._is_warm = None, False

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise DeviceError("TensorRT could not run the engine")

    def _captured(self) -> int | None:
        """The inference as a CUDA graph; None where a layer cannot be captured (the caller reports it)."""
        self._cuda.begin_capture(self._stream)
        enqueued = self._context.execute_async_v3(self._stream)
        try:
            graph = self._cuda.end_capture(self._stream)
        except DeviceError:
            return None
        if enqueued:
            return graph
        self._cuda.destroy_graph(graph)
        return None

    def inspection(self) -> str:
        """The engine inspector's JSON, with the shapes and formats of the batch that was last run."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._sdk.LayerInformationFormat.JSON))


@contextmanager
def loaded_engine(
    sdk: Any,
    plan: bytes,
    cuda: Cuda,
    *,
    where: str = "the engine",
    facts: Mapping[str, str] | None = None,
    version_compatible: bool = False,
) -> Iterator[LoadedEngine]:
    """A serialised engine on the present device.

    `facts`: what `engine_facts` said where it was built, if that is known; `version_compatible`: it was built to be,
    and so carries code of its SDK that runs on the host. Raises DeviceError naming both versions or both GPUs when
    the engine belongs to another SDK or device, and when memory does not suffice.
    """
    log = message_log(sdk)
    try:
        runtime = sdk.Runtime(log)
        runtime.engine_host_code_allowed = version_compatible
        engine = runtime.deserialize_cuda_engine(plan)
    except TypeError:  # what the binding makes of an object that the SDK could not make
        engine = None
    if engine is None:
        here = f"{product(sdk)}, {cuda.device_name()}, compute capability {cuda.compute_capability()}"
        raise load_refusal(where, log.errors, here, facts)
    loaded = LoadedEngine(sdk, engine, cuda)
    try:
        yield loaded
    finally:
        loaded.close()


def load_refusal(where: str, errors: list[str], here: str, facts: Mapping[str, str] | None) -> DeviceError:
    """Why an engine does not load: what it was built with and what is here, from its record or the SDK's words."""
    text = " ".join(errors)
    if re.search(r"out of memory|OutOfMemory", text):
        return DeviceError(f"{where} does not fit the GPU's memory ({here}): free some or build for smaller batches")
    if facts is not None:
        built = f"{facts.get('sdk')}, {facts.get('gpu')}, compute capability {facts.get('compute')}"
        return DeviceError(f"{where} was built with {built}; here is {here}: build it anew on this device")
    match = re.search(r"expecting (?:library version|compute) ([\w.]+),? got (?:compute )?([\w.]+)", text) or re.search(
        r"Current Version: (\w+), Serialized Engine Version: (\w+)", text
    )
    # Texts of public threads (TensorRT issues 564, 2176, 2195): the first version is the one here.
    versions = f" (here {match[1]}, the engine's {match[2]})" if match else ""
    return DeviceError(
        f"{where} does not load with {here}{versions}: it was built for another GPU or SDK; build it anew on this"
        f" device; the SDK says: {text[:400] or 'nothing'}"
    )
