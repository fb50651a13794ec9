"""Lines of code side by side, so that OpenVINO's handling of a form is tried on all of them with one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from backends.facts.openvino_rules import PROFILE
from backends.lint.rule import lint_rules
from backends.lint.table import lint
from backends.onnx_file.emit import emit
from backends.openvino.backend import OpenVINO, _compiled, _facts
from backends.oracle.backend import IntegerOracle

Build = Callable[..., Any]
#: From the parts of a branch and what its first convolution gives to what its last one reads.
Line = Callable[[Any, Tensor], Tensor]
BACKEND = OpenVINO()
CHANNELS, SIDE = 16, 12


class Parts(nn.Module):
    """The layers and constants of a branch; sums of its first convolution are mostly negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.again, self.rows = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(SIDE, SIDE)
        self.tokens, self.keys, self.values = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.norm, self.vectors = nn.GroupNorm(4, CHANNELS), nn.LayerNorm(CHANNELS)
        self.one_slope, self.slopes = nn.PReLU(1, init=-0.7), nn.PReLU(CHANNELS)
        self.last = nn.Conv2d(CHANNELS, 8, 1)
        self.factors = nn.Parameter(torch.randn(CHANNELS, 1, 1))
        with torch.no_grad():
            for layer in (self.first, self.depthwise, self.again):
                layer.weight.mul_(2)
                assert layer.bias is not None
                layer.bias.sub_(1)
            self.norm.weight.normal_()
            self.vectors.weight.normal_()
            self.slopes.weight.uniform_(-1, 1)


class Branches(nn.Module):
    """Lines of code side by side, each with layers of its own and behind each a convolution."""

    def __init__(self, lines: Mapping[str, Line]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lines, self.parts = list(lines.values()), nn.ModuleList(Parts() for _ in lines)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        branches = zip(self.lines, self.parts, strict=True)
        return tuple(parts.last(line(parts, parts.first(x))) for line, parts in branches)  # type: ignore[operator]


def built_of(lines: Mapping[str, Line], build: Build) -> Any:
    images = torch.randn((4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    return build(Branches(lines).eval(), "openvino", inputs=images)


def written(built: Any, **form: Any) -> onnx.ModelProto:
    """The file in the profile's form, or with fields of it otherwise."""
    return emit(built.frozen, opset=20, form=replace(PROFILE.form, packs_int4=False, **form))


def errors(lines: Mapping[str, Line], built: Any, model: onnx.ModelProto) -> dict[str, float]:
    """How far each branch is from the oracle's, relative to the oracle's."""
    exact, _ = IntegerOracle(model).run(built.images)
    with BACKEND.runner(model.SerializeToString(), threads=1) as runner:
        results = runner.run(built.images.numpy())
    return {
        name: float(np.linalg.norm(result - own.numpy()) / np.linalg.norm(own.numpy()))
        for name, result, own in zip(lines, results, exact, strict=True)
    }


def broken(built: Any, model: onnx.ModelProto) -> list[int]:
    return [violation.rule for violation in lint(model, lint_rules(PROFILE, built.plan))]


def floating(built: Any, model: onnx.ModelProto) -> tuple[str, ...]:
    layers = [placement.layer for placement in built.plan.weights]
    return tuple(BACKEND.census(model.SerializeToString(), layers).floating)


def kernels_of(model: onnx.ModelProto) -> list[set[str]]:
    """For each kernel of the compiled file the nodes that it says to compute."""
    compiled = _compiled(model.SerializeToString(), threads=1).get_runtime_model()
    return [set(_facts(node)["originalLayersNames"].split(",")) for node in compiled.get_ordered_ops()]


def holds(lines: Mapping[str, Line], built: Any) -> bool:
    """Whether the file in the profile's form breaks no rule, runs on integers and is right; else what is not so."""
    model = written(built)
    far = {name: error for name, error in errors(lines, built, model).items() if error > 0.005}
    assert (broken(built, model), floating(built, model), far) == ([], (), {})
    return True
