"""TensorRT: symmetric int8 in front of weighted layers; engines are built where they run, or ahead of time."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Literal, final

import numpy as np
import onnx
from numpy.typing import NDArray

from backends.artifact import linted_artifact
from backends.base import Array, Backend, Census, Runner
from backends.device.tensorrt_device.build import BuiltEngine, EngineOptions, Step, build_engine
from backends.device.tensorrt_device.cuda import Cuda
from backends.device.tensorrt_device.engine import LoadedEngine, loaded_engine
from backends.device.tensorrt_device.errors import DeviceError, TooOldError
from backends.device.tensorrt_device.kernels import census, parse_inspection
from backends.device.tensorrt_device.sdk import load_sdk
from backends.facts.tensorrt_rules import PROFILE
from backends.lint.rule import lint_rules
from backends.lint.table import require_clean
from backends.onnx_file.half import half_rest
from backends.onnx_file.serialised import Serialised, in_one_piece
from backends.onnx_file.view import OnnxView, node_name
from backends.tensorrt.ahead_of_time import build_ahead_of_time, users_mistakes
from backends.tensorrt.provider import provider_missing, provider_runner
from calibration.errors import UserError
from calibration.simulation.freeze import FrozenNetwork

Rest = Literal["fp32", "fp16"]
Way = Literal["tensorrt", "onnxruntime"]


@final
class TensorRT(Backend):
    """Artifacts and engines for TensorRT 10 and 11.

    `rest`: float type of everything outside the integer kernels; `weight_only`: whether large linear layers of few bits
    read float inputs and int4 weights; `runner`: the SDK itself, or ONNX Runtime's provider
    for it; `options`: how engines are built; `step` hears of builds.
    """

    name = "tensorrt"
    profile = PROFILE

    def __init__(
        self,
        *,
        rest: Rest = "fp32",
        weight_only: bool = True,
        runner: Way = "tensorrt",
        options: EngineOptions | None = None,
        step: Step | None = None,
    ) -> None:
        if not weight_only:
            self.profile = replace(PROFILE, weight_only=None)
        self.rest, self.way, self.options, self.step = rest, runner, options or EngineOptions(), step
        #: Engines of this process: one model is scored, counted and timed, and building takes minutes.
        self._built: dict[bytes, BuiltEngine] = {}

    def emit(self, network: FrozenNetwork, *, opset: int | None = None, batch: int | None = None) -> onnx.ModelProto:
        """The artifact, linted: of 4-bit weights only those of weight-only layers are stored as int4."""
        model = linted_artifact(network, self.profile, opset=opset, batch=batch)
        if self.rest == "fp16":
            model = half_rest(model)
            require_clean(model, lint_rules(self.profile, network.plan))
        return model

    def unavailable(self) -> str | None:
        """None where engines run; else what is missing, and the way to the target."""
        if self.way == "onnxruntime":
            why = provider_missing()
            return why and f"{why}; on the target run faqd validate BUNDLE --runner onnxruntime"
        why = _sdk_missing()
        return why and f"{why}; build the engine on the target: copy the bundle there and run python3 check.py in it"

    def runner(self, model: Serialised, *, threads: int) -> AbstractContextManager[Runner]:
        """An engine of the model on the present GPU; `threads` has no meaning there.

        Raises UserError when no engine can be built, loaded or run here.
        """
        if threads < 1:
            raise ValueError("a runner needs at least one thread")
        missing = self.unavailable()
        if missing is not None:
            raise UserError(f"--backend tensorrt cannot run a model: {missing}")
        model = in_one_piece(model, "TensorRT")
        return provider_runner(model, self.options) if self.way == "onnxruntime" else self._engine_runner(model)

    def census(self, model: Serialised, layers: Sequence[str]) -> Census:
        """Integer and float layers as the engine inspector says, or a build ahead of time where no engine runs.

        What neither names counts as float. Raises MissingExtra where the SDK and the package tensorrt_rtx are absent,
        UserError when no engine can be built.
        """
        model = in_one_piece(model, "TensorRT")
        elsewhere = _sdk_missing() is not None
        if elsewhere:
            kernels = build_ahead_of_time(model).kernels
        else:
            with users_mistakes(), self._loaded(model) as engine:
                kernels = parse_inspection(engine.inspection())
        counted = census(kernels, layers, _products(model))
        remark = (
            f"engine: {counted.kernels} kernels, {counted.fused} of them fused, {counted.reformats} reformat copies"
        )
        if counted.int4_products:
            remark += f"; products of int4 weights: {counted.int4_products}"
        if products := len(counted.integer_products) + len(counted.float_products):
            remark += f"; products of two activations: {len(counted.integer_products)} of {products} int8"
        return Census(
            integer=counted.integer,
            floating=counted.floating,
            histogram=counted.kinds,
            remark=remark,
            elsewhere=elsewhere,
        )

    @contextmanager
    def _engine_runner(self, model: bytes) -> Iterator[Runner]:
        with users_mistakes(), self._loaded(model) as engine:
            yield _EngineRunner(engine)

    @contextmanager
    def _loaded(self, model: bytes) -> Iterator[LoadedEngine]:
        sdk, options = load_sdk(), self.options
        if model not in self._built:
            self._built[model] = build_engine(sdk, model, options, step=self.step)
        plan = self._built[model].plan
        with loaded_engine(sdk, plan, Cuda(), version_compatible=options.version_compatible) as engine:
            yield engine


def _products(model: bytes) -> list[str]:
    """Products of two rounded activations in a file."""
    view = OnnxView(onnx.load_model_from_string(model))
    return [
        node_name(node)
        for node in view.nodes
        if node.op_type == "MatMul"
        and all(view.dequantised(node, place) is not None for place in (0, 1))
        and not view.has_integer_weight(node)
    ]


def _sdk_missing() -> str | None:
    """Why the SDK runs nothing here, or None."""
    if importlib.util.find_spec("tensorrt") is None:
        return "the package tensorrt is not installed here"
    try:
        load_sdk()
        Cuda()
    except DeviceError as error:
        return str(error)
    return None


def refuse_old_sdk() -> None:
    """Raise UserError, naming both versions, where the SDK is here and too old to build engines with."""
    if importlib.util.find_spec("tensorrt") is None:
        return
    try:
        load_sdk()
    except TooOldError as error:
        raise UserError(str(error)) from error
    except DeviceError:
        return  # it does not load at all, which `unavailable` says


class _EngineRunner:
    """An engine as a runner that times itself."""

    def __init__(self, engine: LoadedEngine) -> None:
        self._engine = engine

    def run(self, images: Array) -> list[NDArray[Any]]:
        """Outputs in the file's order for images float32 [B, C, H, W]."""
        with users_mistakes():
            outputs = self._engine.run(np.ascontiguousarray(images, np.float32))
        return [outputs[name] for name in self._engine.outputs]

    def device_seconds(self, images: Array) -> float:
        """Time of one inference on the device, between CUDA events, as one graph where it can be captured."""
        with users_mistakes():
            return self._engine.latency(images, samples=1).median_ms / 1e3
