"""Every network of the zoo on OpenVINO: planned layers on integers, outputs as near to the oracle's as floats allow.

A few run with the tests; all of them with

    python3 -m pytest -m benchmark -n 2 tests/backends/zoo/test_openvino.py
"""

from __future__ import annotations

import pytest
import torch

from backends.openvino.backend import OpenVINO
from backends.oracle.backend import IntegerOracle
from tests.chain import shallow_folded, steps_of
from tests.zoo import ZOO

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")

#: What the tests have time for: channels that are shuffled, layer normalisations between convolutions.
QUICK = ("shufflenet_v2_x1_0", "convnext_tiny")


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """The norm of the difference of two outputs, relative to the second."""
    return float((first - second).norm() / second.norm())


def hold(name: str) -> None:
    """The outputs of random weights amplify roundings: what counts is how far the oracle itself is from float."""
    network, backend = ZOO[name], OpenVINO()
    profile = backend.profile
    images = network.images(4)
    steps = steps_of(shallow_folded(network), images, profile)
    folded, plan, model = steps.folded, steps.plan, backend.emit(steps.frozen())
    assert backend.census(model.SerializeToString(), plan.integer_layers()).floating == ()
    oracle, _ = IntegerOracle(model).run(images)
    with backend.runner(model.SerializeToString(), threads=1) as runner:
        outputs = [torch.from_numpy(values) for values in runner.run(images.numpy())]
    with torch.no_grad():
        floats = folded(images)
    for theirs, exact, real in zip(outputs, oracle, floats, strict=True):
        assert apart(theirs, exact) < 0.05 or apart(theirs, real) < 1.3 * apart(exact, real)


@pytest.mark.parametrize("name", QUICK)
def test_small_networks_run_as_planned(name: str) -> None:
    hold(name)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ZOO)
def test_every_network_runs_as_planned(name: str) -> None:
    hold(name)
