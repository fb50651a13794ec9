"""The oracle's sums and products of ARM, without a device: fractions by hand, and what the simulation computes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from backends.oracle.integer_kernels import ARM_KERNELS, Quantised, Target
from calibration.arithmetic.elementwise import ARM

BELOW_TWO = 2.0 - 2.0**-23
EVERY = torch.arange(256, dtype=torch.int32)
PAIRS = EVERY.repeat_interleave(256), EVERY.repeat(256)


def operand(integers: Tensor, scale: float, zero: int) -> Quantised:
    return Quantised(
        integers=integers,
        scale=torch.tensor(scale),
        zero_point=torch.tensor(zero, dtype=torch.int32),
        axis=None,
        low=0,
        high=255,
    )


def computed(operator: str, integers: Sequence[Tensor], scales: Sequence[float], zeros: Sequence[int]) -> Tensor:
    operands = [operand(*parts) for parts in zip(integers, scales, zeros, strict=False)]
    target = Target(name="q", scale=torch.tensor(scales[2]), zero_point=zeros[2], low=0, high=255)
    return ARM_KERNELS[operator](operands, {}, target)


SCALES = [(0.0371, 0.0192, 0.061), (0.5, 0.25, 1.0), (0.061, 2.0**-18, 0.0371), (9.0, 0.01, 0.03)]


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("zeros", [(93, 17, 128), (0, 255, 3)])
def test_every_pair_is_what_the_simulation_says(scales: tuple[float, ...], zeros: tuple[int, int, int]) -> None:
    for operator, simulated in (("Add", ARM.add), ("Mul", ARM.multiply)):
        first, second, output = (torch.tensor(scale) for scale in scales)
        a, b = (integers.float() - zero for integers, zero in zip(PAIRS, zeros, strict=False))
        expected = (simulated(a, b, (first, second, output), zeros) + zeros[2]).clamp(0, 255)
        integers = computed(operator, PAIRS, scales, zeros)
        assert integers.dtype == torch.int32 and torch.equal(integers.float(), expected)


def test_sums_are_exact_fractions_rounded_away_from_zero() -> None:
    """Ratios 0.3 and 0.7 of float32: multipliers 0.3 * 2**22 and 0.7 * 2**22, rounded, over 2**22."""
    ratios = [Fraction(round(float(torch.tensor(ratio)) * 2**22), 2**22) for ratio in (0.3, 0.7)]
    integers = computed("Add", PAIRS, (0.3, 0.7, 1.0), (100, 50, 60))
    for a, b, integer in zip(*(values[::37].tolist() for values in (*PAIRS, integers)), strict=True):
        total = (a - 100) * ratios[0] + (b - 50) * ratios[1]
        away = int(abs(total) + Fraction(1, 2)) * (1 if total > 0 else -1)
        assert integer == min(max(away + 60, 0), 255)


@pytest.mark.parametrize(
    ("ratios", "b", "fixed"),
    [
        ((2.0**-14, 0.5), 1, True),
        ((2.0**-14 * 0.99, 0.5), 1, False),
        ((255.5, 0.5), 1, True),
        ((256.0, 0.5), 1, False),
        ((2.0**-9, 2.0**-8), 128, True),  # a shift of 29
        ((BELOW_TWO, 0.5), 1, False),  # its multiplier is rounded up to 2**22
        ((BELOW_TWO - 2.0**-21, 0.5), 1, True),
    ],
)
def test_the_bounds_of_fixed_point(ratios: tuple[float, float], b: int, fixed: bool) -> None:
    """Half a step goes away from zero in fixed point, to the even neighbour in float32."""
    for sign in (1, -1):
        integers = torch.tensor([100]), torch.tensor([100 + sign * b])
        assert computed("Add", integers, (*ratios, 1.0), (100, 100, 40)).item() == 40 + (sign if fixed else 0)
