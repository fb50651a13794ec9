"""The arithmetic of integer kernels: what ONNX Runtime's CPU library computes, operator by operator, on any machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backends.oracle.plain_operators import FLOATS, MOVES, Attributes, convolve, window_sums
from calibration.arithmetic.elementwise import fused
from calibration.arithmetic.integer_products import EXACT_IN_FLOAT32, exact_sums


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Integers (held as int32, or as they come) with the scale and zero point of their real values.

    `half`: the reals are float16, held as float32; `block`: so many neighbours on the axis share a scale.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None
    low: int
    high: int
    half: bool = False
    block: int = 0

    def real(self) -> Tensor:
        """The float32 values: (integer - zero point) * scale, as DequantizeLinear computes them."""
        reals = self.centred().float() * self._along(self.scale)
        return half_rounded(reals) if self.half else reals

    def centred(self) -> Tensor:
        """The integers minus the zero point, int32."""
        return self.integers.to(torch.int32) - self._along(self.zero_point)

    def _along(self, parameter: Tensor) -> Tensor:
        """A scale or zero point shaped to meet the integers."""
        if parameter.dim() == 0 or self.axis is None:
            return parameter
        if self.block:
            return parameter.repeat_interleave(self.block, self.axis)
        shape = [1] * self.integers.dim()
        shape[self.axis] = -1
        return parameter.reshape(shape)


def half_rounded(values: Tensor) -> Tensor:
    """float32 values rounded to float16, still held as float32."""
    return values.half().float()


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an integer kernel writes: scale, zero point and range of the rounded output."""

    name: str
    scale: Tensor
    zero_point: int
    low: int
    high: int

    def saturate(self, values: Tensor) -> Tensor:
        """Round half to even, add the zero point, clip; int32. `values` are reals divided by the scale."""
        return (values.round() + self.zero_point).clamp(self.low, self.high).to(torch.int32)


# Of the larger multiplier of an addition on ARM, beside its leading one; what its ratios and shift may be.
_SUM_BITS, _SUM_RATIOS, _SHIFTS = 21, (2.0**-14, 2.0**8), range(13, 32)

Value = Tensor | Quantised | None
Kernel = Callable[[Sequence[Value], Attributes, Target], Tensor]


def all_quantised(inputs: Sequence[Value], operator: str) -> bool:
    """Whether an operator's data (and weight) inputs are all integers; biases may be either."""
    needed = {"Conv": 2, "Gemm": 2, "MatMul": 2, "Add": 2, "Mul": 2}.get(operator, 1)
    return len(inputs) >= needed and all(isinstance(value, Quantised) for value in inputs[:needed])


def moved(operator: str, inputs: Sequence[Value], attributes: Attributes) -> Sequence[Tensor | Quantised]:
    """An operator that only moves values, on integers as long as one scale and zero point hold for all that it writes.

    So a layer behind it still multiplies integers, as runtimes do that find roundings on either side of a movement.
    """
    values = [value.real() if isinstance(value, Quantised) else value for value in inputs]
    data = list(inputs) if operator == "Concat" else list(inputs[:1])
    grids = [value for value in data if isinstance(value, Quantised)]
    if not data or len(grids) < len(data) or any(grid.scale.dim() or not _same_grid(grid, grids[0]) for grid in grids):
        return MOVES[operator](values, attributes)
    shared = grids[0]
    values[: len(data)] = [grid.integers for grid in grids]
    if operator == "Pad" and attributes.get("mode", "constant") in ("constant", b"constant"):
        border = values[2] if len(values) > 2 else None
        if border is not None and float(border) != 0.0:
            return MOVES[operator]([shared.real(), *values[1:]], attributes)
        values[2:3] = [shared.zero_point]
    return [replace(shared, integers=integers) for integers in MOVES[operator](values, attributes)]


def _same_grid(first: Quantised, second: Quantised) -> bool:
    return torch.equal(first.scale, second.scale) and torch.equal(first.zero_point, second.zero_point)


def _accumulate(operator: str, inputs: Sequence[Value], attributes: Attributes) -> Tensor:
    """The exact integer sums of a weighted operator with its int32 bias, rounded to float32 once, or as float64.

    Products are summed in float32 where the largest possible sum stays below 2**24, so that no rounding can happen,
    else in float64.
    """
    x, weight = inputs[0], inputs[1]
    assert isinstance(x, Quantised) and isinstance(weight, Quantised)
    bias = inputs[2].integers if len(inputs) > 2 and isinstance(inputs[2], Quantised) else None
    weights = weight.centred()
    reach = max(int((x.low - x.zero_point).abs().max()), int((x.high - x.zero_point).abs().max()))
    axes = {"Conv": (1, 2, 3), "Gemm": (1,) if attributes.get("transB") else (0,)}.get(operator, (-2,))
    largest = int(weights.abs().sum(axes, dtype=torch.int64).max()) * reach
    is_narrow = largest < EXACT_IN_FLOAT32
    kind = torch.float32 if is_narrow else torch.float64
    data, weights = x.centred().to(kind), weights.to(kind)

    def products(offset: Tensor | None) -> Tensor:
        if operator == "Conv":
            return convolve(data, weights, offset, attributes)
        total = data @ (weights.T if attributes.get("transB") else weights)
        return total if offset is None else total + offset

    if is_narrow:
        return exact_sums(products, bias, largest=largest, axis=1 if operator == "Conv" else -1)
    return products(None if bias is None else bias.to(kind))


def _output_scale(operator: str, inputs: Sequence[Value]) -> Tensor:
    """Input scale times weight scale in float32, shaped to multiply the operator's output."""
    x, weight = inputs[0], inputs[1]
    assert isinstance(x, Quantised) and isinstance(weight, Quantised)
    scale = x.scale * weight.scale
    return scale.reshape(-1, 1, 1) if operator == "Conv" and scale.dim() else scale


def accumulate_to_float(operator: str, inputs: Sequence[Value], attributes: Attributes) -> Tensor:
    """A weighted operator that writes float32: exact sums, one multiplication, then a float bias if it has one."""
    result = _accumulate(operator, inputs, attributes).float() * _output_scale(operator, inputs)
    bias = inputs[2] if len(inputs) > 2 else None
    if isinstance(bias, Tensor):
        result = result + (bias.reshape(-1, 1, 1) if operator == "Conv" else bias)
    return result


def _weighted_kernel(
    operator: str,
) -> Kernel:
    def run(inputs: Sequence[Value], attributes: Attributes, target: Target) -> Tensor:
        if len(inputs) > 2 and isinstance(inputs[2], Tensor):
            return target.saturate(accumulate_to_float(operator, inputs, attributes) / target.scale)
        multiplier = _output_scale(operator, inputs) / target.scale
        return target.saturate(_accumulate(operator, inputs, attributes).float() * multiplier)

    return run


def _operands(inputs: Sequence[Value]) -> tuple[Quantised, Quantised]:
    first, second = inputs[0], inputs[1]
    assert isinstance(first, Quantised) and isinstance(second, Quantised)
    return first, second


def _add(inputs: Sequence[Value], attributes: Attributes, target: Target) -> Tensor:
    """MLAS qladd: a * (sa/sc) + (b * (sb/sc) + fixed), fused multiply-adds in float32 throughout, then rounding.

    The order was found by trying: of 28 that the algebra allows, this one alone equals ONNX Runtime 1.31 on all 19.7
    million sums of 300 random triples of scales and zero points (tests/backends).
    """
    first, second = _operands(inputs)
    ratio_a, ratio_b = first.scale / target.scale, second.scale / target.scale
    fixed = target.zero_point - fused(ratio_a, first.zero_point, ratio_b * second.zero_point)
    total = fused(first.integers, ratio_a, fused(second.integers, ratio_b, fixed))
    return total.round().clamp(target.low, target.high).to(torch.int32)


def _add_in_fixed_point(inputs: Sequence[Value], attributes: Attributes, target: Target) -> Tensor:
    """MLAS qladd on ARM: integer multipliers of at most 22 bits, one shift, halves rounded away from zero.

    Ratios outside [2**-14, 2**8), or further apart than the multipliers can hold, are added in float32 there.
    Source: MlasCalcQLinearAddParameters in onnxruntime/core/mlas/lib/qladd.cpp; measured under emulation.
    """
    first, second = _operands(inputs)
    a, b = first.centred().long(), second.centred().long()
    ratios = [float(first.scale / target.scale), float(second.scale / target.scale)]
    shift = _SUM_BITS - (math.frexp(max(ratios))[1] - 1)
    multipliers = [round(math.ldexp(ratio, shift)) for ratio in ratios]
    fits = max(multipliers) < 2 ** (_SUM_BITS + 1) and _SHIFTS.start <= shift < _SHIFTS.stop
    if not fits or min(ratios) < _SUM_RATIOS[0] or max(ratios) >= _SUM_RATIOS[1]:
        total = fused(a, first.scale, second.real()) / target.scale
        return (total + float(target.zero_point)).round().clamp(target.low, target.high).to(torch.int32)
    sums = a * multipliers[0] + b * multipliers[1]
    sums = (sums - (sums < 0).long() + (1 << (shift - 1))) >> shift
    return (sums + target.zero_point).clamp(target.low, target.high).to(torch.int32)


def _mul(inputs: Sequence[Value], attributes: Attributes, target: Target) -> Tensor:
    """MLAS qlmul: (a - za) * (b - zb) exactly, times sa * sb / sc, plus the zero point, then rounding."""
    first, second = _operands(inputs)
    ratio = first.scale * second.scale / target.scale
    product = (first.centred() * second.centred()).float() * ratio + float(target.zero_point)
    return product.round().clamp(target.low, target.high).to(torch.int32)


def _mul_in_one_rounding(inputs: Sequence[Value], attributes: Attributes, target: Target) -> Tensor:
    """MLAS qlmul on ARM, where the compiler fuses the zero point's addition; measured under emulation."""
    first, second = _operands(inputs)
    ratio = first.scale * second.scale / target.scale
    total = fused(first.centred() * second.centred(), ratio, target.zero_point)
    return total.round().clamp(target.low, target.high).to(torch.int32)


def _global_average_pool(inputs: Sequence[Value], attributes: Attributes, target: Target) -> Tensor:
    """MLAS qlgavgpool: the exact sum times sx / (sy * positions)."""
    x = inputs[0]
    assert isinstance(x, Quantised)
    positions = x.integers.shape[2] * x.integers.shape[3]
    multiplier = x.scale / (target.scale * float(positions))
    total = x.centred().sum((2, 3), keepdim=True, dtype=torch.int64)
    return target.saturate(total.float() * multiplier)


def _average_pool(inputs: Sequence[Value], attributes: Attributes, target: Target) -> Tensor:
    """qlinear_pool.cc: reals summed row by row in float32, divided; the zero point is added before the rounding."""
    x = inputs[0]
    assert isinstance(x, Quantised)
    total, count = window_sums(x.real(), attributes)
    values = (total / count / target.scale + float(target.zero_point)).round()
    return values.clamp(target.low, target.high).to(torch.int32)


def _table(operator: str) -> Kernel:
    """A function of one integer: computed for each of the 256 inputs, then looked up (qlinear_lookup_table.cc)."""

    def run(inputs: Sequence[Value], attributes: Attributes, target: Target) -> Tensor:
        x = inputs[0]
        assert isinstance(x, Quantised)
        every = torch.arange(x.low, x.high + 1, dtype=torch.int32)
        reals = (every - x.zero_point).float() * x.scale
        table = target.saturate(FLOATS[operator]([reals], attributes)[0] / target.scale)
        return table[(x.integers - x.low).long()]

    return run


#: Operators with an integer kernel that rounds its own output.
KERNELS: dict[str, Kernel] = {
    "Conv": _weighted_kernel("Conv"),
    "Gemm": _weighted_kernel("Gemm"),
    "MatMul": _weighted_kernel("MatMul"),
    "Add": _add,
    "Mul": _mul,
    "GlobalAveragePool": _global_average_pool,
    "AveragePool": _average_pool,
    "Sigmoid": _table("Sigmoid"),
    "LeakyRelu": _table("LeakyRelu"),
}

#: The same on ARM, where two of them compute otherwise.
ARM_KERNELS: dict[str, Kernel] = KERNELS | {"Add": _add_in_fixed_point, "Mul": _mul_in_one_rounding}
