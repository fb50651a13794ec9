"""An engine from an ONNX file: strongly typed, with the timings of earlier builds, and with signs of progress."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bundle_check.manifest import write_whole
from .errors import DeviceError
from .refusals import builder_refusal, parser_refusal
from .sdk import message_log, product, version_of

#: Word of an option -> the SDK's name in HardwareCompatibilityLevel. All cost speed but "none".
HARDWARE = {"none": "NONE", "ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
LEVELS = range(6)
#: Hears of the build: what is being done, steps done, steps in all.
Step = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is built.

    `batches`: smallest, preferred and largest batch of a model with a free batch size; kernels are chosen for the
    preferred one. `workspace_mib`: memory that kernels may use beside their data, MiB; None: all. `level`: 0 to 5,
    how much the builder tries; None: the SDK's own, 3. `hardware`: a key of HARDWARE. `version_compatible`: the
    engine also loads in later versions of the SDK. `timing_cache`: file of kernel timings, read and then rewritten.
    """

    batches: tuple[int, int, int] = (1, 1, 8)
    workspace_mib: int | None = None
    level: int | None = None
    hardware: str = "none"
    version_compatible: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if len(self.batches) != 3 or not 1 <= self.batches[0] <= self.batches[1] <= self.batches[2]:
            raise DeviceError(
                f"batches {self.batches}: must be three sizes from 1 on, none smaller than the one before"
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise DeviceError(f"a workspace of {self.workspace_mib} MiB: must be 1 or more")
        if self.level is not None and self.level not in LEVELS:
            raise DeviceError(f"optimisation level {self.level}: must be 0 to 5")
        if self.hardware not in HARDWARE:
            raise DeviceError(f"hardware compatibility {self.hardware}: must be {', '.join(HARDWARE)}")


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A serialised engine. `seconds` of parsing and building; `listing` is what the compiler says of its kernels,
    where it says so without a device; `notes` are what the user should hear.
    """

    plan: bytes
    seconds: float
    listing: str
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def build_engine(
    sdk: Any, model: bytes, options: EngineOptions, *, outputs: Sequence[str] = (), step: Step | None = None
) -> BuiltEngine:
    """Parse and build a serialised ONNX model with `tensorrt` or `tensorrt_rtx`.

    `outputs`: tensors of the model that the engine writes beside its results. Raises DeviceError naming layer and
    rule when the SDK refuses the model, when a tensor is not in it, or when memory does not suffice; KeyboardInterrupt
    after Ctrl-C, once the SDK has stopped.
    """
    start, log = time.perf_counter(), message_log(sdk)
    try:
        builder = sdk.Builder(log)
    except TypeError as error:  # what the binding makes of an object that the SDK could not make
        raise builder_refusal(product(sdk), log.errors) from error
    # Strong typing: 10.x needs the flag, 11 knows nothing else and ignores it, TensorRT-RTX likewise.
    network = builder.create_network(1 << int(sdk.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = sdk.OnnxParser(network, log)
    if not parser.parse(model):
        raise _parse_error(sdk, parser, log)
    _mark_outputs(network, outputs)
    config = builder.create_builder_config()
    config.profiling_verbosity = sdk.ProfilingVerbosity.DETAILED  # or the inspector knows names only
    notes = _configure(sdk, config, options)
    _set_batches(builder, network, config, options.batches)
    monitor = config.progress_monitor = _progress_monitor(sdk, step or (lambda phase, done, total: None))
    with _interrupts_noted(monitor):
        plan = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise builder_refusal(product(sdk), log.errors)
    _keep_timings(sdk, config, options)
    return BuiltEngine(
        plan=bytes(plan),
        seconds=time.perf_counter() - start,
        listing="\n".join(log.listing),
        warnings=tuple(dict.fromkeys(log.warnings)),
        notes=notes,
    )


def _parse_error(sdk: Any, parser: Any, log: Any) -> DeviceError:
    if parser.num_errors == 0:
        return parser_refusal(product(sdk), "", "", " ".join(log.errors) or "nothing")
    error = parser.get_error(0)
    return parser_refusal(product(sdk), error.node_name(), error.node_operator(), error.desc())


def _mark_outputs(network: Any, names: Sequence[str]) -> None:
    """Make tensors of the network results as well."""
    if not names:
        return
    own = {network.get_output(index).name for index in range(network.num_outputs)}
    tensors = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for position in range(layer.num_outputs):
            tensor = layer.get_output(position)
            tensors[tensor.name] = tensor
    for name in names:
        if name not in tensors:
            raise DeviceError(f"the model has no tensor {name}: the bundle's files do not belong together")
        if name not in own:
            network.mark_output(tensors[name])


def _configure(sdk: Any, config: Any, options: EngineOptions) -> tuple[str, ...]:
    """Set everything but the shapes; what the user should know of it."""
    notes: list[str] = []
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(sdk.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.hardware != "none":
        level = getattr(sdk.HardwareCompatibilityLevel, HARDWARE[options.hardware], None)
        if level is None:  # SAME_COMPUTE_CAPABILITY came in the course of 10.x
            raise DeviceError(f"{product(sdk)} has no hardware compatibility {options.hardware}: use another or none")
        config.hardware_compatibility_level = level
    if options.version_compatible:
        config.set_flag(sdk.BuilderFlag.VERSION_COMPATIBLE)
    if options.timing_cache is not None and not _is_rtx(sdk):
        stored = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        cache = config.create_timing_cache(stored)
        if cache is None or not config.set_timing_cache(cache, False):
            notes.append(f"{options.timing_cache} is of another GPU or SDK ({product(sdk)} is here): begun anew")
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return tuple(notes)


def _is_rtx(sdk: Any) -> bool:
    """Whether kernels are compiled on the target: TensorRT-RTX times none, and its caches are empty and deprecated."""
    return str(sdk.__name__).startswith("tensorrt_rtx")


def _keep_timings(sdk: Any, config: Any, options: EngineOptions) -> None:
    """Write the timing cache, at once, so that a killed build leaves the old one."""
    if options.timing_cache is None or _is_rtx(sdk):
        return
    cache = config.get_timing_cache()
    if cache is not None:
        write_whole(options.timing_cache, bytes(cache.serialize()))


def _set_batches(builder: Any, network: Any, config: Any, batches: tuple[int, int, int]) -> None:
    """Give every input with a free batch size its range of batches."""
    profile, free = builder.create_optimization_profile(), False
    for position in range(network.num_inputs):
        tensor = network.get_input(position)
        sizes = tuple(tensor.shape)
        if any(size == -1 for size in sizes[1:]):
            raise DeviceError(f"the input {tensor.name} has the shape {sizes}: only its batch size may be free")
        if sizes and sizes[0] == -1:
            profile.set_shape(tensor.name, *((batch, *sizes[1:]) for batch in batches))
            free = True
    if free:
        config.add_optimization_profile(profile)


def _progress_monitor(sdk: Any, step: Step) -> Any:
    """The SDK's progress as steps of its outermost phase; phases inside of it are its steps."""

    class ProgressMonitor(sdk.IProgressMonitor):  # type: ignore[misc]  # the package has no types
        """Called by the SDK from its own threads; it stops at the next step once `interrupted` is set."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Hear of a phase; those inside of another are left out."""
            if not parent_phase:
                self.steps[phase_name] = num_steps
                step(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step_index: int) -> bool:
            """Hear of a step; whether to go on."""
            if phase_name in self.steps:
                step(phase_name, step_index + 1, self.steps[phase_name])
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            """Hear of a phase's end."""
            if phase_name in self.steps:
                total = self.steps.pop(phase_name)
                step(phase_name, total, total)

    return ProgressMonitor()


@contextmanager
def _interrupts_noted(monitor: Any) -> Iterator[None]:
    """Let Ctrl-C end the build at its next step: an exception that passed through the SDK would end the process."""
    if threading.current_thread() is not threading.main_thread():  # no other one hears of signals
        yield
        return

    def note(number: int, frame: Any) -> None:
        monitor.interrupted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def engine_facts(sdk: Any, gpu: str, compute: str) -> dict[str, str]:
    """What an engine belongs to, as is kept beside it."""
    return {"sdk": product(sdk), "version": ".".join(map(str, version_of(sdk))), "gpu": gpu, "compute": compute}
