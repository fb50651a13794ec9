"""Grids with learned scales: the modules that own what quantisation trains beside the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from calibration.grid import SMALLEST_SCALE, Grid, broadcast_scale
from calibration.integer_products import EXACT_BIAS, EXACT_IN_FLOAT32, LARGEST_ACTIVATION
from calibration.observers import weight_scale
from calibration.rounding import requantise, sign


class ActivationGrid(nn.Module):
    """Grid, learned scale and fixed zero point of one activation tensor, or of a group that shares them.

    The scale is stored as its logarithm, so that one learning rate means one relative change whatever the tensor's
    magnitude, and so that it stays positive [ours]. `limit`: the largest real value that the grid may reach.
    Raises ValueError for a scale that is not positive and finite and for a zero point off the grid.
    """

    zero_point: Tensor
    lowest: int
    highest: int

    def __init__(self, grid: Grid, *, scale: float, zero_point: int, limit: float | None = None) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"a scale of {scale} is no scale")
        if not grid.quant_min <= zero_point <= grid.quant_max:
            raise ValueError(f"the zero point {zero_point} is not on the grid")
        self.grid, self.limit = grid, limit
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))
        self._read_zero_point()
        self.register_load_state_dict_post_hook(_read_zero_point_again)  # type: ignore[no-untyped-call]  # torch's

    def _read_zero_point(self) -> None:
        # As numbers: reading the buffer in every step would wait for the GPU.
        #: The zero point, and the range of the centred integers.
        self.zero = int(self.zero_point)
        self.resolve(self.grid.bits)

    def resolve(self, bits: int) -> None:
        """Round the same range to another number of bits, 2 to 8, for a while: finer or coarser steps between its ends.

        Zero stays on the grid; the zero point is that of the grid's own bits, so only training may run meanwhile.
        """
        self._fineness = (2**bits - 1) / (2**self.grid.bits - 1)
        self.lowest: int = round((self.grid.quant_min - self.zero) * self._fineness)
        self.highest: int = round((self.grid.quant_max - self.zero) * self._fineness)

    def scale(self) -> Tensor:
        """The scale in use: float32, rank 0, positive, small enough for the limit.

        At the limit the gradient passes all the same, or a scale that once reached it could never shrink again.
        """
        scale = self.log_scale.exp().clamp_min(SMALLEST_SCALE)
        if self._fineness != 1:
            scale = scale / self._fineness
        if self.limit is None:
            return scale
        # Rounded down, so that the largest integer stands for no more than the limit: only then may a runtime leave
        # out the clip that the rounding performs.
        held = scale.detach().clamp_max(self.limit / self.highest * (1 - 2.0**-22))
        return held + (scale - scale.detach())


def _read_zero_point_again(module: nn.Module, _: Any) -> None:
    assert isinstance(module, ActivationGrid)
    module._read_zero_point()


class WeightGrid(nn.Module):
    """Symmetric grid of one weight with a learned scale per channel, logarithmic as for activations.

    `weight` float, of any shape; `floor` float, broadcast to the scale, is the smallest scale to begin with.
    """

    def __init__(self, grid: Grid, weight: Tensor, *, floor: Tensor | None = None) -> None:
        super().__init__()
        self.grid = grid
        scale = weight_scale(weight, grid)
        self.log_scale = nn.Parameter((scale if floor is None else torch.maximum(scale, floor)).log())

    def scale(self) -> Tensor:
        """The scale in use: float32 [C], or rank 0; positive."""
        return self.log_scale.exp().clamp_min(SMALLEST_SCALE)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight's integers, same shape, float32; straight-through gradient inside the grid, zero outside.

        In evaluation float64 where the sums of the weight's products may be too large for float32.
        """
        axis = self.grid.channel_axis
        multiplier = broadcast_scale(self.scale().reciprocal(), axis, weight.dim())
        if self.grid.bits == 1:
            integers = sign(weight * multiplier)
        else:
            integers = requantise(weight, multiplier, self.grid.quant_min, self.grid.quant_max)
        if self.training:
            return integers
        sums = integers.detach().abs().transpose(0, axis or 0).flatten(1).sum(1, dtype=torch.float64)
        fits = float(sums.max()) * LARGEST_ACTIVATION < EXACT_IN_FLOAT32 - EXACT_BIAS
        return integers if fits else integers.double()
