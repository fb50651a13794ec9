"""ONNX Runtime on CPUs: integer kernels where its optimiser finds explicit roundings."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
from numpy.typing import NDArray

from backends.artifact import linted_artifact
from backends.base import Array, Backend, Census, Runner
from backends.facts.cpu import elsewhere
from backends.facts.onnxruntime_failures import session_failures
from backends.facts.onnxruntime_rules import CPU_PROFILES, host_profile
from backends.facts.profile import Profile
from backends.onnx_file.runtime_refusals import one_line
from backends.onnx_file.scratch import scratch_folder
from backends.onnx_file.serialised import Serialised, SplitModel, on_disk, size_of
from calibration.errors import UserError
from calibration.simulation.freeze import FrozenNetwork

#: Kernels that multiply integers; everything else that reads a weight multiplies floats.
INTEGER_KERNELS = frozenset(
    {
        "QLinearConv",
        "QGemm",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
    }
)
# The optimiser names a kernel after the node it came from, plus a token when a name was taken.
_KERNEL_NAME = r"{layer}(_token_\d+)?"
_NOT_INSTALLED = "the package onnxruntime is not installed: pip install onnxruntime"
# Messages of the library below this level never reach the terminal: its errors are raised as well.
_LOG_FATAL = 4


@final
class OnnxRuntime(Backend):
    """Artifacts and runs for ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    reads_split_models = True
    cpu_profiles = CPU_PROFILES

    def __init__(self, profile: Profile | None = None) -> None:
        self.profile = profile or host_profile()

    def emit(self, network: FrozenNetwork, *, opset: int | None = None, batch: int | None = None) -> onnx.ModelProto:
        """The artifact, linted: weights of 4 bits or fewer stored as int4 and executed as int8."""
        return linted_artifact(network, self.profile, opset=opset, batch=batch)

    def unavailable(self) -> str | None:
        """None where the package is installed and the processor is the one that the profile is for."""
        if importlib.util.find_spec("onnxruntime") is None:
            return _NOT_INSTALLED
        return elsewhere(self.profile.cpu)

    @contextmanager
    def runner(self, model: Serialised, *, threads: int) -> Iterator[Runner]:
        """A session on the CPU provider with that many threads, none of which spins while it waits.

        Raises UserError when the runtime cannot load the model.
        """
        if threads < 1:
            raise ValueError("a runner needs at least one thread")
        session = _SessionRunner(_session(model, threads=threads, settings=self.profile.session_options))
        try:
            yield session
        finally:
            session.close()

    def census(self, model: Serialised, layers: Sequence[str]) -> Census:
        """Integer and float layers as the runtime's own optimiser leaves them; what cannot be found counts as float."""
        return census_of(_optimised(model, self.profile.session_options), layers)


class _SessionRunner:
    """Runs one session; the session is dropped when its context ends."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._input = str(session.get_inputs()[0].name)

    def run(self, images: Array) -> list[NDArray[Any]]:
        """Outputs in the file's order for images float32 [B, C, H, W]."""
        if self._session is None:
            raise RuntimeError("this runner's context has ended")
        outputs: list[NDArray[Any]] = self._session.run(None, {self._input: np.ascontiguousarray(images, np.float32)})
        return outputs

    def close(self) -> None:
        """Let the session and its threads go."""
        self._session = None


def _session(model: Serialised, *, threads: int, settings: Mapping[str, str], optimised: Path | None = None) -> Any:
    """A session over a serialised model; with `optimised`, the graph that it executes is also written there."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(_NOT_INSTALLED) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _LOG_FATAL
    # Spinning threads take the other processes' cores, and then the medians depend on what else runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for option, value in settings.items():
        options.add_session_config_entry(option, value)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
        # Beside the graph, which alone is read: constants of more than 2 GB could not be written into it.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.data")
    try:
        if isinstance(model, SplitModel):
            with on_disk(model) as path:
                return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except session_failures() as error:
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {one_line(str(error))};"
            " a version that is older than the model's opset needs a lower --opset or an update"
        ) from error


def _optimised(model: Serialised, settings: Mapping[str, str]) -> onnx.ModelProto:
    """The graph that the runtime executes."""
    with scratch_folder("census", needed=size_of(model)) as folder:
        path = folder / "optimised.onnx"
        _session(model, threads=1, settings=settings, optimised=path)
        return onnx.load(str(path), load_external_data=False)


def census_of(optimised: onnx.ModelProto, layers: Sequence[str]) -> Census:
    """Integer and float layers of the graph that the runtime's optimiser left."""
    integer = _integer_layers(optimised, layers)
    return Census(
        integer=tuple(integer),
        floating=tuple(layer for layer in layers if layer not in set(integer)),
        histogram=dict(sorted(Counter(node.op_type for node in optimised.graph.node).items())),
    )


def _integer_layers(optimised: onnx.ModelProto, layers: Sequence[str]) -> list[str]:
    """The layers for which an integer kernel of their name exists, each kernel counting for one layer."""
    kernels = [node.name for node in optimised.graph.node if node.op_type in INTEGER_KERNELS]
    integer = []
    for layer in layers:
        pattern = re.compile(_KERNEL_NAME.format(layer=re.escape(layer)))
        match = next((name for name in kernels if pattern.fullmatch(name)), None)
        if match is not None:
            kernels.remove(match)
            integer.append(layer)
    return integer
