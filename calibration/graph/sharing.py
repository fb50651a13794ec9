"""Copies of networks that do not copy their weights: what a rewrite leaves alone it has in memory once."""

from __future__ import annotations

import copy
from operator import attrgetter
from typing import TypeVar

from torch import Tensor, nn
from torch.fx import Graph, GraphModule

Module = TypeVar("Module", bound=nn.Module)


def sharing_copy(module: Module) -> Module:
    """A copy whose parameters and buffers are tensors of their own on the same memory.

    Either may be moved, retyped, given other values as a whole or other flags without the other's notice. What writes
    into a value in place, as an optimiser does, writes into both: it wants `copy.deepcopy`.
    """
    shared = {id(value): _on_the_same_memory(value) for value in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, {**derived(module), **shared})


def derived(module: nn.Module) -> dict[int, Tensor]:
    """By id what hooks compute of parameters and keep (weight_norm and prune of old), detached: torch copies no such.

    In memory of its own.
    """
    attributes = [value for part in module.modules() for value in vars(part).values()]
    return {
        id(value): value.detach().clone() for value in attributes if isinstance(value, Tensor) and not value.is_leaf
    }


class Draft(GraphModule):
    """A graph module that is there to be edited: it runs only after `recompile`, which others do when they are made.

    Compiling was half of what a copy cost, and mostly for nothing: the next graph module is made of the edited graph.
    """

    @property
    def graph(self) -> Graph:
        """The graph."""
        return self._graph

    @graph.setter
    def graph(self, graph: Graph) -> None:
        self._graph = graph
        graph.owning_module = self


def draft_of(graph_module: GraphModule, *, shared: bool = True) -> Draft:
    """A copy for editing: of the graph, and of what it reads, in memory as `sharing_copy` shares it or of its own."""
    copies: dict[int, object] = {}
    values: dict[str, object] = {}
    for node in graph_module.graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        value = attrgetter(node.target)(graph_module)
        if id(value) not in copies and shared and isinstance(value, Tensor):
            copies[id(value)] = _on_the_same_memory(value)
        elif id(value) not in copies:
            copies[id(value)] = sharing_copy(value) if shared and isinstance(value, nn.Module) else copy.deepcopy(value)
        values[node.target] = copies[id(value)]
    draft = Draft(values, copy.deepcopy(graph_module.graph))
    draft.training = graph_module.training
    draft.meta = dict(graph_module.meta)
    return draft


def _on_the_same_memory(value: Tensor) -> Tensor:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach(), requires_grad=value.requires_grad)
    return value.detach()
