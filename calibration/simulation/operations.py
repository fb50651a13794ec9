"""Operations of a prepared graph: integer operations in the arithmetic of the device.

Between two quantisers a tensor is held as *centred integers* (integer minus zero point, in float32), not as rounded
reals: a convolution of such integers is exact as long as its sums stay below 2**24 (`integer_products` sees to the
rest), so what is evaluated is what an integer kernel computes, bit for bit. Training takes the same numbers by the
cheapest way, which may decide the last bit of a float32, and so a tie of a rounding, otherwise.
"""

from __future__ import annotations

from typing import Generic, TypeVarTuple

import torch
from torch import Tensor, nn

from calibration.arithmetic.elementwise import X86, Arithmetic
from calibration.arithmetic.integer_products import EXACT_BIAS, EXACT_IN_FLOAT32, LARGEST_ACTIVATION
from calibration.arithmetic.logistic import logistic
from calibration.arithmetic.rounding import requantise, requantise_sum, round_straight_through, round_to_grid
from calibration.grid import broadcast_scale
from calibration.simulation.learned_grids import ActivationGrid, TensorGrid, WeightGrid

_Grids = TypeVarTuple("_Grids")


class _Operation(nn.Module, Generic[*_Grids]):
    """An operation that reads scales which grids elsewhere in the network own, so that they are stored once."""

    def __init__(self, *grids: *_Grids) -> None:
        super().__init__()
        self._grids = grids  # a tuple: as module attributes they would be registered here as well


class Quantise(_Operation[ActivationGrid]):
    """Reals to centred integers of a grid (ONNX QuantizeLinear)."""

    def forward(self, x: Tensor) -> Tensor:
        """Round x, float32 of any shape, to integers of the same shape."""
        (output,) = self._grids
        if self.training:
            return requantise(x, output.scale().reciprocal(), output.lowest, output.highest)
        # The runtime divides: a multiplication by the reciprocal would decide some ties otherwise.
        return (x / output.scale()).round_().clamp_(output.lowest, output.highest)


class QuantiseAverage(_Operation[ActivationGrid]):
    """Averages of windows to centred integers, as one kernel with the averaging does it (QLinearAveragePool)."""

    def forward(self, x: Tensor) -> Tensor:
        """Round x, float32 of any shape, to integers of the same shape."""
        (output,) = self._grids
        if self.training:
            return requantise(x, output.scale().reciprocal(), output.lowest, output.highest)
        # The runtime adds the zero point before it rounds, which decides some ties.
        return ((x / output.scale() + output.zero).round_() - output.zero).clamp_(output.lowest, output.highest)


class Dequantise(_Operation[TensorGrid]):
    """Centred integers to reals (ONNX DequantizeLinear)."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x, float32 of any shape, by the scale."""
        (inputs,) = self._grids
        return x * inputs.scale()


class DequantiseWeight(_Operation[WeightGrid]):
    """Integers of a weight to reals, for a layer that multiplies those (ONNX DequantizeLinear)."""

    def forward(self, integers: Tensor) -> Tensor:
        """The reals of a weight's integers, float32, in their shape."""
        (weight,) = self._grids
        return weight.reals(integers)


class _Product(_Operation[*_Grids]):
    """Shared by what follows a convolution, linear layer or matrix product.

    `channel_dimensions`: how many axes follow the channel axis in the output (2 for a map, 0 for a vector).
    `groups`: how often the weight's channels repeat along it (the groups of a transposed convolution).
    """

    def __init__(self, *grids: *_Grids, channel_dimensions: int = 0, groups: int = 1) -> None:
        super().__init__(*grids)
        self.channel_dimensions, self.groups = channel_dimensions, groups

    def _step(self, first: TensorGrid, second: TensorGrid | WeightGrid) -> Tensor:
        """What one unit of the sums stands for: float32 [C], or rank 0."""
        second_scale = second.scale()
        if second_scale.dim() and self.groups > 1:
            second_scale = second_scale.repeat(self.groups)
        return first.scale() * second_scale

    def _along_channels(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * self.channel_dimensions) if values.dim() else values


class BiasIntegers(_Product[TensorGrid, WeightGrid]):
    """A bias as integers at input scale x weight scale, as an int32 bias holds it; straight-through gradient."""

    def scale(self) -> Tensor:
        """The step of the bias: float32 [C], or rank 0."""
        return self._step(*self._grids)

    def forward(self, bias: Tensor) -> Tensor:
        """The integers of a bias [C], float32; in evaluation float64 where sums with it may be too large."""
        integers = round_straight_through(bias / self.scale())
        if self.training or float(integers.detach().abs().max()) < EXACT_BIAS:
            return integers
        return integers.double()


class RequantiseProduct(_Product[ActivationGrid, TensorGrid, TensorGrid | WeightGrid]):
    """The sums of an integer convolution, linear layer or matrix product, rounded to the output's grid.

    `prescaled`: in training on a CPU the layer's constants come multiplied already (see `Prescale`).
    """

    prescaled = False

    def forward(self, sums: Tensor) -> Tensor:
        """Integers of the output's grid, of the sums' shape: clamp(round(sums * float32(first * second / output)))."""
        output, first, second = self._grids
        if self.prescaled and prescales(self, sums):
            return round_to_grid(sums, output.lowest, output.highest)
        multiplier = self._along_channels(self._step(first, second) / output.scale())
        return requantise(sums, multiplier, output.lowest, output.highest)

    @property
    def output(self) -> ActivationGrid:
        """The grid of the result."""
        return self._grids[0]

    @property
    def inputs(self) -> TensorGrid:
        """The grid of the first operand."""
        return self._grids[1]

    def unit(self, sums: Tensor) -> Tensor:
        """What one unit of these sums stands for: float32 [C], or rank 0."""
        output, first, second = self._grids
        return output.scale() if self.prescaled and prescales(self, sums) else self._step(first, second)


class RescaleProduct(_Product[TensorGrid, TensorGrid | WeightGrid]):
    """The sums of an integer operation as reals, plus a float bias where the runtime keeps it so."""

    prescaled = False

    def forward(self, sums: Tensor, bias: Tensor | None = None) -> Tensor:
        """Reals of the sums' shape, float32: sums * float32(first * second) + bias; bias [C]."""
        real = sums
        if not (self.prescaled and prescales(self, sums)):
            real = sums * self._along_channels(self._step(*self._grids))
        return real if bias is None else real + self._along_channels(bias)

    @property
    def inputs(self) -> TensorGrid:
        """The grid of the first operand."""
        return self._grids[0]

    def unit(self, sums: Tensor) -> Tensor:
        """What one unit of these sums stands for: float32 [C], or rank 0."""
        return sums.new_ones(()) if self.prescaled and prescales(self, sums) else self._step(*self._grids)


def prescales(module: nn.Module, values: Tensor) -> bool:
    """Whether, for values on this device, a layer's constants come multiplied already (see `Prescale`)."""
    # On a GPU the sums of unscaled integers are kept: TF32 multiplies those exactly, and passes over memory are cheap.
    return module.training and values.device.type == "cpu"


class Prescale(_Product[ActivationGrid | None, TensorGrid, WeightGrid]):
    """A layer's integer constants, multiplied in training by what would rescale the layer's sums.

    The sums then come out in steps of the output (or as reals, without an output grid), which saves four passes over
    the map in each training step: the multiplier's gradient is part of the weights'. The same real numbers, rounded
    last bits apart; in evaluation the integers pass unchanged and the sums are exact.
    `axis`: the axis of the constant that holds the output channels.
    """

    def __init__(
        self, output: ActivationGrid | None, first: TensorGrid, second: WeightGrid, *, axis: int, groups: int = 1
    ) -> None:
        super().__init__(output, first, second, groups=groups)
        self.axis = axis

    def forward(self, integers: Tensor) -> Tensor:
        """The constant, a weight of any shape or a bias [C], float32, in its own shape."""
        if not prescales(self, integers):
            return integers
        output, first, second = self._grids
        # A transposed convolution's weight has one group's channels on its axis, its bias all of them.
        repeated = integers.dim() == 1
        step = self._step(first, second) if repeated else first.scale() * second.scale()
        multiplier = step if output is None else step / output.scale()
        return integers * broadcast_scale(multiplier, self.axis if multiplier.dim() else None, integers.dim())


class Elementwise(_Operation[*_Grids]):
    """Shared by what processors compute otherwise; `arithmetic`: how this one does, which only evaluation follows."""

    def __init__(self, *grids: *_Grids, arithmetic: Arithmetic = X86) -> None:
        super().__init__(*grids)
        self.arithmetic = arithmetic


class RequantiseSum(Elementwise[ActivationGrid, TensorGrid, TensorGrid]):
    """The sum of two tensors on grids of their own, on a third (QLinearAdd)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """clamp(round(a * sa / sy + b * sb / sy)) in centred integers; a and b broadcast."""
        output, first, second = self._grids
        scales = first.scale(), second.scale(), output.scale()
        if self.training:
            return requantise_sum(a, b, scales[0] / scales[2], scales[1] / scales[2], *_ends(output))
        return self.arithmetic.add(a, b, scales, (first.zero, second.zero, output.zero)).clamp_(*_ends(output))


class RequantiseSigmoid(_Operation[ActivationGrid, TensorGrid]):
    """The logistic function from one grid to another (QLinearSigmoid, which looks it up for each of the 256 inputs)."""

    def forward(self, x: Tensor) -> Tensor:
        """clamp(round(logistic(x * sx) / sy)) in centred integers, of x's shape."""
        output, inputs = self._grids
        if self.training:
            return requantise(torch.sigmoid(x * inputs.scale()), output.scale().reciprocal(), *_ends(output))
        every = torch.arange(inputs.lowest, inputs.highest + 1, dtype=torch.float32, device=x.device)
        table = (logistic(every * inputs.scale()) / output.scale()).round_().clamp_(*_ends(output))
        return table[(x - inputs.lowest).long()]


class RequantiseHardSigmoid(Elementwise[ActivationGrid, TensorGrid]):
    """x / 6 + 1/2 from one grid to another whose ends clip it to 0 and 1: an addition of a constant (QLinearAdd).

    The division is in the scale that the addition reads x with, the constant is the integer 1 at scale 1/2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """clamp(round((x * sx / 6 + 1/2) / sy)) in centred integers, of x's shape."""
        output, inputs = self._grids
        scale, result = inputs.scale() / 6.0, output.scale()
        half = torch.full_like(scale, 0.5)
        if self.training:
            return round_to_grid(x * (scale / result) + half / result, *_ends(output))
        total = self.arithmetic.add(x, torch.ones_like(half), (scale, half, result), (inputs.zero, 0, output.zero))
        return total.clamp_(*_ends(output))


class RequantiseMultiplication(Elementwise[ActivationGrid, TensorGrid, TensorGrid]):
    """The element-wise product of two tensors on grids of their own, on a third (QLinearMul)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """clamp(round(a * b * float32(sa * sb / sy))) in centred integers; a and b broadcast."""
        output, first, second = self._grids
        scales = first.scale(), second.scale(), output.scale()
        if self.training:
            return requantise(a * b, scales[0] * scales[1] / scales[2], *_ends(output))
        return self.arithmetic.multiply(a, b, scales, (first.zero, second.zero, output.zero)).clamp_(*_ends(output))


class RequantiseMean(_Operation[ActivationGrid, TensorGrid]):
    """The mean over height and width of a map on one grid, on another (QLinearGlobalAveragePool)."""

    def forward(self, x: Tensor) -> Tensor:
        """From x [B, C, H, W] to [B, C, 1, 1]: clamp(round(sum * float32(sx / (sy * H * W))))."""
        output, inputs = self._grids
        positions = x.shape[2] * x.shape[3]
        multiplier = inputs.scale() / (output.scale() * float(positions))
        is_wide = not self.training and positions * LARGEST_ACTIVATION >= EXACT_IN_FLOAT32
        sums = x.sum((2, 3), keepdim=True, dtype=torch.float64 if is_wide else None).to(x.dtype)
        return requantise(sums, multiplier, output.lowest, output.highest)


class RequantiseAverage(_Operation[ActivationGrid, TensorGrid]):
    """Sums over windows of a map on one grid to their means on another: a convolution of ones (QLinearConv).

    `divisor`: of the sums.
    """

    def __init__(self, output: ActivationGrid, inputs: TensorGrid, *, divisor: int) -> None:
        super().__init__(output, inputs)
        self.divisor = divisor

    def forward(self, sums: Tensor) -> Tensor:
        """clamp(round(sums * float32(sx * float32(1 / divisor) / sy))) in centred integers, of the sums' shape."""
        output, inputs = self._grids
        multiplier = inputs.scale() * (1.0 / self.divisor) / output.scale()
        return requantise(sums, multiplier, output.lowest, output.highest)


def _ends(grid: ActivationGrid) -> tuple[int, int]:
    return grid.lowest, grid.highest


#: The operations whose results are integers of their first grid.
_ROUNDING = (
    Quantise,
    QuantiseAverage,
    RequantiseProduct,
    RequantiseSum,
    RequantiseSigmoid,
    RequantiseHardSigmoid,
    RequantiseMultiplication,
    RequantiseMean,
    RequantiseAverage,
)


def rounded_to(operation: nn.Module) -> ActivationGrid | None:
    """The grid that an operation's results lie on; None where it gives reals, or integers of a constant."""
    return operation._grids[0] if isinstance(operation, _ROUNDING) else None
