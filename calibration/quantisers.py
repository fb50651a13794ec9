"""Modules of a prepared graph: grids with learned scales, and integer operations in the arithmetic of the device.

Between two quantisers a tensor is held as *centred integers* (integer minus zero point, in float32), not as rounded
reals: a convolution of such integers is exact as long as its sums stay below 2**24, so what is trained is what an
integer kernel computes, bit for bit, and one multiplication less is needed than with fake quantisation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from calibration.grid import SMALLEST_SCALE, Grid, broadcast_scale
from calibration.observers import weight_scale
from calibration.rounding import requantise, requantise_sum, round_straight_through


class ActivationGrid(nn.Module):
    """Grid, learned scale and fixed zero point of one activation tensor, or of a group that shares them.

    The scale is stored as its logarithm, so that one learning rate means one relative change whatever the tensor's
    magnitude, and so that it stays positive [ours]. `limit`: the largest real value that the grid may reach.
    """

    zero_point: Tensor

    def __init__(self, grid: Grid, *, scale: float, zero_point: int, limit: float | None = None) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"a scale of {scale} is no scale")
        if not grid.quant_min <= zero_point <= grid.quant_max:
            raise ValueError(f"the zero point {zero_point} is not on the grid")
        self.grid, self.limit = grid, limit
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))
        #: Range of the centred integers.
        self.lowest, self.highest = grid.quant_min - zero_point, grid.quant_max - zero_point

    def scale(self) -> Tensor:
        """The scale in use: float32, rank 0, positive, small enough for the limit."""
        scale = self.log_scale.exp().clamp_min(SMALLEST_SCALE)
        if self.limit is not None:
            # Rounded down, so that the largest integer stands for no more than the limit (rule 14).
            scale = scale.clamp_max(self.limit / self.highest * (1 - 2.0**-22))
        return scale


class WeightGrid(nn.Module):
    """Symmetric grid of one weight with a learned scale per channel, logarithmic as for activations."""

    def __init__(self, grid: Grid, weight: Tensor) -> None:
        super().__init__()
        self.grid = grid
        self.log_scale = nn.Parameter(weight_scale(weight, grid).log())

    def scale(self) -> Tensor:
        """The scale in use: float32 [C], or rank 0; positive."""
        return self.log_scale.exp().clamp_min(SMALLEST_SCALE)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight's integers, float32, same shape; straight-through gradient inside the grid, zero outside."""
        scale = broadcast_scale(self.scale(), self.grid.channel_axis, weight.dim())
        return round_straight_through((weight / scale).clamp(self.grid.quant_min, self.grid.quant_max))


class _Operation(nn.Module):
    """An operation that reads scales which grids elsewhere in the graph own (so they are neither stored nor moved twice)."""

    def __init__(self, *grids: ActivationGrid | WeightGrid) -> None:
        super().__init__()
        self._grids = grids  # a tuple: as module attributes they would be registered here as well


class BiasIntegers(_Operation):
    """A bias [C] as integers at input scale x weight scale, as an int32 bias holds it; straight-through gradient."""

    def scale(self) -> Tensor:
        """The step of the bias: float32 [C], or rank 0."""
        inputs, weights = self._grids
        return inputs.scale() * weights.scale()

    def forward(self, bias: Tensor) -> Tensor:
        """The integers, float32 [C]."""
        return round_straight_through(bias / self.scale())


class Quantise(_Operation):
    """Reals to centred integers of a grid (ONNX QuantizeLinear)."""

    def forward(self, x: Tensor) -> Tensor:
        """Round x, float32 of any shape."""
        (output,) = self._grids
        assert isinstance(output, ActivationGrid)
        if self.training:
            return requantise(x, output.scale().reciprocal(), output.lowest, output.highest)
        # The runtime divides: a multiplication by the reciprocal would decide some ties otherwise.
        return (x / output.scale()).round_().clamp_(output.lowest, output.highest)


class Dequantise(_Operation):
    """Centred integers to reals (ONNX DequantizeLinear)."""

    def forward(self, x: Tensor) -> Tensor:
        """x * scale, float32."""
        return x * self._grids[0].scale()


class RequantiseProduct(_Operation):
    """The sums of an integer convolution, linear layer or matrix product, rescaled and rounded to the output's grid.

    `channel_dimensions`: how many axes follow the channel axis in the output (2 for a map, 0 for a vector).
    """

    def __init__(
        self,
        output: ActivationGrid,
        first: ActivationGrid,
        second: ActivationGrid | WeightGrid,
        *,
        channel_dimensions: int,
    ) -> None:
        super().__init__(output, first, second)
        self.channel_dimensions = channel_dimensions

    def forward(self, sums: Tensor) -> Tensor:
        """Integers of the output's grid: clamp(round(sums * float32(first * second / output)))."""
        output, first, second = self._grids
        assert isinstance(output, ActivationGrid)
        multiplier = first.scale() * second.scale() / output.scale()
        if multiplier.dim():
            multiplier = multiplier.reshape(-1, *[1] * self.channel_dimensions)
        return requantise(sums, multiplier, output.lowest, output.highest)


class RescaleProduct(_Operation):
    """The sums of an integer operation as reals, plus a float bias where the runtime keeps it so."""

    def __init__(self, first: ActivationGrid, second: ActivationGrid | WeightGrid, *, channel_dimensions: int) -> None:
        super().__init__(first, second)
        self.channel_dimensions = channel_dimensions

    def forward(self, sums: Tensor, bias: Tensor | None = None) -> Tensor:
        """sums * float32(first * second) + bias, float32."""
        first, second = self._grids
        scale = first.scale() * second.scale()
        shape = [-1, *[1] * self.channel_dimensions]
        if scale.dim():
            scale = scale.reshape(shape)
        return sums * scale if bias is None else sums * scale + bias.reshape(shape)


class RequantiseSum(_Operation):
    """The sum of two tensors on grids of their own, on a third (QLinearAdd)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """clamp(round(a * sa / sy + b * sb / sy)) in centred integers; a and b broadcast."""
        output, first, second = self._grids
        assert all(isinstance(grid, ActivationGrid) for grid in self._grids) and isinstance(output, ActivationGrid)
        ratio_a, ratio_b = first.scale() / output.scale(), second.scale() / output.scale()
        if self.training:
            return requantise_sum(a, b, ratio_a, ratio_b, output.lowest, output.highest)
        # MLAS's order of float32 operations, two fused multiply-adds on the integers as stored; a product of an
        # 8-bit integer and a float32 is exact in float64, so rounding the sum there once is the fused operation.
        zero_a, zero_b, zero_y = (grid.zero_point for grid in self._grids)
        fixed = zero_y - (ratio_a * zero_a + ratio_b * zero_b)
        inner = ((a + zero_a).double() * ratio_a.double() + fixed.double()).float()
        total = ((b + zero_b).double() * ratio_b.double() + inner.double()).float()
        return (total.round_() - zero_y).clamp_(output.lowest, output.highest)


class RequantiseMultiplication(_Operation):
    """The element-wise product of two tensors on grids of their own, on a third (QLinearMul)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """clamp(round(a * b * float32(sa * sb / sy))) in centred integers; a and b broadcast."""
        output, first, second = self._grids
        assert isinstance(output, ActivationGrid)
        multiplier = first.scale() * second.scale() / output.scale()
        if self.training:
            return requantise(a * b, multiplier, output.lowest, output.highest)
        # The runtime adds the zero point before it rounds, which decides some ties.
        rounded = (a * b * multiplier + output.zero_point).round_()
        return (rounded - output.zero_point).clamp_(output.lowest, output.highest)


class RequantiseMean(_Operation):
    """The mean over height and width of a map on one grid, on another (QLinearGlobalAveragePool)."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] to [B, C, 1, 1]: clamp(round(sum * float32(sx / (sy * H * W))))."""
        output, inputs = self._grids
        assert isinstance(output, ActivationGrid)
        multiplier = inputs.scale() / (output.scale() * float(x.shape[2] * x.shape[3]))
        return requantise(x.sum((2, 3), keepdim=True), multiplier, output.lowest, output.highest)
