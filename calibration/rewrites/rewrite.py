"""One row per rewrite of a graph, the engine that applies a list of them, and the check that each changed nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from calibration.graph.interface import interface_of, make_graph_module
from calibration.graph.nearness import LARGEST_DIFFERENCE, differing
from calibration.graph.sharing import draft_of


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A way to write the same function otherwise."""

    #: Unique within a list; error messages name it.
    name: str
    #: Changes a graph module in place, and says whether it did.
    edit: Callable[[GraphModule], bool]
    #: What is gained, or which rule of a runtime asks for it.
    source: str
    #: Names of the rows that must stand before this one, where a list has them.
    behind: frozenset[str] = frozenset()
    #: Largest difference of an output that rounding explains, relative to the output's largest value.
    tolerance: float = LARGEST_DIFFERENCE

    def __post_init__(self) -> None:
        if not self.name or not self.source:
            raise ValueError("a rewrite has a name and a source")
        if not 0 <= self.tolerance <= LARGEST_DIFFERENCE:
            raise ValueError(f"{self.name}: a tolerance of {self.tolerance} is outside 0 to {LARGEST_DIFFERENCE}")


class RewriteChangedOutputs(RuntimeError):
    """A rewrite that should have written the same function has written another one: a fault of ours."""

    def __init__(self, row: Rewrite, output: str, difference: float) -> None:
        self.row = row
        super().__init__(
            f"the rewrite {row.name!r} changed the output {output} by {difference:.3g} of its largest value; please"
            " report it, with the network where you can"
        )


def check_order(rows: Sequence[Rewrite]) -> None:
    """Raise ValueError where a name stands twice, or a row before one that it must stand behind."""
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"a rewrite stands twice among {', '.join(names)}")
    for place, row in enumerate(rows):
        late = row.behind & set(names[place:])
        if late:
            raise ValueError(f"{row.name} must stand behind {', '.join(sorted(late))}")


def rewritten(graph_module: GraphModule, rows: Sequence[Rewrite], *, check: Tensor | None = None) -> GraphModule:
    """A copy of a graph with the rows applied in order; the graph itself where none has anything to do.

    `check`: normalised images float32 [B, C, H, W], on which the graph is compared with the one before after every row
    that changed something. The graph's interface is carried along; weights that no row changes are in memory once.
    Raises RewriteChangedOutputs, naming the first row that changed an output by more than rounding explains, and
    ValueError for rows in an order that they do not allow.
    """
    check_order(rows)
    changed, before, applied = draft_of(graph_module), _outputs(graph_module, check), False
    for row in rows:
        if not row.edit(changed):
            continue
        applied = True
        changed.graph.eliminate_dead_code()
        changed.graph.lint()
        if check is not None:
            changed.recompile()
            after = _outputs(changed, check)
            # How rounding moves the outputs is the network's, whichever way it is written.
            for index, far in differing(after, before, graph_module, check, largest=row.tolerance):
                raise RewriteChangedOutputs(row, interface_of(graph_module).outputs[index], far)
            before = after
    if not applied:
        return graph_module
    return make_graph_module(changed, changed.graph, interface_of(graph_module))


def edits(change: Callable[[GraphModule], object]) -> Callable[[GraphModule], bool]:
    """What edits a graph module as a row's `edit`: whether it changed something is read from the graph."""

    def edit(graph_module: GraphModule) -> bool:
        before = _written(graph_module.graph)
        change(graph_module)
        return _written(graph_module.graph) != before

    return edit


def names_of(rows: Iterable[Rewrite]) -> tuple[str, ...]:
    """The names of rows, in order."""
    return tuple(row.name for row in rows)


def _written(graph: Graph) -> list[str]:
    return [f"{node.name} {node.target} {node.args} {node.kwargs}" for node in graph.nodes]


def _outputs(graph_module: GraphModule, images: Tensor | None) -> list[Tensor]:
    if images is None:
        return []
    with torch.no_grad():
        return list(graph_module(images))
