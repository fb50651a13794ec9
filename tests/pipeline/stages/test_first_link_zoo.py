"""Every network of the zoo against its own module, at the depth that a run uses: no false alarm, and what is measured.

A small member runs with the tests; all of them with

    python3 -m pytest -m benchmark tests/pipeline/stages/test_first_link_zoo.py -n 1 -s
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from backends.onnx_file.emit import emit
from backends.onnxruntime.backend import OnnxRuntime
from calibration.capture.eager import Eager
from calibration.capture.graph_from_module import capture
from calibration.graph.nearness import apart, differing
from calibration.proof.module_and_graph import check_first_link, wide_images
from calibration.rewrites.fold import fold
from tests.zoo import ZOO


@dataclass(frozen=True, kw_only=True)
class Seen:
    """How far what is made of a network is from it, relative to the largest value of an image's output, and seconds."""

    mixing: float
    captured: float
    float_file: float
    seconds: float


def look(name: str, *, shallow: bool) -> Seen:
    """Check a network as a run does, on images and on wide ones; `mixing` is of float64, one image or all of them."""
    network = ZOO[name]
    module, images = network.build(shallow=shallow), network.images(4)
    captured = capture(module, images[:2], source=name)
    start = time.monotonic()
    wide = wide_images(tuple(images.shape[1:]), torch.Generator().manual_seed(0))
    check_first_link(module, captured, torch.cat([images[:1], wide]), source=name, shown="random images")
    check_first_link(module, captured, images, source=name, shown="images")
    seconds = time.monotonic() - start
    eager = Eager(module)
    expected, model = eager(images), emit(fold(captured), opset=20).SerializeToString()
    with OnnxRuntime().runner(model, threads=1) as runner:
        written = [torch.from_numpy(output) for output in runner.run(images.numpy())]
    assert not differing(written, expected, eager, images)
    with torch.no_grad():
        graph = captured(images)
    double, whole = eager.in_double(), images.double()
    return Seen(
        mixing=_largest([answer[:1] for answer in double(whole)], double(whole[:1])),
        captured=_largest(graph, expected),
        float_file=_largest(written, expected),
        seconds=seconds,
    )


def _largest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(apart(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_small_network_is_what_was_captured_and_written() -> None:
    assert look("mobilenet_v3_small", shallow=True).mixing < 1e-12


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ZOO)
def test_networks_are_what_was_captured_and_written(name: str) -> None:
    seen = look(name, shallow=False)
    print(
        f"{name}: mixing {seen.mixing:.1e}, captured {seen.captured:.1e}, float.onnx {seen.float_file:.1e},"
        f" {seen.seconds:.1f} s"
    )
    assert seen.mixing < 1e-11
