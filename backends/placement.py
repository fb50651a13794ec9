"""The engine that turns a backend's table of rules into a plan for one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch.fx import GraphModule, Node

from backends.residual import skip_input
from calibration.errors import UserError
from calibration.grid import Grid
from calibration.operators import (
    MOVEMENT,
    WEIGHTED,
    argument,
    clip_bounds,
    constant,
    is_non_negative,
    is_tensor,
    kind,
    shape,
    tensor_inputs,
)
from calibration.plan import ActivationPlacement, Plan, WeightPlacement


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a runtime does with one kind of operator; `source` says where that is known from.

    `integer`: "always", "fed" (when all full-size inputs come from integer kernels) or "never". `inputs`: which
    inputs are rounded ("skip": only the skip branch of a residual add). `output`: "quantised" when the integer
    kernel needs a rounded output, "free" when it can write float. `absorbs`: kinds of activation that the kernel
    performs when the rounding comes behind them.
    """

    integer: Literal["always", "fed", "never"]
    source: str
    inputs: Literal["all", "skip"] = "all"
    output: Literal["quantised", "free"] = "quantised"
    absorbs: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One runtime's facts as data. `non_negative` and `signed` are the grids of the two sorts of activation;
    `integer_movement`: operators that only move values run on the integers themselves; `weight_limit` bounds weight
    integers (63 on x86 without VNNI); `skip_layer` names a reason to leave a weighted layer float, or None.
    """

    name: str
    rules: Mapping[str, Rule]
    non_negative: Grid
    signed: Grid
    integer_bias: bool
    integer_movement: bool
    weight_limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bits of the weights: of most layers, and of those that are kept wider by default."""

    weights: int = 8
    first: int = 8
    depthwise: int = 8
    last: int = 8


_UNLISTED = Rule(integer="never", source="no rule for this operator: it runs in float")


def place(graph_module: GraphModule, profile: Profile, widths: Widths) -> Plan:
    """Decide, for a folded graph, what is rounded where. Raises UserError when no layer can be quantised."""
    return _Placement(graph_module, profile, widths).plan()


class _Placement:
    """The state of one planning pass; every method reads the graph and none changes it."""

    def __init__(self, graph_module: GraphModule, profile: Profile, widths: Widths) -> None:
        self.module, self.profile, self.widths = graph_module, profile, widths
        self.nodes: list[Node] = list(graph_module.graph.nodes)
        self.float_reason: dict[Node, str] = {}
        self.integer: set[Node] = set()
        self.carried: set[Node] = set()
        self.needed: dict[Node, set[Node]] = {}
        self.group: dict[Node, Node] = {}

    def plan(self) -> Plan:
        """Run the passes in order and collect what they found."""
        for node in self.nodes:
            self._classify(node)
        weighted = [node for node in self.nodes if kind(node) in WEIGHTED and node in self.integer]
        if not weighted:
            raise UserError(
                "the network has no layer that this backend can quantise (no convolution or linear layer with constant weights)"
            )
        for node in self.nodes:
            if node in self.integer:
                self._need_operands(node)
        if self.profile.integer_movement:
            for node in self.nodes:
                if kind(node) == "concat" and all(source in self.carried for source in tensor_inputs(node)):
                    self._need(node, None)
        activations = self._activations()
        on_grid = self._passthrough({placement.tensor: placement for placement in activations})
        absorbed = self._absorbed({placement.tensor for placement in activations})
        floats = {
            node.name: reason
            for node, reason in self.float_reason.items()
            if node.name not in absorbed and node.name not in on_grid
        }
        return Plan(
            backend=self.profile.name,
            activations=tuple(activations),
            weights=tuple(self._weight(node) for node in weighted),
            absorbed=absorbed,
            passthrough=on_grid,
            float_nodes=floats,
            kinds={
                node.name: kind(node) for node in self.nodes if node in self.integer or node.name in floats
            },
        )

    # Which operators run on integers.

    def _rule(self, node: Node) -> Rule:
        return self.profile.rules.get(kind(node), _UNLISTED)

    def _classify(self, node: Node) -> None:
        word, sources = kind(node), tensor_inputs(node)
        if word == "input":
            self.carried.add(node)
        if word in {"input", "constant", "output"} or not is_tensor(node):
            return
        if self._moves(node):
            if sources and all(source in self.carried for source in sources):
                self.carried.add(node)
            return
        rule = self._rule(node)
        reason = self._reason_against(node, rule, sources)
        if reason is None:
            self.integer.add(node)
            self.carried.add(node)
            return
        self.float_reason[node] = reason
        if len(sources) == 1 and self._performs(sources[0], node):
            self.carried.add(node)

    def _moves(self, node: Node) -> bool:
        word = kind(node)
        # A border of zeros is on every grid; any other value is not.
        return word in MOVEMENT and not (
            word == "pad" and float(argument(node, 2 if node.args[1:] else 3, "value", 0) or 0)
        )

    def _reason_against(self, node: Node, rule: Rule, sources: list[Node]) -> str | None:
        """Why the node cannot run on integers; None when it can."""
        if rule.integer == "never":
            return rule.source
        if kind(node) in WEIGHTED and constant(self.module, argument(node, 1, "weight")) is None:
            return "its weight is computed at run time"
        if kind(node) == "adaptive_average_pool" and list(node.args[1]) not in ([1, 1], [1]):  # type: ignore[arg-type]
            return "an adaptive pooling to more than 1x1 has no integer kernel"
        if rule.integer == "fed":
            if len(sources) < sum(
                not isinstance(a, (int, float, list, tuple, bool, type(None))) for a in node.args
            ):
                return "one operand is a constant"
            if not all(isinstance(argument, Node) for argument in node.args[:2]) and kind(node) in {
                "add",
                "mul",
            }:
                return "one operand is a number"
            full = (
                [s for s in sources if shape(s) == shape(node)] if kind(node) in {"add", "mul"} else sources
            )
            if not full or not all(source in self.carried for source in full):
                return "its input is computed in float"
        return None

    def _performs(self, producer: Node, activation: Node) -> bool:
        """Whether the kernel of `producer` can perform the activation behind it."""
        if producer not in self.integer or len(producer.users) != 1:
            return False
        if kind(activation) not in self._rule(producer).absorbs:
            return False
        return kind(activation) != "clip" or (
            clip_bounds(activation)[0] == 0.0 and clip_bounds(activation)[1] < float("inf")
        )

    # Which tensors must therefore be rounded.

    def _need_operands(self, node: Node) -> None:
        rule, sources = self._rule(node), tensor_inputs(node)
        if rule.inputs == "skip":
            skip = skip_input(node)
            sources = [skip] if skip is not None else []
        elif kind(node) in WEIGHTED:
            sources = sources[:1]
        for source in sources:
            self._need(source, node)
        if rule.output == "quantised":
            users = list(node.users)
            tail = users[0] if len(users) == 1 and self._performs(node, users[0]) else node
            self._need(tail, None)

    def _need(self, tensor: Node, reader: Node | None) -> None:
        """Ask for a rounded tensor; where movement runs on integers, its source is rounded instead."""
        if self.profile.integer_movement and self._moves(tensor):
            sources = tensor_inputs(tensor)
            for source in sources:
                self._need(source, tensor)
            roots = [self._root(self._origin(source)) for source in sources]
            for root in roots[1:]:
                self.group[root] = roots[0]
            self.group.pop(roots[0], None)
            return
        self.needed.setdefault(tensor, set())
        if reader is not None:
            self.needed[tensor].add(reader)

    def _origin(self, tensor: Node) -> Node:
        while self.profile.integer_movement and self._moves(tensor):
            tensor = tensor_inputs(tensor)[0]
        return tensor

    def _root(self, tensor: Node) -> Node:
        while tensor in self.group:
            tensor = self.group[tensor]
        return tensor

    def _activations(self) -> list[ActivationPlacement]:
        members: dict[Node, list[Node]] = {}
        for tensor in self.nodes:
            if tensor in self.needed:
                members.setdefault(self._root(tensor), []).append(tensor)
        placements = {}
        for root, tensors in members.items():
            non_negative = all(is_non_negative(tensor) for tensor in tensors)
            limits = [clip_bounds(t)[1] if kind(t) == "clip" else float("inf") for t in tensors]
            limit = max(limits) if non_negative and max(limits) < float("inf") else None
            for tensor in tensors:
                # A kernel that writes integers has no float output for the other readers to see.
                everybody = self.profile.integer_movement and tensor in self.carried
                readers = set(tensor.users) if everybody else self.needed[tensor] & set(tensor.users)
                placements[tensor] = ActivationPlacement(
                    tensor=tensor.name,
                    grid=self.profile.non_negative if non_negative else self.profile.signed,
                    readers=tuple(node.name for node in self.nodes if node in readers),
                    group=root.name,
                    limit=limit,
                )
        return [placements[tensor] for tensor in self.nodes if tensor in placements]

    def _passthrough(self, quantised: Mapping[str, ActivationPlacement]) -> dict[str, str]:
        """Movement whose inputs all lie on one grid, with the quantised tensor that it reads."""
        found: dict[str, str] = {}
        if not self.profile.integer_movement:
            return found
        groups: dict[str, str] = {}
        for node in self.nodes:
            if not self._moves(node) or not is_tensor(node):
                continue
            sources = tensor_inputs(node)
            seen = set()
            for source in sources:
                placement = quantised.get(source.name)
                reads = placement is not None and node.name in placement.readers
                seen.add(placement.group if placement is not None and reads else groups.get(source.name))
            if len(seen) == 1 and (only := seen.pop()) is not None:
                found[node.name], groups[node.name] = found.get(sources[0].name, sources[0].name), only
        return found

    def _absorbed(self, quantised: set[str]) -> dict[str, str]:
        return {
            node.name: tensor_inputs(node)[0].name
            for node in self.nodes
            if node in self.float_reason
            and node.name in quantised
            and len(tensor_inputs(node)) == 1
            and self._performs(tensor_inputs(node)[0], node)
        }

    # Weights.

    def _weight(self, layer: Node) -> WeightPlacement:
        widths = self.widths
        weight = constant(self.module, argument(layer, 1, "weight"))
        assert weight is not None
        bits = widths.weights
        if (
            kind(layer) == "conv"
            and weight.shape[1] == 1
            and weight.shape[0] > 1
            and argument(layer, 6, "groups", 1) > 1
        ):
            bits = max(bits, widths.depthwise)
        if not self._has_weighted(layer, forward=False):
            bits = max(bits, widths.first)
        if not self._has_weighted(layer, forward=True):
            bits = max(bits, widths.last)
        # Output channels are axis 0 but for a transposed convolution, whose weight starts with the inputs (rule 11).
        axis = 1 if kind(layer) == "conv_transpose" else 0
        limit = self.profile.weight_limit if bits == 8 else None
        grid = Grid(bits=bits, signed=True, symmetric=True, narrow=True, channel_axis=axis, limit=limit)
        return WeightPlacement(layer=layer.name, grid=grid, integer_bias=self.profile.integer_bias)

    def _has_weighted(self, layer: Node, *, forward: bool) -> bool:
        """Whether any other weighted layer lies before (or, forward, behind) this one."""
        stack, seen = [layer], {layer}
        while stack:
            node = stack.pop()
            for neighbour in node.users if forward else node.all_input_nodes:
                if neighbour not in seen:
                    if kind(neighbour) in WEIGHTED:
                        return True
                    seen.add(neighbour)
                    stack.append(neighbour)
        return False
