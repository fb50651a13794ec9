"""Rounding with a straight-through gradient: the only custom derivatives of the project."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Requantise(torch.autograd.Function):
    """y = clamp(round(multiplier * x), lowest, highest), half to even.

    Gradients: rounding counts as the identity, so inside the grid dy/dx = multiplier and dy/dmultiplier = x; outside
    both are zero. Inside means, as in torch's fake quantisation, that the rounded value is on the grid, half a step
    more at each end than where Esser et al. clip. With multiplier = input scale x weight scale / output scale and
    the output's dequantisation behind it these are LSQ's gradients of all three scales (arXiv 1902.08153, equations
    1 to 3), in one reduction over the tensor. The passes are vectorised and in place: on a CPU several times faster
    than torch's learnable fake quantisation, whose kernels are scalar (tests/benchmarks/test_rounding_speed.py).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, multiplier: Tensor, lowest: int, highest: int) -> Tensor:
        ctx.save_for_backward(x, multiplier)
        ctx.bounds = (lowest - 0.5, highest + 0.5)
        return torch.mul(x, multiplier).round_().clamp_(lowest, highest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, multiplier = ctx.saved_tensors
        inside = _inside(gradients[0], torch.mul(x, multiplier), ctx.bounds)
        x_gradient = multiplier_gradient = None
        if ctx.needs_input_grad[1]:
            multiplier_gradient = torch.mul(inside, x).sum_to_size(multiplier.shape)
        if ctx.needs_input_grad[0]:
            x_gradient = inside.mul_(multiplier)
        return x_gradient, multiplier_gradient, None, None


class _RoundToGrid(torch.autograd.Function):
    """y = clamp(round(x), lowest, highest), half to even; gradient 1 inside the grid as of `_Requantise`, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lowest: int, highest: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = (lowest - 0.5, highest + 0.5)
        return x.round().clamp_(lowest, highest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _inside(gradients[0], ctx.saved_tensors[0], ctx.bounds), None, None


class _RequantiseSum(torch.autograd.Function):
    """y = clamp(round(a * first + b * second), lowest, highest): two tensors on grids of their own, added on a third.

    Gradients as of `_Requantise`: inside the grid dy/da = first, dy/dfirst = a, and likewise for b; zero outside.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, first: Tensor, second: Tensor, lowest: int, highest: int) -> Tensor:
        total = _weighted_sum(a, b, first, second)
        ctx.save_for_backward(a, b, first, second, total)
        ctx.bounds = (lowest - 0.5, highest + 0.5)
        return total.round().clamp_(lowest, highest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        a, b, first, second, total = ctx.saved_tensors
        inside = _inside(gradients[0], total, ctx.bounds)
        needs_a, needs_b, needs_first, needs_second, _, _ = ctx.needs_input_grad
        first_gradient = _inner_product(inside, a) if needs_first else None
        second_gradient = _inner_product(inside, b) if needs_second else None
        a_gradient = torch.mul(inside, first).sum_to_size(a.shape) if needs_a else None
        b_gradient = inside.mul_(second).sum_to_size(b.shape) if needs_b else None
        return a_gradient, b_gradient, first_gradient, second_gradient, None, None


def _inside(gradient: Tensor, unrounded: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The gradient where the unrounded value lies between the bounds, zero elsewhere: a new tensor, in one pass.

    It lies in memory as the value does, whatever layout the gradient comes in (that of a mean is one number, expanded):
    tensors of two layouts in one operation cost several times as much, and the wrong one would go on to the next.
    """
    masked = torch.empty_like(unrounded)
    torch.ops.aten.hardtanh_backward.grad_input(gradient, unrounded, *bounds, grad_input=masked)
    return masked


def _inner_product(first: Tensor, second: Tensor) -> Tensor:
    """The sum of products of two tensors, rank 0: without a temporary where both lie alike in memory."""
    if first.shape != second.shape or first.stride() != second.stride():
        return torch.mul(first, second).sum()
    # Axes in the order of storage: tensors that are dense in any memory format become flat views.
    strides = first.stride()
    order = sorted(range(first.dim()), key=lambda axis: -strides[axis])
    return torch.dot(first.permute(order).reshape(-1), second.permute(order).reshape(-1))


def _weighted_sum(a: Tensor, b: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Compute a * first + b * second as a new tensor, in one buffer where nothing is broadcast."""
    scaled = torch.mul(a, first)
    return scaled.addcmul_(b, second) if a.shape == b.shape else torch.addcmul(scaled, b, second)


def requantise(x: Tensor, multiplier: Tensor, lowest: int, highest: int) -> Tensor:
    """Rescale a float32 tensor of any shape and round it to integers in [lowest, highest] (held as float32).

    `multiplier` float32, positive, broadcasts to x's shape; its gradient is summed over the broadcast axes.
    """
    rounded: Tensor = _Requantise.apply(x, multiplier, lowest, highest)
    return rounded


def round_to_grid(x: Tensor, lowest: int, highest: int) -> Tensor:
    """Round a float32 tensor of any shape to integers in [lowest, highest] (held as float32)."""
    rounded: Tensor = _RoundToGrid.apply(x, lowest, highest)
    return rounded


def requantise_sum(a: Tensor, b: Tensor, first: Tensor, second: Tensor, lowest: int, highest: int) -> Tensor:
    """Round a * first + b * second to integers in [lowest, highest] (held as float32).

    a and b float32, broadcast against each other; `first` and `second` float32, rank 0, positive.
    """
    rounded: Tensor = _RequantiseSum.apply(a, b, first, second, lowest, highest)
    return rounded


def round_straight_through(x: Tensor) -> Tensor:
    """Round half to even with gradient 1 (Bengio et al., arXiv 1308.3432); x of any shape.

    The sum is exact: by Sterbenz's lemma the difference is, and its sum with x is an integer that has a float.
    """
    return x + (x.detach().round() - x.detach())


def sign(x: Tensor) -> Tensor:
    """-1 or 1, 0 counting as positive; the gradient is 1 in [-1, 1] and 0 outside (Hubara et al., arXiv 1602.02830)."""
    values = x.detach()
    # No clamp: whether its gradient passes at the very bounds depends on the version of torch.
    return torch.where(values >= 0, 1.0, -1.0) + (x - values) * (values.abs() <= 1)
