"""How ONNX Runtime's library adds two tensors of 8-bit integers on grids of their own: on x86, and on ARM."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Addition = Callable[[Tensor, Tensor, tuple[Tensor, Tensor, Tensor], tuple[int, int, int]], Tensor]
"""From centred integers a and b (float32, broadcast), the scales and the zero points of a, b and the sum to the rounded
sum, centred and not yet clipped. Scales are float32 of rank 0."""


def add_in_float32(a: Tensor, b: Tensor, scales: tuple[Tensor, Tensor, Tensor], zeros: tuple[int, int, int]) -> Tensor:
    """The addition of x86: two fused multiply-adds of the integers as stored, halves to even behind the zero point.

    MLAS's order of float32 operations; a product of an 8-bit integer and a float32 is exact in float64, so rounding
    the sum there once is the fused operation.
    """
    ratio_a, ratio_b = scales[0] / scales[2], scales[1] / scales[2]
    fixed = zeros[2] - (ratio_a.double() * zeros[0] + (ratio_b * zeros[1]).double()).float()
    inner = ((b + zeros[1]).double() * ratio_b.double() + fixed.double()).float()
    total = ((a + zeros[0]).double() * ratio_a.double() + inner.double()).float()
    return total.round_() - zeros[2]


def add_in_fixed_point(
    a: Tensor, b: Tensor, scales: tuple[Tensor, Tensor, Tensor], zeros: tuple[int, int, int]
) -> Tensor:
    """The addition of ARM: integer multipliers of at most 22 bits, halves rounded away from zero.

    Source: MlasCalcQLinearAddParameters and MlasQLinearAddKernelHelper in onnxruntime/core/mlas/lib/qladd.cpp.
    """
    first, second, output = (scale.detach().float() for scale in scales)
    ratios = [float(first / output), float(second / output)]
    shift = 21 - (math.frexp(max(ratios))[1] - 1)
    multipliers = [round(math.ldexp(ratio, shift)) for ratio in ratios]
    # Outside of these bounds the runtime adds in float32, in another order than x86.
    if min(ratios) < 2.0**-14 or max(ratios) >= 2.0**8 or not 13 <= shift <= 31 or max(multipliers) >= 2**22:
        return (((a * first + b * second) / output) + zeros[2]).round_() - zeros[2]
    # Sums stay below 2**31 and are exact in float64; so are their halves, which go away from zero.
    scaled = (a.double() * multipliers[0] + b.double() * multipliers[1]) * 2.0**-shift
    return torch.where(scaled < 0, (scaled - 0.5).ceil_(), (scaled + 0.5).floor_()).to(a.dtype)
