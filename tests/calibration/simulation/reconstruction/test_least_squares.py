"""Least squares over integers: a number by hand, never worse than the nearest integers, near the best of all."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from calibration.simulation.reconstruction.least_squares import Rounded, round_by_least_squares
from calibration.simulation.reconstruction.moments import Moments, MomentSums


def moments_of(x: Tensor, y: Tensor, *, about_zero: bool = False) -> Moments:
    sums = MomentSums(about_zero=about_zero)
    for rows in (slice(0, 10), slice(10, None)):
        sums.add(x[None, rows], y[None, rows])
    return sums.moments()


def rounded(x: Tensor, weight: Tensor, scale: Tensor, *, lowest: int = -3, highest: int = 3) -> Rounded:
    moments = moments_of(x, x @ weight.T)
    return round_by_least_squares(moments, weight[None], scale[None], lowest=lowest, highest=highest)


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
    assert result.error == pytest.approx(own / float((x @ weight.T).var(0, correction=0).mean()), rel=1e-3)


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
    moments, scale = moments_of(x, x @ weight.T), torch.full((1, 4), 0.5)
    result = round_by_least_squares(moments, weight[None], scale, lowest=-3, highest=3, one_scale=True)
    assert bool((result.scale == result.scale[0, 0]).all())


def test_inputs_that_are_always_zero_keep_the_nearest_integers() -> None:
    x = correlated(50, 4)
    x[:, 2] = 0
    weight = torch.tensor([[0.5, -0.31, 0.17, 0.44]])
    result = rounded(x, weight, torch.tensor([0.15]))
    assert result.integers[0, 0, 2] == 1
    nothing = rounded(torch.zeros(50, 4), weight, torch.tensor([0.15]))
    assert nothing.integers[0, 0].tolist() == [3, -2, 1, 3]
    assert float(nothing.scale) == pytest.approx(0.15) and bool(nothing.bias.isfinite().all())
