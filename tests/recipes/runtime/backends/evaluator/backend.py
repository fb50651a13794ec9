"""ONNX's own evaluator as a target: slow, on every machine, float between roundings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from backends.artifact import linted_artifact
from backends.base import Array, Backend, Census, Runner
from backends.facts.onnxruntime_rules import host_profile
from backends.facts.profile import Profile
from backends.onnx_file.serialised import Serialised, parsed
from backends.onnx_file.view import OnnxView
from calibration.simulation.freeze import FrozenNetwork


@final
class Evaluator(Backend):
    """Artifacts as ONNX Runtime takes them, run by NumPy."""

    name = "evaluator"

    def __init__(self) -> None:
        own = host_profile()
        self.profile: Profile = replace(
            own,
            cpu=None,
            variant="",
            form=replace(own.form, packs_int4=False),
            wide_storage="the evaluator casts int4 to bytes before it multiplies",
            inexact="the evaluator computes floats and rounds them",
        )

    def emit(self, network: FrozenNetwork, *, opset: int | None = None, batch: int | None = None) -> onnx.ModelProto:
        """The artifact, linted; weights of 4 bits take 8 in the file."""
        return linted_artifact(network, self.profile, opset=opset, batch=batch)

    def unavailable(self) -> str | None:
        """None: it is part of the package onnx."""
        return None

    @contextmanager
    def runner(self, model: Serialised, *, threads: int) -> Iterator[Runner]:
        """The model in NumPy, whatever the threads; UserError when it is none."""
        if threads < 1:
            raise ValueError("a runner needs at least one thread")
        yield _Run(ReferenceEvaluator(parsed(model)))

    def census(self, model: Serialised, layers: Sequence[str]) -> Census:
        """Layers between roundings: there are no kernels beside the file's own nodes."""
        view = OnnxView(parsed(model))
        rounded = {
            node.name for node in view.nodes if view.dequantised(node, 0) is not None and view.has_integer_weight(node)
        }
        return Census(
            integer=tuple(layer for layer in layers if layer in rounded),
            floating=tuple(layer for layer in layers if layer not in rounded),
            histogram=Counter(node.op_type for node in view.nodes),
        )


class _Run:
    def __init__(self, evaluator: ReferenceEvaluator) -> None:
        self.evaluator = evaluator

    def run(self, images: Array) -> list[NDArray[Any]]:
        """One image at a time: how NumPy adds depends on the number of images."""
        (name,) = self.evaluator.input_names
        with np.errstate(invalid="ignore"):  # it pads integers with NaN, and overwrites that
            each = [self.evaluator.run(None, {name: image[None]}) for image in images]
        return [np.concatenate(parts) for parts in zip(*each, strict=True)]
