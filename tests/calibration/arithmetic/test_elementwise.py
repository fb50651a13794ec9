"""Additions and multiplications of 8-bit integers as ONNX Runtime's library does them, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from calibration.arithmetic.elementwise import ARM, X86, add_in_fixed_point, add_in_float32
from calibration.grid import Grid
from calibration.simulation.learned_grids import ActivationGrid
from calibration.simulation.operations import RequantiseHardSigmoid, RequantiseSum

AFFINE = Grid(bits=8, signed=False, symmetric=False)


def away_from_zero(value: Fraction) -> int:
    """The nearest integer; of two, the one further from zero."""
    nearest = int(abs(value) + Fraction(1, 2))
    return nearest if value > 0 else -nearest


def multipliers(ratios: list[Fraction]) -> tuple[list[int], int]:
    """The larger ratio's as an integer of 22 bits, the other's at the same shift, and that shift."""
    shift = 0
    while max(ratios) * 2**shift < 2**21:
        shift += 1
    return [round(ratio * 2**shift) for ratio in ratios], shift


def scales(*values: float) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (torch.tensor(value) for value in values)
    return first, second, third


@pytest.mark.parametrize("values", [(0.0371, 0.0192, 0.061), (0.5, 0.25, 1.0), (2.0**-7, 0.5, 2.0**-8)])
def test_fixed_point_is_integer_multipliers_of_22_bits(values: tuple[float, float, float]) -> None:
    a, b = (torch.randint(-255, 256, (700,), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    three = scales(*values)
    sums = add_in_fixed_point(a.float(), b.float(), three, (93, 17, 128))
    both, shift = multipliers([Fraction(float(three[index] / three[2])) for index in (0, 1)])
    for x, y, integer in zip(a.tolist(), b.tolist(), sums.tolist(), strict=True):
        assert integer == away_from_zero(Fraction(x * both[0] + y * both[1], 2**shift))


@pytest.mark.parametrize("values", [(0.0371, 0.0192, 0.061), (2.0**-9, 0.5, 2.0**-8)])
def test_the_two_ways_differ_by_ties_and_last_bits_only(values: tuple[float, float, float]) -> None:
    a, b = torch.arange(-128.0, 128.0), torch.ones(())
    sums = [add(a, b, scales(*values), (128, 0, 128)) for add in (add_in_float32, add_in_fixed_point)]
    assert float((sums[0] - sums[1]).abs().max()) <= 1
    # A ratio of 1/2 and a constant: every odd integer is a tie, every second of which an even number lies below.
    assert int((sums[0] != sums[1]).sum()) == (0 if values[0] == 0.0371 else 64)


@pytest.mark.parametrize("values", [(1.0, 2.0**-15, 1.0), (3.0, 256.0, 1.0), (0.0001, 0.00009, 30.0)])
def test_ratios_beyond_the_multipliers_are_added_in_float32(values: tuple[float, float, float]) -> None:
    a, b = torch.tensor([1.0, 1.5, -2.5, 100.0]), torch.ones(())
    expected = ((a * values[0] + b * values[1]) / values[2] + 17).round() - 17
    torch.testing.assert_close(add_in_fixed_point(a, b, scales(*values), (0, 0, 17)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [6 * 2.0**-9, 0.0371])
def test_hard_sigmoids_add_as_their_device(scale: float) -> None:
    inputs, output = (
        ActivationGrid(AFFINE, scale=scale, zero_point=128),
        ActivationGrid(AFFINE, scale=2.0**-8, zero_point=0),
    )
    x = torch.arange(-128.0, 128.0)
    gates = RequantiseHardSigmoid(output, inputs, arithmetic=ARM).eval()(x).detach()
    parts = inputs.scale().detach() / 6.0, torch.tensor(0.5)
    ratios = [Fraction(float(part / output.scale().detach())) for part in parts]
    both, shift = multipliers(ratios)
    for integer, result in zip(x.tolist(), gates.tolist(), strict=True):
        expected = away_from_zero(Fraction(int(integer) * both[0] + both[1], 2**shift))
        assert result == min(max(expected, 0), 255)
    assert torch.equal(gates, RequantiseHardSigmoid(output, inputs).eval()(x)) == (scale == 0.0371)


def test_training_does_not_mind_the_device() -> None:
    grids = [ActivationGrid(AFFINE, scale=value, zero_point=3) for value in (0.061, 0.0371, 0.0192)]
    a, b = (torch.arange(256.0) - 3 for _ in range(2))
    for module in (RequantiseSum, RequantiseHardSigmoid):
        operands = [a, b] if module is RequantiseSum else [a]
        used = grids[: len(operands) + 1]
        torch.testing.assert_close(module(*used, arithmetic=ARM)(*operands), module(*used)(*operands))


def test_multiplications_of_arm_round_once() -> None:
    a, b = (values.reshape(-1)[::7] for values in torch.meshgrid(*[torch.arange(-255.0, 256.0)] * 2, indexing="ij"))
    # The last pair is one of few that decide: -1962.5001, of which x86 makes a tie when it rounds the product first.
    a, b = torch.cat([a, torch.tensor([-181.0])]), torch.cat([b, torch.tensor([74.0])])
    three, zero = scales(0.3, 0.0192, 0.0371), 117
    ratio = Fraction(float(three[0] * three[1] / three[2]))
    products = ARM.multiply(a, b, three, (0, 0, zero))
    for x, y, integer in zip(a.tolist(), b.tolist(), products.tolist(), strict=True):
        once = torch.tensor(float(int(x * y) * ratio + zero), dtype=torch.float32)
        assert integer == round(Fraction(float(once))) - zero
    other = X86.multiply(a, b, three, (0, 0, zero))
    assert products[-1] != other[-1] and float((products - other).abs().max()) == 1


BELOW_TWO = 2.0 - 2.0**-23


@pytest.mark.parametrize(
    ("ratios", "b", "fixed"),
    [
        ((2.0**-14, 0.5), 1.0, True),
        ((2.0**-14 * 0.99, 0.5), 1.0, False),
        ((255.5, 0.5), 1.0, True),
        ((256.0, 0.5), 1.0, False),
        ((2.0**-11, 2.0**-10), 512.0, True),  # a shift of 31
        ((2.0**-12, 2.0**-11), 1024.0, False),  # of 32
        ((BELOW_TWO, 0.5), 1.0, False),  # its multiplier is rounded up to 2**22
        ((BELOW_TWO - 2.0**-21, 0.5), 1.0, True),
    ],
)
def test_the_bounds_of_fixed_point(ratios: tuple[float, float], b: float, fixed: bool) -> None:
    """Half a step goes away from zero in fixed point, to the even neighbour in float32."""
    zero = torch.zeros(())
    for sign in (1.0, -1.0):
        result = add_in_fixed_point(zero, torch.tensor(sign * b), scales(*ratios, 1.0), (0, 0, 0))
        assert result.item() == (sign if fixed else 0)
