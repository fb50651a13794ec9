"""Learned scales: where they start, what they may become, and what survives saving."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.grid import Grid
from calibration.simulation.learned_grids import ActivationGrid, MultipliedGrid, WeightGrid, shared_scales

if TYPE_CHECKING:
    from tests.calibration.conftest import Noise

UNSIGNED = Grid(bits=8, signed=False, symmetric=True)
AFFINE = Grid(bits=8, signed=False, symmetric=False)
NARROW = Grid(bits=8, signed=True, symmetric=True, narrow=True, channel_axis=0)
FOUR_BITS = Grid(bits=4, signed=True, symmetric=True, narrow=True, channel_axis=0)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_is_positive_and_finite(scale: float) -> None:
    with pytest.raises(ValueError, match="is no scale"):
        ActivationGrid(AFFINE, scale=scale, zero_point=0)


@pytest.mark.parametrize("zero_point", [-1, 256])
def test_a_zero_point_is_on_the_grid(zero_point: int) -> None:
    with pytest.raises(ValueError, match=f"the zero point {zero_point} is not on the grid"):
        ActivationGrid(AFFINE, scale=1.0, zero_point=zero_point)


def test_centred_integers_have_the_grids_ends_less_the_zero_point() -> None:
    grid = ActivationGrid(AFFINE, scale=0.1, zero_point=57)
    assert (grid.zero, grid.lowest, grid.highest) == (57, -57, 198)
    assert grid.scale().item() == pytest.approx(0.1, rel=1e-6)


def test_shared_scales_are_the_same_scales_with_the_same_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    grids = [
        ActivationGrid(AFFINE, scale=0.1, zero_point=57),
        ActivationGrid(UNSIGNED, scale=0.1, zero_point=0, limit=6.0),  # 255 * 0.1 is above the limit
        WeightGrid(NARROW, torch.randn((5, 3), generator=generator)),
        WeightGrid(Grid(bits=8, signed=True, symmetric=True, narrow=True), torch.zeros(4)),
    ]

    def scales_and_gradients() -> list[torch.Tensor]:
        scales = [grid.scale() for _ in range(2) for grid in grids]  # each read twice
        loss = torch.stack([(scale * (number + 1)).square().sum() for number, scale in enumerate(scales)]).sum()
        gradients = torch.autograd.grad(loss, [grid.log_scale for grid in grids])
        return [*(scale.detach() for scale in scales), *gradients]

    alone = scales_and_gradients()
    with shared_scales(grids):
        shared = scales_and_gradients()
        assert grids[0].scale() is grids[0].scale()
    assert grids[0].scale() is not grids[0].scale()
    for first, second in zip(alone, shared, strict=True):
        torch.testing.assert_close(first, second)


def test_scales_are_shared_no_longer_after_an_error() -> None:
    grid = ActivationGrid(AFFINE, scale=0.1, zero_point=57)
    with pytest.raises(RuntimeError, match="in the middle"), shared_scales([grid]):
        raise RuntimeError("in the middle")
    with torch.no_grad():
        grid.log_scale.add_(1.0)
    assert grid.scale().item() == pytest.approx(0.1 * math.e, rel=1e-6)


def test_a_scale_never_vanishes() -> None:
    assert ActivationGrid(UNSIGNED, scale=1e-30, zero_point=0).scale().item() == SMALLEST_SCALE
    weights = WeightGrid(NARROW, torch.zeros(3, 2))
    with torch.no_grad():
        weights.log_scale.sub_(100)
    assert weights.scale().tolist() == [SMALLEST_SCALE] * 3


@pytest.mark.parametrize("limit", [6.0, 1.0, 0.1, 20.0, 255.0])
@pytest.mark.parametrize("factor", [0.3, 1.0, 1.001, 40.0])
def test_the_largest_integer_never_stands_for_more_than_the_limit(limit: float, factor: float) -> None:
    grid = ActivationGrid(UNSIGNED, scale=limit / 255 * factor, zero_point=0, limit=limit)
    scale = grid.scale().detach().numpy()
    assert np.float32(scale) * np.float32(255) <= np.float32(limit)
    assert float(scale) * 255 <= limit
    assert float(scale) * 255 >= limit * min(factor, 1.0) * (1 - 1e-6)  # and is not smaller than need be


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_a_scale_at_its_limit_can_still_shrink(factor: float) -> None:
    grid = ActivationGrid(UNSIGNED, scale=6 / 255 * factor, zero_point=0, limit=6.0)
    torch.autograd.backward(grid.scale())
    assert grid.log_scale.grad is not None
    assert float(grid.log_scale.grad) == pytest.approx(6 / 255 * factor, rel=1e-5)


def test_a_loaded_zero_point_counts_at_once() -> None:
    trained = ActivationGrid(AFFINE, scale=0.1, zero_point=57)
    fresh = torch.nn.ModuleDict({"grid": ActivationGrid(AFFINE, scale=3.0, zero_point=9)})
    for assign in (False, True):
        fresh.load_state_dict({f"grid.{key}": value for key, value in trained.state_dict().items()}, assign=assign)
        grid = fresh["grid"]
        assert isinstance(grid, ActivationGrid)
        assert (grid.zero, grid.lowest, grid.highest) == (57, -57, 198)
        assert torch.equal(grid.scale(), trained.scale())


@pytest.mark.parametrize("grid", [NARROW, FOUR_BITS, Grid(bits=8, signed=True, symmetric=True, narrow=True, limit=63)])
def test_weight_integers_are_those_of_slow_arithmetic(grid: Grid, noise: Noise) -> None:
    weight = noise(4, 3, 3, 3) * torch.tensor([1.0, 0.01, 20.0, 0.0])[:, None, None, None]
    module = WeightGrid(grid, weight).eval()
    integers, scale = module(weight), module.scale().reshape(-1).tolist()
    for channel in range(4):
        one = scale[channel if len(scale) > 1 else 0]
        for value, integer in zip(
            weight[channel].flatten().tolist(), integers[channel].flatten().tolist(), strict=True
        ):
            expected = min(max(round(value / one), grid.quant_min), grid.quant_max)
            # A value next to the middle of two integers may go either way in float32.
            assert integer == expected or abs(abs(value / one - integer) - 0.5) < 1e-4
    assert integers.abs().max() <= grid.quant_max and integers.dtype == torch.float32
    if grid.bits == 8 and grid.channel_axis == 0:
        assert integers.flatten(1).abs().amax(1).tolist() == [127, 127, 127, 0]


def test_weights_in_blocks_have_a_grid_for_each(noise: Noise) -> None:
    weight = noise(4, 6 * 16) * torch.tensor([1.0, 0.01, 20.0, 0.0]).repeat_interleave(24).reshape(4, 24).repeat(1, 4)
    module = WeightGrid(replace(FOUR_BITS, block=16), weight).eval()
    integers, scale = module(weight), module.scale()
    assert scale.shape == (4, 6) and integers.shape == weight.shape
    for row in range(4):
        for block in range(6):
            part = weight[row, 16 * block : 16 * (block + 1)]
            alone = WeightGrid(FOUR_BITS, part.reshape(1, -1)).eval()
            assert torch.equal(scale[row, block], alone.scale().reshape(()))
            assert torch.equal(integers[row, 16 * block : 16 * (block + 1)], alone(part.reshape(1, -1))[0])
    reals = module.reals(integers).detach()
    torch.testing.assert_close(reals, (integers * scale.repeat_interleave(16, 1)).detach(), rtol=0, atol=0)
    assert float((reals - weight).square().mean() / weight.square().mean()) < 0.01


def test_weight_gradients_end_with_the_grid(noise: Noise) -> None:
    weight = noise(4, 30).requires_grad_()
    module = WeightGrid(FOUR_BITS, weight)
    with torch.no_grad():
        module.log_scale.sub_(0.7)  # so that the largest weights are beyond the grid
    integers = module(weight)
    torch.autograd.backward(integers.sum())
    inside = ((weight / module.scale()[:, None]).abs() < 7.5).float()
    assert 0 < float(inside.mean()) < 1 and weight.grad is not None
    torch.testing.assert_close(weight.grad, inside / module.scale().detach()[:, None])


def test_the_largest_weight_is_trained_at_8_bits(noise: Noise) -> None:
    weight = noise(4, 30).requires_grad_()
    torch.autograd.backward(WeightGrid(NARROW, weight)(weight).sum())
    assert weight.grad is not None and bool((weight.grad > 0).all())


def test_a_floor_keeps_first_scales_up(noise: Noise) -> None:
    weight = noise(3, 8) * torch.tensor([1.0, 1e-9, 1.0])[:, None]
    floor = torch.tensor([1e-9, 1e-3, 1e-9])
    scale = WeightGrid(NARROW, weight, floor=floor).scale()
    assert scale[1].item() == pytest.approx(1e-3)
    assert torch.equal(scale[::2], WeightGrid(NARROW, weight).scale()[::2])


def test_wide_layers_get_wide_integers_in_evaluation_only(noise: Noise) -> None:
    narrow, wide = noise(4, 64, 3, 3), torch.ones(4, 512, 3, 3)
    for weight, expected in ((narrow, torch.float32), (wide, torch.float64)):
        module = WeightGrid(NARROW, weight)
        assert module(weight).dtype == torch.float32
        assert module.eval()(weight).dtype == expected
        assert torch.equal(module(weight).float(), module.train()(weight))


def test_a_copy_shares_nothing() -> None:
    grid = ActivationGrid(AFFINE, scale=0.1, zero_point=57)
    other = copy.deepcopy(grid)
    with torch.no_grad():
        other.log_scale.add_(1)
    other.load_state_dict({"log_scale": torch.tensor(0.0), "zero_point": torch.tensor(3)})
    assert grid.zero == 57 and other.zero == 3 and grid.scale().item() == pytest.approx(0.1, rel=1e-6)


def test_a_multiplied_grid_has_the_same_integers_of_another_size() -> None:
    times = MultipliedGrid(ActivationGrid(AFFINE, scale=0.5, zero_point=57), 3.0)
    assert (times.zero, times.lowest, times.highest, times.scale().item()) == (57, -57, 198, 1.5)


def test_fewer_bits_have_larger_steps_between_the_same_ends() -> None:
    grid = ActivationGrid(AFFINE, scale=0.5, zero_point=57)
    grid.resolve(4)  # 255 steps become 15
    assert (grid.lowest, grid.highest) == (-3, 12)
    assert grid.scale().item() == pytest.approx(0.5 * 17, rel=1e-6)


def test_a_first_scale_that_is_known_is_taken() -> None:
    grid = WeightGrid(NARROW, torch.ones(2, 3), first_scale=torch.tensor([0.5, 0.25]))
    assert grid.scale().tolist() == pytest.approx([0.5, 0.25], rel=1e-6)
