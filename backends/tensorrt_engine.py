"""An engine built without a GPU by TensorRT-RTX, which shares TensorRT's ONNX parser, and what its listing says."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from backends.onnx_view import OnnxView, node_name
from calibration.errors import MissingExtra, UserError

# The smallest batch, the one that kernels are chosen for, and the largest, where the model leaves the batch free.
_BATCHES = (1, 1, 8)


@dataclass(frozen=True, kw_only=True)
class EngineKernel:
    """One compiled kernel: its kind, the nodes of the model that it computes, and the types that it reads.

    `inputs` are the types of its inputs; `weights` those of its constants with two dimensions or more.
    """

    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def multiplies_integers(self) -> bool:
        """Whether it reads int8 data and int8 weights."""
        return "Int8" in self.inputs and "Int8" in self.weights


@dataclass(frozen=True, kw_only=True)
class AheadOfTimeEngine:
    """What an ahead-of-time build says of a model.

    `integer_layers` and `float_layers` name weighted nodes of the file by whether one of their kernels multiplies
    integers; `seconds` is the time of parsing and building, `log` the compiler's warnings and its listing of kernels.
    """

    size_bytes: int
    seconds: float
    integer_layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    kernels: tuple[EngineKernel, ...]
    log: str


def build_ahead_of_time(model: bytes, *, batches: tuple[int, int, int] = _BATCHES) -> AheadOfTimeEngine:
    """Parse and build a serialised model for all GPUs that TensorRT-RTX can compile for without having one.

    `batches`: smallest, preferred and largest batch of a model with a free batch size. The listing is TensorRT-RTX's
    own choice of kernels, a signal and not what TensorRT will choose. Raises MissingExtra when the package
    tensorrt_rtx is absent, UserError naming the node when the parser or the builder refuses the model.
    """
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise MissingExtra("tensorrt_rtx", extra="tensorrt-rtx", needed_for="an ahead-of-time engine build") from error

    class Logger(tensorrt_rtx.ILogger):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append((severity, message))

    start, logger, severity = time.perf_counter(), Logger(), tensorrt_rtx.ILogger.Severity
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, logger)
    if not parser.parse(model):
        raise UserError(_parse_error(parser))
    config = builder.create_builder_config()
    config.profiling_verbosity = tensorrt_rtx.ProfilingVerbosity.DETAILED
    _set_batches(builder, network, config, batches)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        errors = [message for level, message in logger.messages if level <= severity.ERROR]
        raise UserError(f"TensorRT-RTX {tensorrt_rtx.__version__} builds no engine: {' '.join(errors)[:600]}")
    seconds = time.perf_counter() - start
    log = [message for level, message in logger.messages if level <= severity.WARNING]
    listing = [message for _, message in logger.messages if message.startswith("Layers:")]
    kernels = parse_listing("\n".join(listing))
    integer, floating = _layers(OnnxView(onnx.load_model_from_string(model)), kernels)
    return AheadOfTimeEngine(
        size_bytes=int(engine.nbytes),
        seconds=seconds,
        integer_layers=integer,
        float_layers=floating,
        kernels=kernels,
        log="\n".join(log + listing),
    )


def parse_listing(listing: str) -> tuple[EngineKernel, ...]:
    """The kernels of a "Layers:" message of a verbose logger, in its order; lines that name no kernel are skipped."""
    kernels = []
    for line in listing.splitlines():
        kind = re.search(r"LayerType: ([^,]+)", line)
        if not line.startswith("Name:") or kind is None:
            continue
        parts = {word: _tensors(line, word) for word in ("Inputs", "Constants")}
        kernels.append(
            EngineKernel(
                kind=kind[1],
                nodes=tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", line)),
                inputs=tuple(dtype for _, dtype in parts["Inputs"]),
                weights=tuple(dtype for rank, dtype in parts["Constants"] if rank >= 2),
            )
        )
    return tuple(kernels)


def _tensors(line: str, word: str) -> list[tuple[int, str]]:
    """Rank and type of every tensor in one list of a kernel's line."""
    found = re.search(rf"{word}: \[(.*?)\], (?:Constants|Outputs|TacticName):", line)
    tensors = re.findall(r"Dimensions: \[([^\]]*)\].*?Datatype: (\w+)", found[1]) if found else []
    return [(len(dimensions.split(",")), dtype) for dimensions, dtype in tensors]


def _layers(view: OnnxView, kernels: Sequence[EngineKernel]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Weighted nodes with and without a kernel that multiplies integers."""
    on_integers = {name for kernel in kernels if kernel.multiplies_integers for name in kernel.nodes}
    names = [node_name(node) for node in view.nodes if view.is_weighted(node)]
    return _kept(names, on_integers, True), _kept(names, on_integers, False)


def _kept(names: Iterable[str], chosen: set[str], wanted: bool) -> tuple[str, ...]:
    return tuple(name for name in names if (name in chosen) is wanted)


def _parse_error(parser: Any) -> str:
    """The parser's first complaint, with the node that it is about."""
    if parser.num_errors == 0:
        return "TensorRT's parser refuses the model without saying why"
    error = parser.get_error(0)
    where = f"{error.node_name()} ({error.node_operator()})" if error.node_name() else "the model"
    return f"{where}: TensorRT's parser refuses it: {error.desc()[:400]}"


def _set_batches(builder: Any, network: Any, config: Any, batches: tuple[int, int, int]) -> None:
    """Give every input with a free batch size its range of batches."""
    profile, free = builder.create_optimization_profile(), False
    for position in range(network.num_inputs):
        tensor = network.get_input(position)
        sizes = tuple(tensor.shape)
        if sizes and sizes[0] == -1:
            profile.set_shape(tensor.name, *((batch, *sizes[1:]) for batch in batches))
            free = True
    if free:
        config.add_optimization_profile(profile)
