"""The custom derivatives against slow compositions that autograd differentiates, and numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from calibration.arithmetic.rounding import requantise, requantise_sum, round_straight_through, round_to_grid, sign

if TYPE_CHECKING:
    from tests.calibration.conftest import Noise

BOUNDS = [(-128, 127), (0, 255), (0, 15), (-7, 7), (-40, 215)]


def slow(unrounded: Tensor, lowest: int, highest: int) -> Tensor:
    """clamp(round()) with the gradient 1 where the rounded value is on the grid, made of operators autograd knows."""
    rounded = unrounded + (unrounded.round() - unrounded).detach()
    inside = (unrounded.detach() > lowest - 0.5) & (unrounded.detach() < highest + 0.5)
    return torch.where(inside, rounded, unrounded.detach().round().clamp(lowest, highest))


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Value of a function and the gradients of a weighted sum of it."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    result = function(*leaves)
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    gradients = torch.autograd.grad((result * weights).sum(), leaves)
    return result.detach(), list(gradients)


def assert_same(first: tuple[Tensor, list[Tensor]], second: tuple[Tensor, list[Tensor]]) -> None:
    assert torch.equal(first[0], second[0])
    for ours, theirs in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize(("lowest", "highest"), BOUNDS)
@pytest.mark.parametrize("shape", [(), (1,), (5, 1, 1), (1, 5, 1, 1), (4, 5, 6, 7), (4, 1, 1, 1), (7,)])
def test_requantise_equals_the_slow_composition(
    shape: tuple[int, ...], lowest: int, highest: int, noise: Noise
) -> None:
    sums = (noise(4, 5, 6, 7).double() * 9000).round()
    multiplier = 0.01 * (0.5 + noise(*shape, seed=1).double().abs())
    ours = gradients(lambda x, m: requantise(x, m, lowest, highest), sums, multiplier)
    theirs = gradients(lambda x, m: slow(x * m, lowest, highest), sums, multiplier)
    assert_same(ours, theirs)
    assert ours[0].min() == lowest and ours[0].max() == highest  # both ends saturate here


@pytest.mark.parametrize(("lowest", "highest"), BOUNDS)
def test_rounding_to_a_grid_equals_the_slow_composition(lowest: int, highest: int, noise: Noise) -> None:
    x = noise(4, 5, 6, 7).double() * 200
    ours = gradients(lambda x: round_to_grid(x, lowest, highest), x)
    assert_same(ours, gradients(lambda x: slow(x, lowest, highest), x))


@pytest.mark.parametrize(("lowest", "highest"), BOUNDS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((4, 5, 6, 7), (4, 5, 6, 7)),
        ((4, 5, 1, 1), (4, 5, 6, 7)),
        ((4, 5, 6, 7), (4, 5, 1, 1)),
        ((1, 5, 6, 1), (4, 1, 1, 7)),
        ((7,), (4, 5, 6, 7)),
    ],
)
def test_requantise_sum_equals_the_slow_composition(
    first: tuple[int, ...], second: tuple[int, ...], lowest: int, highest: int, noise: Noise
) -> None:
    a, b = (noise(*first).double() * 200).round(), (noise(*second, seed=1).double() * 200).round()
    ratios = torch.tensor(0.7310585, dtype=torch.float64), torch.tensor(1.9021130, dtype=torch.float64)
    ours = gradients(lambda a, b, ra, rb: requantise_sum(a, b, ra, rb, lowest, highest), a, b, *ratios)
    theirs = gradients(lambda a, b, ra, rb: slow(a * ra + b * rb, lowest, highest), a, b, *ratios)
    assert_same(ours, theirs)


def test_numbers_worked_by_hand() -> None:
    x = torch.tensor([-3.0, -0.6, 0.25, 2.0, 7.4, 300.0], requires_grad=True)
    multiplier = torch.tensor(0.5, requires_grad=True)
    y = requantise(x, multiplier, 0, 3)
    # x / 2 is -1.5, -0.3, 0.125, 1, 3.7, 150: the first and the last two are beyond the grid by more than half a step.
    assert y.tolist() == [0, 0, 0, 1, 3, 3]
    torch.autograd.backward(y, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert x.grad is not None and multiplier.grad is not None
    assert x.grad.tolist() == [0, 1.0, 1.5, 2.0, 0, 0]
    assert float(multiplier.grad) == pytest.approx(-0.6 * 2 + 0.25 * 3 + 2.0 * 4)


def test_halves_go_to_the_even_neighbour() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5, -127.5, -128.5])
    expected = [0, 2, 2, 0, -2, -2, 126, 127, -128, -128]
    assert requantise(x, torch.tensor(1.0), -128, 127).tolist() == expected
    assert round_to_grid(x, -128, 127).tolist() == expected
    assert requantise_sum(x, x * 0, torch.tensor(1.0), torch.tensor(1.0), -128, 127).tolist() == expected
    assert round_straight_through(x[:6]).tolist() == [0, 2, 2, 0, -2, -2]


def test_finite_differences_agree_where_the_steps_are_small(noise: Noise) -> None:
    # With results around 1e9, rounding to integers is no more than noise for a difference quotient.
    x, multiplier = noise(3, 4).double() * 1e6, 1e3 * (1 + noise(4, seed=1).double().abs())
    limit = 10**12
    inputs = (x.requires_grad_(), multiplier.requires_grad_())

    def check(function: Callable[..., Tensor], values: tuple[Tensor, ...]) -> bool:
        return bool(torch.autograd.gradcheck(function, values, eps=1.0, rtol=1e-2, atol=1.0))

    assert check(lambda x, m: requantise(x, m, -limit, limit), inputs)
    scalars = (multiplier[0].detach().requires_grad_(), multiplier[1].detach().requires_grad_())
    other = noise(4, seed=2).double().mul(1e6).requires_grad_()
    assert check(lambda a, b, ra, rb: requantise_sum(a, b, ra, rb, -limit, limit), (inputs[0], other, *scalars))


def test_inputs_and_incoming_gradients_are_left_alone(noise: Noise) -> None:
    x, other = noise(4, 5, 6, 7).mul_(100).requires_grad_(), noise(4, 5, 6, 7, seed=1).mul_(100).requires_grad_()
    multiplier, ratio = torch.full((5, 1, 1), 0.7, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    kept = [value.detach().clone() for value in (x, other, multiplier, ratio)]
    gradient = noise(4, 5, 6, 7, seed=2)
    expected = gradient.clone()
    # The sum hands the very same gradient tensor to both of its inputs.
    torch.autograd.backward((requantise(x, multiplier, -128, 127) + other), gradient)
    assert torch.equal(gradient, expected) and other.grad is not None and torch.equal(other.grad, expected)
    torch.autograd.backward((requantise_sum(x, x, ratio, ratio, -128, 127) + other), gradient)
    torch.autograd.backward((round_to_grid(x, -128, 127) + other), gradient)
    assert torch.equal(gradient, expected)
    for value, before in zip((x, other, multiplier, ratio), kept, strict=True):
        assert torch.equal(value, before)


def test_only_the_gradients_that_are_asked_for_are_computed(noise: Noise) -> None:
    x, multiplier = noise(2, 3).requires_grad_(), torch.tensor(3.0, requires_grad=True)
    torch.autograd.backward(requantise(x, multiplier.detach(), -7, 7).sum())
    assert x.grad is not None and multiplier.grad is None
    torch.autograd.backward(requantise(x.detach(), multiplier, -7, 7).sum())
    assert multiplier.grad is not None
    torch.autograd.backward(requantise_sum(x.detach(), x.detach(), multiplier.detach(), multiplier, -7, 7).sum())
    assert requantise(x.detach(), multiplier.detach(), -7, 7).grad_fn is None


def test_second_derivatives_are_refused(noise: Noise) -> None:
    x = noise(3).requires_grad_()
    (first,) = torch.autograd.grad(
        requantise(x, torch.tensor(1.0, requires_grad=True), -7, 7).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(first.sum())


@pytest.mark.parametrize("layout", ["channels last", "transposed", "expanded"])
def test_memory_layout_does_not_matter(layout: str, noise: Noise) -> None:
    x = noise(4, 5, 6, 7) * 100
    other = {
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": x[:1].expand(4, 5, 6, 7),
    }[layout]
    x = other.contiguous()
    multiplier = torch.rand(5, 1, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    first, second = (gradients(lambda x, m: requantise(x, m, -128, 127), v, multiplier) for v in (x, other))
    assert torch.equal(first[0], second[0])
    for ours, theirs in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(ours, theirs)
    a = noise(4, 5, 6, 7, seed=1) * 100
    ratios = torch.tensor(0.7310585), torch.tensor(1.9021130)
    first, second = (
        gradients(lambda a, b, ra, rb: requantise_sum(a, b, ra, rb, -128, 127), a, v, *ratios) for v in (x, other)
    )
    assert torch.equal(first[0], second[0])
    for ours, theirs in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rounding_straight_through_is_exact(noise: Noise) -> None:
    magnitudes = torch.logspace(-6, 7, 27)
    values = (noise(500)[:, None] * magnitudes).flatten().requires_grad_()
    rounded = round_straight_through(values)
    assert torch.equal(rounded, values.detach().round())
    torch.autograd.backward(rounded, torch.arange(len(values)).float())
    assert values.grad is not None and torch.equal(values.grad, torch.arange(len(values)).float())


@pytest.mark.parametrize("form", ["expanded", "contiguous", "channels_last"])
def test_gradients_lie_in_memory_as_the_values_do(form: str, noise: Noise) -> None:
    x, y = (noise(2, 8, 4, 4, seed=seed).contiguous(memory_format=torch.channels_last) for seed in (0, 1))
    incoming = noise(2, 8, 1, 1, seed=2).expand(2, 8, 4, 4)
    if form != "expanded":
        incoming = incoming.contiguous(memory_format=getattr(torch, f"{form}_format" if form == "contiguous" else form))
    scale = torch.tensor(0.5)
    functions: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda a, b: round_to_grid(a, -9, 9),
        lambda a, b: requantise(a, scale, -9, 9),
        lambda a, b: requantise_sum(a, b, scale, scale, -9, 9),
    )
    for function in functions:
        leaves = (x.clone().requires_grad_(), y.clone().requires_grad_())
        gradients = torch.autograd.grad(function(*leaves), leaves, incoming, allow_unused=True)
        assert all(g.is_contiguous(memory_format=torch.channels_last) for g in gradients if g is not None)
        assert gradients[0] is not None


def test_the_sign_has_two_values_and_a_gradient_inside() -> None:
    x = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.7, 1.5], requires_grad=True)
    signs = sign(x)
    torch.autograd.backward((signs * torch.arange(1.0, 7.0)).sum())
    assert signs.tolist() == [-1, -1, -1, 1, 1, 1]
    assert x.grad is not None and x.grad.tolist() == [0, 2, 3, 4, 5, 0]
