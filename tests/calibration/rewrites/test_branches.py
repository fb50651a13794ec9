"""Sums of parallel convolutions are one convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.graph.operators import kind
from calibration.rewrites.fold import fold

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise

C = nn.Conv2d
Resemble = Callable[[nn.Module], nn.Module]
MERGED: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, nn.Module]]] = {
    "kernels of two sizes": (lambda n, x: n.a(x) + n.b(x), {"a": C(8, 8, 3, padding=1), "b": C(8, 8, 1)}),
    "oblong kernels": (
        lambda n, x: n.b(x) + n.a(x),
        {"a": C(8, 8, (3, 5), padding=(1, 2)), "b": C(8, 8, (1, 3), padding=(0, 1))},
    ),
    "strides": (lambda n, x: n.a(x) + n.b(x), {"a": C(8, 6, 3, 2, 1), "b": C(8, 6, 1, 2, bias=False)}),
    "the tensor itself": (lambda n, x: x + n.a(x), {"a": C(8, 8, 3, padding=1)}),
    "groups": (
        lambda n, x: n.a(x) + n.b(x),
        {"a": C(8, 12, 3, padding=1, groups=2), "b": C(8, 12, 1, groups=4)},
    ),
    "a depthwise convolution and the tensor": (lambda n, x: n.a(x) + x, {"a": C(8, 8, 5, padding=2, groups=8)}),
    "a depthwise branch of a dense one": (
        lambda n, x: n.a(x) + n.b(x),
        {"a": C(8, 8, 3, padding=1), "b": C(8, 8, 1, groups=8)},
    ),
    "RepVGG": (
        lambda n, x: torch.relu(n.an(n.a(x)) + n.bn(n.b(x)) + n.cn(x)),
        {
            "a": C(8, 8, 3, padding=1, bias=False),
            "an": nn.BatchNorm2d(8),
            "b": C(8, 8, 1, bias=False),
            "bn": nn.BatchNorm2d(8),
            "cn": nn.BatchNorm2d(8),
        },
    ),
    "FastViT's mixer": (
        lambda n, x: x + 0.3 * (n.a(x) - n.norm(x)),
        {"a": C(8, 8, 3, padding=1, groups=8), "norm": nn.BatchNorm2d(8)},
    ),
}
APART: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, nn.Module]]] = {
    "more work together": (lambda n, x: n.a(x) + n.b(x), {"a": C(8, 8, 3, padding=1, groups=8), "b": C(8, 8, 1)}),
    "different inputs": (
        lambda n, x: n.a(x) + n.b(torch.relu(x)),
        {"a": C(8, 8, 3, padding=1), "b": C(8, 8, 1)},
    ),
    "one read elsewhere": (
        lambda n, x: n.a(x) + (y := n.b(x)) + torch.relu(y),
        {"a": C(8, 8, 3, padding=1), "b": C(8, 8, 1)},
    ),
    "windows that do not nest": (
        lambda n, x: n.a(x)[..., 1:, 1:] + n.b(x),
        {"a": C(8, 8, 2, padding=1), "b": C(8, 8, 1)},
    ),
    "a shared weight": (lambda n, x: n.a(torch.relu(n.a(x) + x)), {"a": C(8, 8, 3, padding=1)}),
    "a dilated kernel": (
        lambda n, x: n.a(x) + n.b(x),
        {"a": C(8, 8, 3, padding=2, dilation=2), "b": C(8, 8, 1)},
    ),
}


def convolutions(graph_module: torch.fx.GraphModule) -> int:
    return sum(kind(node) == "conv" for node in graph_module.graph.nodes)


@pytest.mark.parametrize("name", MERGED)
def test_they_are_merged(name: str, net: MakeNet, noise: Noise, resemble_trained: Resemble) -> None:
    compute, layers = MERGED[name]
    module, images = net(compute, **layers), noise(2, 8, 9, 9)
    resemble_trained(module)
    module.eval()
    folded = fold(capture(module, images, source="test"))
    assert convolutions(folded) == 1
    assert not [node for node in folded.graph.nodes if kind(node) in {"add", "sub", "mul"}]
    expected = module(images).detach()
    torch.testing.assert_close(folded(images)[0], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", APART)
def test_they_are_left_apart(name: str, net: MakeNet, noise: Noise) -> None:
    compute, layers = APART[name]
    module, images = net(compute, **layers).eval(), noise(2, 8, 9, 9)
    folded = fold(capture(module, images, source="test"))
    assert convolutions(folded) == 2
    torch.testing.assert_close(folded(images)[0], module(images), rtol=1e-5, atol=1e-5)
