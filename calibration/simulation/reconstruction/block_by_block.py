"""Block by block, a rounded network is brought as near to its float one as integers, scales and biases allow.

Layers are rounded anew in the order in which they run, each to give what its float layer gives, of what the layers
before it really give by then (`least_squares`): no labels, no gradients, no learning rate. A block whose outputs did
not come nearer is left as it was. All is computed by the prepared network itself, in the arithmetic of the device; what
comes out is a prepared network with other weights, biases and weight scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node, map_arg

from calibration.graph.operators import argument, constant, is_tensor, kind, static_shape
from calibration.simulation.learned_grids import WeightGrid
from calibration.simulation.prepared import PreparedNetwork
from calibration.simulation.reconstruction.blocks import Block, blocks_of
from calibration.simulation.reconstruction.layer_products import KINDS, groups_of, products
from calibration.simulation.reconstruction.least_squares import Levels, round_by_least_squares
from calibration.simulation.reconstruction.moments import MomentSums
from calibration.simulation.reconstruction.part import Part
from calibration.simulation.reconstruction.reconstruction import Reconstruction

# Sums of more products have covariances that take gigabytes: such layers stay as they are.
_MOST_PRODUCTS = 4608
# Places that a covariance is read from: so many, or so many for each product in a sum where that is more [ours].
_PLACES, _PLACES_PER_PRODUCT = 4096, 8
# Of so many images one checks what the others say [ours].
_CHECKED_BY = 5
_LARGEST_HALF = torch.finfo(torch.half).max
# Images that go through a part at once.
_BATCH = 16


def bytes_per_image(folded: GraphModule, blocks: tuple[Block, ...]) -> int:
    """Memory that one image takes where the most is held of it: a block's inputs and outputs, of both networks."""
    sizes = {
        node.name: math.prod(abs(size) for size in static_shape(node)[1:])
        for node in folded.graph.nodes
        if is_tensor(node)
    }
    most = 0
    for block in blocks:
        # Two networks' inputs in half precision, the same of the outputs, which targets hold in single as well.
        most = max(most, 4 * sum(sizes[name] for name in block.inputs) + 8 * sum(sizes[name] for name in block.outputs))
    return 4 * sizes[blocks[0].inputs[0]] + most


@dataclass(frozen=True, kw_only=True)
class BlockChange:
    """Squared error of a block's outputs over their variance, summed over outputs, with what went on and what was."""

    before: float
    after: float
    layers: int
    """That were rounded anew; 0 where the block was left as it was."""


@final
class Reconstructing:
    """A prepared network, changed in place, and what its next block reads.

    `folded`: the float graph that it was made from. `images`: normalised, float32 [N, C, H, W]. Blocks come in order.
    """

    def __init__(self, network: PreparedNetwork, folded: GraphModule, images: Tensor) -> None:
        self.network, self.folded = network.eval(), folded
        self.blocks = blocks_of(folded, network)
        self._nodes = {node.name: node for node in folded.graph.nodes}
        self._results = _names_of_results(folded, network.graph)
        self._layers = self._to_be_rounded()
        self._changed = list[_Layer]()
        checks = torch.arange(len(images)) % _CHECKED_BY == min(_CHECKED_BY, len(images)) - 1
        # Images that integers are found by, and those that check; a single one must serve for both.
        self._sides = (~checks if len(images) > 1 else checks, checks)
        first = self.blocks[0].inputs[0]
        #: By tensor, what the next block reads: integers, and the float tensor in steps of the same grid.
        self._rounded: Mapping[str, Tensor] = {first: images}
        self._float: Mapping[str, Tensor] = {first: images}

    @torch.no_grad()
    def reconstruct(self, block: Block, generator: torch.Generator) -> BlockChange:
        """Round a block's layers anew, and pass it; the generator draws places in its maps."""
        part, targets = self._part(block), self._targets(block)
        before, kept = self._error(block, part, targets), list[tuple[Tensor, Tensor]]()
        layers, rounded = [self._layers[name] for name in block.layers if name in self._layers], list[_Layer]()
        for layer in layers:
            changing = (*layer.constants().values(), layer.grid.log_scale)
            kept += [(tensor, tensor.clone()) for tensor in changing]
            if self._round(layer, block, generator):
                rounded.append(layer)
        after = self._error(block, part, targets)
        if after < before:
            self._changed += rounded
        else:
            for tensor, value in kept:
                tensor.copy_(value)
        self._hand_on(block, part, targets)
        return BlockChange(before=before, after=min(after, before), layers=len(rounded) if after < before else 0)

    def changes(self) -> Reconstruction:
        """What blocks so far have changed."""
        constants, scales = dict[str, Tensor](), dict[str, Tensor]()
        for layer in self._changed:
            constants |= {path: tensor.detach().clone() for path, tensor in layer.constants().items()}
            scales[layer.weight_path] = layer.grid.log_scale.detach().clone()
        return Reconstruction(constants=constants, scales=scales)

    # Layers.

    def _to_be_rounded(self) -> dict[str, _Layer]:
        """The layers that least squares can round: with an integer weight of their own, and not too many products."""
        stored = [
            str(node.target)
            for placement in self.network.plan.weights
            for node in (self._nodes[placement.layer].args[1], argument(self._nodes[placement.layer], 2, "bias"))
            if isinstance(node, Node)
        ]
        layers = dict[str, _Layer]()
        for placement in self.network.plan.weights:
            node = self._nodes[placement.layer]
            source, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
            one_bit, alone = placement.grid.bits == 1, placement.weight_only or placement.grid.block is not None
            if kind(node) not in KINDS or one_bit or alone:
                continue
            if not isinstance(source, Node) or source.name not in self.network.integers:
                continue
            paths = [
                str(value.target)
                if isinstance(value, Node)
                and isinstance(constant(self.folded, value), nn.Parameter)
                and stored.count(str(value.target)) == 1
                else None
                for value in (weight, bias)
            ]
            if paths[0] is None or self.folded.get_parameter(paths[0])[0].numel() > _MOST_PRODUCTS:
                continue
            layers[node.name] = _Layer(
                node=node,
                source=source.name,
                weight_path=paths[0],
                bias_path=paths[1],
                other_bias=self._other_bias(node) if paths[1] is None else None,
                graph=self.network.graph,
                grid=self.network.weight_grid(paths[0]),
            )
        return layers

    def _other_bias(self, node: Node) -> Tensor | None:
        """A bias that stays as it is, shaped to be taken from the layer's outputs, whose rest the weights must give."""
        bias = constant(self.folded, argument(node, 2, "bias"))
        return None if bias is None else bias.detach().reshape(-1, *[1] * (0 if kind(node) == "linear" else 2))

    def _round(self, layer: _Layer, block: Block, generator: torch.Generator) -> bool:
        """Round a layer anew; False where the nearest integers are better, and it stays as it is."""
        fitting, checking = (MomentSums(about_zero=layer.bias is None) for _ in range(2))
        per_image = math.ceil(max(_PLACES, _PLACES_PER_PRODUCT * layer.weight[0].numel()) / self._count)
        for rows, inputs, outputs in self._seen_by(layer, block):
            for side, own in zip((fitting, checking), (images[rows] for images in self._sides), strict=True):
                if own.any():
                    side.add(*products(layer.node, inputs[own], outputs[own], positions=per_image, generator=generator))
        groups, grid = groups_of(layer.node), layer.grid
        scale = grid.scale().detach()
        rounded = round_by_least_squares(
            fitting,
            checking,
            self.folded.get_parameter(layer.weight_path).detach().reshape(groups, -1, layer.weight[0].numel()),
            scale.expand(len(layer.weight)).reshape(groups, -1),
            Levels(lowest=grid.grid.quant_min, highest=grid.grid.quant_max, one_scale=grid.grid.channel_axis is None),
        )
        if rounded is None:
            return False
        fitted = rounded.scale.reshape(-1)
        grid.log_scale.copy_((fitted if scale.dim() else fitted[0]).log())
        layer.weight.copy_(grid.reals(rounded.integers.reshape(layer.weight.shape).float()))
        if layer.bias is not None:
            layer.bias.copy_(rounded.bias.reshape(-1))
        return True

    def _seen_by(self, layer: _Layer, block: Block) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Of which images what a layer reads, as reals, and what its float layer gives, batch by batch."""
        own = Part(self.folded, block.inputs, [layer.node.name])
        held = self.network.integers[layer.source]
        before = None
        if layer.source not in block.inputs or self._is_first(block):
            before = Part(self.network.graph, self._begins(block), [held])
        step = self.network.tensor_grids[layer.source].scale().detach()
        for rows in self._rows():
            integers = (
                self._rounded[layer.source][rows].float() if before is None else before(*self._read(block, rows))[0]
            )
            (outputs,) = own(*self._read_float(block, rows))
            yield rows, integers * step, outputs if layer.other_bias is None else outputs - layer.other_bias

    # Values.

    @property
    def _count(self) -> int:
        return len(next(iter(self._float.values())))

    def _rows(self) -> Iterator[slice]:
        return (slice(begin, begin + _BATCH) for begin in range(0, self._count, _BATCH))

    def _is_first(self, block: Block) -> bool:
        return block is self.blocks[0]

    def _begins(self, block: Block) -> list[str]:
        """The nodes of the prepared graph that a block begins behind: of integers, but for the images."""
        return [name if self._is_first(block) else self.network.integers[name] for name in block.inputs]

    def _part(self, block: Block) -> Part:
        """The block as the prepared network computes it, to integers where they go on, else to the reals of outputs."""
        held = self.network.integers
        ends = [held[name] if name in block.handed_on else self._results[name] for name in block.outputs]
        return Part(self.network.graph, self._begins(block), ends)

    def _read(self, block: Block, rows: slice) -> list[Tensor]:
        return [self._rounded[name][rows].float() for name in block.inputs]

    def _read_float(self, block: Block, rows: slice) -> list[Tensor]:
        values = [self._float[name][rows].float() for name in block.inputs]
        if self._is_first(block):
            return values
        grids = [self.network.tensor_grids[name] for name in block.inputs]
        return [value * grid.scale() for value, grid in zip(values, grids, strict=True)]

    def _targets(self, block: Block) -> list[Tensor]:
        """What the float block gives of the float tensors, as reals, float32 [N, ...]."""
        part = Part(self.folded, block.inputs, block.outputs)
        return _joined(part(*self._read_float(block, rows)) for rows in self._rows())

    def _error(self, block: Block, part: Part, targets: list[Tensor]) -> float:
        missing = torch.zeros(len(targets), dtype=torch.float64)
        for rows in self._rows():
            for index, (name, output) in enumerate(zip(block.outputs, part(*self._read(block, rows)), strict=True)):
                real = output * self.network.tensor_grids[name].scale() if name in block.handed_on else output
                missing[index] += (real - targets[index][rows]).double().square().sum()
        spread = [float(target.double().var(correction=0)) * target.numel() for target in targets]
        return sum(float(one) / max(over, 1e-30) for one, over in zip(missing, spread, strict=True))

    def _hand_on(self, block: Block, part: Part, targets: list[Tensor]) -> None:
        """Compute what is alive behind the block as it is now."""
        if not block.handed_on:
            return
        made = _joined(tuple(value.half() for value in part(*self._read(block, rows))) for rows in self._rows())
        rounded, real = dict(self._rounded), dict(self._float)
        for name, values, target in zip(block.outputs, made, targets, strict=True):
            if name in block.handed_on:
                rounded[name] = values
                # In steps of its grid half precision holds integers as they are, and reals to a small part of a step.
                steps = target / self.network.tensor_grids[name].scale()
                real[name] = steps.clamp(-_LARGEST_HALF, _LARGEST_HALF).half()
        self._rounded = {name: rounded[name] for name in block.handed_on}
        self._float = {name: real[name] for name in block.handed_on}


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer of the folded graph, the tensor that it reads, and where what is rounded anew is stored."""

    node: Node
    source: str
    weight_path: str
    bias_path: str | None
    other_bias: Tensor | None
    graph: GraphModule
    grid: WeightGrid

    @property
    def weight(self) -> nn.Parameter:
        """The prepared network's."""
        return self.graph.get_parameter(self.weight_path)

    @property
    def bias(self) -> nn.Parameter | None:
        """The prepared network's, where it has one of its own."""
        return None if self.bias_path is None else self.graph.get_parameter(self.bias_path)

    def constants(self) -> dict[str, Tensor]:
        """Weight and bias by path."""
        paths = [path for path in (self.weight_path, self.bias_path) if path is not None]
        return {path: self.graph.get_parameter(path) for path in paths}


def _joined(batches: Iterator[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(values) for values in zip(*batches, strict=True)]


def _names_of_results(folded: GraphModule, graph: GraphModule) -> dict[str, str]:
    """The node of a prepared graph that gives each output of the folded one, as the reals that users are given."""
    names = list[list[str]]()
    for module in (folded, graph):
        output, own = next(node for node in module.graph.nodes if node.op == "output"), list[Node]()
        map_arg(output.args[0], own.append)
        names.append([node.name for node in own])
    return dict(zip(*names, strict=True))
