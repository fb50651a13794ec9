"""What a graph says of itself beside its nodes, and how every graph that is made of another takes it over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule

from calibration.graph.free_size import FreeSize, free_size

# `meta` is what torch takes along when it copies a graph module. A subclass would lose fields of its own there: copies
# are built by the constructor of GraphModule. Nobody else reads or writes this entry.
_KEY = "interface"


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What a network takes and gives, as far as the nodes of its graph do not say."""

    #: Names of the results, in their order; no two are equal.
    outputs: tuple[str, ...]
    #: The module was shown one image at a time, and its graph gives each of several what the module gives it so.
    one_image: bool = False
    #: What follows the height and width of images where these are free; names nodes of this very graph.
    free_size: FreeSize | None = None

    def __post_init__(self) -> None:
        if repeated := [name for name, count in Counter(self.outputs).items() if count > 1]:
            raise ValueError(f"two outputs are called {repeated[0]}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Interface:
        """The interface itself: nothing in it can change."""
        return self


def interface_of(graph_module: GraphModule) -> Interface:
    """What a captured graph, or one made of it, says of itself. Raises ValueError for any other graph module."""
    interface = graph_module.meta.get(_KEY)
    if not isinstance(interface, Interface):
        raise ValueError("this graph module says nothing of itself: make_graph_module makes those that do")
    return interface


def set_free_size(graph_module: GraphModule, other: GraphModule) -> None:
    """Note what of a graph follows the size of images, of which `other` is the same network's for another size.

    Raises UserError as `free_size` does.
    """
    _say(graph_module, replace(interface_of(graph_module), free_size=free_size(graph_module, other)))


def make_graph_module(root: nn.Module, graph: Graph, interface: Interface) -> GraphModule:
    """A graph module over `graph`, linted, that keeps only the attributes which the graph still reads.

    Raises ValueError where the graph has another number of results than the interface has names for them.
    """
    graph.eliminate_dead_code()
    graph.lint()
    made = GraphModule(root, graph)
    _say(made, interface)
    return made


def _say(graph_module: GraphModule, interface: Interface) -> None:
    results = next((node.args[0] for node in graph_module.graph.nodes if node.op == "output"), ())
    if not isinstance(results, (tuple, list)) or len(results) != len(interface.outputs):
        raise ValueError(f"the graph does not return a tuple with the outputs {', '.join(interface.outputs)}")
    graph_module.meta[_KEY] = interface
