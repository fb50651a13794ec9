"""The integer grids that tensors are rounded to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A uniform integer grid: value = scale * (integer - zero point).

    `bits` 1 to 8; one bit is -1 and 1, without a zero; `signed` two's complement; `symmetric` fixes the zero point at
    0, which on an unsigned grid is right only for values that are never negative; `narrow` drops the most negative
    integer of a signed grid, so that it reaches equally far on both sides; `channel_axis` is the axis with one scale
    per index, or None for one scale in all; `limit` bounds the integers of a signed grid further (63 on x86 without
    VNNI, whose 16-bit sums of two 8-bit products saturate); `block`: a matrix [channels, inputs] has a scale per
    channel and so many neighbouring inputs, else per channel.
    """

    bits: int
    signed: bool
    symmetric: bool
    narrow: bool = False
    channel_axis: int | None = None
    limit: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise UserError(f"a grid of {self.bits} bits was asked for: 1 to 8 bits are possible")
        if self.bits == 1 and not (self.signed and self.symmetric and self.narrow):
            raise ValueError("a grid of one bit is -1 and 1")
        if (self.narrow or self.limit is not None) and not self.signed:
            raise ValueError("narrow and limited grids are signed")
        if self.limit is not None and self.limit < 1:
            raise ValueError("the limit of a grid is at least 1")
        if self.block is not None and (self.block < 1 or self.channel_axis != 0):
            raise ValueError("blocks of a grid hold at least one input and have their channels on axis 0")

    @property
    def quant_min(self) -> int:
        """Smallest integer of the grid."""
        if not self.signed:
            return 0
        if self.bits == 1:
            return -1
        lowest = -(1 << (self.bits - 1)) + (1 if self.narrow else 0)
        return lowest if self.limit is None else max(lowest, -self.limit)

    @property
    def quant_max(self) -> int:
        """Largest integer of the grid."""
        if self.bits == 1:
            return 1
        highest = (1 << (self.bits - 1 if self.signed else self.bits)) - 1
        return highest if self.limit is None else min(highest, self.limit)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `Grid(**data)` turns back into this grid."""
        return asdict(self)


def broadcast_scale(scale: Tensor, axis: int | None, dimensions: int) -> Tensor:
    """Shape a [C] scale so that it multiplies a tensor of that many dimensions along `axis`."""
    if axis is None:
        return scale
    shape = [1] * dimensions
    shape[axis] = -1
    return scale.reshape(shape)


def in_blocks(matrix: Tensor, block: int | None) -> Tensor:
    """A matrix [C, inputs] as [C, inputs / block, block], so that a scale [C, inputs / block, 1] multiplies it.

    Any other tensor, whose grid has no blocks, as it is.
    """
    return matrix if block is None else matrix.reshape(len(matrix), -1, block)


def affine_parameters(low: float, high: float, grid: Grid) -> tuple[float, int]:
    """Scale and zero point of a grid that covers [low, high], to half a step, widened to hold zero exactly.

    A symmetric unsigned grid covers the positive part only. A range of nothing but zero gives the scale of [0, 1]:
    the tensor may still hold something for other images, and a vanishing scale would make the bias behind it
    overflow.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if grid.symmetric and not grid.signed:
        low = 0.0
    if low == high:
        high = 1.0
    if grid.symmetric:
        reach = max(low / grid.quant_min if grid.signed else 0.0, high / grid.quant_max)
        return max(reach, SMALLEST_SCALE), 0
    scale = max((high - low) / (grid.quant_max - grid.quant_min), SMALLEST_SCALE)
    zero_point = round(grid.quant_min - low / scale)
    return scale, min(max(zero_point, grid.quant_min), grid.quant_max)
