"""Normalised training: each convolution learns with its sums normalised over the batch, as a BatchNorm would do it.

A folded network learns slowly below 4 bits. Here the folded layer's output passes a normalisation with a gain and an
offset of its own, which begin as the float output's spread and mean, as those of a BatchNorm that was kept; after
training they are folded into weight, bias and weight scale, with statistics read anew from images. A factor per channel
commutes with a weight grid that has a scale per channel: the integers are those that were trained. Ours; for networks
that had a BatchNorm behind every convolution it is training with BatchNorm and folding at the end.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from calibration.arithmetic.rounding import requantise
from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.graph.operators import argument, constant, kind
from calibration.graph.sharing import sharing_copy
from calibration.graph.watching import Watching
from calibration.grid import broadcast_scale
from calibration.plan import WeightPlacement
from calibration.simulation.operations import RequantiseProduct, RescaleProduct
from calibration.simulation.prepared import OPERATIONS, PreparedNetwork

# Added to a variance before its root: of sums in steps of the output, far below what rounding adds.
_EPSILON = 1e-5
# As when a network is prepared, a folded bias may take this much of int32, which leaves a factor of eight [ours].
_LARGEST_BIAS = 2.0**28


class _Moments:
    """Count, sum and sum of squares per channel of what it is shown, float64."""

    def __init__(self) -> None:
        self._count, self._total, self._squares = 0.0, torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Look at values [B, C, H, W]."""
        real, axes = values.double(), (0, 2, 3)
        self._count += real.numel() / real.shape[1]
        self._total = self._total.to(real) + real.sum(axes)
        self._squares = self._squares.to(real) + real.square().sum(axes)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel, float64 [C] on the CPU."""
        mean = self._total / self._count
        return mean.cpu(), (self._squares / self._count - mean.square()).clamp_min(0).sqrt().cpu()


class Normalised(nn.Module):
    """What follows a layer's sums, with a normalisation over the batch before it; in evaluation, as without."""

    def __init__(
        self, name: str, operation: RequantiseProduct | RescaleProduct, bias: Tensor, *, bias_in_sums: bool
    ) -> None:
        super().__init__()
        self.name, self.operation, self.bias_in_sums = name, operation, bias_in_sums
        self.gain, self.offset = (nn.Parameter(torch.zeros_like(bias)) for _ in range(2))
        self.normalising = False
        #: Of the sums as reals, while somebody wants to know.
        self.watched: _Moments | None = None

    def forward(self, sums: Tensor, *bias: Tensor) -> Tensor:
        """Sums [B, C, H, W] to what the operation gives, or to the same of the normalised sums."""
        if self.watched is not None:
            self._watch(sums)
        if not (self.training and self.normalising):
            result: Tensor = self.operation(sums, *bias)
            return result
        normal = torch.nn.functional.batch_norm(sums, None, None, self.gain, self.offset, training=True, eps=_EPSILON)
        if isinstance(self.operation, RescaleProduct):
            return normal
        output = self.operation.output
        return requantise(normal, output.scale().reciprocal(), output.lowest, output.highest)

    def _watch(self, sums: Tensor) -> None:
        assert self.watched is not None
        with torch.no_grad():
            unit = self.operation.unit(sums).double()
            self.watched.add(sums.double() * (unit.reshape(-1, 1, 1) if unit.dim() else unit))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel of what was watched; ends the watch."""
        assert self.watched is not None
        statistics, self.watched = self.watched.statistics(), None
        return statistics


class Normalisation:
    """The normalisations of one network's convolutions: put in, begun, and folded away again.

    `network`: prepared, on its device; changed in place. `folded`: the graph that it was made from. Convolutions that
    share a weight, have no bias or one scale for all channels stay as they are, and so do those that are not trained.
    """

    def __init__(self, network: PreparedNetwork, folded: GraphModule) -> None:
        self.network, self._folded = network, folded
        self._layers: dict[tuple[str, str], Normalised] = {}  # by the paths of weight and bias
        nodes = {node.name: node for node in folded.graph.nodes}
        constants = {
            p.layer: (nodes[p.layer].args[1], argument(nodes[p.layer], 2, "bias")) for p in network.plan.weights
        }
        stored = [str(weight.target) for weight, _ in constants.values() if isinstance(weight, Node)]
        for placement in network.plan.weights:
            weight, bias = constants[placement.layer]
            if not isinstance(weight, Node) or not isinstance(bias, Node) or placement.grid.channel_axis != 0:
                continue
            trained = all(isinstance(constant(folded, value), nn.Parameter) for value in (weight, bias))
            if trained and kind(nodes[placement.layer]) == "conv" and stored.count(str(weight.target)) == 1:
                paths = str(weight.target), str(bias.target)
                self._layers[paths] = self._put_in(placement, network.graph.get_parameter(paths[1]))

    def _put_in(self, placement: WeightPlacement, bias: nn.Parameter) -> Normalised:
        operations = self.network.graph.get_submodule(OPERATIONS)
        for name in (f"{placement.layer}_requantise", f"{placement.layer}_rescale"):
            operation = getattr(operations, name, None)
            if isinstance(operation, (RequantiseProduct, RescaleProduct)):
                made = Normalised(placement.layer, operation, bias, bias_in_sums=placement.integer_bias)
                operations.add_module(name, made)
                bias.requires_grad_(False)  # the normalisation takes any constant away again
                return made.train(self.network.training)
        raise ValueError(f"nothing follows the sums of {placement.layer}")

    def begin(self, batches: Iterable[Tensor]) -> None:
        """Let gains and offsets be the spread and mean of the float layers' outputs for images [B, C, H, W].

        Not of the rounded ones: few bits move both far, and the normalisations put them right from the first step on.
        """
        floats = sharing_copy(self._folded).to(next(self.network.parameters()).device)
        moments = {layer.name: _Moments() for layer in self._layers.values()}
        watching = Watching(floats, moments, lambda name, values: moments[name].add(values))
        with torch.no_grad():
            for images in batches:
                watching.run(images)
        for layer in self._layers.values():
            mean, deviation = moments[layer.name].statistics()
            layer.gain.data.copy_(deviation)
            layer.offset.data.copy_(mean)
            layer.normalising = True

    def fold(self, plain: PreparedNetwork, batches: Iterable[Tensor]) -> PreparedNetwork:
        """The trained network without normalisations: `plain` is an untrained one of the same plan, filled in.

        `batches` are training images [B, C, H, W], from which the statistics are read anew.
        """
        self._watch(batches)
        own = self.network.state_dict()
        plain.load_state_dict({name: own[name] for name in plain.state_dict()})
        for (weight_path, bias_path), layer in self._layers.items():
            mean, deviation = layer.statistics()
            factor = layer.gain.detach().double().cpu() / deviation.clamp_min(_EPSILON)
            weight, bias = plain.graph.get_parameter(weight_path), plain.graph.get_parameter(bias_path)
            held = bias.detach().double().cpu() if layer.bias_in_sums else 0.0
            folded = layer.offset.detach().double().cpu() + (held - mean) * factor
            grid = plain.weight_grid(weight_path)
            # As when a network is prepared: a channel all but switched off must leave its bias room in int32.
            step = layer.operation.inputs.scale().detach().double().cpu()
            floor = (folded.abs() / (step * _LARGEST_BIAS)).clamp_min(SMALLEST_SCALE)
            scale = torch.maximum(grid.scale().detach().double().cpu() * factor.abs(), floor)
            weight.data.mul_(broadcast_scale(factor.float(), 0, weight.dim()).to(weight.device))
            bias.data.copy_(folded)
            grid.log_scale.data.copy_(scale.log())
        return plain

    def _watch(self, batches: Iterable[Tensor]) -> None:
        for layer in self._layers.values():
            layer.watched = _Moments()
        with torch.no_grad():
            for images in batches:
                self.network(images)
