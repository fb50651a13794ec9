"""The logit losses against slow numpy versions, hand-worked numbers and their invariants."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.distillation.losses.logits import kl_loss, mse_loss

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse_loss,
    "kl": partial(kl_loss, temperature=1.0),
    "kl at 4": partial(kl_loss, temperature=4.0),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return student, teacher


def slow_kl(student: list[float], teacher: list[float], temperature: float) -> float:
    def probabilities(values: list[float]) -> list[float]:
        powers = [math.exp(value / temperature) for value in values]
        return [power / sum(powers) for power in powers]

    pairs = zip(probabilities(student), probabilities(teacher), strict=True)
    return temperature**2 * sum(p * math.log(p / q) for q, p in pairs)


def slow_mse(student: list[float], teacher: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(student, teacher, strict=True)) / len(student)


@pytest.mark.parametrize("shape", [(5, 7), (2, 4, 3, 5), (3, 2, 6)])
def test_equal_the_slow_versions_position_by_position(shape: tuple[int, ...]) -> None:
    student, teacher = logits(*shape, dtype=torch.float64)
    rows = [[row.tolist() for row in np.moveaxis(x.numpy(), 1, -1).reshape(-1, shape[1])] for x in (student, teacher)]
    pairs = list(zip(*rows, strict=True))
    assert mse_loss(student, teacher).item() == pytest.approx(np.mean([slow_mse(a, b) for a, b in pairs]))
    for temperature in (0.5, 1.0, 3.0):
        expected = np.mean([slow_kl(a, b, temperature) for a, b in pairs])
        assert kl_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected)


def test_hand_worked() -> None:
    # Teacher (ln 3, 0) is (3/4, 1/4), student (0, 0) is (1/2, 1/2):
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.30410 - 0.17329 = 0.13081 nats; MSE = ln(3)^2 / 2 = 0.60347.
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    assert kl_loss(student, teacher, temperature=1.0).item() == pytest.approx(0.13081, abs=1e-5)
    assert kl_loss(student, 2 * teacher, temperature=2.0).item() == pytest.approx(4 * 0.13081, abs=4e-5)
    assert mse_loss(student, teacher).item() == pytest.approx(0.60347, abs=1e-5)


@every_loss
def test_invariants(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    for shape in ((6, 5), (6, 5, 2, 3)):
        student, teacher = logits(*shape)
        expected = loss(student, teacher).item()
        assert expected > 0
        assert loss(student, student.clone()).item() == pytest.approx(0, abs=1e-6)
        order = torch.tensor([4, 2, 0, 5, 1, 3])
        assert loss(student[order], teacher[order]).item() == pytest.approx(expected, rel=1e-5)
        twice = loss(torch.cat([student, student]), torch.cat([teacher, teacher])).item()
        assert twice == pytest.approx(expected, rel=1e-5)
    before = torch.get_rng_state()
    loss(*logits(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


@every_loss
def test_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student, teacher = logits(2, 3, 2, 2, dtype=torch.float64)
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())
    torch.autograd.backward(loss(student, teacher))
    assert teacher.grad is None


@every_loss
def test_float32_under_autocast_and_for_half_types(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student, teacher = (x.bfloat16() for x in logits(4, 5))
    expected = loss(student.float(), teacher.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(student, teacher), expected)
    assert expected.dtype == torch.float32


@every_loss
def test_large_logits_stay_finite_and_not_a_number_is_passed_on(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    student, teacher = logits(2, 4)
    student = (student * 1e4).requires_grad_()
    value = loss(student, -1e4 * teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite() and gradient.isfinite().all()
    assert loss(student * math.nan, teacher).isnan()


def test_wrong_shapes_and_temperatures_are_refused() -> None:
    for student, teacher in ((torch.zeros(2, 3), torch.zeros(2, 4)), (torch.zeros(3), torch.zeros(3))):
        for loss in LOSSES.values():
            with pytest.raises(ValueError, match=r"must both be \[B, K, ...\]"):
                loss(student, teacher)
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            kl_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)
