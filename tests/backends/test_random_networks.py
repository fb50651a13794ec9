"""Networks that nobody thought of: legal files, integers wherever they are planned, and one number from end to end.

    FAQD_RANDOM_NETWORKS=1000 python3 -m pytest -m benchmark -n 2 tests/backends/test_random_networks.py

tries that many for each target (`3000:3300`: the seeds from 3000 on below 3300), of whose maps half of all operators
have options of every kind; what fails is named by its seed. The network, its graph and its float file, the simulation,
the oracle and the runtime are compared; where the runtime is not here (an ARM processor, TensorRT) its oracle, and the
compiler of TensorRT-RTX.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from backends import backend_named
from backends.artifact import linted_artifact
from backends.facts import onnxruntime_rules, openvino_rules, tensorrt_rules
from backends.facts.profile import Profile
from backends.onnx_file.emit import emit
from backends.onnxruntime.backend import OnnxRuntime
from backends.onnxruntime.oldest_version import least_runtime
from backends.oracle.backend import IntegerOracle
from backends.tensorrt.ahead_of_time import build_ahead_of_time
from calibration.errors import UserError
from calibration.graph.nearness import differing
from tests.random_networks import PIXELS, RandomNetwork
from tests.random_options import OPTIONS
from tests.versions import older

Build = Callable[..., Any]

PROFILES: dict[str, Profile] = {
    "onnxruntime": onnxruntime_rules.host_profile(),
    "arm64": onnxruntime_rules.CPU_PROFILES["arm64"][0],
    "openvino": openvino_rules.host_profile(),
    "tensorrt": tensorrt_rules.PROFILE,
}
#: A step of a grid more or less, which float operators behind it make larger; three where ties fall to either side.
NEAR = 0.05
#: Behind integers that are equal: what float32 leaves where both compute the same reals.
ROUNDED = 1e-5
#: Bits of weights by seed.
BITS = (8, 8, 4, 2)
#: Refusals that say what is not translated, and how it could be written; and ONNX Runtime's of a bicubic resize that
#: makes a map smaller between convolutions, which a run says before anything is trained (test_planned_file.py).
REFUSED = ("has no translation", "have no translation", "'Cubic' mode only supports")


def examine(build: Build, seed: int, target: str, *, options: bool = False) -> str | None:
    """What is wrong with a random network for a target; "refused", "nothing" (it computes none), else None."""
    network = RandomNetwork(seed, OPTIONS if options else ())
    images = torch.randn(8, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        outputs = network(images)
    if not outputs.isfinite().all() or outputs.abs().max() > 1e6 or outputs.std() < 1e-6:
        return "nothing"
    try:
        built = build(network, PROFILES[target], bits=BITS[seed % 4], inputs=images)
        model = linted_artifact(built.frozen, built.profile, opset=None, batch=None)
        planned = built.plan.integer_layers()
        integer = _integer_layers(target, model.SerializeToString(), planned)  # loads it
    except UserError as refusal:
        return "refused" if any(words in str(refusal) for words in REFUSED) else str(refusal)
    left = set(planned) - set(integer)
    if left:
        return f"planned as integer, run in float: {', '.join(sorted(left))}"
    return _apart(built, network, images, outputs, model, target)


def _integer_layers(target: str, model: bytes, planned: list[str]) -> tuple[str, ...]:
    if target == "arm64":
        return tuple(planned)  # no such runtime is here
    if target == "tensorrt":
        return build_ahead_of_time(model).integer_layers
    return backend_named(target).census(model, planned).integer


def _apart(
    built: Any, network: Any, images: Tensor, outputs: Tensor, model: onnx.ModelProto, target: str
) -> str | None:
    """The first two on the way from the network to the runtime whose numbers differ by more than they may."""
    floats = emit(built.folded, opset=20)
    if (needed := least_runtime(floats, "onnxruntime")) and older("onnxruntime", needed["least"]):
        return "refused"  # by an older ONNX Runtime than this file says that it needs
    with torch.no_grad(), OnnxRuntime().runner(floats.SerializeToString(), threads=1) as runner:
        written = [torch.from_numpy(np.array(value)) for value in runner.run(images.numpy())]
        for name, own in (("the graph", list(built.folded(images))), ("float.onnx", written)):
            for _, far in differing(own, [outputs], lambda x: [network(x)], images):
                return f"{name} differs from the network by {far:.3g} of the largest"
    profile = built.profile
    oracle = IntegerOracle(model, fused_rounding=profile.fused_rounding, arm_arithmetic=profile.arm_arithmetic)
    (exact,), _ = oracle.run(images)
    integers = not built.plan.float_nodes
    near = 0.0 if target == "onnxruntime" and integers else NEAR * (1 if target == "onnxruntime" else 3)
    same = 0.0 if integers and not profile.inexact else ROUNDED if integers or target == "tensorrt" else NEAR
    compared = [("simulated", built.simulate()[0], same)]
    if target in ("onnxruntime", "openvino"):
        with backend_named(target).runner(model.SerializeToString(), threads=1) as runner:
            compared.append(("run", torch.from_numpy(np.array(runner.run(images.numpy())[0])), near))
    largest = max(float(exact.abs().max()), 1e-9)
    for name, other, most in compared:
        if (far := float((other - exact).abs().max()) / largest) > most:
            return f"{name} outputs differ from the oracle's by {far:.3g} of the largest"
    return None


def wrong(verdict: str | None) -> str | None:
    return None if verdict in ("nothing", "refused") else verdict


@pytest.mark.parametrize("seed", range(24))
def test_a_random_network_on_onnxruntime(seed: int, build: Build) -> None:
    assert wrong(examine(build, seed, "onnxruntime", options=seed % 2 == 1)) is None


@pytest.mark.parametrize("seed", range(12))
def test_a_random_network_on_openvino(seed: int, build: Build) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")
    assert wrong(examine(build, seed, "openvino", options=seed % 2 == 1)) is None


@pytest.mark.parametrize("seed", range(4))
def test_a_random_network_compiles_for_tensorrt(seed: int, build: Build) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed: not done")
    assert wrong(examine(build, seed, "tensorrt", options=seed % 2 == 1)) is None


@pytest.mark.benchmark
@pytest.mark.parametrize("target", PROFILES)
def test_many_random_networks(target: str, build: Build) -> None:
    failed, verdicts = dict[int, str](), Counter[str]()
    for seed in range(*map(int, os.environ.get("FAQD_RANDOM_NETWORKS", "200").split(":"))):
        try:
            verdict = examine(build, seed, target, options=True)
        except Exception as error:  # each is a finding, and the other networks are wanted as well
            verdict = f"{type(error).__name__}: {str(error)[:200]}"
        verdicts[verdict if verdict in ("nothing", "refused") else "wrong" if verdict else "the same"] += 1
        if wrong(verdict):
            failed[seed] = str(verdict)
            print(f"{target}, seed {seed}: {verdict}", flush=True)
    print(f"{target}: {dict(verdicts)}")
    assert not failed
