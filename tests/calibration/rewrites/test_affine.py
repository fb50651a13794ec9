"""Constants behind a layer are folded into it, wherever that is the same function."""

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

VECTOR = torch.tensor([0.5, -2.0, 3.0, 0.1, 1.0, -0.3, 2.0, 0.7])
FOLDED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a number": lambda n, x: n.a(x) * 0.25,
    "a negative number": lambda n, x: -3 * n.a(x) + 1,
    "a division": lambda n, x: n.a(x) / 3,
    "a division by a constant": lambda n, x: n.a(x) / VECTOR.view(8, 1, 1),
    "a number taken away": lambda n, x: n.a(x) - 0.5,
    "taken from a number": lambda n, x: 0.5 - n.a(x),
    "taken from a constant per channel": lambda n, x: VECTOR.view(8, 1, 1) - n.a(x),
    "a scale per channel": lambda n, x: n.a(x) * VECTOR.view(1, 8, 1, 1),
    "a shift per channel": lambda n, x: VECTOR.view(8, 1, 1) + n.a(x),
    "a row of constants": lambda n, x: (n.a(x) * 2 + VECTOR.view(8, 1, 1)) / 4,
    "over a transposition": lambda n, x: n.a(x).permute(0, 2, 3, 1) * VECTOR,
    "over a reshape": lambda n, x: n.a(x).flatten(2).transpose(1, 2) * VECTOR,
    "of a linear layer over tokens": lambda n, x: (n.l(x.flatten(2)) * VECTOR).transpose(1, 2),
    "of a transposed convolution": lambda n, x: n.t(x) * VECTOR.view(8, 1, 1),
}
KEPT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "behind an activation": lambda n, x: torch.relu(n.a(x)) * 0.25,
    "of an input": lambda n, x: n.a(x * 0.25),
    "read by others": lambda n, x: (y := n.a(x)) * 0.25 + y,
    "per position": lambda n, x: n.a(x) * torch.linspace(0, 1, 9),
    "per position over a reshape": lambda n, x: n.a(x).flatten(2) * torch.linspace(0, 1, 81),
    "divided by the layer": lambda n, x: 2 / n.a(x),
    "taken from itself": lambda n, x: (y := n.a(x)) - y + torch.relu(x[:, :1]),
    "broadcast up": lambda n, x: n.a(x)[:, :1, :1, :1].flatten(1) * VECTOR,
}


def count(graph_module: torch.fx.GraphModule, *words: str) -> int:
    return sum(kind(node) in words for node in graph_module.graph.nodes)


def layers() -> dict[str, nn.Module]:
    return {
        "a": nn.Conv2d(3, 8, 3, padding=1),
        "l": nn.Linear(81, 8),
        "t": nn.ConvTranspose2d(3, 8, 2, stride=2),
    }


@pytest.mark.parametrize("name", FOLDED)
def test_it_is_folded(name: str, net: MakeNet, noise: Noise) -> None:
    module, images = net(FOLDED[name], **layers()).eval(), noise(2, 3, 9, 9)
    folded = fold(capture(module, images, source="test"))
    assert count(folded, "add", "sub", "mul", "div") == 0
    torch.testing.assert_close(folded(images)[0], module(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KEPT)
def test_it_is_left_alone(name: str, net: MakeNet, noise: Noise) -> None:
    module, images = net(KEPT[name], **layers()).eval(), noise(2, 3, 9, 9)
    folded = fold(capture(module, images, source="test"))
    assert count(folded, "add", "sub", "mul", "div", "other") >= 1
    torch.testing.assert_close(folded(images)[0], module(images), rtol=1e-5, atol=1e-5)


def test_a_subtracted_layer_is_negated(net: MakeNet, noise: Noise) -> None:
    module, images = net(lambda n, x: torch.relu(x) - n.a(x), a=nn.Conv2d(3, 3, 1)).eval(), noise(2, 3, 9, 9)
    folded = fold(capture(module, images, source="test"))
    assert count(folded, "sub") == 0 and count(folded, "add") == 1
    torch.testing.assert_close(folded(images)[0], module(images), rtol=1e-5, atol=1e-5)
