"""TensorRT: symmetric int8 in front of weighted layers; engines are built on the target, or ahead of time."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import final

import onnx
import torch

from backends.artifact import linted_artifact
from backends.base import Backend, Census, Runner
from backends.tensorrt_engine import build_ahead_of_time
from backends.tensorrt_rules import PROFILE
from calibration.errors import UserError
from calibration.freeze import FrozenNetwork


@final
class TensorRT(Backend):
    """Artifacts for TensorRT 10 and 11; validation on the target itself is not part of this version."""

    name = "tensorrt"
    profile = PROFILE

    def emit(self, network: FrozenNetwork, *, opset: int | None = None, batch: int | None = None) -> onnx.ModelProto:
        """The artifact, linted: weights on a grid of 4 bits are stored and run as int8."""
        return linted_artifact(network, self.profile, packs_int4=False, opset=opset, batch=batch)

    def unavailable(self) -> str:
        """Why engines do not run here: they run nowhere yet, and what else is missing comes first."""
        if importlib.util.find_spec("tensorrt") is None:
            why = "the package tensorrt is not installed here"
        elif not torch.cuda.is_available():
            why = "no CUDA device is here"
        else:
            why = "running TensorRT engines is not part of this version"
        return f"{why}; build the engine on the target from the bundle's model.onnx"

    def runner(self, model: bytes, *, threads: int) -> AbstractContextManager[Runner]:
        """Raises UserError: this version runs no TensorRT engine."""
        raise UserError(f"--backend tensorrt cannot run a model: {self.unavailable()}")

    def census(self, model: bytes, layers: Sequence[str]) -> Census:
        """Integer layers of an engine built ahead of time; what its listing does not name counts as float.

        Raises MissingExtra without the package tensorrt_rtx, UserError when no engine can be built.
        """
        engine = build_ahead_of_time(model)
        found = {name.removesuffix("_product") for name in engine.integer_layers}
        return Census(
            integer=tuple(layer for layer in layers if layer in found),
            floating=tuple(layer for layer in layers if layer not in found),
            histogram=dict(sorted(Counter(kernel.kind for kernel in engine.kernels).items())),
        )
