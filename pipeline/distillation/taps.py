"""Where features are compared: the ends of a network's stages or its pooled features, found by themselves or named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from calibration.errors import UserError
from calibration.graph.operators import MOVEMENT, WEIGHTED, is_tensor, kind, static_shape
from calibration.simulation.learned_grids import TensorGrid
from calibration.simulation.prepared import PreparedNetwork
from pipeline.distillation.logit_reading import LogitReading, logit_readings
from pipeline.networks.outputs.meaning import Output

TapKind = Literal["stages", "last", "pooled"]
#: What a user calls the vector that the last linear layer reads; the rest of the taps are modules of the network.
POOLED = "pooled"
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
        if kind(node) not in MOVEMENT and not _is_subpixel(node):
            last[size] = node.name
    stages = [last[size] for size in sorted(last, key=lambda size: -size[0] * size[1]) if size in weighted]
    return tuple(stages[-MOST_STAGES:])


def _is_subpixel(node: Node) -> bool:
    """Whether the channels of a map are the positions of a larger one, which is where it belongs."""
    readers = list(node.users)
    if len(readers) == 1 and kind(readers[0]) in {"relu", "clip"}:
        return _is_subpixel(readers[0])
    return bool(readers) and all(kind(reader) == "depth_to_space" for reader in readers)


def pooled_features(graph_module: GraphModule) -> str | None:
    """Name of the vector [B, d] that the last weighted layer reads; None where that is no linear layer over vectors."""
    weighted = [node for node in graph_module.graph.nodes if kind(node) in WEIGHTED]
    if not weighted or kind(weighted[-1]) != "linear":
        return None
    source = weighted[-1].args[0]
    assert isinstance(source, Node)
    return source.name if source.op == "call_function" and len(static_shape(source)) == 2 else None


def named_taps(graph_module: GraphModule, names: Sequence[str], *, source: str) -> tuple[str, ...]:
    """The nodes that a user's tap names mean: module paths, node names, or "pooled" for the pooled features.

    Raises UserError listing the known ones.
    """
    maps = [node.name for node in graph_module.graph.nodes if _map_size(node) is not None]
    taps = []
    for name in names:
        node = name.replace(".", "_")
        if node == POOLED and node not in maps:
            taps.append(_required_pooled(graph_module, f"--taps {POOLED}", source))
            continue
        if node not in maps:
            known = ", ".join(maps[:40]) + (", ..." if len(maps) > 40 else "")
            raise UserError(f"--taps {name}: {source} has no feature map of that name; it has {known}")
        taps.append(node)
    return tuple(taps)


def _required_pooled(graph_module: GraphModule, what: str, source: str) -> str:
    pooled = pooled_features(graph_module)
    if pooled is None:
        raise UserError(
            f"{what} needs pooled features, a vector before a last linear layer, and {source} has none: "
            "name maps with --taps"
        )
    return pooled


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
    """A graph that also returns the maps at its taps; parameters are shared with the graph it was made from.

    `grids`: by node, of those that hold integers whose reals are meant. `logits`: how each output is read, all as they
    are where there are none.
    """

    def __init__(
        self,
        graph_module: GraphModule,
        nodes: Mapping[str, str],
        grids: Mapping[str, TensorGrid] | None = None,
        *,
        logits: Sequence[LogitReading] = (),
        logit_grids: Sequence[TensorGrid | None] = (),
        one_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self.taps, self._grids = tuple(nodes), tuple((grids or {}).items())  # a tuple: the network owns the grids
        self._made = tuple(reading.made for reading in logits)
        self._logit_grids = tuple(logit_grids)
        self._one_pass = one_pass
        graph = copy.deepcopy(graph_module.graph)
        by_name = {node.name: node for node in graph.nodes}
        output = next(node for node in graph.nodes if node.op == "output")
        (results,) = output.args
        if logits:
            pairs = zip(results, logits, strict=True)
            results = tuple(by_name[reading.node] if reading.node else result for result, reading in pairs)
        output.args = ((results, tuple(by_name[node] for node in nodes.values())),)
        if any(reading.node for reading in logits):
            # What came behind the logits: nothing in these graphs has effects of its own.
            graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        # A graph module takes over the very parameters and sub-modules that its graph names.
        self.graph_module = GraphModule(graph_module, graph)

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Images float32 [B, C, H, W] to (outputs or their logits, tap -> features [B, C, H, W] or [B, d])."""
        with self._one_pass():
            outputs, maps = self.graph_module(images)
            features = dict(zip(self.taps, maps, strict=True))
            for tap, grid in self._grids:
                features[tap] = features[tap] * grid.scale()
            if self._made:
                grids = self._logit_grids or (None,) * len(outputs)
                reals = [
                    values if own is None else values * own.scale() for values, own in zip(outputs, grids, strict=True)
                ]
                outputs = tuple(made(values) for made, values in zip(self._made, reals, strict=True))
        return outputs, features


def tap_float(
    graph_module: GraphModule,
    taps: Sequence[str],
    labels: Sequence[str] | None = None,
    *,
    outputs: Sequence[Output] = (),
) -> Tapped:
    """A float graph with taps; `labels` name the maps in the result, the taps' own names by default.

    With `outputs`, its own, it gives their logits.
    """
    readings = logit_readings(graph_module, outputs)
    return Tapped(graph_module, dict(zip(labels or taps, taps, strict=True)), logits=readings)


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


def tap_prepared(
    prepared: PreparedNetwork,
    taps: Sequence[str],
    *,
    reals: bool = False,
    folded: GraphModule | None = None,
    outputs: Sequence[Output] = (),
) -> Tapped:
    """A prepared network with taps: centred integers where a tap is rounded, which are its reals but for the scale.

    FAQD's affinity compares directions of feature vectors, so the scale does not matter there; with `reals` the
    integers are multiplied by it. With `outputs`, its own, and the float graph that it was made from, it gives their
    logits.
    """
    nodes, scales = {}, {}
    for tap in taps:
        node = _prepared_node(prepared, tap)
        if node is None:
            raise UserError(
                f"--taps {tap}: its values exist only inside a fused integer kernel; tap the activation behind it"
            )
        nodes[tap] = node
        if reals and tap in prepared.tensor_grids:
            scales[tap] = prepared.tensor_grids[tap]
    readings, grids = [], list[TensorGrid | None]()
    shown = () if folded is None else logit_readings(folded, outputs)
    for output, reading in zip(outputs, shown, strict=True):
        node = None if reading.node is None else _prepared_node(prepared, reading.node)
        if node is None and reading.node is not None:
            reading = LogitReading(node=None, made=output.logits)
        readings.append(replace(reading, node=node))
        grids.append(prepared.tensor_grids.get(str(reading.node)) if node is not None else None)
    return Tapped(prepared.graph, nodes, scales, logits=readings, logit_grids=grids, one_pass=prepared.one_pass)


def _prepared_node(prepared: PreparedNetwork, tensor: str) -> str | None:
    """The node that holds a float graph's tensor in a prepared one: its centred integers where it is rounded, else
    its reals; None where it exists only inside a fused kernel.
    """
    names = {node.name: node for node in prepared.graph.graph.nodes}
    if tensor in prepared.integers:
        return prepared.integers[tensor]
    if f"{tensor}_rescale" in names:
        return f"{tensor}_rescale"  # the layer itself holds sums whose unit differs per channel
    return tensor if tensor in names and kind(names[tensor]) not in WEIGHTED else None


def match_taps(
    student: GraphModule,
    teacher: GraphModule,
    names: Sequence[str] | None,
    *,
    kind: TapKind = "stages",
    asked: str = "this loss",
) -> dict[str, str]:
    """Student taps and the teacher's that they are compared with, coarsest map last.

    Named taps must exist in both graphs. Without names the pooled features are taken, or each network's stage ends are
    found and paired from the coarsest on ("last": that one alone): networks of other depth have the same number of
    stages more often than the same names. `asked` names what compares them in errors. Raises UserError when a name is
    unknown or nothing can be paired.
    """
    graphs = ((student, "the student"), (teacher, "the teacher"))
    if names is not None:
        first, second = (named_taps(graph, names, source=source) for graph, source in graphs)
        return dict(zip(first, second, strict=True))
    if kind == "pooled":
        one, other = (_required_pooled(graph, asked, source) for graph, source in graphs)
        return {one: other}
    student_taps, teacher_taps = stage_ends(student), stage_ends(teacher)
    pairs = list(zip(reversed(student_taps), reversed(teacher_taps), strict=False))
    if not pairs:
        bare = "the student" if not student_taps else "the teacher"
        raise UserError(f"{asked} compares feature maps, and {bare} has none of more than one position; leave it out")
    return dict(pairs[:1] if kind == "last" else reversed(pairs))
