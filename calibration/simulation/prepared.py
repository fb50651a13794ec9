"""A network ready for quantisation-aware training: the rewritten graph beside the grids that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.graph.copies import Unpicklable
from calibration.plan import Plan
from calibration.simulation.learned_grids import ActivationGrid, TensorGrid, WeightGrid, shared_scales
from calibration.simulation.operations import BiasIntegers

#: The sub-module of a prepared graph that holds everything which the folded graph did not have.
OPERATIONS = "integer_operations"


class PreparedNetwork(Unpicklable, nn.Module):
    """A graph of integer operations, trainable end to end.

    `graph` keeps the trained weights under the names that the folded graph has; `activation_grids` are known by
    the plan's groups, `weight_grids` by a stored weight's dotted path, `bias_integers` by layer; `integers` maps
    each tensor on a grid to the graph node that holds its centred integers, `tensor_grids` to that grid. In evaluation
    mode a forward pass computes what an integer runtime does, to the bit on a CPU; in training mode sums carry the
    rounding of float32, and ties of roundings that a runtime decides its own way may differ.
    """

    def __init__(
        self,
        *,
        graph: GraphModule,
        plan: Plan,
        activation_grids: Mapping[str, ActivationGrid],
        weight_grids: Mapping[str, WeightGrid],
        bias_integers: Mapping[str, BiasIntegers],
        integers: Mapping[str, str],
        tensor_grids: Mapping[str, TensorGrid],
    ) -> None:
        super().__init__()
        self.graph, self.plan, self.integers, self.tensor_grids = graph, plan, dict(integers), dict(tensor_grids)
        # Activation grids are read by operations rather than called, so the graph module itself does not keep them.
        # The suffix keeps a tensor called `keys` or `values` from hiding the dictionary's own methods.
        self.activation_grids = nn.ModuleDict({f"{group}_grid": grid for group, grid in activation_grids.items()})
        self._activation_grids = tuple(activation_grids.values())
        self._weight_grids, self._bias_integers = dict(weight_grids), dict(bias_integers)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images, float32 [B, C, H, W], to the network's outputs, float32."""
        with self.one_pass():
            outputs: tuple[Tensor, ...] = self.graph(images)
        return outputs

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Around a forward pass of the graph: while it trains, scales are computed once for all who read them."""
        if not self.training:
            yield
            return
        with shared_scales(self._grids(activations=True, weights=True)):
            yield

    def activation_grid(self, group: str) -> ActivationGrid:
        """The grid of a group of tensors."""
        grid = self.activation_grids[f"{group}_grid"]
        assert isinstance(grid, ActivationGrid)
        return grid

    def weight_grid(self, weight: str) -> WeightGrid:
        """The grid of the weight stored under a dotted path."""
        return self._weight_grids[weight]

    def weight_grids(self) -> Mapping[str, WeightGrid]:
        """The grids of all weights, by the dotted path under which each is stored."""
        return self._weight_grids

    def bias_integers(self, layer: str) -> BiasIntegers:
        """What rounds the bias of a layer to int32."""
        return self._bias_integers[layer]

    def replace_constant(self, path: str, values: Tensor) -> None:
        """Give the weight or bias stored under a dotted path a parameter of its own, shared with no other network."""
        owner, _, name = path.rpartition(".")
        setattr(self.graph.get_submodule(owner), name, nn.Parameter(values))

    def scale_parameters(self, *, activations: bool, weights: bool) -> list[nn.Parameter]:
        """The logarithms of the learned scales."""
        return [grid.log_scale for grid in self._grids(activations=activations, weights=weights)]

    def _grids(self, *, activations: bool, weights: bool) -> list[ActivationGrid | WeightGrid]:
        grids: list[ActivationGrid | WeightGrid] = []
        if activations:
            grids += self._activation_grids
        if weights:
            grids += self._weight_grids.values()
        return grids

    def weight_parameters(self) -> list[nn.Parameter]:
        """Everything that is trained but the scales."""
        scales = {id(parameter) for parameter in self.scale_parameters(activations=True, weights=True)}
        return [parameter for parameter in self.parameters() if id(parameter) not in scales]
