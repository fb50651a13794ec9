"""A network ready for quantisation-aware training: the rewritten graph beside the grids that it reads."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.plan import Plan
from calibration.quantisers import ActivationGrid, WeightGrid


class PreparedNetwork(nn.Module):
    """A graph of integer operations, trainable end to end.

    `graph` keeps the trained weights under the names that the folded graph has; `activation_grids` maps a group of
    the plan to its grid, `weight_grids` a stored weight's dotted path to its; `integers` maps each rounded tensor to
    the graph node that holds its centred integers.
    """

    def __init__(
        self,
        *,
        graph: GraphModule,
        plan: Plan,
        activation_grids: Mapping[str, ActivationGrid],
        weight_grids: Mapping[str, WeightGrid],
        integers: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.graph, self.plan, self.integers = graph, plan, dict(integers)
        # Activation grids are read by operations rather than called, so the graph module itself does not keep them.
        self.activation_grids = nn.ModuleDict(activation_grids)
        self._weight_grids = dict(weight_grids)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images, float32 [B, C, H, W], to the network's outputs, float32."""
        outputs: tuple[Tensor, ...] = self.graph(images)
        return outputs

    def activation_grid(self, group: str) -> ActivationGrid:
        """The grid of a group of tensors."""
        grid = self.activation_grids[group]
        assert isinstance(grid, ActivationGrid)
        return grid

    def weight_grid(self, weight: str) -> WeightGrid:
        """The grid of the weight stored under a dotted path."""
        return self._weight_grids[weight]

    def scale_parameters(self, *, activations: bool, weights: bool) -> list[nn.Parameter]:
        """The logarithms of the learned scales."""
        grids: list[ActivationGrid | WeightGrid] = []
        if activations:
            grids += [self.activation_grid(group) for group in self.activation_grids]
        if weights:
            grids += list(self._weight_grids.values())
        return [grid.log_scale for grid in grids]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Everything that is trained but the scales."""
        scales = {id(parameter) for parameter in self.scale_parameters(activations=True, weights=True)}
        return [parameter for parameter in self.parameters() if id(parameter) not in scales]
