"""How ONNX Runtime adds and multiplies two tensors of 8-bit integers on grids of their own: on x86, and on ARM."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Scales = tuple[Tensor, Tensor, Tensor]
"""Of the first operand, the second and the result: float32 of rank 0."""

Zeros = tuple[int, int, int]
"""Their zero points."""

Operation = Callable[[Tensor, Tensor, Scales, Zeros], Tensor]
"""From centred integers a and b (float32, broadcast) to the rounded result, centred and not yet clipped."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a processor's kernels compute two operations that others compute otherwise."""

    add: Operation
    multiply: Operation


def fused(a: Tensor, b: Tensor | int, c: Tensor | int) -> Tensor:
    """Compute a * b + c with a single rounding to float32.

    A product of an integer of 16 bits and a float32 is exact in float64, and so is the sum wherever it is not far
    below half a step, so rounding it there once is the fused operation.
    """
    return (a.double() * torch.as_tensor(b).double() + torch.as_tensor(c).double()).float()


def add_in_float32(a: Tensor, b: Tensor, scales: Scales, zeros: Zeros) -> Tensor:
    """The addition of x86: two fused multiply-adds of the integers as stored, halves to even behind the zero point."""
    ratio_a, ratio_b = scales[0] / scales[2], scales[1] / scales[2]
    fixed = zeros[2] - fused(ratio_a, zeros[0], ratio_b * zeros[1])
    return fused(a + zeros[0], ratio_a, fused(b + zeros[1], ratio_b, fixed)).round_() - zeros[2]


def add_in_fixed_point(a: Tensor, b: Tensor, scales: Scales, zeros: Zeros) -> Tensor:
    """The addition of ARM: integer multipliers of at most 22 bits, halves rounded away from zero.

    Source: MlasCalcQLinearAddParameters and MlasQLinearAddKernelHelper in onnxruntime/core/mlas/lib/qladd.cpp.
    """
    first, second, output = (scale.detach().float() for scale in scales)
    ratios = [float(first / output), float(second / output)]
    shift = 21 - (math.frexp(max(ratios))[1] - 1)
    multipliers = [round(math.ldexp(ratio, shift)) for ratio in ratios]
    # Outside of these bounds the runtime adds in float32, in another order than x86.
    if min(ratios) < 2.0**-14 or max(ratios) >= 2.0**8 or not 13 <= shift <= 31 or max(multipliers) >= 2**22:
        return (fused(a, first, b * second) / output + zeros[2]).round_() - zeros[2]
    # Sums stay below 2**31 and are exact in float64; so are their halves, which go away from zero.
    scaled = (a.double() * multipliers[0] + b.double() * multipliers[1]) * 2.0**-shift
    return torch.where(scaled < 0, (scaled - 0.5).ceil_(), (scaled + 0.5).floor_()).to(a.dtype)


def multiply_then_add(a: Tensor, b: Tensor, scales: Scales, zeros: Zeros) -> Tensor:
    """The multiplication of x86: the zero point is added before the rounding, which decides some ties."""
    return (a * b * (scales[0] * scales[1] / scales[2]) + zeros[2]).round_() - zeros[2]


def multiply_and_add(a: Tensor, b: Tensor, scales: Scales, zeros: Zeros) -> Tensor:
    """The multiplication of ARM, whose compiler fuses the addition of the zero point with the multiplication."""
    return fused(a * b, scales[0] * scales[1] / scales[2], zeros[2]).round_() - zeros[2]


X86 = Arithmetic(add=add_in_float32, multiply=multiply_then_add)
ARM = Arithmetic(add=add_in_fixed_point, multiply=multiply_and_add)
