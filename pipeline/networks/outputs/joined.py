"""Numbers of several kinds that one output joins in one tensor: which entries, and how a network returns them apart."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from calibration.graph.operators import argument, kind, static_shape
from pipeline.networks.outputs.final_activation import HANDS_ON, move_of, moved_axis
from pipeline.report.gate import Gate
from pipeline.report.schema import Entries, OutputScore
from pipeline.report.wording import entry_words, percentage, shape_words

_JOINS = ("cat", "concat", "concatenate")
_MOST_SOURCE = 80


@dataclass(frozen=True, kw_only=True)
class Join:
    """Where a network joins tensors to an output.

    `parts`: what is joined, in order, in the network's own words where its source shows them, else by the names of its
    graph. `sizes`: how many entries each has. `place`: file and line of the source with what stands there; empty where
    that is not known.
    """

    parts: tuple[str, ...]
    sizes: tuple[int, ...]
    place: str


def join_of(graph_module: GraphModule, index: int, axis: int) -> Join | None:
    """Where output number `index` of a captured graph is joined along `axis` of its shape; None where it is not."""
    output = next(node for node in graph_module.graph.nodes if node.op == "output")
    node, moves = output.args[0][index], list[Callable[[Tensor], Tensor]]()
    while kind(node) in HANDS_ON:
        source = node.args[0]
        if not isinstance(source, Node) or len(node.all_input_nodes) > 1:
            return None
        moves.insert(0, move_of(node))
        node = source
    if kind(node) != "concat":
        return None
    shape = static_shape(node)
    along = int(argument(node, 1, "dim") or 0) % len(shape)
    if along == 0 or moved_axis(shape, along, moves) != axis:
        return None
    sources = [source for source in node.args[0] if isinstance(source, Node)]
    place, written = _source_of(node)
    names = _joined_names(written)
    return Join(
        parts=names if len(names) == len(sources) else tuple(source.name for source in sources),
        sizes=tuple(static_shape(source)[along] for source in sources),
        place=place,
    )


def _source_of(node: Node) -> tuple[str, str]:
    """The line of the user's code that made a node, as "net.py:14", and what stands there."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n([^\n]*)', str(node.meta.get("stack_trace", "")))
    if not frames:
        return "", ""
    file, line, written = frames[-1]
    return f"{os.path.basename(file)}:{line}", written.strip()


def _joined_names(written: str) -> tuple[str, ...]:
    """What a line of Python joins, one text for each tensor; nothing where the line does not show it."""
    try:
        tree = ast.parse(written)
    except SyntaxError:
        return ()
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not call.args:
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in _JOINS and isinstance(call.args[0], ast.Tuple | ast.List):
            return tuple(ast.unparse(part) for part in call.args[0].elts)
    return ()


def lost_entries(output: OutputScore, limit: float) -> tuple[Entries, ...]:
    """Kinds of numbers in an output of which more is lost than so many points, though others keep theirs.

    Nothing where those of the largest spread lose it as well: then it is not the common scale that is to blame.
    """
    lost = tuple(kind for kind in output.entries if round(100 * (1 - kind.explained), 9) > limit)
    return lost if lost and output.entries[-1] not in lost else ()


def reasons(
    gates: Sequence[Gate], outputs: Sequence[OutputScore], main: int, graph_module: GraphModule | None
) -> tuple[str, ...]:
    """A line for every failed accuracy gate whose output has lost entries of small spread; `main`: of "max-drop".

    `graph_module`: the network's own graph, where it is at hand, to say what to write in its place.
    """
    lines = []
    for gate in gates:
        name, _, which = gate.name.partition(":")
        if name != "max-drop" or gate.passed is not False or gate.limit is None:
            continue
        index = next((place for place, output in enumerate(outputs) if output.name == which), main)
        entries = outputs[index].entries
        join = join_of(graph_module, index, entries[0].axis) if graph_module is not None and entries else None
        lines.append(why_lost(outputs[index], gate.limit, join))
    return tuple(line for line in lines if line is not None)


def why_lost(output: OutputScore, limit: float, join: Join | None) -> str | None:
    """Why an output loses more than so many points where its entries of small spread do, and what mends it."""
    lost = lost_entries(output, limit)
    if not lost:
        return None
    widest = output.entries[-1]
    told = ", ".join(f"{entry_words(kind)} keep {percentage(kind.explained)} of their variance" for kind in lost)
    return (
        f"{output.name} {shape_words(output)} holds numbers of {len(output.entries)} kinds along axis {widest.axis},"
        f" and one scale serves them all: {told}, since its step is made for {entry_words(widest)}. Outputs of their"
        f" own each get a scale: {_way_out(output, join)}"
    )


def _way_out(output: OutputScore, join: Join | None) -> str:
    if join is None:
        return (
            "let the network return them apart, each made by a layer of its own (a slice of a tensor keeps its scale),"
            " and join them after the runtime"
        )
    parts, at = ", ".join(join.parts), f" ({join.place})" if join.place else ""
    sizes = " + ".join(map(str, join.sizes))
    shown = parts if len(parts) <= _MOST_SOURCE else f"{len(join.parts)} tensors"
    return (
        f"end the network with return {shown} instead of joining these {len(join.parts)} ({sizes} entries){at}, and"
        f" join them after the runtime"
    )
