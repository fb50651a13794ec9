"""Histograms are exact, and ranges are what slow computations over the raw values find."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.grid import Grid, affine_parameters
from calibration.ranges.observers import RANGE_METHODS, RangeObserver, choose_range, weight_scale

if TYPE_CHECKING:
    from tests.calibration.conftest import Noise

UNSIGNED = Grid(bits=8, signed=False, symmetric=True)
AFFINE = Grid(bits=8, signed=False, symmetric=False)
SIGNED = Grid(bits=8, signed=True, symmetric=True)


def observed(*batches: Tensor) -> RangeObserver:
    observer = RangeObserver()
    for batch in batches:
        observer.observe(batch)
    return observer


def squared_error(values: Tensor, low: float, high: float, grid: Grid) -> float:
    """Mean squared error of rounding raw values to the grid that covers a range."""
    scale, zero_point = affine_parameters(low, high, grid)
    integers = (values.double() / scale).round().clamp(grid.quant_min - zero_point, grid.quant_max - zero_point)
    return float((integers * scale - values.double()).square().mean())


# The histogram.


def test_bins_count_what_a_slow_loop_counts() -> None:
    values = torch.tensor([-1.0, -0.25, -1e-30, 0.0, 1e-30, 0.1, 0.24999999, 0.25, 0.75, 1.0])
    observer = observed(values)
    assert observer.reach == 1.0 and observer.counts is not None
    width = 2 / len(observer.counts)
    expected = torch.zeros_like(observer.counts)
    for value in values.tolist():
        expected[min(math.floor(value / width) + len(expected) // 2, len(expected) - 1)] += 1
    assert torch.equal(observer.counts, expected)
    assert float((observer.centres()[1:] - observer.centres()[:-1]).sub(width).abs().max()) < 1e-15


def test_a_histogram_that_doubled_equals_one_made_at_once(noise: Noise) -> None:
    # Many values lie on edges of bins or next to them, on both sides.
    near = torch.arange(-2048, 2048).float() / 4096
    edges = torch.cat([near, torch.nextafter(near, near + 1), torch.nextafter(near, near - 1)])
    batches = [0.001 * noise(999, seed=1), edges, 3 * noise(500, seed=2), torch.tensor([100.0]), noise(700, seed=3)]
    at_once = observed(torch.cat(batches))
    assert at_once.reach == 128.0 and at_once.counts is not None
    for order in itertools.permutations(batches):
        grown = observed(*order)
        assert grown.reach == at_once.reach and grown.counts is not None
        assert torch.equal(grown.counts, at_once.counts)
        assert (grown.minimum, grown.maximum) == (at_once.minimum, at_once.maximum)


@pytest.mark.parametrize("power", [-20, -3, 0, 1, 60])
def test_the_reach_is_the_next_power_of_two(power: int) -> None:
    exact = 2.0**power
    assert observed(torch.tensor([-exact])).reach == exact
    assert observed(torch.tensor([exact * (1 + 2.0**-23)])).reach == 2 * exact


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_values_that_are_not_finite_are_noticed_for_good(bad: float, noise: Noise) -> None:
    observer = observed(noise(10), torch.tensor([0.0, bad]), noise(10))
    assert not observer.finite
    assert observer.maximum < 10


def test_batches_of_any_shape_and_type_are_counted(noise: Noise) -> None:
    observer = observed(noise(2, 3, 4, 5), noise(7).double(), noise(2, 3).transpose(0, 1), torch.tensor(1.0))
    assert observer.counts is not None and float(observer.counts.sum()) == 120 + 7 + 6 + 1


# Ranges.


def test_nothing_observed_has_no_range() -> None:
    with pytest.raises(ValueError, match="no batch was observed"):
        choose_range(RangeObserver(), AFFINE, "auto")


def test_minimum_and_maximum(noise: Noise) -> None:
    batches = [noise(100, seed=seed) for seed in range(3)]
    assert choose_range(observed(*batches), AFFINE, "minmax") == (
        float(torch.cat(batches).min()),
        float(torch.cat(batches).max()),
    )


def test_moving_average_by_hand() -> None:
    observer = observed(torch.tensor([-1.0, 2.0]), torch.tensor([-2.0, 2.0]), torch.tensor([0.0, 12.0]))
    low, high = choose_range(observer, AFFINE, "moving-average")
    assert low == pytest.approx((-1.0 * 0.9 - 2.0 * 0.1) * 0.9 + 0.0 * 0.1)
    assert high == pytest.approx((2.0 * 0.9 + 2.0 * 0.1) * 0.9 + 12.0 * 0.1)


@pytest.mark.parametrize("positive", [False, True])
def test_percentile_is_the_quantile_of_the_values(positive: bool, noise: Noise) -> None:
    values = noise(200_000).abs() if positive else noise(200_000) * 3 + 1
    low, high = choose_range(observed(*torch.split(values, 50_000)), AFFINE, "percentile")
    width = 2 * observed(values).reach / 2**14
    ends = torch.tensor([0.0001, 0.9999], dtype=torch.float64)
    below, above = (torch.quantile(values.double(), ends, interpolation=kind).tolist() for kind in ("lower", "higher"))
    assert below[0] - width <= low <= above[0] + width
    assert below[1] - width <= high <= above[1] + width


def test_percentile_never_leaves_the_values() -> None:
    observer = observed(torch.tensor([0.3, 0.3, 0.3]))
    assert choose_range(observer, AFFINE, "percentile") == (observer.minimum, observer.maximum)


DISTRIBUTIONS: dict[str, Callable[[Noise], Tensor]] = {
    "normal": lambda noise: noise(20_000),
    "rectified": lambda noise: noise(20_000).relu(),
    "heavy tail": lambda noise: noise(20_000) ** 3,
    "one outlier": lambda noise: torch.cat([noise(20_000).abs(), torch.tensor([25.0])]),
    "shifted": lambda noise: noise(20_000) * 0.3 + 1,
    "one-sided tail": lambda noise: noise(20_000).exp() - 0.5,
    "tiny": lambda noise: noise(20_000) * 1e-4,
    "huge": lambda noise: noise(20_000) * 1e30,
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("grid", [UNSIGNED, AFFINE, SIGNED], ids=["unsigned", "affine", "signed"])
def test_the_least_squares_range_is_as_good_as_brute_force_over_raw_values(
    name: str, grid: Grid, bits: int, noise: Noise
) -> None:
    values = DISTRIBUTIONS[name](noise)
    if grid is UNSIGNED:
        values = values.abs()
    grid = Grid(bits=bits, signed=grid.signed, symmetric=grid.symmetric)
    observer = observed(*torch.split(values, 5_000))
    low, high = choose_range(observer, grid, "auto")
    error = squared_error(values, low, high, grid)
    shrinks = [step / 50 for step in range(10, 51)]
    ends = [(s, s) for s in shrinks]
    if not grid.symmetric and observer.minimum < 0:
        ends += [(low_end, high_end) for low_end in shrinks[::5] for high_end in shrinks[::5]]
    best = min(squared_error(values, observer.minimum * a, observer.maximum * b, grid) for a, b in ends)
    assert error <= 1.05 * best
    assert error <= squared_error(values, observer.minimum, observer.maximum, grid) * (1 + 1e-3)


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("grid", [UNSIGNED, AFFINE, SIGNED])
@pytest.mark.parametrize("value", [0.0, 1e-12, 0.7, -0.7, 1e37])
def test_constant_tensors_have_a_range(method: str, grid: Grid, value: float) -> None:
    low, high = choose_range(observed(torch.full((64,), value)), grid, method)  # type: ignore[arg-type]
    scale, zero_point = affine_parameters(low, high, grid)
    assert math.isfinite(scale) and scale > 0 and grid.quant_min <= zero_point <= grid.quant_max
    if value > 1e-6 or (value < 0 and (grid.signed or not grid.symmetric)):
        integer = round(value / scale)
        assert grid.quant_min - zero_point <= integer <= grid.quant_max - zero_point
        assert abs(integer * scale - value) <= 0.51 * scale


# Weights.


def brute_force_scale(channel: Tensor, grid: Grid) -> tuple[float, float]:
    """Scale and squared error of the best of 80 scales for one channel, value by value."""
    full = max(float(channel.abs().max()) / grid.quant_max, SMALLEST_SCALE)
    best, least = (full, math.inf), 0.3 if grid.bits > 3 else 0.1
    for index in range(80):
        scale = full * (least + (1 - least) * index / 79) if grid.bits < 8 else full
        error = 0.0
        for value in channel.flatten().tolist():
            integer = min(max(round(value / scale), grid.quant_min), grid.quant_max)
            error += (integer * scale - value) ** 2
        if error < best[1]:
            best = (scale, error)
    return best


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_weight_scales_are_those_of_brute_force(bits: int, axis: int | None, noise: Noise) -> None:
    grid = Grid(bits=bits, signed=True, symmetric=True, narrow=True, channel_axis=axis)
    weight = noise(4, 3, 3, 3) ** 3 * torch.tensor([1.0, 1e-3, 50.0, 0.0])[:, None, None, None]
    scale = weight_scale(weight, grid)
    assert scale.dtype == torch.float32 and scale.shape == (() if axis is None else (weight.shape[axis],))
    channels = [weight] if axis is None else weight.unbind(axis)
    for chosen, channel in zip(scale.reshape(-1).tolist(), channels, strict=True):
        expected, error = brute_force_scale(channel, grid)
        integers = (channel.double() / chosen).round().clamp(grid.quant_min, grid.quant_max)
        assert float((integers * chosen - channel).square().sum()) == pytest.approx(error, rel=1e-3, abs=1e-20)
        assert chosen == pytest.approx(max(expected, SMALLEST_SCALE), rel=1e-5)


def test_a_channel_of_zeros_has_the_smallest_scale(noise: Noise) -> None:
    weight = noise(3, 8)
    weight[1] = 0
    for bits in (8, 4):
        grid = Grid(bits=bits, signed=True, symmetric=True, narrow=True, channel_axis=0)
        scale = weight_scale(weight, grid)
        assert float(scale[1]) == SMALLEST_SCALE
        assert torch.equal((weight / scale[:, None]).round()[1], torch.zeros(8))


def test_many_weights_are_taken_in_parts_that_change_nothing() -> None:
    weight = torch.randn((5, 2**16), generator=torch.Generator().manual_seed(0))  # two channels at a time
    grid = Grid(bits=4, signed=True, symmetric=True, narrow=True, channel_axis=0)
    alone = [weight_scale(channel[None], grid) for channel in weight]
    torch.testing.assert_close(weight_scale(weight, grid), torch.cat(alone), rtol=0, atol=0)
