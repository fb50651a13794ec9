"""The engine that turns a backend's table of rules into a plan for one network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch.fx import GraphModule, Node

from backends.facts.profile import Profile, Rule
from backends.facts.widths import Widths
from backends.placement.handed_on import moves
from backends.placement.layer_facts import layer_shape, weight_bits
from backends.placement.residual import skip_input
from calibration.errors import UserError
from calibration.graph.operators import (
    WEIGHTED,
    argument,
    clip_bounds,
    constant,
    has_weighted,
    is_non_negative,
    is_tensor,
    kind,
    multiplier,
    shape,
    tensor_inputs,
    upper_limit,
)
from calibration.grid import Grid
from calibration.plan import ActivationPlacement, Plan, WeightPlacement


class _Groups:
    """Which tensors must share one scale: sets that are joined as their reasons are found."""

    def __init__(self) -> None:
        self._parent: dict[Node, Node] = {}

    def root(self, tensor: Node) -> Node:
        """What stands for the tensor's set."""
        while tensor in self._parent:
            tensor = self._parent[tensor]
        return tensor

    def join(self, first: Node, second: Node) -> None:
        """Put two tensors' sets into one, which the first one's root stands for."""
        kept, merged = self.root(first), self.root(second)
        if kept is not merged:
            self._parent[merged] = kept


#: Activations x * gate(x), by their gate.
_GATED = {"sigmoid": "silu", "hardsigmoid": "hardswish"}

_FLOAT_INPUT = "its input is computed in float"
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
        #: Layers whose weights alone are integers, with the inputs that share a scale there.
        self.weight_only: dict[Node, int] = {}
        self.carried: set[Node] = set()
        self.needed: dict[Node, set[Node]] = {}
        self.groups = _Groups()

    def plan(self) -> Plan:
        """Run the passes in order and collect what they found."""
        for node in self.nodes:
            self._classify(node)
        weighted = [node for node in self.nodes if kind(node) in WEIGHTED and self._has_integer_weight(node)]
        if not weighted:
            raise UserError(
                "the network has no layer that this backend can quantise:"
                " no convolution or linear layer with constant weights and enough channels"
            )
        for node in self.nodes:
            if node in self.integer:
                self._need_operands(node)
        for node in self.nodes:
            self._share_scales(node)
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
            arm_arithmetic=self.profile.arm_arithmetic,
            exact_averages=self.profile.averages_as_convolutions,
            variant=self.profile.variant,
            activations=tuple(activations),
            weights=tuple(self._weight(node) for node in weighted),
            absorbed=absorbed,
            passthrough=on_grid,
            float_nodes=floats,
            kinds={node.name: kind(node) for node in self.nodes if node in self.integer or node.name in floats},
            fused_rounding=self.profile.fused_rounding,
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
            elif kind(node) == "concat" and self.profile.integer_movement:
                self.float_reason[node] = _FLOAT_INPUT
            if multiplier(node) is not None:
                self.float_reason[node] = "a number multiplies a tensor that is not rounded"
            return
        if self.profile.weight_only is not None and (block := self._block(node)) is not None:
            self.weight_only[node], self.float_reason[node] = block, self.profile.weight_only.reason
            return
        rule = self._rule(node)
        reason = self._reason_against(node, rule, sources)
        if reason is None:
            self.integer.add(node)
            if rule.integer != "stored":
                self.carried.add(node)
                return
            reason = rule.source
        self.float_reason[node] = reason
        if self._performed_by(node) is not None:
            self.carried.add(node)

    def _moves(self, node: Node) -> bool:
        return moves(node, self.profile)

    def _reason_against(self, node: Node, rule: Rule, sources: list[Node]) -> str | None:
        """Why the node cannot run on integers; None when it can."""
        if rule.integer == "never":
            return rule.source
        if kind(node) in WEIGHTED:
            if constant(self.module, argument(node, 1, "weight")) is None:
                return "its weight is computed at run time"
            return self.profile.skip_layer(layer_shape(self.module, node)) if self.profile.skip_layer else None
        if rule.inputs == "skip" and skip_input(node) is None:
            return "not the addition of a residual block"
        if kind(node) == "adaptive_average_pool" and list(argument(node, 1, "output_size")) not in ([1, 1], [1]):
            return "an adaptive pooling to more than 1x1 has no integer kernel"
        if rule.integer == "fed":
            if len(sources) < sum(not isinstance(a, (int, float, list, tuple, bool, type(None))) for a in node.args):
                return "one operand is a constant"
            if not all(isinstance(argument, Node) for argument in node.args[:2]) and kind(node) in {
                "add",
                "mul",
            }:
                return "one operand is a number"
            full = [s for s in sources if shape(s) == shape(node)] if kind(node) in {"add", "mul"} else sources
            if not full or not all(source in self.carried for source in full):
                return _FLOAT_INPUT
        return None

    def _has_integer_weight(self, layer: Node) -> bool:
        return layer in self.integer or layer in self.weight_only

    def _block(self, layer: Node) -> int | None:
        """Inputs per scale of a layer whose weight alone is integers; None for any other node."""
        row, weight = self.profile.weight_only, argument(layer, 1, "weight")
        if row is None or kind(layer) != "linear" or constant(self.module, weight) is None:
            return None
        layers = [node for node in self.nodes if kind(node) in WEIGHTED]
        if sum(argument(node, 1, "weight").target == weight.target for node in layers) > 1:
            return None  # a stored weight has one grid, and the other layers' may be another
        return row.block(layer_shape(self.module, layer), weight_bits(self.module, layer, self.widths))

    def _performs(self, producer: Node, activation: Node) -> bool:
        """Whether the kernel of `producer` can perform the activation behind it."""
        rule = self._rule(producer)
        if producer not in self.integer or len(producer.users) != 1 or kind(activation) not in rule.absorbs:
            return False
        if rule.epilogue == "any" or kind(activation) != "clip":
            return True
        low, high = clip_bounds(activation)
        return low == 0.0 and high < math.inf

    def _performed_by(self, activation: Node) -> Node | None:
        """The node before an activation whose kernel can perform it; x * sigmoid(x) and the like count as one."""
        sources = tensor_inputs(activation)
        if len(sources) == 1 and self._performs(sources[0], activation):
            return sources[0]
        product = activation if kind(activation) == "mul" else next(iter(activation.users), activation)
        inputs = tensor_inputs(product)
        if kind(product) != "mul" or len(inputs) != 2 or len(product.args) != 2:
            return None
        producer, gate = sorted(inputs, key=lambda node: kind(node) in _GATED)
        word = _GATED.get(kind(gate))
        is_gated = tensor_inputs(gate) == [producer] and set(gate.users) == {product}
        if word is None or activation not in (product, gate) or not is_gated or set(producer.users) != {gate, product}:
            return None
        rule = self._rule(producer)
        return producer if producer in self.integer and word in rule.absorbs and rule.epilogue == "any" else None

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
            self._need_output(tail)

    def _need_output(self, tensor: Node) -> None:
        """Ask for a kernel's rounded output: for all its readers, or where movement is float, for the float ones."""
        if self.profile.integer_movement:
            self._need(tensor, None)
            return
        for user in tensor.users:
            if self._moves(user):
                self._need_output(user)
            elif user not in self.integer and user not in self.weight_only and kind(user) != "output":
                self._need(tensor, user)

    def _need(self, tensor: Node, reader: Node | None) -> None:
        """Ask for a rounded tensor; where movement runs on integers, its source is rounded instead."""
        if self.profile.integer_movement and self._moves(tensor):
            sources = tensor_inputs(tensor)
            for source in sources:
                self._need(source, tensor)
                self.groups.join(sources[0], source)
            self.groups.join(sources[0], tensor)
            return
        self.needed.setdefault(tensor, set())
        if reader is not None:
            self.needed[tensor].add(reader)

    def _share_scales(self, node: Node) -> None:
        """Give one scale to what a movement reads and writes, wherever both sides may be rounded."""
        sources = tensor_inputs(node)
        if not self._moves(node) or not is_tensor(node):
            return
        if not self.profile.integer_movement:
            # The runtime moves roundings over movement; different scales would make it round again (rule 6).
            for source in sources:
                self.groups.join(sources[0], source)
            self.groups.join(sources[0], node)
        elif kind(node) == "concat" and all(source in self.carried for source in sources):
            self._need(node, None)

    def _activations(self) -> list[ActivationPlacement]:
        members: dict[Node, list[Node]] = {}
        for tensor in self.nodes:
            if tensor in self.needed:
                members.setdefault(self.groups.root(tensor), []).append(tensor)
        placements = {}
        for tensors in members.values():
            non_negative = all(is_non_negative(tensor) for tensor in tensors)
            bits = self._activation_bits(tensors)
            limits = [upper_limit(tensor) for tensor in tensors]
            limit = max(limits) if non_negative and max(limits) < float("inf") else None
            for tensor in tensors:
                # A kernel that writes integers has no float output for the other readers to see.
                everybody = self.profile.integer_movement and tensor in self.carried
                readers = set(tensor.users) if everybody else self.needed[tensor] & set(tensor.users)
                placements[tensor] = ActivationPlacement(
                    tensor=tensor.name,
                    grid=replace(self.profile.non_negative if non_negative else self.profile.signed, bits=bits),
                    readers=tuple(node.name for node in self.nodes if node in readers),
                    group=tensors[0].name,
                    limit=limit,
                )
        return [placements[tensor] for tensor in self.nodes if tensor in placements]

    def _activation_bits(self, tensors: list[Node]) -> int:
        """Bits of tensors that share a scale: fewer than 8 where a layer reads them that is neither first nor last."""
        if self.widths.activations == 8:
            return 8
        stack, seen = list(tensors), set(tensors)
        while stack:
            for reader in stack.pop().users:
                inside = (has_weighted(reader, forward=forward) for forward in (True, False))
                if kind(reader) in WEIGHTED and reader in self.integer and all(inside):
                    return self.widths.activations
                if self._moves(reader) and reader not in seen:
                    seen.add(reader)
                    stack.append(reader)
        return 8

    def _passthrough(self, quantised: Mapping[str, ActivationPlacement]) -> dict[str, str]:
        """Movement whose inputs all lie on one grid, with the quantised tensor that it reads."""
        moved: dict[str, str] = {}
        if not self.profile.integer_movement:
            return moved
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
                moved[node.name], groups[node.name] = moved.get(sources[0].name, sources[0].name), only
        return moved

    def _absorbed(self, quantised: set[str]) -> dict[str, str]:
        """Activations that the kernel before them performs."""
        absorbed = {}
        for node in self.float_reason:
            producer = self._performed_by(node)
            if producer is not None and (self._rule(producer).epilogue == "any" or node.name in quantised):
                absorbed[node.name] = producer.name
        return absorbed

    # Weights.

    def _weight(self, layer: Node) -> WeightPlacement:
        # A stored weight has one grid: of the layers that share it, the one that needs most bits decides.
        bits = max(weight_bits(self.module, reader, self.widths) for reader in self._sharing(layer))
        block = self.weight_only.get(layer)
        # Output channels are axis 0 but for a transposed convolution, whose weight starts with the inputs (rule 11).
        axis = 1 if kind(layer) == "conv_transpose" else 0
        limit = self.profile.weight_limit if bits == 8 else None
        grid = Grid(bits=bits, signed=True, symmetric=True, narrow=True, channel_axis=axis, limit=limit, block=block)
        return WeightPlacement(
            layer=layer.name,
            grid=grid,
            integer_bias=self.profile.integer_bias and block is None,
            weight_only=block is not None,
        )

    def _sharing(self, layer: Node) -> list[Node]:
        """The layers with integer weights that read the stored weight of this one, itself included."""
        weight = argument(layer, 1, "weight")
        return [
            node
            for node in self.nodes
            if kind(node) in WEIGHTED
            and self._has_integer_weight(node)
            and argument(node, 1, "weight").target == weight.target
        ]
