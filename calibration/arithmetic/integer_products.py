"""Convolutions and matrix products of integers held as floats: exact, in float64 where float32 would round.

float32 holds every integer up to 2**24. While no sum of some of the products can pass that, no partial sum is ever
rounded, in whatever order a library adds, so a float kernel computes what an integer kernel does. In evaluation the
grids hand out float64 integers for a layer whose weights are too many to promise it. The functions here then look at
the data: by Cauchy and Schwarz the norms of weights and of inputs under the kernel bound every such sum, and real
images hardly ever come near 2**24. Only a batch that does is computed in float64 (four times as slow on a CPU). A bias
that is large does not make it one: few channels have such, and theirs is added to exact products in float64. In
training the rare rounding of so large a sum is not worth the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Integers up to here, and sums that stay below, are exact in float32.
EXACT_IN_FLOAT32 = 2**24

#: The part of it that is left to a layer's bias; its products have the rest.
EXACT_BIAS = 2**21

#: The largest magnitude of an 8-bit integer less its zero point.
LARGEST_ACTIVATION = 255

# The bound is computed in float32 itself: far more than its rounding.
_MARGIN = 1.001


def integer_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d` of integers: x [B, C, H, W] float32, weight [O, C/groups, kh, kw], bias [O]; float32."""

    def energies() -> Tensor:
        window = x.new_ones(1, 1, *weight.shape[2:])
        return torch.conv2d(x.square().sum(1, keepdim=True), window, None, stride, padding, dilation)

    return _product(torch.conv2d, x, weight, bias, (stride, padding, dilation, groups), energies, axis=1)


def integer_conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any) -> Tensor:
    """`torch.conv_transpose2d` of integers: x [B, C, H, W] float32, weight [C, O/groups, kh, kw]; float32."""
    return _product(torch.conv_transpose2d, x, weight, bias, settings, None, axis=1)


def integer_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` of integers: x [..., C] float32, weight [O, C], bias [O]; float32."""
    return _product(torch.nn.functional.linear, x, weight, bias, (), lambda: x.square().sum(-1), axis=-1)


def wide_matmul(first: Tensor, second: Tensor) -> Tensor:
    """`torch.matmul` of integers of two activations whose sums may pass 2**24; float32, rounded once."""
    return torch.matmul(first.double(), second.double()).to(first.dtype)


def exact_sums(
    products: Callable[[Tensor | None], Tensor], bias: Tensor | None, *, largest: float, axis: int
) -> Tensor:
    """Sums of products of integers and a bias [C] along an axis, float32: exact, beyond 2**24 rounded once.

    `products` multiplies in float32, adding a float32 bias; `largest`: below 2**24, what no sum of products passes.
    """
    if bias is None:
        return products(None)
    wide = bias.detach().abs() >= EXACT_IN_FLOAT32 - largest
    if not bool(wide.any()):
        return products(bias.float())
    sums = products(bias.masked_fill(wide, 0).float())
    channels = wide.nonzero().flatten()
    shape = [1] * sums.dim()
    shape[axis] = -1
    offset = bias.double().index_select(0, channels).reshape(shape)
    return sums.index_copy(axis, channels, (sums.index_select(axis, channels).double() + offset).to(sums.dtype))


def _product(
    operator: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    settings: tuple[Any, ...],
    energies: Callable[[], Tensor] | None,
    *,
    axis: int,
) -> Tensor:
    """Apply an operator in float32 where that is exact, else in float64; `axis`: that of the output's channels.

    `energies` gives the sums of squares of the inputs that meet in an output, at least; None: not known.
    """
    if weight.dtype != torch.float64 and (bias is None or bias.dtype != torch.float64):
        return operator(x, weight, bias, *settings)
    largest = float("inf")
    if weight.dtype != torch.float64:
        largest = EXACT_IN_FLOAT32 - EXACT_BIAS  # that is what weights in float32 promise
    elif energies is not None:
        with torch.no_grad():
            largest = float(weight.flatten(1).norm(dim=1).max() * energies().max().sqrt()) * _MARGIN
    if largest < EXACT_IN_FLOAT32:
        narrow = weight.to(x.dtype)
        return exact_sums(lambda offset: operator(x, narrow, offset, *settings), bias, largest=largest, axis=axis)
    result = operator(x.double(), weight.double(), None if bias is None else bias.double(), *settings)
    return result.to(x.dtype)
