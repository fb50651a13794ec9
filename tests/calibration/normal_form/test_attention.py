"""Masks of attention that hide all keys from a query: torch gives zeros there, and so does what was captured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.rewrites.fold import fold

LOWEST = torch.finfo(torch.float32).min
MASKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a buffer": lambda n, rows: n.mask,
    "truths made in forward": lambda n, rows: torch.ones(16, 16, dtype=torch.bool).tril(-1),
    "filled": lambda n, rows: torch.zeros(16, 16).masked_fill(~n.mask, -math.inf),
    "filled in place": lambda n, rows: torch.zeros(16, 16).masked_fill_(torch.ones(16, 16).tril(-1) == 0, -math.inf),
    "chosen": lambda n, rows: torch.where(n.mask, 0.0, -math.inf),
    "a logarithm": lambda n, rows: n.mask.float().log(),
    "of the image": lambda n, rows: (rows[:, :1, :1] > rows[:, 1:2, :1]).expand(-1, 16, 16),
    # Not minus infinity: torch gives such rows the mean of all values.
    "the lowest number": lambda n, rows: torch.zeros(16, 16).masked_fill(~n.mask, LOWEST),
    "nothing hidden wholly": lambda n, rows: torch.ones(16, 16, dtype=torch.bool).tril(),
}


class Attention(nn.Module):
    def __init__(self, mask: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.made = nn.Conv2d(3, 8, 4, stride=8), mask
        self.register_buffer("mask", torch.ones(16, 16, dtype=torch.bool).tril(-1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.conv(x).flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(rows, rows, rows, attn_mask=self.made(self, rows))


@pytest.mark.parametrize("name", MASKS)
def test_queries_that_see_no_key_give_what_torch_gives(name: str, noise: Callable[..., Tensor]) -> None:
    network, images = Attention(MASKS[name]).eval(), noise(6, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
        captured = capture(network, images, source="test")
        for graph in (captured, fold(captured, check=images)):
            torch.testing.assert_close(graph(images)[0], expected, rtol=1e-5, atol=1e-6)
    zeros = (expected == 0).all(-1)
    assert bool(zeros.any()) == (name not in ("the lowest number", "nothing hidden wholly"))
    products = [
        node for node in captured.graph.nodes if "attention" in node.name and node.target is torch.ops.aten.mul.Tensor
    ]
    factors = [node for node in products if not isinstance(node.args[1], float)]  # neither the scale nor 1 - mask
    assert len(factors) == bool(zeros.any()), "a factor only where a row is hidden"
