"""Weights rounded so that a layer's outputs come nearest, not its weights: least squares over integers, in closed form.

Rounding one weight leaves an error that the weights which are still real can make good in part; they are rounded one
after the other, each error at once passed on to those behind it, which the inverse covariance of the layer's inputs
says how to do (Frantar and others, Optimal Brain Compression, arXiv 2208.11580, and GPTQ, arXiv 2210.17323: there for
the float layer's own inputs). Ours: the outputs to come near to are those of the float network, the inputs those that
the rounded layers before it give, so that a layer answers for what they left; the mean is left to the bias and
covariances are about it, without which coherent roundings of positive inputs add up; and the scale of each channel is
fitted to its integers before they are found a second time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.simulation.reconstruction.moments import Moments

# Weight of staying at the float weights where few images tell little, in parts of the mean variance of inputs [ours].
_DAMPING = 0.01
# Rounds of integers and scales, and how far a fitted scale may be from that of the grid before [ours].
_ROUNDS, _LARGEST_CHANGE = 2, 2.0


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """What a layer becomes, all float64: `integers` [G, O, K], `scale` and `bias` [G, O].

    `error`: squared, of its outputs over their variance.
    """

    integers: Tensor
    scale: Tensor
    bias: Tensor
    error: float


def round_by_least_squares(
    moments: Moments, weight: Tensor, scale: Tensor, *, lowest: int, highest: int, one_scale: bool = False
) -> Rounded:
    """Integers for a weight [G, O, K] and what they stand for.

    `scale`, [G, O], positive: to begin with. `one_scale`: all channels share theirs, and go on sharing it.
    """
    weight, scale = weight.double(), scale.double()
    covariance, cross = moments.covariance, moments.cross
    size = covariance.shape[-1]
    damping = (_DAMPING * covariance.diagonal(dim1=1, dim2=2).mean(1)).clamp_min(SMALLEST_SCALE**2)
    damped = covariance + damping[:, None, None] * torch.eye(size, dtype=covariance.dtype)
    # Where the real weights would be that answer for the inputs as they are.
    best = torch.linalg.solve(damped, cross + damping[:, None, None] * weight.transpose(1, 2)).transpose(1, 2)
    integers = torch.zeros_like(best)
    first = scale
    for _ in range(_ROUNDS):
        integers = _round_one_by_one(best, scale, damped, lowest, highest)
        scale = _fitted(integers, moments, first, one_scale=one_scale)
    bias = moments.mean_outputs - scale * torch.einsum("gok,gk->go", integers, moments.mean_factors)
    return Rounded(integers=integers, scale=scale, bias=bias, error=_error(integers, scale, moments))


def _round_one_by_one(best: Tensor, scale: Tensor, damped: Tensor, lowest: int, highest: int) -> Tensor:
    """Integers [G, O, K] of real weights, the inputs that vary most first, as their errors cost most."""
    order = damped.diagonal(dim1=1, dim2=2).argsort(stable=True, dim=1, descending=True)
    rows = torch.gather(damped, 1, order[:, :, None].expand_as(damped))
    ordered = torch.gather(rows, 2, order[:, None, :].expand_as(damped))
    # Row k of it: by how much an error in weight k is to be passed on to each of those behind it.
    passes = torch.linalg.cholesky(torch.linalg.inv(ordered), upper=True)
    left = torch.gather(best, 2, order[:, None, :].expand_as(best))
    integers = torch.zeros_like(left)
    for index in range(left.shape[-1]):
        integers[:, :, index] = (left[:, :, index] / scale).round().clamp(lowest, highest)
        error = (left[:, :, index] - integers[:, :, index] * scale) / passes[:, index, index, None]
        left[:, :, index + 1 :] -= error[:, :, None] * passes[:, None, index, index + 1 :]
    return torch.zeros_like(integers).scatter_(2, order[:, None, :].expand_as(integers), integers)


def _fitted(integers: Tensor, moments: Moments, first: Tensor, *, one_scale: bool) -> Tensor:
    """The scales by which integers come nearest, [G, O]; the first where they say nothing of it."""
    along = torch.einsum("gok,gko->go", integers, moments.cross)
    power = torch.einsum("gok,gkl,gol->go", integers, moments.covariance, integers)
    if one_scale:
        along, power = (total.sum().expand_as(total) for total in (along, power))
    fitted = along / power.clamp_min(SMALLEST_SCALE**2)
    believed = (power > 0) & (fitted > first / _LARGEST_CHANGE) & (fitted < first * _LARGEST_CHANGE)
    return torch.where(believed, fitted, first)


def _error(integers: Tensor, scale: Tensor, moments: Moments) -> float:
    """Mean square of what is missing, the bias at its best, over the outputs' variance."""
    weights = integers * scale[:, :, None]
    along = torch.einsum("gok,gko->go", weights, moments.cross)
    power = torch.einsum("gok,gkl,gol->go", weights, moments.covariance, weights)
    missing = moments.variance - 2 * along + power
    return float(missing.clamp_min(0).mean() / moments.variance.mean().clamp_min(SMALLEST_SCALE**2))
