"""A stand-in for the CUDA runtime: what is asked for in another order than a device takes is noticed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from backends.device.tensorrt_device.errors import DeviceError


class FakeCuda:
    """Device memory that is the host's, streams that do at once what they are told, graphs that can be replayed."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.alive: set[int] = set()
        self.clock = 0.0
        self.times: dict[int, float] = {}
        self._next = 1

    def _handle(self) -> int:
        self._next += 1
        self.alive.add(self._next)
        return self._next

    def _end(self, handle: int) -> None:
        self.alive.remove(handle)

    def compute_capability(self) -> str:
        return "8.7"

    def device_name(self) -> str:
        return "Stand-in"

    def allocate(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        self.memory[address] = buffer
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def to_device(self, address: int, host: int, size: int, stream: int) -> None:
        assert stream in self.alive and size <= len(self.memory[address])
        ctypes.memmove(address, host, size)

    def to_host(self, host: int, address: int, size: int, stream: int) -> None:
        assert stream in self.alive and size <= len(self.memory[address])
        ctypes.memmove(host, address, size)

    stream = event = _handle
    destroy_stream = destroy_event = _end

    def synchronise(self, stream: int) -> None:
        assert stream in self.alive

    def record(self, event: int, stream: int) -> None:
        self.times[event] = self.clock

    def elapsed_ms(self, first: int, second: int) -> float:
        return self.times[second] - self.times[first]

    def do(self, work: Callable[[], None]) -> None:
        if self.recording is not None:
            self.recording.append(work)
        else:
            work()

    def begin_capture(self, stream: int) -> None:
        self.recording = []

    def end_capture(self, stream: int) -> int:
        recorded, self.recording = self.recording, None
        if not recorded:
            raise DeviceError("CUDA: cudaStreamEndCapture failed")
        handle = self._handle()
        self.graphs[handle] = recorded
        return handle

    def launch(self, graph: int, stream: int) -> None:
        for work in self.graphs[graph]:
            work()

    destroy_graph = _end
