"""Least squares over integers: a number by hand, never worse than the nearest integers, near the best of all."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from calibration.simulation.reconstruction import least_squares
from calibration.simulation.reconstruction.least_squares import Levels, Rounded, round_by_least_squares
from calibration.simulation.reconstruction.moments import Moments, MomentSums

TWO_BITS = Levels(lowest=-3, highest=3)


def sums_of(x: Tensor, y: Tensor, *, about_zero: bool = False) -> MomentSums:
    sums = MomentSums(about_zero=about_zero)
    for rows in (slice(0, 10), slice(10, None)):
        sums.add(x[None, rows], y[None, rows])
    return sums


def moments_of(x: Tensor, y: Tensor, *, about_zero: bool = False) -> Moments:
    return sums_of(x, y, about_zero=about_zero).moments()


def rounded(x: Tensor, weight: Tensor, scale: Tensor, *, y: Tensor | None = None, levels: Levels = TWO_BITS) -> Rounded:
    """Of inputs whose every fifth checks; towards a weight's own outputs, but where others are given."""
    y = x @ weight.T if y is None else y
    checks = torch.arange(len(x)) % 5 == 4
    sides = (sums_of(x[~checks], y[~checks]), sums_of(x[checks], y[checks]))
    result = round_by_least_squares(*sides, weight[None], scale[None], levels)
    assert result is not None
    return result


def missed(x: Tensor, y: Tensor, weight: Tensor) -> float:
    """Mean square of what a weight misses, the bias at its best."""
    return float((y - x @ weight.T).var(0, correction=0).mean())


def correlated(count: int, size: int, seed: int = 0) -> Tensor:
    """Positive inputs that go along with each other, as behind a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, size, generator=generator) @ torch.randn(size, size, generator=generator)
    return (mixed + torch.randn(count, 1, generator=generator) * 2).relu()


def test_moments_are_those_of_all_batches() -> None:
    x, y = correlated(30, 4), correlated(30, 2, seed=1)
    moments = moments_of(x, y)
    both = torch.cat([x, y], 1).double()
    whole = torch.cov(both.T, correction=0)
    torch.testing.assert_close(moments.covariance[0], whole[:4, :4])
    torch.testing.assert_close(moments.cross[0], whole[:4, 4:])
    torch.testing.assert_close(moments.variance[0], whole.diagonal()[4:])
    torch.testing.assert_close(moments.mean_factors[0], both[:, :4].mean(0))
    about_zero = moments_of(x, y, about_zero=True)
    torch.testing.assert_close(about_zero.covariance[0], both[:, :4].T @ both[:, :4] / 30)
    assert not about_zero.mean_outputs.any()


def test_by_hand_the_second_weight_makes_good_what_the_first_lacks() -> None:
    """Two inputs that are the same: of weights 0.4 and 0.4 their sum 0.8 counts, which is one step of 0.8, not none."""
    x = torch.randn(100, 1, generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    result = rounded(x, torch.tensor([[0.39, 0.39]]), torch.tensor([0.8]))
    assert result.integers[0, 0].sum() == 1
    assert float(result.scale) == pytest.approx(0.78, rel=1e-3)
    assert result.error == pytest.approx(0, abs=1e-6)


def test_the_bias_makes_good_the_mean() -> None:
    x = correlated(200, 6) + 3
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    result = rounded(x, weight, weight.abs().amax(1) / 3)
    outputs = x.double() @ (result.integers[0] * result.scale[0, :, None]).T + result.bias[0]
    torch.testing.assert_close(outputs.mean(0), (x @ weight.T).double().mean(0))


@pytest.mark.parametrize("seed", range(6))
def test_it_is_nearer_than_the_nearest_integers(seed: int) -> None:
    x = correlated(400, 16, seed)
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed + 100))
    scale = weight.abs().amax(1) / 3
    result = rounded(x, weight, scale)
    assert result.integers.abs().max() <= 3
    assert torch.equal(result.integers, result.integers.round())
    nearest = (weight / scale[:, None]).round() * scale[:, None]
    own = missed(x, x @ weight.T, (result.integers[0] * result.scale[0, :, None]).float())
    assert own < 0.8 * missed(x, x @ weight.T, nearest)


def test_it_is_not_far_from_the_best_of_all() -> None:
    """Four weights of seven levels: 2,401 ways, each with the scale that suits it."""
    x = correlated(300, 4)
    weight = torch.tensor([[0.5, -0.31, 0.17, 0.44]])
    y = x @ weight.T
    best = float("inf")
    for integers in itertools.product(range(-3, 4), repeat=4):
        outputs = x @ torch.tensor([integers]).float().T
        centred, target = outputs - outputs.mean(0), y - y.mean(0)
        power = float((centred * centred).sum())
        fitted = float((centred * target).sum()) / power if power else 0.0
        best = min(best, float((target - fitted * centred).square().mean()))
    result = rounded(x, weight, weight.abs().amax(1) / 3)
    own = missed(x, y, (result.integers[0] * result.scale[0, :, None]).float())
    assert own < 4 * best


def test_channels_that_share_a_scale_go_on_sharing_it() -> None:
    x = correlated(100, 6)
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    result = rounded(x, weight, torch.full((4,), 0.5), levels=Levels(lowest=-3, highest=3, one_scale=True))
    assert bool((result.scale == result.scale[0, 0]).all())


def test_inputs_that_are_always_zero_keep_the_nearest_integers() -> None:
    x = correlated(50, 8)
    x[:, 2] = 0
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    scale = weight.abs().amax(1) / 3
    result = rounded(x, weight, scale)
    assert torch.equal(result.integers[0, :, 2], (weight[:, 2] / result.scale[0]).round().clamp(-3, 3))


@pytest.mark.parametrize("levels", [TWO_BITS, Levels(lowest=-127, highest=127)])
def test_a_constant_input_is_none(levels: Levels) -> None:
    """As behind a ReLU6 that is always at its end: of its variance the sums hold rounding errors alone."""
    x = correlated(1000, 8)
    x[:, 3:] = 5.9999
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    scale = weight.abs().amax(1) / levels.highest
    nearest = levels.nearest(weight[None], scale[None])
    sums = sums_of(x, x @ weight.T)
    assert not sums.moments().covariance[0, 3:].any() and not sums.moments().cross[0, 3:].any()
    result = round_by_least_squares(sums, sums, weight[None], scale[None], levels)
    assert result is None or float((result.integers - nearest)[..., 3:].abs().max()) <= 1


def test_where_inputs_say_nothing_the_nearest_integers_stay() -> None:
    sums = sums_of(torch.zeros(50, 4), torch.zeros(50, 1))
    weight = torch.tensor([[[0.5, -0.31, 0.17, 0.44]]])
    assert round_by_least_squares(sums, sums, weight, torch.tensor([[0.15]]), TWO_BITS) is None


def test_few_samples_of_many_inputs_are_not_believed_to_the_letter() -> None:
    """40 samples of 64 inputs with noise can all be copied, and others missed by more than by any rounding."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 64, generator=generator)
    x, others = torch.randn(50, 64, generator=generator), torch.randn(2000, 64, generator=generator)
    y = x @ (1.3 * weight).T + 4 * torch.randn(50, 6, generator=generator)
    levels = Levels(lowest=-127, highest=127)
    result = rounded(x, weight, weight.abs().amax(1) / 127, y=y, levels=levels)
    copied = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution.T

    def on_others(weights: Tensor) -> float:
        return missed(others, others @ (1.3 * weight).T, weights)

    own = (result.integers[0] * result.scale[0, :, None]).float()
    assert on_others(own) < 0.1 * on_others(copied)
    assert on_others(own) < 0.5 * on_others(weight)


@pytest.mark.parametrize("columns", [1, 3, 64])
def test_rounding_by_columns_is_rounding_one_by_one(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are passed on at once or many together: the same integers, also of those that move afterwards."""
    x = correlated(400, 16)
    weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    whole = rounded(x, weight, weight.abs().amax(1) / 3)
    monkeypatch.setattr(least_squares, "_COLUMNS", columns)
    assert torch.equal(rounded(x, weight, weight.abs().amax(1) / 3).integers, whole.integers)


def test_no_single_integer_is_better_at_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "_PASSES", 20)
    x = correlated(300, 16)
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
    moments = moments_of(x, x @ weight.T)
    best, scale = weight[None].double(), (weight.abs().amax(1) / 3)[None].double()

    def missing(integers: Tensor) -> Tensor:
        left = integers * scale[..., None] - best
        return ((left @ moments.covariance) * left).sum(-1)

    begin = TWO_BITS.nearest(best, scale)
    moved = least_squares._moved(begin, best, scale, moments.covariance, TWO_BITS)
    assert bool((missing(moved) <= missing(begin)).all()) and not torch.equal(moved, begin)
    for column, step in itertools.product(range(16), (-1, 1)):
        other = moved.clone()
        other[:, :, column] = (other[:, :, column] + step).clamp(-3, 3)
        assert bool((missing(other) >= missing(moved) * (1 - 1e-9)).all())
