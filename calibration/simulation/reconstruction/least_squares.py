"""Weights rounded so that a layer's outputs come nearest, not its weights: least squares over integers.

Rounding one weight leaves an error that the weights which are still real can make good in part; they are rounded one
after the other, each error at once passed on to those behind it, which the inverse covariance of the layer's inputs
says how to do (Frantar and others, Optimal Brain Compression, arXiv 2208.11580, and GPTQ, arXiv 2210.17323: there for
the float layer's own inputs). Ours: the outputs to come near to are those of the float network, the inputs those that
the rounded layers before it give, so that a layer answers for what they left; the mean is left to the bias and
covariances are about it, without which coherent roundings of positive inputs add up; the scale of each channel is
fitted to its integers, and single integers are moved for as long as one that moves brings the outputs nearer.

Few images tell little of many inputs: believed to the letter, two hundred photographs are copied perfectly and others
worse than by the nearest integers. How far the layer may leave its float weights, and how far rounding may rely on
covariances, is therefore chosen by images that had no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.simulation.reconstruction.moments import Moments, MomentSums

_Reals = NDArray[np.float64]

# What is tried, each in parts of the mean variance of inputs: weight of staying at the float weights, and what is added
# to every input's variance where errors are passed on [ours].
_STAYING = (0.01, 0.1, 1.0, 10.0, 100.0)
_DAMPING = (0.03, 0.3, 3.0)
# Finer grids than this leave errors that need not be passed on [ours].
_FINE_LEVELS = 128
# How far a fitted scale may be from that of the grid before [ours].
_LARGEST_CHANGE = 2.0
# Rounds of scales and integers, and passes over the integers in each; one round tells which damping is best [ours].
_ROUNDS, _PASSES = 2, 2
# Columns that are rounded before their errors are passed on to all others at once.
_COLUMNS = 64


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """What a layer becomes, all float64: `integers` [G, O, K], `scale` and `bias` [G, O].

    `error`: squared, of its outputs over their variance, on the images that checked what was chosen.
    """

    integers: Tensor
    scale: Tensor
    bias: Tensor
    error: float


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The integers that a weight may take, and whether all channels share one scale and go on sharing it."""

    lowest: int
    highest: int
    one_scale: bool = False

    @property
    def fine(self) -> bool:
        """Whether the nearest integers are good enough."""
        return self.highest - self.lowest >= _FINE_LEVELS

    def nearest(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The nearest integers of reals [G, O, K] on steps [G, O]."""
        return (weight / scale[..., None]).round().clamp(self.lowest, self.highest)

    def nearest_steps(self, steps: _Reals) -> _Reals:
        """The nearest integers of reals that are in steps already, of any shape."""
        nearest: _Reals = np.minimum(np.maximum(np.rint(steps), self.lowest), self.highest)
        return nearest


def round_by_least_squares(
    fitting: MomentSums, checking: MomentSums, weight: Tensor, scale: Tensor, levels: Levels
) -> Rounded | None:
    """Integers for a weight [G, O, K] and what they stand for; None where the nearest ones are better.

    `fitting`: moments of the images that integers are for. `checking`: of others, by which it is chosen how far those
    are to be believed; both count in the end. `scale`, [G, O], positive: to begin with.
    """
    weight, scale = weight.double(), scale.double()
    fit, check = fitting.moments(), checking.moments()
    real = [_towards(fit, weight, staying) for staying in _STAYING]
    missed = [_error(each, fit, check) for each in real]
    staying = _STAYING[missed.index(min(missed))]
    best = real[missed.index(min(missed))]
    dampings = (None,) if levels.fine else _DAMPING
    tries = [_rounded(fit, best, scale, levels, damping, rounds=1) for damping in dampings]
    missed = [_error(integers * step[..., None], fit, check) for integers, step in tries]
    nearest = levels.nearest(weight, scale) * scale[..., None]
    if min(missed) >= _error(nearest, fit, check):
        return None
    damping = dampings[missed.index(min(missed))]
    both = fitting.joined(checking).moments()
    integers, scale = _rounded(both, _towards(both, weight, staying), scale, levels, damping)
    bias = both.mean_outputs - scale * torch.einsum("gok,gk->go", integers, both.mean_factors)
    return Rounded(integers=integers, scale=scale, bias=bias, error=min(missed))


def _damped(moments: Moments, damping: float) -> Moments:
    """With some of the mean variance added to each input's; of inputs that are always zero as well a little."""
    covariance = moments.covariance
    added = (damping * covariance.diagonal(dim1=1, dim2=2).mean(1)).clamp_min(SMALLEST_SCALE**2)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    return replace(moments, covariance=covariance + added[:, None, None] * identity)


def _towards(moments: Moments, weight: Tensor, staying: float) -> Tensor:
    """The real weights [G, O, K] that answer for the inputs as they are, and stay near the float ones."""
    damped = _damped(moments, staying).covariance
    stay = (damped - moments.covariance) @ weight.transpose(1, 2)
    towards: Tensor = torch.linalg.solve(damped, moments.cross + stay)
    return towards.transpose(1, 2)


def _rounded(
    moments: Moments,
    best: Tensor,
    scale: Tensor,
    levels: Levels,
    damping: float | None,
    *,
    rounds: int = _ROUNDS,
) -> tuple[Tensor, Tensor]:
    """Integers [G, O, K] and scales [G, O] near real weights [G, O, K]; the nearest where `damping` is None."""
    first = scale
    if damping is None:
        integers = levels.nearest(best, scale)
        return integers, _fitted(integers, moments, first, levels)
    damped = _damped(moments, damping)
    integers = _round_one_by_one(best, scale, damped.covariance, levels)
    for _ in range(rounds):
        scale = _fitted(integers, moments, first, levels)
        integers = _moved(integers, best, scale, damped.covariance, levels)
    return integers, _fitted(integers, moments, first, levels)


def _round_one_by_one(best: Tensor, scale: Tensor, covariance: Tensor, levels: Levels) -> Tensor:
    """Integers [G, O, K] of real weights, the inputs that vary most first, as their errors cost most."""
    order = covariance.diagonal(dim1=1, dim2=2).argsort(stable=True, dim=1, descending=True)
    rows = torch.gather(covariance, 1, order[:, :, None].expand_as(covariance))
    ordered = torch.gather(rows, 2, order[:, None, :].expand_as(covariance))
    # Row k of it: by how much an error in weight k is to be passed on to each of those behind it.
    passes = torch.linalg.cholesky(torch.linalg.inv(ordered), upper=True)
    passes = passes / passes.diagonal(dim1=1, dim2=2)[:, :, None]
    # Weight by weight in front, as that is how they are taken: [K, G, O].
    left = torch.gather(best, 2, order[:, None, :].expand_as(best)).permute(2, 0, 1).contiguous()
    integers, errors = torch.zeros_like(left), torch.zeros_like(left)
    for begin in range(0, len(left), _COLUMNS):
        here = slice(begin, begin + _COLUMNS)
        blocks = (block.numpy() for block in (left[here], integers[here], errors[here], passes[:, here, here], scale))
        _round_columns(levels, *blocks)
        left[here.stop :] -= torch.einsum("cgo,gck->kgo", errors[here], passes[:, here, here.stop :])
    return torch.zeros_like(best).scatter_(2, order[:, None, :].expand_as(best), integers.permute(1, 2, 0))


def _round_columns(
    levels: Levels, left: _Reals, integers: _Reals, errors: _Reals, passes: _Reals, scale: _Reals
) -> None:
    """Round columns [C, G, O] of what is left one after the other, in place; `passes` [G, C, C] are their own.

    Thousands of short sums: numpy's calls, on the same memory, cost a third of torch's.
    """
    for column in range(len(left)):
        integers[column] = levels.nearest_steps(left[column] / scale)
        errors[column] = left[column] - integers[column] * scale
        left[column + 1 :] -= passes[:, column, column + 1 :].T[:, :, None] * errors[column]


def _moved(integers: Tensor, best: Tensor, scale: Tensor, covariance: Tensor, levels: Levels) -> Tensor:
    """The integers after each was set to what is best beside all others, over and over: never farther than before."""
    slope = ((integers * scale[..., None] - best) @ covariance).permute(2, 0, 1).contiguous()
    integers = integers.permute(2, 0, 1).contiguous()  # weight by weight in front: [K, G, O]
    curvature = covariance.diagonal(dim1=1, dim2=2).T[:, :, None] * scale
    for _ in range(_PASSES):
        before = integers.clone()
        for begin in range(0, len(integers), _COLUMNS):
            here = slice(begin, begin + _COLUMNS)
            own = (integers[here], slope[here].clone(), curvature[here], covariance[:, here, here], scale)
            _move_columns(levels, *(block.numpy() for block in own))
            change = (integers[here] - before[here]) * scale
            slope += torch.einsum("cgo,gck->kgo", change, covariance[:, here])
        if torch.equal(before, integers):
            break
    return integers.permute(1, 2, 0).contiguous()


def _move_columns(
    levels: Levels, integers: _Reals, slope: _Reals, curvature: _Reals, covariance: _Reals, scale: _Reals
) -> None:
    """Set columns [C, G, O] of integers to what is best beside the others, one after the other, in place."""
    for column in range(len(integers)):
        moved = levels.nearest_steps(integers[column] - slope[column] / curvature[column])
        slope += covariance[:, column].T[:, :, None] * ((moved - integers[column]) * scale)
        integers[column] = moved


def _fitted(integers: Tensor, moments: Moments, first: Tensor, levels: Levels) -> Tensor:
    """The scales by which integers come nearest, [G, O]; the first where they say nothing of it."""
    along = torch.einsum("gok,gko->go", integers, moments.cross)
    power = ((integers @ moments.covariance) * integers).sum(-1)
    if levels.one_scale:
        along, power = (total.sum().expand_as(total) for total in (along, power))
    fitted = along / power.clamp_min(SMALLEST_SCALE**2)
    believed = (power > 0) & (fitted > first / _LARGEST_CHANGE) & (fitted < first * _LARGEST_CHANGE)
    return torch.where(believed, fitted, first)


def _error(weights: Tensor, fit: Moments, check: Moments) -> float:
    """Mean square of what weights miss of other images, with the bias of the fit, over the outputs' variance."""
    along = torch.einsum("gok,gko->go", weights, check.cross)
    power = ((weights @ check.covariance) * weights).sum(-1)
    bias = fit.mean_outputs - torch.einsum("gok,gk->go", weights, fit.mean_factors)
    shift = check.mean_outputs - torch.einsum("gok,gk->go", weights, check.mean_factors) - bias
    missing = (check.variance - 2 * along + power).clamp_min(0) + shift.square()
    return float(missing.mean() / check.variance.mean().clamp_min(SMALLEST_SCALE**2))
