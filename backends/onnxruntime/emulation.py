"""ONNX Runtime on an emulated processor: the kernels that the device will run, without the device."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import numpy as np
import onnx
from numpy.typing import NDArray

from backends.base import Array, Backend, Census, Runner
from backends.facts.profile import Profile
from backends.onnx_file.scratch import scratch_folder
from backends.onnx_file.serialised import Serialised, in_one_piece
from backends.onnxruntime.backend import OnnxRuntime, census_of
from backends.onnxruntime.emulated_worker import receive, send
from calibration.errors import UserError
from calibration.simulation.freeze import FrozenNetwork


@dataclass(frozen=True, kw_only=True)
class EmulatedCpu:
    """How a processor is emulated: the program, its name for the processor, and what the program may not be older than.

    `unpacked`: it needs a Python of its own architecture, which `faqd emulation` makes; else it runs this one.
    """

    program: str
    cpu: str
    oldest: tuple[int, int]
    unpacked: bool
    source: str


EMULATED: Mapping[str, EmulatedCpu] = {
    "x86-avx2": EmulatedCpu(
        program="qemu-x86_64-static",
        cpu="Haswell",
        oldest=(7, 2),
        unpacked=False,
        source="a Haswell has AVX2 and no VNNI; QEMU executes AVX2 from 7.2 on",
    ),
    "arm64": EmulatedCpu(
        program="qemu-aarch64-static",
        cpu="max",
        oldest=(7, 2),
        unpacked=True,
        source="all extensions that QEMU knows, dot products and 8-bit matrix products among them",
    ),
}
"""Processor -> how it is emulated here."""


def environment_folder(cpu: str) -> Path:
    """Where the unpacked Python of a processor lies, for the version of ONNX Runtime that is installed here."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "faqd" / f"{cpu}-onnxruntime-{importlib.metadata.version('onnxruntime')}"


def emulated_command(cpu: str) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of an emulated Python that runs a script.

    Raises UserError, with what to type, where processor, emulator or environment are missing.
    """
    if cpu not in EMULATED:
        raise UserError(f"--emulate {cpu}: must be {' or '.join(EMULATED)}")
    emulated = EMULATED[cpu]
    qemu = shutil.which(emulated.program)
    if qemu is None:
        raise UserError(
            f"--emulate {cpu} needs {emulated.program}, which is not installed: apt-get install qemu-user-static"
        )
    said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version (\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < emulated.oldest:
        least = ".".join(map(str, emulated.oldest))
        raise UserError(f"--emulate {cpu} needs {emulated.program} {least} or newer: it says {said.splitlines()[:1]}")
    environment = {"OMP_NUM_THREADS": "1", "PATH": os.environ.get("PATH", "")}
    if not emulated.unpacked:
        if platform.machine().lower() not in {"x86_64", "amd64"}:
            raise UserError(f"--emulate {cpu} runs this machine's Python, which must be for x86-64")
        return [qemu, "-cpu", emulated.cpu, sys.executable], environment
    folder = environment_folder(cpu)
    interpreter = next(iter(sorted(folder.glob("root/usr/bin/python3.[0-9]*"))), None)
    if interpreter is None:
        raise UserError(f"--emulate {cpu} needs an unpacked Python at {folder}, not there yet: faqd emulation {cpu}")
    environment |= {"PYTHONHOME": "/usr", "PYTHONPATH": str(folder / "packages")}
    return [qemu, "-cpu", emulated.cpu, "-L", str(folder / "root"), str(interpreter)], environment


@final
class EmulatedOnnxRuntime(Backend):
    """Artifacts of a profile on its emulated processor; times mean nothing there."""

    name = "onnxruntime"
    has_times = False

    def __init__(self, profile: Profile) -> None:
        assert profile.cpu is not None
        self.profile, self.cpu = profile, profile.cpu

    def emit(self, network: FrozenNetwork, *, opset: int | None = None, batch: int | None = None) -> onnx.ModelProto:
        """The artifact of the profile."""
        return OnnxRuntime(self.profile).emit(network, opset=opset, batch=batch)

    def unavailable(self) -> str | None:
        """None, or what is missing for the emulation."""
        try:
            emulated_command(self.cpu)
        except UserError as missing:
            return str(missing)
        return None

    @contextmanager
    def runner(self, model: Serialised, *, threads: int) -> Iterator[Runner]:
        """A session in an emulated process, on one thread whatever is asked for."""
        if threads < 1:
            raise ValueError("a runner needs at least one thread")
        with self._process(model) as process:
            yield process

    def census(self, model: Serialised, layers: Sequence[str]) -> Census:
        """Integer and float layers as the runtime's optimiser leaves them on the emulated processor."""
        with self._process(model) as process:
            return census_of(process.optimised, layers)

    @contextmanager
    def _process(self, model: Serialised) -> Iterator[_EmulatedSession]:
        whole = in_one_piece(model, "the emulated ONNX Runtime")
        command, environment = emulated_command(self.cpu)
        worker = Path(__file__).with_name("emulated_worker.py")
        with (
            scratch_folder("emulated", needed=len(whole)) as folder,
            (folder / "errors").open("w+b") as errors,
            subprocess.Popen(
                [*command, "-P", str(worker)],  # beside the script lie modules that are named like the runtimes
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            ) as process,
        ):
            try:
                yield _EmulatedSession(process, errors, whole, self.profile.session_options)
            finally:
                process.kill()


class _EmulatedSession:
    """The near end of the pipes to an emulated session."""

    def __init__(
        self, process: subprocess.Popen[bytes], errors: IO[bytes], model: bytes, options: Mapping[str, str]
    ) -> None:
        self._process, self._errors = process, errors
        described = json.dumps(dict(options)).encode()
        first = {"model": np.frombuffer(model, np.uint8), "options": np.frombuffer(described, np.uint8)}
        self.optimised = onnx.load_model_from_string(bytes(self._ask(first)["optimised"]))

    def run(self, images: Array) -> list[NDArray[Any]]:
        """Outputs in the file's order for images float32 [B, C, H, W]."""
        answer = self._ask({"images": np.ascontiguousarray(images, np.float32)})
        return [answer[str(index)] for index in range(len(answer))]

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            send(self._process.stdin, message)  # type: ignore[arg-type]  # a buffered pipe is a binary stream
            answer = receive(self._process.stdout)  # type: ignore[arg-type]  # likewise
        except BrokenPipeError:
            answer = None
        if answer is None:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"the emulated ONNX Runtime ended without an answer: {''.join(said)[:300]}")
        return answer
