"""Rounding with a straight-through gradient: the only custom derivatives of the project."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Requantise(torch.autograd.Function):
    """y = clamp(round(multiplier * x), lowest, highest), half to even.

    Gradients: rounding counts as the identity, so inside the grid dy/dx = multiplier and dy/dmultiplier = x; outside
    both are zero. With multiplier = input scale x weight scale / output scale this is exactly LSQ's gradient for all
    three scales (Esser et al., arXiv 1902.08153, equations 1 to 3), in one reduction over the tensor. The passes are
    vectorised and in place: on a CPU several times faster than torch's learnable fake quantisation, whose kernels
    are scalar (tests/benchmarks/test_rounding_speed.py).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, multiplier: Tensor, lowest: int, highest: int) -> Tensor:
        ctx.save_for_backward(x, multiplier)
        ctx.bounds = (lowest - 0.5, highest + 0.5)
        return torch.mul(x, multiplier).round_().clamp_(lowest, highest)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, multiplier = ctx.saved_tensors
        lowest, highest = ctx.bounds
        # One pass: the gradient where multiplier * x lies inside the grid, zero elsewhere.
        inside = torch.ops.aten.hardtanh_backward(gradients[0], torch.mul(x, multiplier), lowest, highest)
        multiplier_gradient = None
        if ctx.needs_input_grad[1]:
            multiplier_gradient = torch.mul(inside, x).sum_to_size(multiplier.shape)
        return inside.mul_(multiplier), multiplier_gradient, None, None


def requantise(x: Tensor, multiplier: Tensor, lowest: int, highest: int) -> Tensor:
    """Rescale a float32 tensor of any shape and round it to integers in [lowest, highest] (held as float32).

    `multiplier` float32, positive, broadcasts against x; its gradient is summed over the broadcast axes.
    """
    rounded: Tensor = _Requantise.apply(x, multiplier, lowest, highest)  # type: ignore[no-untyped-call]
    return rounded


class _RequantiseSum(torch.autograd.Function):
    """y = clamp(round(a * first + b * second)): the addition of two tensors on grids of their own, then rounding."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, first: Tensor, second: Tensor, lowest: int, highest: int) -> Tensor:
        ctx.save_for_backward(a, b, first, second)
        ctx.bounds = (lowest - 0.5, highest + 0.5)
        return torch.mul(a, first).addcmul_(b, second).round_().clamp_(lowest, highest)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        a, b, first, second = ctx.saved_tensors
        total = torch.mul(a, first).addcmul_(b, second)
        inside = torch.ops.aten.hardtanh_backward(gradients[0], total, *ctx.bounds)
        first_gradient = second_gradient = None
        if ctx.needs_input_grad[2]:
            first_gradient, second_gradient = torch.mul(inside, a).sum(), torch.mul(inside, b).sum()
        return (
            torch.mul(inside, first).sum_to_size(a.shape),
            inside.mul_(second).sum_to_size(b.shape),
            first_gradient,
            second_gradient,
            None,
            None,
        )


def requantise_sum(a: Tensor, b: Tensor, first: Tensor, second: Tensor, lowest: int, highest: int) -> Tensor:
    """Round a * first + b * second to integers in [lowest, highest]; `first`, `second` rank 0, a and b broadcast."""
    rounded: Tensor = _RequantiseSum.apply(a, b, first, second, lowest, highest)  # type: ignore[no-untyped-call]
    return rounded


def round_straight_through(x: Tensor) -> Tensor:
    """Round half to even with gradient 1 (Bengio et al., arXiv 1308.3432)."""
    return x + (x.detach().round() - x.detach())
