"""Networks that nobody thought of: legal files, integers wherever they are planned, and the oracle's outputs.

    FAQD_RANDOM_NETWORKS=1000 python3 -m pytest -m benchmark -n 2 tests/backends/test_random_networks.py

tries that many for each target; what fails is named by its seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from backends import backend_named
from backends.oracle.backend import IntegerOracle
from backends.tensorrt.ahead_of_time import build_ahead_of_time
from tests.random_networks import PIXELS, RandomNetwork

Build = Callable[..., Any]

#: A step of a grid more or less, which float operators behind it make larger.
NEAR = 0.05
#: Bits of weights by seed.
BITS = (8, 8, 4, 2)


def examine(build: Build, seed: int, target: str) -> str | None:
    """What is wrong with a random network on a runtime; None where nothing is, or where it computes nothing."""
    network = RandomNetwork(seed)
    images = torch.randn(8, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        outputs = network(images)
    if not outputs.isfinite().all() or outputs.abs().max() > 1e6 or outputs.std() < 1e-6:
        return None
    built = build(network, target, bits=BITS[seed % 4], inputs=images)
    backend, planned = backend_named(target), built.plan.integer_layers()
    model = backend.emit(built.frozen, opset=None, batch=None)
    if target == "tensorrt":
        engine = build_ahead_of_time(model.SerializeToString())
        left = set(planned) - set(engine.integer_layers)
        return f"planned as integer, run in float: {', '.join(sorted(left))}" if left else None
    if floating := backend.census(model.SerializeToString(), planned).floating:
        return f"planned as integer, run in float: {', '.join(floating)}"
    exact, _ = IntegerOracle(model, fused_rounding=built.profile.fused_rounding).run(images)
    with backend.runner(model.SerializeToString(), threads=1) as runner:
        theirs = runner.run(images.numpy())
    near = (
        0.0 if target == "onnxruntime" and not built.plan.float_nodes else NEAR * (1 if target == "onnxruntime" else 3)
    )
    for simulated, oracle, runtime in zip(built.simulate(), exact, theirs, strict=True):
        largest = float(oracle.abs().max())
        for name, other in (("simulated", simulated.numpy()), ("run", runtime)):
            apart = float(np.abs(other - oracle.numpy()).max()) / max(largest, 1e-9)
            if apart > (near if name == "run" else max(near, 1e-5)):
                return f"{name} outputs differ from the oracle's by {apart:.3g} of the largest"
    return None


@pytest.mark.parametrize("seed", range(24))
def test_a_random_network_on_onnxruntime(seed: int, build: Build) -> None:
    assert examine(build, seed, "onnxruntime") is None


@pytest.mark.parametrize("seed", range(12))
def test_a_random_network_on_openvino(seed: int, build: Build) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")
    assert examine(build, seed, "openvino") is None


@pytest.mark.parametrize("seed", range(4))
def test_a_random_network_compiles_for_tensorrt(seed: int, build: Build) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed: not done")
    assert examine(build, seed, "tensorrt") is None


@pytest.mark.benchmark
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_many_random_networks(target: str, build: Build) -> None:
    failed = dict[int, str]()
    for seed in range(int(os.environ.get("FAQD_RANDOM_NETWORKS", "200"))):
        try:
            problem = examine(build, seed, target)
        except Exception as error:  # each is a finding, and the other networks are wanted as well
            problem = f"{type(error).__name__}: {str(error)[:200]}"
        if problem is not None:
            failed[seed] = problem
            print(f"{target}, seed {seed}: {problem}")
    assert not failed
