"""A graph that shows what some of its nodes compute while it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node


class Watching(Interpreter):
    """Runs a graph as it is; `look` is shown the name and the tensor of each named node, in the order of the graph."""

    def __init__(self, graph_module: GraphModule, names: Collection[str], look: Callable[[str, Tensor], None]) -> None:
        super().__init__(graph_module)
        self._names, self._look = frozenset(names), look

    def run_node(self, n: Node) -> object:
        """Run one node as usual, and show its value where it was asked for."""
        value = super().run_node(n)
        if n.name in self._names:
            assert isinstance(value, Tensor)
            self._look(n.name, value)
        return value
