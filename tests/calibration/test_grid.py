"""Grids, and the scale and zero point that cover a range."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.errors import UserError
from calibration.grid import Grid, affine_parameters, broadcast_scale, in_blocks

UNSIGNED = Grid(bits=8, signed=False, symmetric=True)
AFFINE = Grid(bits=8, signed=False, symmetric=False)
SIGNED = Grid(bits=8, signed=True, symmetric=True)
NARROW = Grid(bits=8, signed=True, symmetric=True, narrow=True)


@pytest.mark.parametrize(
    ("grid", "ends"),
    [
        (UNSIGNED, (0, 255)),
        (SIGNED, (-128, 127)),
        (NARROW, (-127, 127)),
        (Grid(bits=4, signed=True, symmetric=True, narrow=True), (-7, 7)),
        (Grid(bits=4, signed=False, symmetric=True), (0, 15)),
        (Grid(bits=2, signed=True, symmetric=True, narrow=True), (-1, 1)),
        (Grid(bits=2, signed=True, symmetric=True), (-2, 1)),
        (Grid(bits=8, signed=True, symmetric=True, narrow=True, limit=63), (-63, 63)),
        (Grid(bits=4, signed=True, symmetric=True, narrow=True, limit=63), (-7, 7)),
        (Grid(bits=8, signed=True, symmetric=False, limit=63), (-63, 63)),
        (Grid(bits=8, signed=True, symmetric=True, limit=1), (-1, 1)),
        (Grid(bits=1, signed=True, symmetric=True, narrow=True), (-1, 1)),
        (Grid(bits=1, signed=True, symmetric=True, narrow=True, limit=63), (-1, 1)),
    ],
)
def test_ends_of_grids(grid: Grid, ends: tuple[int, int]) -> None:
    assert (grid.quant_min, grid.quant_max) == ends


@pytest.mark.parametrize("bits", [-1, 0, 9, 16])
def test_other_widths_are_the_users_mistake(bits: int) -> None:
    with pytest.raises(UserError, match=f"a grid of {bits} bits was asked for: 1 to 8 bits are possible"):
        Grid(bits=bits, signed=True, symmetric=True)


def test_only_signed_grids_are_narrow_or_limited() -> None:
    for changes in ({"narrow": True}, {"limit": 63}):
        with pytest.raises(ValueError, match="signed"):
            Grid(bits=8, signed=False, symmetric=True, **changes)
    with pytest.raises(ValueError, match="at least 1"):
        Grid(bits=8, signed=True, symmetric=True, limit=0)


def test_a_grid_survives_json() -> None:
    for grid in (UNSIGNED, AFFINE, NARROW, Grid(bits=4, signed=True, symmetric=True, channel_axis=1, limit=7)):
        assert Grid(**json.loads(json.dumps(grid.to_json()))) == grid


RANGES = [(-1.0, 3.0), (0.0, 6.0), (-2.5, 0.0), (0.5, 2.0), (-3.0, -1.0), (-1e-3, 1e4), (-1e30, 1e30), (-7.0, 1e-6)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_an_affine_grid_covers_its_range_and_zero(low: float, high: float) -> None:
    scale, zero_point = affine_parameters(low, high, AFFINE)
    reach = (AFFINE.quant_min - zero_point) * scale, (AFFINE.quant_max - zero_point) * scale
    assert scale == pytest.approx((max(high, 0) - min(low, 0)) / 255)
    assert AFFINE.quant_min <= zero_point <= AFFINE.quant_max  # so that zero is exact
    assert reach[0] <= min(low, 0) + scale / 2 * 1.001 and reach[1] >= max(high, 0) - scale / 2 * 1.001


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("grid", [SIGNED, NARROW])
def test_a_symmetric_grid_reaches_the_larger_side(grid: Grid, low: float, high: float) -> None:
    scale, zero_point = affine_parameters(low, high, grid)
    assert zero_point == 0
    assert grid.quant_min * scale <= low * (1 - 1e-12) + 1e-30 and grid.quant_max * scale >= high * (1 - 1e-12)
    # No smaller scale does: one end is reached.
    assert scale == pytest.approx(max(low / grid.quant_min, high / grid.quant_max))


def test_a_symmetric_unsigned_grid_covers_the_positive_side() -> None:
    assert affine_parameters(-3.0, 6.375, UNSIGNED) == (6.375 / 255, 0)
    # The other sign alone is nothing to cover, as for a tensor of zeros.
    assert affine_parameters(-3.0, -1.0, UNSIGNED) == (1 / 255, 0)


@pytest.mark.parametrize("grid", [UNSIGNED, AFFINE, SIGNED, NARROW])
def test_a_range_of_zeros_is_taken_for_the_unit_range(grid: Grid) -> None:
    scale, zero_point = affine_parameters(0.0, 0.0, grid)
    assert scale == pytest.approx(1 / (grid.quant_max if grid.symmetric else 255)) and zero_point == 0


@pytest.mark.parametrize("grid", [UNSIGNED, AFFINE, SIGNED])
def test_scales_have_a_floor(grid: Grid) -> None:
    scale, zero_point = affine_parameters(-1e-20, 1e-20, grid)
    assert scale == SMALLEST_SCALE and zero_point == 0
    assert float(torch.tensor(scale) * torch.tensor(scale)) > torch.finfo(torch.float32).tiny


def test_scales_are_shaped_along_their_axis() -> None:
    scale = torch.arange(3.0)
    for axis, dimensions in itertools.product((0, 1), (2, 4)):
        shaped = broadcast_scale(scale, axis, dimensions)
        assert shaped.shape == tuple(3 if index == axis else 1 for index in range(dimensions))
    assert broadcast_scale(torch.tensor(2.0), None, 4).dim() == 0


def test_one_bit_is_two_levels_without_a_zero() -> None:
    grid = Grid(bits=1, signed=True, symmetric=True, narrow=True, channel_axis=0)
    assert (grid.quant_min, grid.quant_max) == (-1, 1)
    with pytest.raises(ValueError, match="-1 and 1"):
        Grid(bits=1, signed=False, symmetric=True)
    with pytest.raises(UserError, match="1 to 8 bits are possible"):
        Grid(bits=0, signed=True, symmetric=True)


@pytest.mark.parametrize("but", [{"signed": False}, {"symmetric": False}, {"narrow": False}])
def test_one_bit_is_signed_symmetric_and_narrow_at_once(but: dict[str, bool]) -> None:
    with pytest.raises(ValueError):
        Grid(**{"bits": 1, "signed": True, "symmetric": True, "narrow": True} | but)  # type: ignore[arg-type]


def test_blocks_hold_neighbouring_inputs_of_one_channel() -> None:
    blocks = in_blocks(torch.arange(12.0).reshape(2, 6), 3)
    assert blocks.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert in_blocks(blocks, None) is blocks
    assert Grid(bits=4, signed=True, symmetric=True, channel_axis=0, block=1).block == 1
    for axis, block in ((0, 0), (1, 8), (None, 8)):
        with pytest.raises(ValueError, match="blocks of a grid"):
            Grid(bits=4, signed=True, symmetric=True, channel_axis=axis, block=block)


def test_a_zero_point_by_hand() -> None:
    """[-1, 3] in 255 steps of 4 / 255: zero is 63.75 steps above the lowest integer."""
    assert affine_parameters(-1.0, 3.0, AFFINE) == (4 / 255, 64)
    assert affine_parameters(-1.0, 3.0, Grid(bits=8, signed=True, symmetric=False)) == (4 / 255, -64)
    assert affine_parameters(-2.5, 0.0, AFFINE) == (2.5 / 255, 255)
