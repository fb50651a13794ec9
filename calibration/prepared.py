"""A network ready for quantisation-aware training: the rewritten graph beside the grids that it reads."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.grids import ActivationGrid, WeightGrid
from calibration.plan import Plan
from calibration.quantisers import BiasIntegers

#: The sub-module of a prepared graph that holds everything which the folded graph did not have.
OPERATIONS = "integer_operations"


class PreparedNetwork(nn.Module):
    """A graph of integer operations, trainable end to end.

    `graph` keeps the trained weights under the names that the folded graph has; `activation_grids` are known by
    the plan's groups, `weight_grids` by a stored weight's dotted path, `bias_integers` by layer; `integers` maps
    each rounded tensor to the graph node that holds its centred integers. In evaluation mode a forward pass
    computes what an integer runtime does, to the bit on a CPU; in training mode sums carry the rounding of float32,
    and ties of roundings that a runtime decides its own way may differ.
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
    ) -> None:
        super().__init__()
        self.graph, self.plan, self.integers = graph, plan, dict(integers)
        # Activation grids are read by operations rather than called, so the graph module itself does not keep them.
        # The suffix keeps a tensor called `keys` or `values` from hiding the dictionary's own methods.
        self.activation_grids = nn.ModuleDict({f"{group}_grid": grid for group, grid in activation_grids.items()})
        self._weight_grids, self._bias_integers = dict(weight_grids), dict(bias_integers)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images, float32 [B, C, H, W], to the network's outputs, float32."""
        outputs: tuple[Tensor, ...] = self.graph(images)
        return outputs

    def activation_grid(self, group: str) -> ActivationGrid:
        """The grid of a group of tensors."""
        grid = self.activation_grids[f"{group}_grid"]
        assert isinstance(grid, ActivationGrid)
        return grid

    def weight_grid(self, weight: str) -> WeightGrid:
        """The grid of the weight stored under a dotted path."""
        return self._weight_grids[weight]

    def bias_integers(self, layer: str) -> BiasIntegers:
        """What rounds the bias of a layer to int32."""
        return self._bias_integers[layer]

    def scale_parameters(self, *, activations: bool, weights: bool) -> list[nn.Parameter]:
        """The logarithms of the learned scales."""
        grids: list[nn.Module] = []
        if activations:
            grids += self.activation_grids.values()
        if weights:
            grids += self._weight_grids.values()
        return [parameter for grid in grids for parameter in grid.parameters()]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Everything that is trained but the scales."""
        scales = {id(parameter) for parameter in self.scale_parameters(activations=True, weights=True)}
        return [parameter for parameter in self.parameters() if id(parameter) not in scales]
