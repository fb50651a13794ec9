"""What the outputs of a layer are sums of products with: its inputs under the kernel, at positions drawn by chance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from calibration.graph.operators import argument, kind, pair, shape

#: Kinds of layers whose products are known here.
KINDS = frozenset({"conv", "linear"})


def groups_of(layer: Node) -> int:
    """How many groups a layer of one of these kinds has, each of which reads inputs of its own."""
    return int(argument(layer, 6, "groups", 1)) if kind(layer) == "conv" else 1


def products(
    layer: Node, inputs: Tensor, outputs: Tensor, *, positions: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The factors of a layer's weights, and what the outputs at the same places are to be.

    Args:
        layer: a node of kind conv or linear, of a folded graph.
        inputs: as reals, float32 [B, C, H, W], or [..., C] of a linear layer.
        outputs: that belong to them, float32 [B, O, H', W'] or [..., O].
        positions: so many of each image's, drawn anew for each; all where there are fewer.
        generator: that draws them.

    Returns:
        float32 [groups, N, inputs of a group under the kernel] in the order of a stored weight's axes, and float32
        [groups, N, outputs of a group].
    """
    if kind(layer) == "linear":
        rows = inputs.reshape(len(inputs), -1, inputs.shape[-1]), outputs.reshape(len(inputs), -1, outputs.shape[-1])
        chosen = [_draw(rows[0].shape[1], positions, generator) for _ in inputs]
        return tuple(torch.cat([one[place] for one, place in zip(side, chosen, strict=True)])[None] for side in rows)  # type: ignore[return-value]  # of two
    stride, padding, dilation = (
        pair(argument(layer, place, name, default))
        for place, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    weight = layer.args[1]
    assert isinstance(weight, Node)
    kernel, groups = tuple(int(size) for size in shape(weight)[2:]), groups_of(layer)
    padded = functional.pad(inputs, (padding[1], padding[1], padding[0], padding[0]))
    width = outputs.shape[-1]
    rows_of_kernel, columns_of_kernel = (torch.arange(size) * step for size, step in zip(kernel, dilation, strict=True))
    factors, targets = list[Tensor](), list[Tensor]()
    for image, result in zip(padded, outputs, strict=True):
        place = _draw(result[0].numel(), positions, generator)
        first_row, first_column = place // width * stride[0], place % width * stride[1]
        row = (first_row[:, None] + rows_of_kernel)[:, :, None].expand(-1, *kernel)
        column = (first_column[:, None] + columns_of_kernel)[:, None, :].expand(-1, *kernel)
        windows = image[:, row, column]  # [C, positions, kernel]
        factors.append(windows.transpose(0, 1).reshape(len(place), groups, -1))
        targets.append(result.flatten(1)[:, place].T.reshape(len(place), groups, -1))
    return torch.cat(factors).transpose(0, 1), torch.cat(targets).transpose(0, 1)


def _draw(places: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.arange(places) if places <= count else torch.randperm(places, generator=generator)[:count]
