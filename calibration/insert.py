"""The one place that edits graphs for quantisation: a plan and ranges go in, a graph of integer operations comes out."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch.fx import GraphModule, Node

from calibration.observe import Range
from calibration.operators import WEIGHTED, constant, kind, make_graph_module, shape, tensor_inputs
from calibration.plan import ActivationPlacement, Plan, WeightPlacement
from calibration.prepared import PreparedNetwork
from calibration.quantisers import (
    ActivationGrid,
    BiasIntegers,
    Dequantise,
    Quantise,
    RequantiseMean,
    RequantiseMultiplication,
    RequantiseProduct,
    RequantiseSum,
    RescaleProduct,
    WeightGrid,
)


def insert(graph_module: GraphModule, plan: Plan, ranges: Mapping[str, Range]) -> PreparedNetwork:
    """A trainable copy of a folded graph in which everything that the plan rounds is integers.

    The copy owns its parameters. Raises ValueError for a plan that names nodes which the graph does not have.
    """
    return _Insertion(copy.deepcopy(graph_module), plan, ranges).run(graph_module.meta["outputs"])


def _weight_grid_path(weight: str) -> str:
    """Where the rewritten graph calls the grid of a stored weight, given its dotted path."""
    return f"{weight.replace('.', '_')}_grid"


class _Insertion:
    """One pass over a graph: every node is given real inputs or centred integers, whichever it computes on."""

    def __init__(self, module: GraphModule, plan: Plan, ranges: Mapping[str, Range]) -> None:
        self.module, self.plan, self.graph = module, plan, module.graph
        self.nodes = {node.name: node for node in module.graph.nodes}
        self.placements = {placement.tensor: placement for placement in plan.activations}
        missing = (self.placements.keys() | {p.layer for p in plan.weights}) - self.nodes.keys()
        if missing:
            raise ValueError(f"the plan names nodes that the graph does not have: {sorted(missing)}")
        self.activation_grids: dict[str, ActivationGrid] = {}
        self.weight_grids: dict[str, WeightGrid] = {}
        for placement in plan.activations:
            if placement.group not in self.activation_grids:
                chosen = ranges[placement.group]
                self.activation_grids[placement.group] = ActivationGrid(
                    placement.grid, scale=chosen.scale, zero_point=chosen.zero_point, limit=placement.limit
                )
        #: Original node -> node of its centred integers, and the grid these lie on.
        self.integers: dict[Node, Node] = {}
        self.grid_of: dict[Node, ActivationGrid] = {}
        #: Original node -> node of its reals, written when first asked for.
        self.reals: dict[Node, Node] = {}

    def run(self, outputs: tuple[str, ...]) -> PreparedNetwork:
        """Rewrite every node in order and build the new network."""
        for node in list(self.graph.nodes):
            self._rewrite(node)
        graph = make_graph_module(self.module, self.graph)
        graph.meta["outputs"] = outputs
        return PreparedNetwork(
            graph=graph,
            plan=self.plan,
            activation_grids=self.activation_grids,
            weight_grids=self.weight_grids,
            integers={tensor: self.integers[self.nodes[tensor]].name for tensor in self.placements if tensor in self.nodes},
        )

    # Values.

    def _reads_integers(self, reader: Node, source: Node) -> bool:
        """Whether `reader` sees the rounded values of `source`: it is a reader of its quantiser, or movement hands them on."""
        placement = self.placements.get(source.name)
        if placement is not None:
            return reader.name in placement.readers
        return source.name in self.plan.passthrough

    def _real(self, reader: Node, source: Node) -> Node:
        """The node of the real values of `source` as `reader` sees them."""
        if source in self.integers and self._reads_integers(reader, source):
            if source not in self.reals:
                integers = self.integers[source]
                path = f"{source.name}_dequantise"
                self.module.add_module(path, Dequantise(self.grid_of[source]))
                with self.graph.inserting_after(integers):
                    self.reals[source] = self._call(path, (integers,), source)
            return self.reals[source]
        return source

    def _call(self, path: str, arguments: tuple[Node, ...], like: Node) -> Node:
        node = self.graph.call_module(path, arguments)
        node.meta = dict(like.meta)
        return node

    # Nodes.

    def _rewrite(self, node: Node) -> None:
        weights = self.plan.weight(node.name)
        placement = self._output_placement(node)
        if node.name in self.plan.passthrough:
            self._move(node)
        elif weights is not None:
            self._product(node, weights, placement)
        elif node.op in {"call_function", "output"} and not self._fused(node, placement):
            for source in node.all_input_nodes:
                real = self._real(node, source)
                if real is not source:
                    node.replace_input_with(source, real)
        # A tensor that no fused operation has rounded is rounded where it is made.
        if node.name in self.placements and node not in self.integers:
            self._quantise(node, self.placements[node.name])

    def _output_placement(self, node: Node) -> ActivationPlacement | None:
        """The rounding that the node's own kernel performs: of its output, or of the activation it absorbs."""
        if node.name in self.placements:
            everybody = {user.name for user in node.users} <= set(self.placements[node.name].readers)
            return self.placements[node.name] if everybody else None
        users = list(node.users)
        if len(users) == 1 and self.plan.absorbed.get(users[0].name) == node.name:
            placement = self.placements.get(users[0].name)
            floor_is_zero = placement is not None and placement.grid.symmetric and not placement.grid.signed
            if placement is not None and floor_is_zero and {u.name for u in users[0].users} <= set(placement.readers):
                return placement
        return None

    def _move(self, node: Node) -> None:
        sources = tensor_inputs(node)
        for source in sources:
            if source in self.integers:
                node.replace_input_with(source, self.integers[source])
        self.integers[node], self.grid_of[node] = node, self.grid_of[sources[0]]

    def _quantise(self, node: Node, placement: ActivationPlacement) -> None:
        grid = self._grid(placement)
        path = f"{node.name}_quantise"
        self.module.add_module(path, Quantise(grid))
        with self.graph.inserting_after(node):
            integers = self._call(path, (node,), node)
        self.integers[node], self.grid_of[node] = integers, grid

    def _grid(self, placement: ActivationPlacement) -> ActivationGrid:
        return self.activation_grids[placement.group]

    def _finish(self, node: Node, result: Node, placement: ActivationPlacement) -> None:
        """Record that `result` holds the integers of the placement's tensor; an absorbed activation is gone."""
        tensor = self.nodes[placement.tensor]
        self.integers[tensor], self.grid_of[tensor] = result, self._grid(placement)

    def _product(self, layer: Node, weights: WeightPlacement, placement: ActivationPlacement | None) -> None:
        source = layer.args[0]
        assert isinstance(source, Node) and isinstance(layer.args[1], Node)
        if source not in self.integers:
            raise ValueError(f"{layer.name} has integer weights but its input is not quantised")
        grid, weight_grid = self.grid_of[source], self._weight_grid(layer, weights)
        bias = layer.args[2] if len(layer.args) > 2 and isinstance(layer.args[2], Node) else None
        with self.graph.inserting_before(layer):
            integers = self._call(_weight_grid_path(str(layer.args[1].target)), (layer.args[1],), layer.args[1])
            rounded_bias = None
            if bias is not None and weights.integer_bias:
                self.module.add_module(f"{layer.name}_bias", BiasIntegers(grid, weight_grid))
                rounded_bias = self._call(f"{layer.name}_bias", (bias,), bias)
        users = list(layer.users)
        layer.args = (self.integers[source], integers, rounded_bias, *layer.args[3:])
        trailing = len(shape(layer)) - 2 if kind(layer) != "linear" else 0
        with self.graph.inserting_after(layer):
            if placement is not None and (bias is None or weights.integer_bias):
                path = f"{layer.name}_requantise"
                operation = RequantiseProduct(self._grid(placement), grid, weight_grid, channel_dimensions=trailing)
                self.module.add_module(path, operation)
                self._finish(layer, self._call(path, (layer,), layer), placement)
                return
            path = f"{layer.name}_rescale"
            self.module.add_module(path, RescaleProduct(grid, weight_grid, channel_dimensions=trailing))
            kept = (bias,) if bias is not None and not weights.integer_bias else ()
            real = self._call(path, (layer, *kept), layer)
        for user in users:
            user.replace_input_with(layer, real)
        self._stand_in(layer, real)

    def _stand_in(self, node: Node, real: Node) -> None:
        """Let `real` be found wherever the plan speaks of `node`."""
        placement = self.placements.get(node.name)
        if placement is not None:
            grid, path = self._grid(placement), f"{node.name}_quantise"
            self.module.add_module(path, Quantise(grid))
            with self.graph.inserting_after(real):
                integers = self._call(path, (real,), node)
            self.integers[node] = self.integers[real] = integers
            self.grid_of[node] = self.grid_of[real] = grid
            self.placements[real.name] = placement

    def _weight_grid(self, layer: Node, placement: WeightPlacement) -> WeightGrid:
        weight = constant(self.module, layer.args[1])
        assert weight is not None and isinstance(layer.args[1], Node)
        name = str(layer.args[1].target)
        if name not in self.weight_grids:  # layers that share a weight share its grid
            self.weight_grids[name] = WeightGrid(placement.grid, weight)
            self.module.add_module(_weight_grid_path(name), self.weight_grids[name])
        return self.weight_grids[name]

    def _fused(self, node: Node, placement: ActivationPlacement | None) -> bool:
        """Replace an operation between integers by its integer form; False when it has none."""
        word, sources = kind(node), tensor_inputs(node)
        if node.op != "call_function" or word in WEIGHTED or not sources:
            return False
        if node.name in self.plan.absorbed and node in self.integers:
            return True  # the kernel before it has done its work
        if word not in {"add", "mul", "adaptive_average_pool", "matmul"} or node.name in self.plan.float_nodes:
            return False
        if not all(source in self.integers and self._reads_integers(node, source) for source in sources):
            return False
        grids = [self.grid_of[source] for source in sources]
        arguments = tuple(self.integers[source] for source in sources)
        if word == "matmul":
            self._matrix_product(node, grids, arguments, placement)
            return True
        if placement is None or (word != "adaptive_average_pool" and len(node.args) != len(sources)):
            return False
        operations = {"add": RequantiseSum, "mul": RequantiseMultiplication, "adaptive_average_pool": RequantiseMean}
        path = f"{node.name}_requantise"
        self.module.add_module(path, operations[word](self._grid(placement), *grids))
        with self.graph.inserting_after(node):
            self._finish(node, self._call(path, arguments, node), placement)
        return True

    def _matrix_product(
        self, node: Node, grids: list[ActivationGrid], arguments: tuple[Node, ...], placement: ActivationPlacement | None
    ) -> None:
        users = list(node.users)
        node.args = arguments
        with self.graph.inserting_after(node):
            if placement is not None:
                operation = RequantiseProduct(self._grid(placement), *grids, channel_dimensions=0)
                self.module.add_module(f"{node.name}_requantise", operation)
                self._finish(node, self._call(f"{node.name}_requantise", (node,), node), placement)
                return
            self.module.add_module(f"{node.name}_rescale", RescaleProduct(*grids, channel_dimensions=0))
            real = self._call(f"{node.name}_rescale", (node,), node)
        for user in users:
            user.replace_input_with(node, real)
        self._stand_in(node, real)
