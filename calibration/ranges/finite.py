"""Where a graph's numbers stop being numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node


def all_finite(graph_module: GraphModule, images: Tensor) -> bool:
    """Whether no output for `images` [B, C, H, W] holds NaN or infinity."""
    with torch.no_grad():
        return all(bool(torch.isfinite(output).all()) for output in graph_module(images))


def first_not_finite(graph_module: GraphModule, images: Tensor) -> str:
    """Words for the first operators whose results for `images` [B, C, H, W] hold infinity and NaN; empty: none does."""
    watch = _Watch(graph_module)
    with torch.no_grad():
        watch.run(images)
    firsts = ((watch.infinite, "infinity"), (watch.nan, "NaN"))
    return ", ".join(f"{what} first behind {node.name} ({node.target})" for node, what in firsts if node is not None)


class _Watch(Interpreter):
    """Runs a graph and keeps the first operators whose results are not finite."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.nan: Node | None = None
        self.infinite: Node | None = None

    def run_node(self, n: Node) -> Any:
        """Run one operator."""
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, Tensor) and result.is_floating_point():
            if self.nan is None and result.isnan().any():
                self.nan = n
            if self.infinite is None and result.isinf().any():
                self.infinite = n
        return result
