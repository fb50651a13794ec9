"""A part of a graph as a network of its own, on the parameters of the whole."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node


class Part(nn.Module):
    """What lies between some tensors of a graph and others.

    `inputs`, `outputs`: names of nodes. Modules and parameters are the graph's own, in its mode.
    Raises ValueError where an output follows from something of the images that is not among the inputs.
    """

    def __init__(self, graph_module: GraphModule, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        nodes = {node.name: node for node in graph_module.graph.nodes}
        begins, ends = ([nodes[name] for name in names] for names in (inputs, outputs))
        #: The nodes in it, in the order of the graph.
        self.nodes = _between(graph_module, begins, ends)
        if lost := [node.name for node in self.nodes if node.op == "placeholder"]:
            raise ValueError(f"{', '.join(outputs)} follow from {lost} as well, not from {', '.join(inputs)} alone")
        graph, copies = Graph(), dict[Node, Node]()
        for index, node in enumerate(begins):
            copies[node] = graph.placeholder(f"input_{index}")
        for node in self.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in ends))
        # Not as a submodule: what it holds belongs to the whole.
        self._graph_module = (GraphModule(graph_module, graph),)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs that follow from the inputs."""
        outputs: tuple[Tensor, ...] = self._graph_module[0](*inputs)
        return outputs


def _between(graph_module: GraphModule, begins: Sequence[Node], ends: Sequence[Node]) -> list[Node]:
    """The nodes that the ends follow from, not behind the begins, in the order of the graph."""
    needed, left = set[Node](), [node for node in ends if node not in begins]
    while left:
        node = left.pop()
        if node not in needed:
            needed.add(node)
            left += [source for source in node.all_input_nodes if source not in begins]
    return [node for node in graph_module.graph.nodes if node in needed]
