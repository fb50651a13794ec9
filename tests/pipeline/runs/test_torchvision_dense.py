"""torchvision's own segmentation networks and detectors, random weights: captured, calibrated, converted and run.

One runs with the tests; the others with

    python3 -m pytest -m benchmark tests/pipeline/runs/test_torchvision_dense.py
"""

from __future__ import annotations

import numpy as np
import pytest

from backends.facts.onnxruntime_rules import host_profile
from backends.onnxruntime.backend import OnnxRuntime
from backends.oracle.backend import IntegerOracle
from calibration.graph.interface import interface_of
from calibration.graph.operators import WEIGHTED, kind
from tests.chain import folded_graph, steps_of
from tests.zoo_teachers import DENSE

#: What of these networks may be computed in float, for its reason is in the backend's table.
FLOAT = {"resize_bilinear", "group_norm", "relu", "norm", "clip", "div", "mul"}


def check(name: str) -> None:
    """Every layer on an integer kernel of the runtime, whose outputs are the oracle's but for float operators' ties."""
    network = DENSE[name]
    images, module = network.images(), network.build()
    if network.part is not None:
        module = module.get_submodule(network.part)
    profile = host_profile()
    steps = steps_of(folded_graph(module, images, source=name), images, profile)
    folded, plan = steps.folded, steps.plan
    assert {plan.kinds[node] for node in plan.float_nodes} <= FLOAT
    backend = OnnxRuntime(profile)
    model = backend.emit(steps.frozen())
    layers = [node.name for node in folded.graph.nodes if kind(node) in WEIGHTED]
    assert backend.census(model.SerializeToString(), layers).floating == ()
    with backend.runner(model.SerializeToString(), threads=1) as runner:
        outputs = runner.run(images.numpy())
    expected, _ = IntegerOracle(model).run(images)
    assert [output.name for output in model.graph.output] == list(interface_of(folded).outputs)
    for theirs, ours in zip(outputs, expected, strict=True):
        assert float(ours.std()) > 0
        assert np.abs(theirs - ours.numpy()).mean() < 0.02 * float(ours.std())


def test_segmentation_by_its_own_builder() -> None:
    check("lraspp_mobilenet_v3_large")


@pytest.mark.benchmark
@pytest.mark.parametrize("name", DENSE)
def test_segmentation_networks_and_detectors(name: str) -> None:
    check(name)
