"""Units in which weights and biases learn, so that training does not depend on how a network's weights are scaled.

A block's BatchNorm times 100 and the next convolution divided by 100 are the same function. Adam moves every weight by
its rate, which is a hundredth as much beside the one's weights and a hundred times as much beside the other's, and
folded networks have channels as different as that. So a channel's rate goes with the largest weight that its scale
holds, a bias's with what its layer's inputs and weights may add; a channel in the middle of all has the rate itself
[ours].
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from calibration.graph.operators import argument
from calibration.simulation.prepared import PreparedNetwork

#: Where all parameters learn at the rate itself.
NO_UNITS: Final[Mapping[nn.Parameter, Tensor]] = MappingProxyType({})


def units_of(sizes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> sizes over the median of all, of the same shapes. Sizes are > 0."""
    if not sizes:
        return {}
    median = torch.cat([values.flatten() for values in sizes.values()]).median()
    return {name: values / median for name, values in sizes.items()}


@torch.no_grad()
def learning_units(network: PreparedNetwork, folded: GraphModule) -> dict[nn.Parameter, Tensor]:
    """Parameters that learn in units of their own -> factors of their rate, > 0, that multiply with them.

    Those of layers that compute on integers, whose scales say how large they are; `folded` is the graph that the
    network was made from. What several layers read has the unit of the last.
    """
    weights, biases, nodes = dict[str, Tensor](), dict[str, Tensor](), {node.name: node for node in folded.graph.nodes}
    learned = dict(network.graph.named_parameters())
    for path, grid in network.weight_grids().items():
        if path not in learned:  # constants of the network's code
            continue
        weight, largest = learned[path], max(grid.grid.quant_max, 1) * grid.scale()
        if grid.grid.block is not None:
            largest = largest.mean(1)
        weights[path] = largest.reshape(_along(weight, grid.grid.channel_axis)) if largest.dim() else largest
    for placement in network.plan.weights:
        layer = nodes[placement.layer]
        source, bias = layer.args[0], argument(layer, 2, "bias")
        if not placement.integer_bias or not isinstance(bias, Node) or str(bias.target) not in learned:
            continue
        assert isinstance(source, Node)
        inputs, most = network.tensor_grids[source.name], max(placement.grid.quant_max, 1)
        reach = max(abs(inputs.lowest), inputs.highest)
        biases[str(bias.target)] = most * reach * network.bias_integers(placement.layer).scale()
    units = units_of(weights) | units_of(biases)
    return {learned[path]: unit for path, unit in units.items()}


def _along(weight: Tensor, axis: int | None) -> list[int]:
    """A shape of a value per channel that multiplies with a weight."""
    return [size if dimension == (axis or 0) else 1 for dimension, size in enumerate(weight.shape)]
