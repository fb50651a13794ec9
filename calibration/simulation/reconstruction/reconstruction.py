"""What reconstruction has changed in a prepared network, as data that makes the same of another copy of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from calibration.simulation.learned_grids import WeightGrid
from calibration.simulation.prepared import PreparedNetwork

_CONSTANT, _SCALE = "constant ", "scale "
# Of a step on either side, what is rounded to its middle beyond doubt.
_WITHIN = 0.49


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """By dotted path: `constants`, the weights and biases that were changed, and logarithms of weights' `scales`."""

    constants: Mapping[str, Tensor] = field(default_factory=dict)
    scales: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All of it under names of its own, to be kept."""
        return {f"{_CONSTANT}{path}": values for path, values in self.constants.items()} | {
            f"{_SCALE}{path}": values for path, values in self.scales.items()
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Reconstruction:
        """What `tensors` gave; names that are none of its own are taken for constants, which no network has."""
        scales = {name.removeprefix(_SCALE): values for name, values in tensors.items() if name.startswith(_SCALE)}
        others = {name: values for name, values in tensors.items() if not name.startswith(_SCALE)}
        return cls(constants={name.removeprefix(_CONSTANT): values for name, values in others.items()}, scales=scales)

    def not_in(self, network: PreparedNetwork) -> str | None:
        """A path that it speaks of and a network has not, or of another shape; None where it is of that network."""
        constants = {path: value.shape for path, value in network.graph.named_parameters(remove_duplicate=False)}
        scales = {path: grid.log_scale.shape for path, grid in network.weight_grids().items()}
        for own, stored in ((self.constants, constants), (self.scales, scales)):
            for path, values in own.items():
                if stored.get(path) != values.shape or values.dtype != torch.float32:
                    return path
        return None

    def apply(self, network: PreparedNetwork, *, towards: GraphModule | None = None) -> PreparedNetwork:
        """The network itself with parameters of its own where they were changed; others stay, shared or not.

        `towards`: the float graph whose weights are to stand behind the integers, each as near as its integer allows.
        The integers are the same, but a weight that learns is then as far from the next one as the float weight says,
        not half a step as all others [ours].
        """
        for path, values in self.constants.items():
            network.replace_constant(path, values.clone())
        for path, values in self.scales.items():
            network.weight_grid(path).log_scale.data.copy_(values)
            if towards is not None:
                weight = network.graph.get_parameter(path)
                weight.data.copy_(_nearest(towards.get_parameter(path).detach(), weight, network.weight_grid(path)))
        return network


@torch.no_grad()
def _nearest(real: Tensor, weight: Tensor, grid: WeightGrid) -> Tensor:
    """What is nearest to real numbers of all that is rounded to the integers of a weight, same shape."""
    integers = grid(weight)
    least, most = (grid.reals(integers + side * _WITHIN) for side in (-1, 1))
    return torch.minimum(torch.maximum(real, least), most)
