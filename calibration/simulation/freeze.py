"""A trained prepared graph becomes data: integers, scales and zero points, as they will stand in the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Node

from calibration.errors import UserError
from calibration.graph.operators import argument, constant
from calibration.graph.sharing import sharing_copy
from calibration.plan import Plan
from calibration.simulation.prepared import PreparedNetwork
from calibration.simulation.sums import INT32_MAX, check_sums


@dataclass(frozen=True, kw_only=True)
class FrozenActivation:
    """Scale (float32, rank 0) and zero point of one rounded tensor."""

    scale: NDArray[np.float32]
    zero_point: int
    signed: bool


@dataclass(frozen=True, kw_only=True)
class FrozenConstant:
    """Integers of a weight (int8) or bias (int32) and their scale, float32 [C] or rank 0; in blocks [C, blocks].

    `axis` is the axis of the scale in `integers`, None for one scale in all; `bits` the width of the grid; `block`: so
    many neighbours on axis 1 have a scale of their own.
    """

    integers: NDArray[Any]
    scale: NDArray[np.float32]
    axis: int | None
    bits: int
    block: int | None = None


@dataclass(frozen=True, kw_only=True)
class FrozenNetwork:
    """A folded graph with its trained float constants, the plan, and every integer that the plan asks for.

    `activations` by tensor, `weights` and `biases` by layer.
    """

    graph_module: GraphModule
    plan: Plan
    activations: Mapping[str, FrozenActivation]
    weights: Mapping[str, FrozenConstant]
    biases: Mapping[str, FrozenConstant]


def freeze(prepared: PreparedNetwork, folded: GraphModule) -> FrozenNetwork:
    """Read the integers out of a prepared graph; `folded` is the graph that it was made from. Changes neither.

    Raises UserError when training has left a value that is not finite, or a layer's sums could leave int32, naming
    tensor or layer.
    """
    prepared = _to_read(prepared)
    plan, trained = prepared.plan, sharing_copy(folded).cpu()
    learned = dict(prepared.graph.named_parameters()) | dict(prepared.graph.named_buffers())
    weights: dict[str, FrozenConstant] = {}
    biases: dict[str, FrozenConstant] = {}
    with torch.no_grad():
        for name, value in [*trained.named_parameters(), *trained.named_buffers()]:
            value.data = _finite(learned[name], name)
        activations = {placement.tensor: _activation(prepared, placement.group) for placement in plan.activations}
        nodes = {node.name: node for node in trained.graph.nodes}
        for placement in plan.weights:
            layer = nodes[placement.layer]
            weights[layer.name] = _weight(prepared, trained, layer)
            if placement.integer_bias and argument(layer, 2, "bias") is not None:
                biases[layer.name] = _bias(prepared, trained, layer)
            if not placement.weight_only:
                weight, bias = weights[layer.name], biases.get(layer.name)
                check_sums(layer, weight.integers, weight.axis, None if bias is None else bias.integers)
    return FrozenNetwork(graph_module=trained, plan=plan, activations=activations, weights=weights, biases=biases)


def _to_read(prepared: PreparedNetwork) -> PreparedNetwork:
    """The network on the CPU in evaluation mode: itself where it is so, as copying takes most of the time."""
    tensors = [*prepared.parameters(), *prepared.buffers()]
    if all(tensor.is_cpu for tensor in tensors) and not any(part.training for part in prepared.modules()):
        return prepared
    return sharing_copy(prepared).cpu().eval()


def _finite(values: Tensor, name: str) -> Tensor:
    if not bool(values.isfinite().all()):
        raise UserError(f"{name}: training has left values there that are not finite; use a lower learning rate")
    return values


def _activation(prepared: PreparedNetwork, group: str) -> FrozenActivation:
    grid = prepared.activation_grid(group)
    scale = _finite(grid.scale(), f"the scale of {group}")
    return FrozenActivation(scale=scale.numpy(), zero_point=grid.zero, signed=grid.grid.signed)


def _integers(values: Tensor, kind: type[np.generic]) -> NDArray[Any]:
    return values.double().numpy().astype(kind)


def _weight(prepared: PreparedNetwork, trained: GraphModule, layer: Node) -> FrozenConstant:
    assert isinstance(layer.args[1], Node)
    grid, weight = prepared.weight_grid(str(layer.args[1].target)), constant(trained, layer.args[1])
    assert weight is not None
    scale = _finite(grid.scale(), f"the weight scale of {layer.name}")
    return FrozenConstant(
        integers=_integers(grid(weight), np.int8),
        scale=scale.numpy(),
        axis=grid.grid.channel_axis,
        bits=grid.grid.bits,
        block=grid.grid.block,
    )


def _bias(prepared: PreparedNetwork, trained: GraphModule, layer: Node) -> FrozenConstant:
    module, bias = prepared.bias_integers(layer.name), constant(trained, argument(layer, 2, "bias"))
    assert bias is not None
    integers, scale = module(bias), module.scale()
    if float(integers.abs().max()) > INT32_MAX:
        raise UserError(
            f"{layer.name}: its bias does not fit int32 at the scales of its input and weight, which training has"
            " made too small; use a lower learning rate for the scales"
        )
    axis = 0 if scale.dim() else None
    return FrozenConstant(integers=_integers(integers, np.int32), scale=scale.numpy(), axis=axis, bits=32)
