"""Sums of integer products must fit int32: what a layer of given weights may reach, before training and behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule, Node

from calibration.arithmetic.integer_products import LARGEST_ACTIVATION
from calibration.errors import UserError
from calibration.graph.operators import argument, constant, output_groups
from calibration.grid import Grid, broadcast_scale
from calibration.plan import Plan
from calibration.ranges.observers import weight_scale

INT32_MAX = 2**31 - 1


def check_first_sums(graph_module: GraphModule, plan: Plan) -> None:
    """Refuse a layer whose weights, rounded as they are, could leave int32: known from shapes and weights alone.

    Raises UserError naming the layer, how many products each output adds, and how many are sure to fit.
    """
    nodes = {node.name: node for node in graph_module.graph.nodes}
    for placement in plan.weights:
        layer, grid = nodes[placement.layer], placement.grid
        weight = constant(graph_module, argument(layer, 1, "weight"))
        if placement.weight_only or weight is None or grid.block is not None:
            continue
        added = weight.numel() // max(weight.shape[grid.channel_axis or 0], 1)
        fitting = INT32_MAX // (LARGEST_ACTIVATION * grid.quant_max)
        if added <= fitting:
            continue
        reached = int(_largest_sums(_first_integers(weight.detach(), grid), grid.channel_axis).max())
        if reached > INT32_MAX:
            raise UserError(
                f"{layer.name}: each of its outputs adds {added} products, which at {grid.bits} bits may reach"
                f" {reached}, beyond int32's {INT32_MAX}; {fitting} are sure to fit: quantise it to fewer bits, or"
                " split it into layers whose outputs are added, in a builder given as --teacher"
                " python:package.module:function"
            )


def check_sums(layer: Node, weight: NDArray[Any], axis: int | None, bias: NDArray[Any] | None) -> None:
    """Refuse a layer whose largest possible sum leaves int32: its integers, and those of its bias where it has any.

    `axis`: of the weight's output channels. Raises UserError naming the layer.
    """
    sums = _largest_sums(weight, axis)
    if bias is not None:
        sums = np.tile(sums, output_groups(layer)) + np.abs(bias.astype(np.int64))
    if int(sums.max()) > INT32_MAX:
        raise UserError(
            f"{layer.name}: its integer sums may reach {int(sums.max())}, beyond int32's {INT32_MAX};"
            " quantise it to fewer bits or split it"
        )


def _largest_sums(integers: NDArray[Any], axis: int | None) -> NDArray[np.int64]:
    """Of each output channel, int64 [C], for inputs that are all as large as integers can be."""
    channels = np.moveaxis(integers.astype(np.int64), axis or 0, 0)
    sums: NDArray[np.int64] = np.abs(channels).reshape(channels.shape[0], -1).sum(1) * LARGEST_ACTIVATION
    return sums


def _first_integers(weight: torch.Tensor, grid: Grid) -> NDArray[Any]:
    scale = broadcast_scale(weight_scale(weight, grid), grid.channel_axis, weight.dim())
    integers: NDArray[Any] = (weight / scale).round_().clamp_(grid.quant_min, grid.quant_max).cpu().numpy()
    return integers
