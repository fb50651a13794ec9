"""Corrected statistics: a rounded layer is given its float output's mean and spread per channel, before any training.

Rounding moves the mean of a layer's sums (Nagel et al., arXiv 1906.04721, section 4.2, who correct the bias), and few
bits shrink or stretch their spread as well (Banner et al., arXiv 1810.05723, correct both for the weights alone). A
bias and a factor per channel put both right; the factor multiplies the weight and its scale, so it moves no integer of
the weights. Layers are corrected in the order in which they run, each with all before it corrected, so that it answers
for what they left [ours: both from real images, in one pass per batch, averaged over the batches].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from calibration.errors import UserError
from calibration.graph.operators import argument, constant, kind, output_groups
from calibration.graph.watching import Watching
from calibration.grid import broadcast_scale
from calibration.simulation.operations import RequantiseProduct, RescaleProduct
from calibration.simulation.prepared import PreparedNetwork

# A channel's spread is changed by this much at most: beyond, few images say more than they know, and a bias that had
# room in int32 would lose it [ours].
_LEAST_FACTOR, _LARGEST_FACTOR = 0.25, 4.0
# A standard deviation below this part of the tensor's largest is of a channel that is switched off.
_SWITCHED_OFF = 1e-5


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """By dotted path, float32 [C]: `biases` replace a network's, `factors` multiply its weights and their scales."""

    biases: Mapping[str, Tensor] = field(default_factory=dict)
    factors: Mapping[str, Tensor] = field(default_factory=dict)

    def apply(self, network: PreparedNetwork) -> PreparedNetwork:
        """The network itself with parameters of its own where they are corrected; others stay, shared or not."""
        for path, bias in self.biases.items():
            network.replace_constant(path, bias.clone())
        for path, factor in self.factors.items():
            grid, weight = network.weight_grid(path), network.graph.get_parameter(path).detach()
            network.replace_constant(path, weight * broadcast_scale(factor, grid.grid.channel_axis, weight.dim()))
            grid.log_scale.data.add_(factor.log())
        return network


#: Mean and standard deviation per channel of layers' float outputs, float64 [C] each, batch by batch.
FloatStatistics = list[dict[str, tuple[Tensor, Tensor]]]


def find_corrections(
    network: PreparedNetwork,
    folded: GraphModule,
    batches: Iterable[Tensor],
    *,
    known: FloatStatistics | None = None,
) -> Corrections:
    """The corrections of a calibrated network, in evaluation mode, towards the folded graph that it was made from.

    `batches` of normalised images, float32 [B, C, H, W]. Layers without a bias stay as they are, and so do those that
    share one; weights of 8 bits, of one scale for all channels or shared by several layers get no factor. `known`: what
    the float graph gives for the same batches; what is lacking there is added to it. Raises
    UserError where rounding makes something that is no number, naming the layer that reads it.
    """
    layers = _correctable(network, folded)
    float_statistics = dict[str, tuple[Tensor, Tensor]]()

    def look(name: str, values: Tensor) -> None:
        float_statistics[name] = _statistics(values, layers[name].axis)

    original, rounded = Watching(folded, layers, look), _Correcting(network, layers, float_statistics)
    shifts = {name: torch.zeros(()) for name in layers}
    factors = {name: torch.zeros(()) for name in layers}
    count, of_batches = 0, [] if known is None else known
    with torch.no_grad():
        for index, images in enumerate(batches):
            if index < len(of_batches) and layers.keys() <= of_batches[index].keys():
                float_statistics.update(of_batches[index])
            else:
                original.run(images)
                of_batches[index:] = [dict(float_statistics)]
            rounded.run(images)
            count += len(images)
            for name in layers:
                factor, shift = rounded.corrections[name]
                if not bool(shift.isfinite().all()):
                    raise UserError(
                        f"{name}: what this layer reads is NaN or infinite once the network is quantised, where its"
                        " float version has numbers: a division, root or logarithm of what is rounded to 0, also where"
                        " torch.where or a mask leaves it out; keep it from arising, as in 1 / x.clamp(min=1e-3)"
                    )
                factors[name] = factors[name] + factor.cpu() * len(images)
                shifts[name] = shifts[name] + shift.cpu() * len(images)
    biases, multiplied = {}, {}
    for name, layer in layers.items():
        bias, factor = folded.get_parameter(layer.bias).detach().double().cpu(), factors[name] / count
        biases[layer.bias] = (bias * factor + shifts[name] / count).float()
        if layer.weight is not None:
            multiplied[layer.weight] = factor.float()
    return Corrections(biases=biases, factors=multiplied)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """Paths of a layer's bias and, where a factor may change its spread, of its weight; the axis of its channels."""

    bias: str
    weight: str | None
    axis: int


def _correctable(network: PreparedNetwork, folded: GraphModule) -> dict[str, _Layer]:
    nodes = {node.name: node for node in folded.graph.nodes}
    placements = {nodes[p.layer]: p for p in network.plan.weights if not p.weight_only}
    constants = {node: (node.args[1], argument(node, 2, "bias")) for node in placements}
    paths = [str(value.target) for pair in constants.values() for value in pair if isinstance(value, Node)]
    correctable = {}
    for node, (weight, bias) in constants.items():
        if not isinstance(bias, Node) or not isinstance(constant(folded, bias), nn.Parameter):
            continue
        if paths.count(str(bias.target)) > 1:
            continue
        assert isinstance(weight, Node)
        grid = placements[node].grid
        few_bits = grid.bits < 8 and grid.channel_axis is not None and grid.block is None
        alone = paths.count(str(weight.target)) == 1 and output_groups(node) == 1
        has_factor = few_bits and alone and isinstance(constant(folded, weight), nn.Parameter)
        correctable[node.name] = _Layer(
            bias=str(bias.target),
            weight=str(weight.target) if has_factor else None,
            axis=-1 if kind(node) == "linear" else 1,
        )
    return correctable


class _Correcting(Interpreter):
    """A prepared graph whose layers' sums are given the float network's statistics, each before the next one runs.

    `float_statistics`: mean and standard deviation per channel of each layer's output as reals, float64 [C], read as it
    runs.
    """

    def __init__(
        self,
        network: PreparedNetwork,
        layers: Mapping[str, _Layer],
        float_statistics: Mapping[str, tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(network.graph)
        self.layers, self.float_statistics = layers, float_statistics
        #: Factor and shift of a layer's output as reals, float64 [C].
        self.corrections: dict[str, tuple[Tensor, Tensor]] = {}

    def run_node(self, n: Node) -> Any:
        sums = super().run_node(n)
        if n.name not in self.layers:
            return sums
        layer, (reader,) = self.layers[n.name], n.users
        operation = self.submodules[str(reader.target)]
        assert isinstance(operation, (RequantiseProduct, RescaleProduct))
        unit = operation.unit(sums).double()
        mean, deviation = (value * unit for value in _statistics(sums, layer.axis))
        after = torch.zeros_like(mean)
        if len(reader.args) > 1:
            bias = reader.args[1]
            assert isinstance(bias, Node)
            after = self.env[bias].double()
        float_mean, float_deviation = self.float_statistics[n.name]
        factor = torch.ones_like(mean)
        if layer.weight is not None:
            factor = _factor(float_deviation, deviation)
        shift = float_mean - (mean + after) * factor
        self.corrections[n.name] = factor, shift
        # What is added behind the sums as it is must be multiplied as well.
        offset = (shift + after * (factor - 1)) / unit
        shape = (-1,) if layer.axis == -1 else (-1, *[1] * (sums.dim() - 2))
        factor, offset, put_right = factor.reshape(shape), offset.reshape(shape), torch.empty_like(sums)
        # Image by image: in double precision a whole batch of maps takes more memory than any cache has.
        for mine, image in zip(put_right, sums, strict=True):
            mine.copy_(image * factor + offset)
        return put_right


def _statistics(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    over = [dimension for dimension in range(values.dim()) if dimension != axis % values.dim()]
    variance, mean = torch.var_mean(values, over, correction=0)
    return mean.double(), variance.double().sqrt()


def _factor(float_deviation: Tensor, deviation: Tensor) -> Tensor:
    """What makes one standard deviation the other; 1 for channels that are switched off in either."""
    alive = (float_deviation > _SWITCHED_OFF * float_deviation.max()) & (deviation > _SWITCHED_OFF * deviation.max())
    return torch.where(alive, (float_deviation / deviation.clamp_min(1e-30)).clamp(_LEAST_FACTOR, _LARGEST_FACTOR), 1.0)
