"""Every option of poolings together, for every runtime: one number from the network to the runtime.

Each network is a convolution and many poolings of its map, each an output by itself or behind it a layer.

    python3 -m pytest -m benchmark -n 2 tests/backends/operators/test_every_pooling.py

tries all combinations instead of some.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends import backend_named
from backends.artifact import linted_artifact
from backends.facts import onnxruntime_rules, openvino_rules, tensorrt_rules
from backends.facts.profile import Profile
from backends.onnx_file.emit import emit
from backends.oracle.backend import IntegerOracle
from backends.tensorrt.ahead_of_time import build_ahead_of_time
from calibration.graph.nearness import apart

if TYPE_CHECKING:
    from tests.backends.conftest import Build

Pooling = tuple[Callable[..., Tensor], dict[str, Any]]

#: Of a simulation and an oracle that compute in float32 beside integers, and of a runtime that rounds its own way.
ROUNDED, TIES = 1e-5, 0.03
PROFILES: dict[str, Profile] = {
    "onnxruntime": onnxruntime_rules.host_profile(),
    **{cpu: onnxruntime_rules.CPU_PROFILES[cpu][0] for cpu in ("x86-vnni", "arm64")},
    "openvino": openvino_rules.host_profile(),
    "tensorrt": tensorrt_rules.PROFILE,
}
#: Where the runtime itself is here; elsewhere the oracle stands for it.
RUN = ("onnxruntime", "openvino")
MANY = 12


def poolings() -> Iterator[Pooling]:
    """All options: odd and even kernels, strides, borders, gaps, sizes rounded up, what counts, own divisors."""
    kernels, strides, borders = [2, 3, 4, (2, 3), (3, 1), 5], [1, 2, 3, (2, 1), (1, 3)], [0, 1, (1, 0), 2]
    for kernel, stride, border, ceil in itertools.product(kernels, strides, borders, [False, True]):
        sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        rows = border if isinstance(border, tuple) else (border, border)
        if any(2 * row > side for row, side in zip(rows, sides, strict=True)):
            continue
        shared = {"kernel_size": kernel, "stride": stride, "padding": border, "ceil_mode": ceil}
        for counted, divisor in itertools.product([True, False], [None, 1, 5, -3]):
            yield F.avg_pool2d, {**shared, "count_include_pad": counted, "divisor_override": divisor}
        for gap in (1, 2, (1, 2)):
            yield F.max_pool2d, {**shared, "dilation": gap}


def possible(options: list[Pooling], size: tuple[int, int]) -> list[Pooling]:
    """Those that torch takes for a map of a size."""
    taken = []
    for function, arguments in options:
        try:
            function(torch.zeros(1, 1, *size), **arguments)
        except RuntimeError:
            continue
        taken.append((function, arguments))
    return taken


class Poolings(nn.Module):
    """A map, of values of both signs or not, and poolings of it, each an output or what a layer reads."""

    def __init__(self, options: list[Pooling], *, signed: bool, layers: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.options, self.signed = options, signed
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.behind = nn.ModuleList(nn.Conv2d(8, 8, 1) if layers else nn.Identity() for _ in options)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.first(x)
        x = x if self.signed else x.relu()
        return tuple(layer(f(x, **how)) for layer, (f, how) in zip(self.behind, self.options, strict=True))


def differences(build: Build, target: str, options: list[Pooling], size: tuple[int, int], **form: bool) -> list[str]:
    """What differs for which pooling, on the way from the network to the runtime."""
    inputs = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(3))
    network, profile = Poolings(options, **form).eval(), PROFILES[target]
    built = build(network, profile, inputs=inputs)
    with torch.no_grad():
        own, folded = network(inputs), built.folded(inputs)
    (real := onnxruntime.SessionOptions()).log_severity_level = 4
    session = onnxruntime.InferenceSession(emit(built.folded, opset=20).SerializeToString(), real)
    floats = [torch.from_numpy(value) for value in session.run(None, {session.get_inputs()[0].name: inputs.numpy()})]
    model = linted_artifact(built.frozen, profile, opset=None, batch=None)
    arm = target == "arm64"
    oracle, _ = IntegerOracle(model, fused_rounding=profile.fused_rounding, arm_arithmetic=arm).run(inputs)
    inexact = ROUNDED if target == "openvino" else 0.0
    compared = [
        ("the graph", folded, own, ROUNDED),
        ("float.onnx", floats, own, ROUNDED),
        ("the simulation", built.simulate(), oracle, inexact),
        ("the oracle", oracle, own, 0.08),  # what rounding loses, not more
    ]
    data, planned = model.SerializeToString(), built.plan.integer_layers()
    if target in RUN:
        with backend_named(target).runner(data, threads=1) as runner:
            ran = [torch.from_numpy(np.array(value)) for value in runner.run(inputs.numpy())]
        compared.append(("the runtime", ran, oracle, TIES if target == "openvino" else 0.0))
    said = [
        f"{options[place]}: {name} differs by {far:.3g}"
        for name, ours, theirs, most in compared
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True))
        if (far := apart(one, other)) > most
    ]
    if target in RUN:
        said += [f"{name} runs in float" for name in backend_named(target).census(data, planned).floating]
    return said


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("target", PROFILES)
def test_poolings_are_one_number_from_the_network_to_the_runtime(target: str, signed: bool, build: Build) -> None:
    if target == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")
    size = (12, 12) if signed else (11, 10)
    drawn = random.Random(f"{target} {signed}").sample(possible(list(poolings()), size), MANY)
    assert differences(build, target, drawn, size, signed=signed, layers=True) == []


def test_poolings_compile_for_tensorrt(build: Build) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed: not done")
    drawn = random.Random(0).sample(possible(list(poolings()), (12, 12)), 12)
    inputs = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    built = build(Poolings(drawn, signed=True, layers=True).eval(), "tensorrt", inputs=inputs)
    engine = build_ahead_of_time(
        linted_artifact(built.frozen, built.profile, opset=None, batch=None).SerializeToString()
    )
    assert set(built.plan.integer_layers()) <= set(engine.integer_layers)


@pytest.mark.benchmark
@pytest.mark.parametrize("target", PROFILES)
def test_all_poolings(target: str, build: Build) -> None:
    said = list[str]()
    for size, signed, layers in itertools.product([(12, 12), (11, 10)], [True, False], [True, False]):
        options = possible(list(poolings()), size)
        for start in range(0, len(options), 48):
            said += differences(build, target, options[start : start + 48], size, signed=signed, layers=layers)
    assert said == []
