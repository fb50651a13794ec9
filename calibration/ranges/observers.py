"""Ranges from real batches: one exact histogram per tensor, and the rules that choose a range from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.grid import Grid, affine_parameters

RangeMethod = Literal["auto", "mse", "minmax", "moving-average", "percentile"]
RANGE_METHODS: tuple[str, ...] = get_args(RangeMethod)

# The histogram reaches at most twice the largest magnitude, so an 8-bit step of a tensor of one sign spans at least
# 2**14 / 2 / 2 / 256 = 16 bins, and one of a tensor of both signs 32.
_BINS = 2**14
# The magnitudes that a histogram can reach: below, every value is zero on any grid (255 steps of the smallest scale
# are 2**-16); above, the reach would not be a float32.
_SMALLEST_REACH, _LARGEST_REACH = 2.0**-30, 2.0**127
# Jacob et al. (arXiv 1712.05877) smooth ranges with a decay close to 1; with the few batches of a calibration
# pass 0.9 lets the last ten of them count [ours].
_DECAY = 0.9
# One value in ten thousand lies beyond each end: what vendors' calibrators use as "99.99 %".
_PERCENTILE = 0.9999


@dataclass
class RangeObserver:
    """Collects minimum, maximum, their moving average and a histogram of one tensor over many batches.

    The histogram spans [-reach, reach) with a reach that is a power of two. When a value falls outside, the reach
    doubles and bins merge in pairs around zero. That is exact: dividing by a bin's width is a shift of exponents,
    so no value ever changes sides of an edge that remains, and the order of the batches does not matter. The
    largest values themselves count into the last bins.
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
        ends = self.count(values)
        if ends is not None:
            self.end_batch(*ends)

    def count(self, values: Tensor) -> tuple[float, float] | None:
        """Add a part of a batch, all but to the moving average; its smallest and largest value.

        None, and `finite` is cleared for good, where one is not finite.
        """
        values = values.detach().float()
        low, high = (float(bound) for bound in torch.aminmax(values))
        largest = max(-low, high)
        if not largest <= _LARGEST_REACH:  # NaN compares false
            self.finite = False
            return None
        if self.counts is None:
            self.minimum, self.maximum = low, high
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._count(values, max(largest, _SMALLEST_REACH))
        return low, high

    def end_batch(self, low: float, high: float) -> None:
        """Add the smallest and the largest value of a batch, all of whose parts are counted, to the moving average."""
        if self.batches == 0:
            self.average_minimum, self.average_maximum = low, high
        self.average_minimum += (1 - _DECAY) * (low - self.average_minimum)
        self.average_maximum += (1 - _DECAY) * (high - self.average_maximum)
        self.batches += 1

    def _count(self, values: Tensor, needed: float) -> None:
        mantissa, exponent = math.frexp(needed)
        if self.counts is None:
            self.reach = 2.0 ** (exponent - (mantissa == 0.5))
            self.counts = torch.zeros(_BINS, dtype=torch.float64)
        while self.reach < needed:
            merged = torch.zeros_like(self.counts)
            merged[_BINS // 4 : 3 * _BINS // 4] = self.counts.reshape(-1, 2).sum(1)
            self.counts, self.reach = merged, self.reach * 2
        # The factor is a power of two, so that the product is exact.
        bins = (values * (_BINS / 2 / self.reach)).floor_().clamp_(-_BINS // 2, _BINS // 2 - 1).to(torch.int32)
        self.counts += torch.bincount(bins.add_(_BINS // 2).flatten(), minlength=_BINS).double().cpu()

    def centres(self) -> Tensor:
        """Centre of every bin, float64 [bins]."""
        return (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (2 * self.reach / _BINS) - self.reach


def choose_range(observer: RangeObserver, grid: Grid, method: RangeMethod) -> tuple[float, float]:
    """Lower and upper end of the range that a tensor's grid should cover.

    "auto" is "mse": the least error of rounding and clipping together, which is "minmax" for a tensor without a
    tail. Raises ValueError when nothing was observed.
    """
    if observer.counts is None:
        raise ValueError("no batch was observed")
    if method == "minmax":
        return observer.minimum, observer.maximum
    if method == "moving-average":
        return observer.average_minimum, observer.average_maximum
    if method == "percentile":
        cumulative = observer.counts.cumsum(0) / observer.counts.sum()
        ends = torch.tensor([1 - _PERCENTILE, _PERCENTILE], dtype=torch.float64)
        centres = observer.centres()[torch.searchsorted(cumulative, ends).clamp_max(_BINS - 1)]
        low, high = centres.clamp(observer.minimum, observer.maximum).tolist()
        return low, high
    return _least_squares_range(observer, grid)


def _least_squares_range(observer: RangeObserver, grid: Grid) -> tuple[float, float]:
    """The shrunken [minimum, maximum] with the least mean squared error of rounding plus clipping.

    Values count as the centre of their bin. Both ends shrink together in steps of 1/40 down to a fifth; on a grid
    with a zero point also each for itself, in steps of 1/10.
    """
    assert observer.counts is not None
    filled = observer.counts > 0
    centres, counts = observer.centres()[filled], observer.counts[filled]
    shrinks = [step / 40 for step in range(8, 41)]
    pairs = [(shrink, shrink) for shrink in shrinks]
    if observer.minimum < 0 and not grid.symmetric:
        pairs += [(first, second) for first in shrinks[::4] for second in shrinks[::4]]
    # Narrow ranges first and "<=" below: among equals the wider wins, as clipping is what unseen images make worse.
    pairs.sort(key=sum)
    best, best_range = math.inf, (observer.minimum, observer.maximum)
    for shrink_low, shrink_high in pairs:
        low, high = observer.minimum * shrink_low, observer.maximum * shrink_high
        scale, zero_point = affine_parameters(low, high, grid)
        integers = (centres / scale).round_().clamp_(grid.quant_min - zero_point, grid.quant_max - zero_point)
        error = float(torch.dot(counts, integers.mul_(scale).sub_(centres).square_()))
        if error <= best:
            best, best_range = error, (low, high)
    return best_range


#: So many values at a time stay in a processor's cache, and a head of a hundred million takes little memory.
_AT_ONCE = 2**17


def weight_scale(weight: Tensor, grid: Grid) -> Tensor:
    """Scale of a symmetric weight grid: float32 [C] along the grid's channel axis, or rank 0; in blocks [C, blocks].

    At 8 bits the largest magnitude is kept; below, the scale with the least squared error among 80 shrunken ones
    is taken, as clipping a few large weights then pays; of one bit it is the mean magnitude. A channel of zeros gets
    the smallest scale.
    """
    axis, values = grid.channel_axis, weight.detach().double()
    if grid.block is not None:
        channels = values.reshape(-1, grid.block)
    else:
        channels = values.reshape(1, -1) if axis is None else values.movedim(axis, 0).flatten(1)
    if grid.bits == 1:
        scale = channels.abs().mean(1)
    elif grid.bits < 8:
        rows = max(_AT_ONCE // channels.shape[1], 1)
        scale = torch.cat([_least_squares(part, grid) for part in torch.split(channels, rows)])
    else:
        scale = _full_scale(channels, grid)
    scale = scale.clamp_min(SMALLEST_SCALE).float()
    if grid.block is not None:
        return scale.reshape(len(weight), -1)
    return scale if axis is not None else scale.reshape(())


def _full_scale(channels: Tensor, grid: Grid) -> Tensor:
    return (channels.abs().amax(1) / grid.quant_max).clamp_min(SMALLEST_SCALE)


def _least_squares(channels: Tensor, grid: Grid) -> Tensor:
    """Of 80 scales for each channel, float64 [C, values], the one with the least squared error, float64 [C]."""
    full = _full_scale(channels, grid)
    best_scale, best_error = full.clone(), torch.full_like(full, math.inf)
    # Three levels of a long-tailed channel reach no further than a few of its standard deviations.
    for shrink in torch.linspace(0.3 if grid.bits > 3 else 0.1, 1.0, 80, dtype=torch.float64).tolist():
        scale = full * shrink
        integers = (channels / scale[:, None]).round_().clamp_(grid.quant_min, grid.quant_max)
        error = integers.mul_(scale[:, None]).sub_(channels).square_().sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale
