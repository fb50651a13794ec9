"""Where feature maps are compared: the ends of a network's stages, found by themselves or named."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from calibration.errors import UserError
from calibration.operators import MOVEMENT, WEIGHTED, is_tensor, kind, static_shape
from calibration.prepared import PreparedNetwork

#: ImageNet networks have four stages; what comes before them (a stem at half resolution) is no stage end.
MOST_STAGES = 4


def stage_ends(graph_module: GraphModule) -> tuple[str, ...]:
    """Names of the last map of each spatial resolution, coarsest last, at most the last four.

    A map is what a computing node (no slice or reshape) puts out with more than one position; resolutions that a
    network only passes through without a weighted layer do not count.
    """
    last: dict[tuple[int, int], str] = {}
    weighted: set[tuple[int, int]] = set()
    for node in graph_module.graph.nodes:
        size = _map_size(node)
        if size is None:
            continue
        if kind(node) in WEIGHTED:
            weighted.add(size)
        if kind(node) not in MOVEMENT:
            last[size] = node.name
    found = [last[size] for size in sorted(last, key=lambda size: -size[0] * size[1]) if size in weighted]
    return tuple(found[-MOST_STAGES:])


def named_taps(graph_module: GraphModule, names: Sequence[str], *, source: str) -> tuple[str, ...]:
    """The nodes that a user's tap names mean: module paths or node names. Raises UserError listing the known ones."""
    maps = [node.name for node in graph_module.graph.nodes if _map_size(node) is not None]
    taps = []
    for name in names:
        wanted = name.replace(".", "_")
        if wanted not in maps:
            known = ", ".join(maps[:40]) + (", ..." if len(maps) > 40 else "")
            raise UserError(f"--taps {name}: {source} has no feature map of that name; it has {known}")
        taps.append(wanted)
    return tuple(taps)


def _map_size(node: Node) -> tuple[int, int] | None:
    if node.op != "call_function" or not is_tensor(node) or not isinstance(node.meta.get("val"), Tensor):
        return None
    sizes = static_shape(node)
    if len(sizes) != 4 or sizes[2] * sizes[3] <= 1:
        return None
    return sizes[2], sizes[3]


aten = torch.ops.aten

_IN_PLACE = {
    aten.relu.default: aten.relu_.default,
    aten.add.Tensor: aten.add_.Tensor,
}

#: Operators whose result is new memory, which may be written over: no view of something that others read.
_NEW_TENSOR = frozenset({aten.conv2d.default, aten.linear.default, aten.add.Tensor, aten.add_.Tensor})


class Tapped(nn.Module):
    """A graph that also returns the maps at its taps; parameters are shared with the graph it was made from."""

    def __init__(self, graph_module: GraphModule, nodes: Mapping[str, str]) -> None:
        super().__init__()
        self.taps = tuple(nodes)
        graph = copy.deepcopy(graph_module.graph)
        by_name = {node.name: node for node in graph.nodes}
        output = next(node for node in graph.nodes if node.op == "output")
        (results,) = output.args
        output.args = ((results, tuple(by_name[node] for node in nodes.values())),)
        # A graph module takes over the very parameters and sub-modules that its graph names.
        self.graph_module = GraphModule(graph_module, graph)

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Images float32 [B, C, H, W] to (outputs, tap -> map [B, C, H, W])."""
        outputs, maps = self.graph_module(images)
        return outputs, dict(zip(self.taps, maps, strict=True))


def tap_float(graph_module: GraphModule, taps: Sequence[str], labels: Sequence[str] | None = None) -> Tapped:
    """A float graph with taps; `labels` name the maps in the result, the taps' own names by default."""
    return Tapped(graph_module, dict(zip(labels or taps, taps, strict=True)))


def write_in_place(tapped: Tapped) -> Tapped:
    """The graph of a network that only infers, changed so that ReLUs and sums write over what nobody else reads.

    A large map that is not written anew saves one pass over memory. The same values; no gradient can pass any more.
    """
    graph = tapped.graph_module.graph
    for node in graph.nodes:
        overwritten = node.args[0] if node.target in _IN_PLACE else None
        if not isinstance(overwritten, Node) or overwritten.target not in _NEW_TENSOR or len(overwritten.users) > 1:
            continue
        if static_shape(overwritten) == static_shape(node) and overwritten not in node.args[1:]:
            node.target = _IN_PLACE[node.target]
    tapped.graph_module.recompile()
    return tapped


def tap_prepared(prepared: PreparedNetwork, taps: Sequence[str]) -> Tapped:
    """A prepared network with taps: centred integers where a tap is rounded, which are its reals but for the scale.

    Affinity compares directions of feature vectors, so the scale does not matter there.
    """
    names = {node.name: node for node in prepared.graph.graph.nodes}
    nodes = {}
    for tap in taps:
        if tap in prepared.integers:
            nodes[tap] = prepared.integers[tap]
        elif f"{tap}_rescale" in names:
            nodes[tap] = f"{tap}_rescale"  # the layer itself holds sums whose unit differs per channel
        elif tap in names and kind(names[tap]) not in WEIGHTED:
            nodes[tap] = tap
        else:
            raise UserError(
                f"--taps {tap}: its values exist only inside a fused integer kernel; tap the activation behind it"
            )
    return Tapped(prepared.graph, nodes)


def match_taps(student: GraphModule, teacher: GraphModule, names: Sequence[str] | None) -> dict[str, str]:
    """Student taps and the teacher's that they are compared with, coarsest map last.

    Named taps must exist in both graphs. Without names each network's stage ends are found and paired from the
    coarsest on: networks of other depth have the same number of stages more often than the same names. Raises
    UserError when a name is unknown or nothing can be paired.
    """
    if names is not None:
        student_taps = named_taps(student, names, source="the student")
        return dict(zip(student_taps, named_taps(teacher, names, source="the teacher"), strict=True))
    student_taps, teacher_taps = stage_ends(student), stage_ends(teacher)
    pairs = list(zip(reversed(student_taps), reversed(teacher_taps), strict=False))
    if not pairs:
        raise UserError("no feature map was found to compare: name some with --taps, or use --affinity none")
    return dict(reversed(pairs))
