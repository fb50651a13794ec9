"""The one place that edits graphs for quantisation: plan and ranges go in, a graph of integer operations comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from calibration.arithmetic.elementwise import ARM
from calibration.arithmetic.integer_products import (
    EXACT_IN_FLOAT32,
    LARGEST_ACTIVATION,
    integer_conv2d,
    integer_conv_transpose2d,
    integer_linear,
    wide_matmul,
)
from calibration.graph.interface import Interface, interface_of, make_graph_module
from calibration.graph.operators import (
    argument,
    constant,
    kind,
    multiplier,
    output_groups,
    shape,
    static_shape,
    tensor_inputs,
)
from calibration.graph.sharing import draft_of
from calibration.graph.windows import equal_windows
from calibration.grid import Grid
from calibration.plan import ActivationPlacement, Plan, WeightPlacement
from calibration.ranges.means import resolvable_means
from calibration.ranges.observation import Range
from calibration.ranges.observers import weight_scale
from calibration.simulation.learned_grids import ActivationGrid, MultipliedGrid, TensorGrid, WeightGrid
from calibration.simulation.operations import (
    BiasIntegers,
    Dequantise,
    DequantiseWeight,
    Elementwise,
    Prescale,
    Quantise,
    QuantiseAverage,
    RequantiseAverage,
    RequantiseHardSigmoid,
    RequantiseMean,
    RequantiseMultiplication,
    RequantiseProduct,
    RequantiseSigmoid,
    RequantiseSum,
    RescaleProduct,
)
from calibration.simulation.prepared import OPERATIONS, PreparedNetwork

_INTEGER_PRODUCTS: dict[str, Any] = {
    "conv": integer_conv2d,
    "conv_transpose": integer_conv_transpose2d,
    "linear": integer_linear,
}

#: The integer forms of operations on whole tensors, by kind: each takes the output's grid and the inputs'.
_INTEGER_FORMS: dict[str, Any] = {
    "add": RequantiseSum,
    "mul": RequantiseMultiplication,
    "adaptive_average_pool": RequantiseMean,
    "sigmoid": RequantiseSigmoid,
    "hardsigmoid": RequantiseHardSigmoid,
}

# A bias is held in int32. To begin with it may take this much of it, which leaves training a factor of eight; where a
# channel's weights are so small beside its bias that their scale asks for more, a coarser one does no harm [ours].
_LARGEST_FIRST_BIAS = 2.0**28


#: By the dotted path of a stored weight and the grid that it is rounded to.
FirstScales = dict[tuple[str, Grid], Tensor]


def insert(
    graph_module: GraphModule,
    plan: Plan,
    ranges: Mapping[str, Range],
    *,
    shared: bool = False,
    first_scales: FirstScales | None = None,
) -> PreparedNetwork:
    """A trainable copy of a folded graph in which everything that the plan rounds is integers.

    `ranges` by group, as `choose_ranges` gives them. The copy owns its parameters, or with `shared`, for one
    that is not to be trained, has them in the same memory. `first_scales`: of each stored weight, by dotted path and
    grid, the scale that it begins with; what it lacks is searched for and added, so that a second copy of the same
    graph, by this plan or another, takes no second search. Raises ValueError for a plan that names nodes which the
    graph does not have, or groups that have no range.
    """
    copied = draft_of(graph_module, shared=shared)
    return _Insertion(copied, plan, ranges, {} if first_scales is None else first_scales).run(
        interface_of(graph_module)
    )


class _Insertion:
    """One pass over a graph: every node is given real inputs or centred integers, whichever it computes on."""

    def __init__(self, module: GraphModule, plan: Plan, ranges: Mapping[str, Range], first_scales: FirstScales) -> None:
        self.module, self.plan, self.graph, self.first_scales = module, plan, module.graph, first_scales
        self.nodes = {node.name: node for node in module.graph.nodes}
        self.placements = {placement.tensor: placement for placement in plan.activations}
        self.groups = {placement.group: placement for placement in plan.activations}
        if unknown := plan.names() - self.nodes.keys():
            raise ValueError(f"the plan names nodes that the graph does not have: {sorted(unknown)}")
        if missing := self.groups.keys() - ranges.keys():
            raise ValueError(f"there is no range for the tensors {sorted(missing)}")
        ranges = resolvable_means(module, plan, ranges)
        self.activation_grids = {
            group: ActivationGrid(
                placement.grid,
                scale=ranges[group].scale,
                zero_point=ranges[group].zero_point,
                limit=placement.limit,
            )
            for group, placement in self.groups.items()
        }
        #: By the dotted path of the stored weight.
        self.weight_grids: dict[str, WeightGrid] = {}
        self.bias_integers: dict[str, BiasIntegers] = {}
        self.operations = nn.Module()
        module.add_module(OPERATIONS, self.operations)
        # What stands for the tensor of an original node. Readers keep original nodes as arguments until it is their
        # turn, so whatever they ask about a source is asked about the folded graph.
        #: Its centred integers, and the grid that these lie on.
        self.integers: dict[Node, Node] = {}
        self.grid_of: dict[Node, TensorGrid] = {}
        #: The reals that its integers stand for, written when first asked for.
        self.dequantised: dict[Node, Node] = {}
        #: Its reals before rounding, where the node itself does not hold them.
        self.unrounded: dict[Node, Node] = {}
        #: The integers of a stored weight, by dotted path.
        self.weight_integers: dict[str, Node] = {}

    def run(self, interface: Interface) -> PreparedNetwork:
        """Rewrite every node in order and build the new network."""
        for node in list(self.graph.nodes):
            self._rewrite(node)
        return PreparedNetwork(
            graph=make_graph_module(self.module, self.graph, interface),
            plan=self.plan,
            activation_grids=self.activation_grids,
            weight_grids=self.weight_grids,
            bias_integers=self.bias_integers,
            integers={node.name: integers.name for node, integers in self.integers.items()},
            tensor_grids={node.name: grid for node, grid in self.grid_of.items()},
        )

    # Values.

    def _reads_integers(self, reader: Node, source: Node) -> bool:
        """Whether `reader` sees the rounded values of `source`: the plan lists it, or movement hands them on."""
        placement = self.placements.get(source.name)
        if placement is not None:
            return reader.name in placement.readers
        return source.name in self.plan.passthrough

    def _real(self, reader: Node, source: Node) -> Node:
        """The node of the real values of `source` as `reader` sees them."""
        if source not in self.integers or not self._reads_integers(reader, source):
            return self.unrounded.get(source, source)
        if source not in self.dequantised:
            integers = self.integers[source]
            operation = Dequantise(self.grid_of[source])
            self.dequantised[source] = self._after(
                integers, f"{source.name}_dequantise", operation, (integers,), source
            )
        return self.dequantised[source]

    def _call(self, name: str, operation: nn.Module, arguments: tuple[Node, ...], like: Node) -> Node:
        """A node that calls a new module; `like` is the original node whose tensor it gives another form."""
        path = name
        while hasattr(self.operations, path):  # a.b and a_b
            path += "_"
        self.operations.add_module(path, operation)
        node = self.graph.create_node("call_module", f"{OPERATIONS}.{path}", arguments, name=name)
        node.meta = dict(like.meta)
        return node

    def _after(self, place: Node, name: str, operation: nn.Module, arguments: tuple[Node, ...], like: Node) -> Node:
        with self.graph.inserting_after(place):
            return self._call(name, operation, arguments, like)

    # Nodes.

    def _rewrite(self, node: Node) -> None:
        if node in self.integers:
            return  # an activation that the kernel before it performs
        placement = self.placements.get(node.name)
        is_kernel = self._output_placement(node) is not None and self._has_integer_inputs(node, tensor_inputs(node))
        rounding = QuantiseAverage if kind(node) == "average_pool" and is_kernel else Quantise
        if node.op in {"call_function", "output"}:
            self._rewrite_operator(node)
        # A tensor that no fused operation has rounded is rounded where it is made.
        if placement is not None and node not in self.integers:
            real, grid = self.unrounded.get(node, node), self.activation_grids[placement.group]
            self.integers[node] = self._after(real, f"{node.name}_quantise", rounding(grid), (real,), node)
            self.grid_of[node] = grid

    def _rewrite_operator(self, node: Node) -> None:
        weights, sources = self.plan.weight(node.name), tensor_inputs(node)
        if node.name in self.plan.passthrough and (factor := multiplier(node)) is not None:
            self.grid_of[node] = MultipliedGrid(self.grid_of[sources[0]], factor)
            self.integers[node] = self.integers[sources[0]]
        elif node.name in self.plan.passthrough:
            self.grid_of[node] = self.grid_of[sources[0]]
            for source in sources:
                node.replace_input_with(source, self.integers[source])
            self.integers[node] = node
        elif weights is not None and not weights.weight_only:
            self._product(node, weights)
        elif self._has_integer_inputs(node, sources) and kind(node) == "matmul":
            self._matrix_product(node, sources)
        elif self._has_integer_inputs(node, sources) and (
            self._average(node, sources) or self._replace_by_integer_form(node, sources)
        ):
            pass
        else:
            for source in node.all_input_nodes:
                node.replace_input_with(source, self._real(node, source))
            if weights is not None:
                self._real_weight(node, weights)

    def _has_integer_inputs(self, node: Node, sources: list[Node]) -> bool:
        """Whether the plan lets an operator compute on integers and all its tensors are such."""
        return (
            bool(sources)
            and node.name not in self.plan.float_nodes
            and all(source in self.integers and self._reads_integers(node, source) for source in sources)
        )

    def _output_placement(self, node: Node) -> ActivationPlacement | None:
        """The rounding that the node's own kernel performs: of its output, or of the activation it absorbs."""
        if not self.plan.fused_rounding:
            return None
        placement = self.placements.get(node.name)
        readers = list(node.users)
        if placement is None and len(readers) == 1 and self.plan.absorbed.get(readers[0].name) == node.name:
            # Only a grid that begins at zero does the work of a ReLU, or of a clip whose end is the grid's limit.
            placement = self.placements.get(readers[0].name)
            if placement is None or placement.grid.signed or not placement.grid.symmetric:
                return None
            if kind(readers[0]) not in {"relu", "clip"}:
                return None
            readers = list(readers[0].users)
        if placement is None or not {reader.name for reader in readers} <= set(placement.readers):
            return None  # somebody needs the values before they are rounded
        return placement

    def _finish(
        self, node: Node, operation: nn.Module, arguments: tuple[Node, ...], placement: ActivationPlacement
    ) -> None:
        """Round the node's result to the placement's tensor: its own, or that of the activation behind it."""
        tensor = self.nodes[placement.tensor]
        self.integers[tensor] = self._after(node, f"{node.name}_requantise", operation, arguments, tensor)
        self.grid_of[tensor] = self.activation_grids[placement.group]

    def _product(self, layer: Node, weights: WeightPlacement) -> None:
        source, weight, bias = layer.args[0], layer.args[1], argument(layer, 2, "bias")
        assert isinstance(source, Node) and isinstance(weight, Node)
        if source not in self.integers or not self._reads_integers(layer, source):
            raise ValueError(f"{layer.name} has integer weights but its input is not quantised")
        placement = self._output_placement(layer)
        grid, weight_grid = self.grid_of[source], self._weight_grid(layer, weights)
        form = {"channel_dimensions": 0 if kind(layer) == "linear" else len(shape(layer)) - 2}
        form["groups"] = output_groups(layer)
        in_sums: Node | None = None
        in_reals = () if bias is None else (bias,)
        with self.graph.inserting_before(layer):
            if str(weight.target) not in self.weight_integers:
                name = f"{weight.name}_integers"
                self.weight_integers[str(weight.target)] = self._call(name, weight_grid, (weight,), weight)
            if bias is not None and weights.integer_bias:
                rounding = self.bias_integers[layer.name] = BiasIntegers(grid, weight_grid, **form)
                in_sums, in_reals = self._call(f"{layer.name}_bias", rounding, (bias,), bias), ()
        layer.target = _INTEGER_PRODUCTS[kind(layer)]
        output = self.activation_grids[placement.group] if placement is not None and not in_reals else None
        constants = [self.weight_integers[str(weight.target)], in_sums]
        with self.graph.inserting_before(layer):
            for index, (word, axis) in enumerate((("weight", weight_grid.grid.channel_axis or 0), ("bias", 0))):
                integers = constants[index]
                if integers is not None:
                    operation: nn.Module = Prescale(output, grid, weight_grid, axis=axis, groups=form["groups"])
                    constants[index] = self._call(f"{layer.name}_{word}_prescale", operation, (integers,), integers)
        layer.args = (self.integers[source], *constants, *layer.args[3:])
        if output is not None and placement is not None:
            requantisation = RequantiseProduct(output, grid, weight_grid, **form)
            requantisation.prescaled = True
            self._finish(layer, requantisation, (layer,), placement)
        else:
            rescaling = RescaleProduct(grid, weight_grid, **form)
            rescaling.prescaled = True
            self.unrounded[layer] = self._after(layer, f"{layer.name}_rescale", rescaling, (layer, *in_reals), layer)

    def _real_weight(self, layer: Node, placement: WeightPlacement) -> None:
        """Let a layer that multiplies reals read those that its weight's integers stand for."""
        weight, values = layer.args[1], constant(self.module, layer.args[1])
        assert isinstance(weight, Node) and values is not None
        path = str(weight.target)
        grid = self.weight_grids[path] = WeightGrid(
            placement.grid, values, first_scale=self._first_scale(path, values, placement)
        )
        with self.graph.inserting_before(layer):
            integers = self._call(f"{weight.name}_integers", grid, (weight,), weight)
            reals = self._call(f"{weight.name}_reals", DequantiseWeight(grid), (integers,), weight)
        layer.replace_input_with(weight, reals)

    def _first_scale(self, path: str, weight: Tensor, placement: WeightPlacement) -> Tensor:
        """The scale that a stored weight's grid begins with: 80 of each channel are tried below 8 bits, once."""
        key = (path, placement.grid)
        if key not in self.first_scales:
            self.first_scales[key] = weight_scale(weight, placement.grid)
        return self.first_scales[key]

    def _weight_grid(self, layer: Node, placement: WeightPlacement) -> WeightGrid:
        """The grid of a layer's weight; layers that share a weight share it."""
        weight, bias = constant(self.module, layer.args[1]), constant(self.module, argument(layer, 2, "bias"))
        assert weight is not None and isinstance(layer.args[1], Node) and isinstance(layer.args[0], Node)
        path = str(layer.args[1].target)
        if path not in self.weight_grids:
            floor = None
            if bias is not None and placement.integer_bias:
                step = self.grid_of[layer.args[0]].scale().detach()
                floor = (bias.detach().abs() / (step * _LARGEST_FIRST_BIAS)).reshape(output_groups(layer), -1).amax(0)
                floor = floor if placement.grid.channel_axis is not None else floor.max()
            first = self._first_scale(path, weight, placement)
            self.weight_grids[path] = WeightGrid(placement.grid, weight, floor=floor, first_scale=first)
        if self.weight_grids[path].grid != placement.grid:
            raise ValueError(f"{layer.name} shares its weight with a layer that the plan gives another grid")
        return self.weight_grids[path]

    def _matrix_product(self, node: Node, sources: list[Node]) -> None:
        """Multiply two activations as integers."""
        placement, grids = self._output_placement(node), [self.grid_of[source] for source in sources]
        length = static_shape(sources[0])[-1]
        if length < 0 or length * LARGEST_ACTIVATION**2 >= EXACT_IN_FLOAT32:
            node.target = wide_matmul
        node.args = tuple(self.integers[source] for source in sources)
        if placement is not None:
            output = self.activation_grids[placement.group]
            self._finish(node, RequantiseProduct(output, *grids), (node,), placement)
        else:
            operation = RescaleProduct(*grids)
            self.unrounded[node] = self._after(node, f"{node.name}_rescale", operation, (node,), node)

    def _average(self, node: Node, sources: list[Node]) -> bool:
        """Let a pooling with equal windows sum integers; False for any other, and where its kernel averages reals."""
        placement, windows = self._output_placement(node), equal_windows(node)
        if placement is None or windows is None or not self.plan.exact_averages:
            return False
        node.args = (self.integers[sources[0]], windows.kernel, windows.stride, windows.padding, False, True, 1)
        node.kwargs = {}
        output, inputs = self.activation_grids[placement.group], self.grid_of[sources[0]]
        self._finish(node, RequantiseAverage(output, inputs, divisor=windows.divisor), (node,), placement)
        return True

    def _replace_by_integer_form(self, node: Node, sources: list[Node]) -> bool:
        """Put an operation's integer form in its place; False when it has none for its operands and readers."""
        placement, form = self._output_placement(node), _INTEGER_FORMS.get(kind(node))
        operands = node.args[:1] if kind(node) == "adaptive_average_pool" else node.args
        if placement is None or form is None or list(operands) != sources:
            return False  # an operand is a number or a constant
        grids = (self.activation_grids[placement.group], *(self.grid_of[source] for source in sources))
        differs = self.plan.arm_arithmetic and issubclass(form, Elementwise)
        operation = form(*grids, arithmetic=ARM) if differs else form(*grids)
        self._finish(node, operation, tuple(self.integers[source] for source in sources), placement)
        return True
