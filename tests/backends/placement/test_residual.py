"""Which input of an addition is the skip branch, by the shape of the graph alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.placement.residual import skip_input
from calibration.capture.graph_from_module import capture
from calibration.rewrites.fold import fold


class Layers(nn.Module):
    """Convolutions a to d of 16 channels, and whatever is computed with them."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.stem = nn.Conv2d(3, 16, 1)
        for name in "abcd":
            self.add_module(name, nn.Conv2d(16, 16, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, torch.relu(self.stem(x)))


def skip_of(compute: Callable[[Any, Tensor], Tensor]) -> str | None:
    folded = fold(capture(Layers(compute).eval(), torch.randn(2, 3, 8, 8), source="test"))
    (addition,) = [node for node in folded.graph.nodes if node.target is torch.ops.aten.add.Tensor]
    skip = skip_input(addition)
    return None if skip is None else skip.name


@pytest.mark.parametrize(
    ("compute", "skip"),
    [
        # A convolution of x itself would take the addition into its weight.
        (lambda n, x: x + n.a(F.max_pool2d(x, 3, 1, 1)), "relu"),
        (lambda n, x: n.a(F.max_pool2d(x, 3, 1, 1)) + x, "relu"),
        (lambda n, x: n.a(x) + n.c(torch.relu(n.b(x))), "a"),
        (lambda n, x: n.c(torch.relu(n.b(x))) + n.a(x), "a"),
        (lambda n, x: x + torch.relu(n.a(x)), None),
        (lambda n, x: torch.tanh(x) + torch.sigmoid(x), None),
        (lambda n, x: (y := n.a(x)) + torch.tanh(y), None),
        (lambda n, x: torch.relu(n.a(x)) + 1.0, None),
        (lambda n, x: torch.relu(n.b(y := n.a(x))) + y, None),
        (lambda n, x: n.b(torch.relu(y := n.a(x))) + y, "a"),
    ],
)
def test_the_skip_branch(compute: Callable[[Any, Tensor], Tensor], skip: str | None) -> None:
    assert skip_of(compute) == skip
