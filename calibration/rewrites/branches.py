"""Parallel convolutions of one tensor whose outputs are added become one convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from calibration.graph.operators import argument, constant, kind, pair, static_shape, tensor_inputs
from calibration.rewrites.affine import owns_weight, set_constants

# Multiplications of the merged kernel over those of its parts: merging may not make a network slower.
_MOST_WORK = 1.01


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """One summand: weight [O, I / groups, kh, kw] and bias [O], float64; `layer` None for the tensor itself."""

    layer: Node | None
    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])


def merge_branches(graph_module: GraphModule, addition: Node) -> None:
    """Make one convolution of an addition of two convolutions of the same tensor, or of one and the tensor itself.

    Networks such as RepVGG, MobileOne and FastViT are trained in this form and run in the other; the merged weight
    holds the sum of all, padded to the largest kernel. Left alone where it would take more multiplications.
    """
    terms = tensor_inputs(addition)
    if len(terms) != 2 or len(addition.args) != 2 or terms[0] is terms[1]:
        return
    source = _common_source(terms)
    if source is None:
        return
    branches = [_branch(graph_module, term, source) for term in terms]
    first, second = branches
    if first is None or second is None:
        return
    if first.layer is None or (second.layer is not None and math.prod(second.kernel) > math.prod(first.kernel)):
        first, second = second, first
    layer, merged = first.layer, _merged(first, second)
    if layer is None or merged is None or static_shape(layer) != static_shape(addition):
        return
    set_constants(graph_module, layer, merged.weight.float(), merged.bias.float())
    layer.args = (*layer.args[:3], list(merged.stride), list(merged.padding), [1, 1], merged.groups)
    addition.replace_all_uses_with(layer)
    graph_module.graph.erase_node(addition)
    if second.layer is not None:
        graph_module.graph.erase_node(second.layer)


def _common_source(terms: list[Node]) -> Node | None:
    """The tensor that both terms convolve, or that one is and the other convolves."""
    sources = [term.args[0] if kind(term) == "conv" and len(term.users) == 1 else None for term in terms]
    if sources[0] is not None and sources[0] is sources[1]:
        source = sources[0]
    elif sources[0] is terms[1]:
        source = terms[1]
    elif sources[1] is terms[0]:
        source = terms[0]
    else:
        return None
    return source if isinstance(source, Node) else None


def _branch(graph_module: GraphModule, term: Node, source: Node) -> _Branch | None:
    """A term as a convolution; None where it cannot take part."""
    if term is source:
        channels = static_shape(source)[1]
        identity = torch.ones(channels, 1, 1, 1, dtype=torch.float64)
        bias = torch.zeros(channels, dtype=torch.float64)
        return _Branch(layer=None, weight=identity, bias=bias, stride=(1, 1), padding=(0, 0), groups=channels)
    padding, weight = argument(term, 4, "padding", 0), constant(graph_module, term.args[1])
    if isinstance(padding, str) or weight is None or not owns_weight(term) or term.kwargs:
        return None
    if pair(argument(term, 5, "dilation", 1)) != (1, 1):
        return None
    stored = constant(graph_module, argument(term, 2, "bias"))
    return _Branch(
        layer=term,
        weight=weight.detach().double(),
        bias=torch.zeros(len(weight), dtype=torch.float64) if stored is None else stored.detach().double(),
        stride=pair(argument(term, 3, "stride", 1)),
        padding=pair(padding),
        groups=int(argument(term, 6, "groups", 1)),
    )


def _merged(first: _Branch, second: _Branch) -> _Branch | None:
    """The convolution that computes the sum of two, or None where there is none that pays."""
    groups = math.gcd(first.groups, second.groups)
    inputs = first.weight.shape[1] * first.groups
    if first.stride != second.stride or inputs != second.weight.shape[1] * second.groups:
        return None
    kernel = tuple(max(sizes) for sizes in zip(first.kernel, second.kernel, strict=True))
    padding = tuple(max(sizes) for sizes in zip(first.padding, second.padding, strict=True))
    weight = torch.zeros(len(first.weight), inputs // groups, *kernel, dtype=torch.float64)
    work = sum(branch.weight.numel() for branch in (first, second) if branch.layer is not None)
    if weight.numel() > _MOST_WORK * work or len(first.weight) != len(second.weight):
        return None
    for branch in (first, second):
        top, left = (whole - own for whole, own in zip(padding, branch.padding, strict=True))
        height, width = branch.kernel
        if top + height > kernel[0] or left + width > kernel[1]:
            return None
        rows, columns = len(branch.weight) // branch.groups, branch.weight.shape[1]
        for group in range(branch.groups):
            outputs = slice(group * rows, (group + 1) * rows)
            start = group * columns - (group * rows * groups // len(weight)) * (inputs // groups)
            window = weight[outputs, start : start + columns, top : top + height, left : left + width]
            window += branch.weight[outputs]
    return _Branch(
        layer=first.layer,
        weight=weight,
        bias=first.bias + second.bias,
        stride=first.stride,
        padding=padding,
        groups=groups,
    )
