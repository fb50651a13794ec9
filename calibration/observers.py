"""Ranges from real batches: one exact histogram per tensor, and the rules that choose a range from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from calibration.grid import Grid, affine_parameters

RangeMethod = Literal["auto", "mse", "minmax", "moving-average", "percentile"]
RANGE_METHODS: tuple[str, ...] = get_args(RangeMethod)

# Resolution: the histogram reaches at most twice the largest value, so an 8-bit step spans 16 bins or more.
_BINS = 8192
# Jacob et al. (arXiv 1712.05877) smooth ranges with a decay close to 1; with the few batches of a calibration
# pass 0.9 lets the last ten of them count.
_DECAY = 0.9
_PERCENTILE = 0.9999


@dataclass
class RangeObserver:
    """Collects minimum, maximum, their moving average and a histogram of one tensor over many batches.

    The histogram spans [-reach, reach]; when a value falls outside, the reach doubles and bins merge in pairs
    around zero, which is exact: no value ever changes sides of a bin edge that remains.
    """

    minimum: float = 0.0
    maximum: float = 0.0
    average_minimum: float = 0.0
    average_maximum: float = 0.0
    batches: int = 0
    reach: float = 0.0
    counts: Tensor | None = None
    finite: bool = True

    def observe(self, values: Tensor) -> None:
        """Add a batch: float tensor of any shape. One value that is not finite clears `finite` for good."""
        values = values.detach().float()
        low, high = (float(bound) for bound in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            return
        if self.batches == 0:
            self.minimum, self.maximum, self.average_minimum, self.average_maximum = low, high, low, high
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.average_minimum += (1 - _DECAY) * (low - self.average_minimum)
        self.average_maximum += (1 - _DECAY) * (high - self.average_maximum)
        self.batches += 1
        self._count(values, max(-low, high, 2.0**-20))

    def _count(self, values: Tensor, needed: float) -> None:
        if self.counts is None:
            # A power of two, so that the result does not depend on which batch came first.
            self.reach = 2.0 ** torch.tensor(needed).log2().ceil().item()
            self.counts = torch.zeros(_BINS, dtype=torch.float64)
        while self.reach < needed:
            merged = torch.zeros_like(self.counts)
            merged[_BINS // 4 : 3 * _BINS // 4] = self.counts.reshape(-1, 2).sum(1)
            self.counts, self.reach = merged, self.reach * 2
        self.counts += torch.histc(values, _BINS, -self.reach, self.reach).double().cpu()

    def centres(self) -> Tensor:
        """Centre of every bin, float64."""
        return (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (2 * self.reach / _BINS) - self.reach


def choose_range(observer: RangeObserver, grid: Grid, method: RangeMethod) -> tuple[float, float]:
    """Lower and upper end of the range that a tensor's grid should cover.

    "auto" is "mse": the error of rounding and clipping together, which is minmax when a tensor has no tail.
    """
    if observer.counts is None or observer.batches == 0:
        raise ValueError("no batch was observed")
    if method == "minmax":
        return observer.minimum, observer.maximum
    if method == "moving-average":
        return observer.average_minimum, observer.average_maximum
    if method == "percentile":
        cumulative = observer.counts.cumsum(0) / observer.counts.sum()
        centres = observer.centres()
        low = centres[int(torch.searchsorted(cumulative, 1 - _PERCENTILE))]
        high = centres[min(int(torch.searchsorted(cumulative, _PERCENTILE)), _BINS - 1)]
        return max(float(low), observer.minimum), min(float(high), observer.maximum)
    return _least_squares_range(observer, grid)


def _least_squares_range(observer: RangeObserver, grid: Grid) -> tuple[float, float]:
    """The shrunken [minimum, maximum] with the least mean squared error of rounding plus clipping."""
    assert observer.counts is not None
    filled = observer.counts > 0
    centres, counts = observer.centres()[filled], observer.counts[filled]
    shrinks = [step / 40 for step in range(8, 41)]
    pairs = [(shrink, shrink) for shrink in shrinks]
    if observer.minimum < 0 and not grid.symmetric:
        pairs += [(first, second) for first in shrinks[::4] for second in shrinks[::4]]
    # Narrow ranges first and "<=" below: among equals the wider wins, as clipping is what unseen images make worse.
    pairs.sort(key=sum)
    best, best_range = float("inf"), (observer.minimum, observer.maximum)
    for shrink_low, shrink_high in pairs:
        low, high = observer.minimum * shrink_low, observer.maximum * shrink_high
        scale, zero_point = affine_parameters(low, high, grid)
        integers = (centres * (1 / scale)).round_().clamp_(grid.quant_min - zero_point, grid.quant_max - zero_point)
        error = float(torch.dot(counts, integers.mul_(scale).sub_(centres).square_()))
        if error <= best:
            best, best_range = error, (low, high)
    return best_range


def weight_scale(weight: Tensor, grid: Grid) -> Tensor:
    """Scale per channel [C] (or rank 0) of a symmetric weight grid.

    At 8 bits the largest magnitude is kept; below, the scale with the least squared error among 80 shrunken ones
    is taken, as clipping a few large weights then pays.
    """
    axis = grid.channel_axis
    flat = weight.detach().double().reshape(1, -1) if axis is None else weight.detach().double().movedim(axis, 0).flatten(1)
    # A channel of zeros keeps a scale that any value would have: half of float32's smallest step loses nothing.
    full = (flat.abs().amax(1) / grid.quant_max).clamp_min(2.0**-24)
    best_scale = full.clone()
    if grid.bits < 8:
        best_error = torch.full_like(full, float("inf"))
        for shrink in torch.linspace(0.3, 1.0, 80, dtype=torch.float64):
            scale = full * shrink
            integers = (flat / scale[:, None]).round().clamp(grid.quant_min, grid.quant_max)
            error = (integers * scale[:, None] - flat).square().sum(1)
            better = error < best_error
            best_error, best_scale = torch.where(better, error, best_error), torch.where(better, scale, best_scale)
    return best_scale.float() if axis is not None else best_scale.float().reshape(())
