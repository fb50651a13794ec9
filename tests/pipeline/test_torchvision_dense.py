"""torchvision's own segmentation networks and detectors, random weights: captured, calibrated, converted and run.

One runs with the tests; the others with

    python3 -m pytest -m benchmark tests/pipeline/test_torchvision_dense.py
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backends.onnxruntime import OnnxRuntime
from backends.onnxruntime_rules import X64
from backends.placement import Widths, place
from backends.reference import IntegerOracle
from calibration.capture import capture
from calibration.fold import fold
from calibration.freeze import freeze
from calibration.insert import insert
from calibration.observe import choose_ranges, observe
from calibration.operators import WEIGHTED, kind
from pipeline.model_sources.torchvision_detection import dense_part, is_detector
from tests.zoo import lived_in

#: What of these networks may be computed in float, for its reason is in the backend's table.
FLOAT = {"resize_bilinear", "group_norm", "relu", "norm", "clip", "div", "mul"}


def built(name: str, images: Tensor) -> nn.Module:
    """The builder's network without a download; a detector as its backbone and heads."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        torch.manual_seed(0)
        module: Any = models.get_model(name, weights=None, weights_backbone=None).eval()
        if is_detector(module):
            module = dense_part(module, name, notes=()).module
        found: nn.Module = lived_in(module, images, 0)
        return found


def check(name: str, pixels: int) -> None:
    """Every layer on an integer kernel of the runtime, whose outputs are the oracle's but for float operators' ties."""
    images = torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    folded = fold(capture(built(name, images), images, source=name))
    plan = place(folded, X64, Widths())
    assert {plan.kinds[node] for node in plan.float_nodes} <= FLOAT
    prepared = insert(folded, plan, choose_ranges(observe(folded, plan, [images]), plan, "minmax")).eval()
    backend = OnnxRuntime(X64)
    model = backend.emit(freeze(prepared, folded))
    layers = [node.name for node in folded.graph.nodes if kind(node) in WEIGHTED]
    assert backend.census(model.SerializeToString(), layers).floating == ()
    with backend.runner(model.SerializeToString(), threads=1) as runner:
        found = runner.run(images.numpy())
    expected, _ = IntegerOracle(model).run(images)
    assert [output.name for output in model.graph.output] == list(folded.meta["outputs"])
    for theirs, ours in zip(found, expected, strict=True):
        assert float(ours.std()) > 0
        assert np.abs(theirs - ours.numpy()).mean() < 0.02 * float(ours.std())


def test_segmentation_by_its_own_builder() -> None:
    check("lraspp_mobilenet_v3_large", 64)


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("ssdlite320_mobilenet_v3_large", 128),
        ("deeplabv3_mobilenet_v3_large", 64),
        ("deeplabv3_resnet50", 64),
        ("fcn_resnet50", 64),
        ("ssd300_vgg16", 300),
        ("retinanet_resnet50_fpn", 128),
        ("fcos_resnet50_fpn", 128),
    ],
)
def test_the_other_segmentation_networks_and_the_detectors(name: str, pixels: int) -> None:
    check(name, pixels)
