"""Products of integers are exact, also where float32 alone would round."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from calibration.arithmetic.integer_products import (
    EXACT_IN_FLOAT32,
    integer_conv2d,
    integer_conv_transpose2d,
    integer_linear,
    wide_matmul,
)

if TYPE_CHECKING:
    from tests.calibration.conftest import Noise


def integers(values: Tensor, largest: int) -> Tensor:
    return (values / values.abs().max() * largest).round()


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "like trained": lambda values: integers(values, 127),
    "mostly of one sign": lambda values: integers(values + 2, 127),
    "largest": lambda values: torch.full_like(values, 127.0),
}
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rectified": lambda values: integers(values.relu(), 255),
    "largest": lambda values: 255 - integers(values.abs(), 3),
    "signed": lambda values: integers(values, 128),
}


@pytest.mark.parametrize("bias", [None, 3.0, 2.0**30])
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_wide_sums_are_rounded_once(weights: str, inputs: str, bias: float | None, noise: Noise) -> None:
    x, weight = INPUTS[inputs](noise(2, 512, 5, 6)), WEIGHTS[weights](noise(4, 512, 3, 3, seed=1))
    offsets = None if bias is None else torch.tensor([bias, -bias, 0.0, 1.0])
    wide = None if offsets is None else offsets.double()
    settings = ([2, 1], [1, 0], [1, 2], 1)
    expected = torch.conv2d(x.double(), weight.double(), wide, *settings)
    sums = integer_conv2d(x, weight.double(), wide, *settings)
    assert sums.dtype == torch.float32 and torch.equal(sums, expected.float())
    rows = x.permute(0, 2, 3, 1).reshape(-1, 6, 512)
    plane = weight[:, :, 0, 0]
    assert torch.equal(
        integer_linear(rows, plane.double(), wide),
        torch.nn.functional.linear(rows.double(), plane.double(), wide).float(),
    )
    transposed = weight.transpose(0, 1)
    assert torch.equal(
        integer_conv_transpose2d(x, transposed.double(), wide, 2, 1),
        torch.conv_transpose2d(x.double(), transposed.double(), wide, 2, 1).float(),
    )


@pytest.mark.parametrize("bias", [2**24 - 255 * 9 * 8 * 3, 2**24 - 1, 2**24 + 1, -(2**31) + 1])
def test_a_large_bias_is_added_to_narrow_products_in_float64(bias: int, noise: Noise) -> None:
    x, weight = integers(noise(2, 8, 5, 6).relu(), 255), integers(noise(4, 8, 3, 3, seed=1), 127)
    offsets = torch.tensor([0, bias, 7, bias + 1], dtype=torch.float64)
    exact = torch.conv2d(x.double(), weight.double(), offsets)
    for held in (weight, weight.double()):
        assert torch.equal(integer_conv2d(x, held, offsets), exact.float())
    if abs(bias) > 2**24:
        assert not torch.equal(torch.conv2d(x, weight, offsets.float()), exact.float()), "it takes care to be exact"
    rows, plane = x.flatten(2).transpose(1, 2), weight[:, :, 0, 0]
    expected = torch.nn.functional.linear(rows.double(), plane.double(), offsets).float()
    assert torch.equal(integer_linear(rows, plane, offsets), expected)


def test_a_large_bias_takes_no_product_to_float64(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = integers(noise(2, 8, 5, 6).relu(), 255), integers(noise(4, 8, 3, 3, seed=1), 127)
    kinds, plain = list[torch.dtype](), torch.conv2d

    def watched(x: Tensor, *rest: object) -> Tensor:
        kinds.append(x.dtype)
        return plain(x, *rest)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "conv2d", watched)
    integer_conv2d(x, weight, torch.tensor([1.0, 2.0**30, 0.0, -5.0], dtype=torch.float64))
    assert kinds == [torch.float32]


def test_the_gradient_of_a_large_bias_and_of_what_meets_it_is_that_in_float64(noise: Noise) -> None:
    x, weight = integers(noise(2, 8, 5, 6), 255), integers(noise(4, 8, 3, 3, seed=1), 127).requires_grad_()
    bias = torch.tensor([1.0, 2.0**30, 0.0, -5.0], dtype=torch.float64, requires_grad=True)
    weighting = integers(noise(2, 4, 3, 4, seed=2), 9)
    mine = torch.autograd.grad((integer_conv2d(x, weight, bias) * weighting).sum(), (weight, bias))
    exact = torch.conv2d(x.double(), weight.double(), bias).float()
    assert all(
        torch.equal(a, b)
        for a, b in zip(mine, torch.autograd.grad((exact * weighting).sum(), (weight, bias)), strict=True)
    )


def test_the_widest_case_is_wrong_without_care() -> None:
    x, weight = torch.full((1, 512, 3, 3), 255.0), torch.full((1, 512, 3, 3), 127.0)
    x[0, 0, 0, 0] = 254  # or the sum would be a multiple of a large power of two
    exact = 255 * 127 * 512 * 9 - 127
    assert exact > EXACT_IN_FLOAT32
    assert float(integer_conv2d(x, weight.double())) == float(torch.tensor(exact, dtype=torch.float64).float())
    assert float(torch.conv2d(x.double(), weight.double())) == exact


def test_narrow_sums_stay_in_float32(noise: Noise) -> None:
    x, weight = integers(noise(2, 8, 5, 5), 255), integers(noise(4, 8, 3, 3), 127)
    bias = torch.arange(4.0)
    assert torch.equal(integer_conv2d(x, weight, bias, 1, "same"), torch.conv2d(x, weight, bias, 1, "same"))
    gradient = torch.autograd.grad(integer_conv2d(x, weight.requires_grad_(), bias).sum(), weight)[0]
    assert gradient.dtype == torch.float32


def test_products_of_two_activations_are_rounded_once() -> None:
    first, second = torch.full((2, 3, 600), 255.0), torch.full((2, 600, 3), 255.0)
    first[..., 0], second[:, 1] = 254, 253
    exact = 255**2 * 598 + 254 * 255 + 255 * 253
    assert exact > EXACT_IN_FLOAT32
    assert torch.equal(wide_matmul(first, second), torch.full((2, 3, 3), float(exact), dtype=torch.float64).float())


def test_a_bound_on_sums_looks_where_the_kernel_does() -> None:
    """Every second position is large: of three neighbours two are, of a kernel with gaps all three."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randint(120, 128, (16, 200, 1, 3), generator=draw).double()
    x = torch.zeros(1, 200, 1, 9)
    x[..., ::2] = torch.randint(245, 256, (1, 200, 1, 5), generator=draw).float()
    exact = torch.conv2d(x.double(), weight, dilation=(1, 2)).float()
    assert not torch.equal(torch.conv2d(x, weight.float(), dilation=(1, 2)), exact), "it takes float64 to be exact"
    assert torch.equal(integer_conv2d(x, weight, dilation=(1, 2)), exact)
