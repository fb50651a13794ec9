"""OpenVINO on CPUs: integer kernels wherever its low-precision passes find explicit roundings."""

from __future__ import annotations

import importlib.util
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import onnx
from numpy.typing import NDArray

from backends.artifact import linted_artifact
from backends.base import Array, Backend, Census, Runner
from backends.facts.cpu import elsewhere
from backends.facts.openvino_rules import CPU_PROFILES, host_profile
from backends.facts.profile import Profile
from backends.onnx_file.runtime_refusals import one_line
from backends.onnx_file.serialised import Serialised, in_one_piece
from backends.onnx_file.view import OnnxView
from backends.vendor import without_telemetry
from calibration.errors import MissingExtra, UserError
from calibration.simulation.freeze import FrozenNetwork

#: Kernels that multiply by weights, as the runtime model names their kinds.
WEIGHTED_KERNELS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
_NAME = "OpenVINO"
# Kernels that hold no arithmetic of the network.
_NO_KERNELS = frozenset({"Const", "Input", "Output"})
# What the plugin appends to the name of a layer whose node it split ("fc/WithoutBiases") or whose name went to the
# result behind it ("fc_original").
_SUFFIX = "_original"


@final
class OpenVINO(Backend):
    """Artifacts and runs for OpenVINO's CPU plugin."""

    name = "openvino"
    cpu_profiles = CPU_PROFILES

    def __init__(self, profile: Profile | None = None) -> None:
        self.profile = profile or host_profile()

    def emit(self, network: FrozenNetwork, *, opset: int | None = None, batch: int | None = None) -> onnx.ModelProto:
        """The artifact, linted: weights of 4 bits or fewer stored as int4 and executed as int8."""
        return linted_artifact(network, self.profile, opset=opset, batch=batch)

    def unavailable(self) -> str | None:
        """None where the package is installed and the processor is the one that the profile is for."""
        if importlib.util.find_spec("openvino") is None:
            return str(_missing())
        return elsewhere(self.profile.cpu)

    @contextmanager
    def runner(self, model: Serialised, *, threads: int) -> Iterator[Runner]:
        """A compiled model on the CPU with that many threads.

        Raises MissingExtra without the package openvino, UserError when it cannot load the model.
        """
        if threads < 1:
            raise ValueError("a runner needs at least one thread")
        compiled = _CompiledRunner(_compiled(in_one_piece(model, _NAME), threads=threads))
        try:
            yield compiled
        finally:
            compiled.close()

    def census(self, model: Serialised, layers: Sequence[str]) -> Census:
        """Integer and float layers as the runtime model shows them; what cannot be found counts as float."""
        model = in_one_piece(model, _NAME)
        kernels = [_facts(node) for node in _compiled(model, threads=1).get_runtime_model().get_ordered_ops()]
        integer = _integer_layers(OnnxView(onnx.load_model_from_string(model)), kernels, layers)
        return Census(
            integer=tuple(layer for layer in layers if layer in integer),
            floating=tuple(layer for layer in layers if layer not in integer),
            histogram=dict(sorted(Counter(_label(kernel) for kernel in kernels if _label(kernel)).items())),
        )


class _CompiledRunner:
    """Runs one compiled model; it is dropped when its context ends."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()

    def run(self, images: Array) -> list[NDArray[Any]]:
        """Outputs in the file's order for images float32 [B, C, H, W]."""
        if self._request is None:
            raise RuntimeError("this runner's context has ended")
        # The images are only read, and each output is copied: its memory belongs to the next run.
        results = self._request.infer({0: np.ascontiguousarray(images, np.float32)}, share_inputs=True)
        return [np.array(value) for value in results.to_tuple()]

    def close(self) -> None:
        """Let the model and its memory go."""
        self._request = None


def _missing() -> MissingExtra:
    return MissingExtra("openvino", extra="openvino", needed_for="--backend openvino")


def _compiled(model: bytes, *, threads: int) -> Any:
    try:
        openvino = without_telemetry("openvino")
    except ImportError as error:
        raise _missing() from error
    # One inference at a time on all of the threads; float parts stay float32, where a CPU with bfloat16 would round.
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    try:
        return core.compile_model(core.read_model(io.BytesIO(model)), "CPU", options)
    except RuntimeError as error:
        raise UserError(
            f"OpenVINO {openvino.__version__.partition('-')[0]} cannot load the model: {one_line(str(error))};"
            " a version that is older than the model's opset needs a lower --opset or an update"
        ) from error


def _facts(node: Any) -> dict[str, str]:
    """What the runtime model says of one executed node."""
    info = node.get_rt_info()
    keys = ("layerType", "runtimePrecision", "primitiveType", "originalLayersNames")
    return {name: info[name].astype(str) if name in info else "" for name in keys}


def _label(kernel: Mapping[str, str]) -> str:
    """Kind and arithmetic of a kernel, such as "Convolution I8"; empty for what is none."""
    if kernel["layerType"] in _NO_KERNELS:
        return ""
    return f"{kernel['layerType']} {kernel['primitiveType'].rpartition('_')[2].upper()}".strip()


def _integer_layers(view: OnnxView, kernels: Sequence[Mapping[str, str]], layers: Sequence[str]) -> set[str]:
    """The layers of which a kernel that multiplies integers says that it computes their node."""
    computed: set[str] = set()
    for kernel in kernels:
        if kernel["layerType"] in WEIGHTED_KERNELS and _label(kernel).endswith(" I8"):
            names = kernel["originalLayersNames"].split(",")
            computed.update(name.partition("/")[0].removesuffix(_SUFFIX) for name in names)
    written = {node.name: {node.name, *node.output} for node in view.nodes}
    named: dict[str, set[str]] = {}
    for node, group in _values(view).items():
        named.setdefault(group, set()).update(written[node])
    groups = {name: names for names in named.values() for name in names}
    return {layer for layer in layers if computed & ({layer} | groups.get(layer, set()))}


def _values(view: OnnxView) -> dict[str, str]:
    """For each node the first that computes the same of the same, which is what the compiler keeps of them."""
    firsts: dict[tuple[object, ...], str] = {}
    constants: dict[tuple[object, ...], str] = {}
    same: dict[str, str] = {}
    tensors = {
        name: constants.setdefault((stored.data_type, *stored.dims, stored.raw_data), name)
        for name, stored in view.initialisers.items()
        if stored.raw_data
    }
    for node in view.nodes:
        read = tuple(tensors.get(name, name) for name in node.input)
        settings = tuple(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute))
        first = same[node.name] = firsts.setdefault((node.op_type, read, settings), node.name)
        tensors.update({name: f"{first} {place}" for place, name in enumerate(node.output)})
    return same
