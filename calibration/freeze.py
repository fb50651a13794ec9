"""A trained prepared graph becomes data: integers, scales and zero points, as they will stand in the artifact."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Node

from calibration.errors import UserError
from calibration.operators import constant, shape
from calibration.plan import Plan
from calibration.prepared import PreparedNetwork
from calibration.quantisers import BiasIntegers

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class FrozenActivation:
    """Scale (float32, rank 0) and zero point of one rounded tensor."""

    scale: NDArray[np.float32]
    zero_point: int
    signed: bool


@dataclass(frozen=True, kw_only=True)
class FrozenConstant:
    """Integers of a weight (int8) or bias (int32) and their scale, float32 [C] or rank 0; `bits` of the grid."""

    integers: NDArray[Any]
    scale: NDArray[np.float32]
    axis: int | None
    bits: int


@dataclass(frozen=True, kw_only=True)
class FrozenNetwork:
    """A folded graph with its trained float constants, the plan, and every integer that the plan asks for."""

    graph_module: GraphModule
    plan: Plan
    activations: Mapping[str, FrozenActivation]
    weights: Mapping[str, FrozenConstant]
    biases: Mapping[str, FrozenConstant]


def freeze(prepared: PreparedNetwork, folded: GraphModule) -> FrozenNetwork:
    """Read the integers out of a prepared graph; `folded` is the graph that it was made from.

    Raises UserError when a layer's sums could leave int32, naming the layer.
    """
    prepared = copy.deepcopy(prepared).cpu().eval()
    plan = prepared.plan
    trained = copy.deepcopy(folded)
    learned = dict(prepared.graph.named_parameters()) | dict(prepared.graph.named_buffers())
    with torch.no_grad():
        for name, parameter in [*trained.named_parameters(), *trained.named_buffers()]:
            parameter.copy_(learned[name])
        activations = {placement.tensor: _activation(prepared, placement.group) for placement in plan.activations}
        nodes = {node.name: node for node in trained.graph.nodes}
        weights: dict[str, FrozenConstant] = {}
        biases: dict[str, FrozenConstant] = {}
        for placement in plan.weights:
            layer = nodes[placement.layer]
            weights[layer.name] = _weight(prepared, trained, layer)
            if placement.integer_bias and len(layer.args) > 2 and isinstance(layer.args[2], Node):
                biases[layer.name] = _bias(prepared, trained, layer)
            _check_sums(layer, weights[layer.name], biases.get(layer.name))
    return FrozenNetwork(graph_module=trained, plan=plan, activations=activations, weights=weights, biases=biases)


def _activation(prepared: PreparedNetwork, group: str) -> FrozenActivation:
    grid = prepared.activation_grid(group)
    return FrozenActivation(
        scale=grid.scale().numpy().astype(np.float32), zero_point=int(grid.zero_point), signed=grid.grid.signed
    )


def _integers(values: Tensor, kind: type[np.generic]) -> NDArray[Any]:
    return values.round().double().numpy().astype(kind)


def _weight(prepared: PreparedNetwork, trained: GraphModule, layer: Node) -> FrozenConstant:
    assert isinstance(layer.args[1], Node)
    grid, weight = prepared.weight_grid(str(layer.args[1].target)), constant(trained, layer.args[1])
    assert weight is not None
    return FrozenConstant(
        integers=_integers(grid(weight), np.int8),
        scale=grid.scale().numpy().astype(np.float32),
        axis=grid.grid.channel_axis,
        bits=grid.grid.bits,
    )


def _bias(prepared: PreparedNetwork, trained: GraphModule, layer: Node) -> FrozenConstant:
    module, bias = prepared.graph.get_submodule(f"{layer.name}_bias"), constant(trained, layer.args[2])
    assert isinstance(module, BiasIntegers) and bias is not None
    integers, scale = module(bias), module.scale()
    if float(integers.abs().max()) > _INT32_MAX:
        raise UserError(f"{layer.name}: its bias does not fit int32 at the scale of its input and weight; keep it float")
    return FrozenConstant(
        integers=_integers(integers, np.int32),
        scale=scale.numpy().astype(np.float32),
        axis=0 if scale.dim() else None,
        bits=32,
    )


def _check_sums(layer: Node, weight: FrozenConstant, bias: FrozenConstant | None) -> None:
    """Refuse a layer whose largest possible sum leaves int32 (255 is the widest centred activation)."""
    axis = weight.axis or 0
    sums = np.abs(np.moveaxis(weight.integers.astype(np.int64), axis, 0)).reshape(weight.integers.shape[axis], -1).sum(1)
    largest = int(sums.max()) * 255 + (0 if bias is None else int(np.abs(bias.integers.astype(np.int64)).max()))
    if largest > _INT32_MAX:
        raise UserError(f"{layer.name}: its integer sums may reach {largest}, beyond int32, for an output of {shape(layer)}")
