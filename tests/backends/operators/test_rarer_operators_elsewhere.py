"""The same operators and layers on OpenVINO's own runtime and in TensorRT-RTX's compiler.

All are in one network with an output each, so that one file is compiled in the place of twenty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends import backend_named
from backends.onnx_file.emit import emit
from backends.oracle.backend import IntegerOracle
from backends.tensorrt.ahead_of_time import build_ahead_of_time
from tests.backends.operators.test_rarer_operators import FLOAT, INTEGER, Line, network_of

if TYPE_CHECKING:
    from tests.backends.conftest import Build, Built

#: Of every kind one that has a form of its own in the file.
NAMES = (
    "indices from the end",
    "nearest, areas, unequal",
    "convolution over rows",
    "efficient channel attention",
    "averages of rows",
    "tiles and back",
    "windows",
    "sums of windows",
    "an Einstein sum over channels",
    "a matrix",
    "one weight, two axes",
    "root mean square",
    "threshold, another value",
    "soft shrink",
    "logarithm of a sum",
    "constant mask",
    "rounded",
    "remainders",
    "chosen by comparing",
    "scores hidden by the image",
    "local response",
    "attention, truths",
    "attention, truths that hide rows",
    "attention, shared keys",
)


class Together(nn.Module):
    """The networks of several lines, each with an output of its own."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        tables = INTEGER | FLOAT
        self.parts = nn.ModuleDict({f"part_{index}": network_of(*tables[name]) for index, name in enumerate(names)})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Every network's answer."""
        return tuple(part(x) for part in self.parts.values())


def _built(build: Build, target: str) -> Built:
    images = torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    return build(Together(NAMES).eval(), target, inputs=images)


def test_openvino_computes_them_on_integers_as_the_oracle_does(build: Build) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")
    built, backend = _built(build, "openvino"), backend_named("openvino")
    model = backend.emit(built.frozen, opset=None, batch=None)
    outputs, _ = IntegerOracle(model).run(built.images)
    with backend.runner(model.SerializeToString(), threads=1) as runner:
        results = runner.run(built.images.numpy())
    for name, mine, theirs in zip(NAMES, outputs, results, strict=True):
        differences = np.abs(mine.numpy() - theirs) / float(mine.abs().max())
        assert np.mean(differences <= 2e-6) > 0.9 and differences.max() <= 0.02, name
    census = backend.census(model.SerializeToString(), [placement.layer for placement in built.plan.weights])
    assert not census.floating


def test_tensorrt_rtx_multiplies_integers_for_every_layer_of_theirs(build: Build) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    built = _built(build, "tensorrt")
    engine = build_ahead_of_time(
        backend_named("tensorrt").emit(built.frozen, opset=None, batch=None).SerializeToString()
    )
    # The first layers read one image with three channels, and the compiler makes one product of all of them.
    planned = {placement.layer for placement in built.plan.weights if not placement.layer.endswith("_a")}
    assert planned and planned <= set(engine.integer_layers)


@pytest.mark.parametrize(
    "line",
    [
        lambda n, x: x[:, [1, 2, 0, *range(3, 16)]],
        lambda n, x: x[:, [15, 14, *range(14)]],
        lambda n, x: x.flip(1),
        lambda n, x: F.channel_shuffle(x, 8),
    ],
)
def test_openvino_keeps_the_order_of_channels(line: Line, build: Build) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")
    built = build(network_of(line, {}), "openvino", inputs=torch.randn(2, 3, 8, 8))
    backend = backend_named("openvino")
    model = backend.emit(built.frozen, opset=None, batch=None)
    (oracle,), _ = IntegerOracle(model).run(built.images)
    for file, expected in ((model, oracle), (emit(built.folded, opset=20), built.folded(built.images)[0])):
        with backend.runner(file.SerializeToString(), threads=1) as runner:
            result = torch.from_numpy(runner.run(built.images.numpy())[0])
        torch.testing.assert_close(result, expected.detach(), rtol=0, atol=float(expected.detach().abs().max()) * 0.02)
