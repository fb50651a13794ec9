"""The logistic function as ONNX Runtime's library computes it: a quotient of polynomials, to the last bit."""

from __future__ import annotations

import torch
from torch import Tensor

# mlas/lib/logistic.cpp, from the highest power down: of x * p(x * x) / q(x * x) + 1/2 on [-18, 18].
_RANGE = 18.0
_NUMERATOR = (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 0.248287947061529)
_DENOMINATOR = (
    *(6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06),
    *(1.70198817374094e-03, 0.116817656904453, 0.993151921023180),
)


def logistic(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) for float32 x of any shape, equal to ONNX Runtime's Sigmoid in every bit on x86 with FMA.

    A fused multiply-add rounds once, as a product of two float32 and a sum in float64 do but for ties of its last bit.
    """
    clamped = x.clamp(-_RANGE, _RANGE)
    square = (clamped * clamped).double()
    quotient = clamped * _polynomial(square, _NUMERATOR) / _polynomial(square, _DENOMINATOR)
    return (quotient + 0.5).clamp(0.0, 1.0)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    first, *others = (torch.tensor(value, dtype=torch.float32) for value in coefficients)
    total = first.expand(x.shape)
    for coefficient in others:
        total = (total.double() * x + coefficient.double()).float()
    return total
