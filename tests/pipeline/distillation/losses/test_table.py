"""What every listed loss promises, and every point of the affinity grid: a new one is tested once it is listed."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.config.affinity_points import FA_CHOICES, POINTS
from pipeline.config.loss_names import LogitLossName
from pipeline.distillation.losses.affinity import AFFINITY_ORDERS
from pipeline.distillation.losses.table import (
    AFFINITY_FORMS,
    LOGIT_LOSSES,
    LOSSES,
    Loss,
    point_loss,
    valid_points,
)

POINT_LOSSES = {
    f"{point.affinity}/{point.normalise}/{point.distance}/{point.over}": point_loss(point) for point in valid_points()
}
every_loss = pytest.mark.parametrize("loss", list(LOSSES.values()), ids=list(LOSSES))


def pair(loss: Loss, images: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, 6) if loss.sees == "logits" else (images, 4, 3, 3)
    # Small, so that no softmax of products between them saturates.
    student, teacher = (0.3 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return student, teacher


def value(loss: Loss, student: Tensor, teacher: Tensor, seed: int = 3) -> Tensor:
    return loss.metric(student, teacher, torch.Generator().manual_seed(seed))


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    student = student.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(loss, student, teacher), student)
    return slope


def check_zero_at_equality(loss: Loss) -> None:
    student, _ = pair(loss)
    least = value(loss, student, student.clone()).item()
    assert abs(least) < 2e-6 if loss.vanishes else least > 0
    assert gradient(loss, student, student.clone()).isfinite().all()
    assert value(loss, *pair(loss)).item() > 1e-9 or not loss.vanishes


def check_finite_at_zero(loss: Loss) -> None:
    student, teacher = pair(loss)
    for first, second in ((student * 0, teacher), (student, teacher * 0), (student * 0, teacher * 0)):
        assert value(loss, first, second).isfinite()
        assert gradient(loss, first, second).isfinite().all()
    student[1:3], teacher[0] = 0, 0
    student[4] = student[3]
    assert gradient(loss, student, teacher).isfinite().all()


def check_independent_of_order(loss: Loss) -> None:
    student, teacher = pair(loss)
    expected = value(loss, student, teacher).item()
    order = torch.tensor([3, 0, 4, 2, 1])
    assert value(loss, student[order], teacher[order]).item() == pytest.approx(expected, rel=1e-4, abs=1e-9)
    if loss.per_image:
        twice = torch.cat([order, order])
        assert value(loss, student[twice], teacher[twice]).item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_what_training_may_choose_is_listed() -> None:
    assert set(LOGIT_LOSSES) == set(get_args(LogitLossName)) <= set(LOSSES)
    assert set(AFFINITY_FORMS) == set(FA_CHOICES) - {"auto"}
    for form in AFFINITY_FORMS:
        assert {name for name in LOSSES if name.startswith(f"{form}-")} == {
            f"{form}-{order}" for order in AFFINITY_ORDERS if form != "gram" or order == "squared"
        }
    assert set(POINTS) <= set(LOSSES)


@every_loss
def test_zero_at_equality(loss: Loss) -> None:
    check_zero_at_equality(loss)


@every_loss
def test_finite_at_zero_features(loss: Loss) -> None:
    check_finite_at_zero(loss)


@every_loss
def test_independent_of_the_batchs_order_and_size(loss: Loss) -> None:
    check_independent_of_order(loss)


@pytest.mark.parametrize("affinity", sorted({name.split("/")[0] for name in POINT_LOSSES}))
def test_every_point_of_the_grid_keeps_the_promises(affinity: str) -> None:
    for name, loss in POINT_LOSSES.items():
        if name.split("/")[0] == affinity:
            try:
                check_zero_at_equality(loss)
                check_finite_at_zero(loss)
                check_independent_of_order(loss)
            except AssertionError as error:
                raise AssertionError(name) from error


@every_loss
def test_the_teacher_is_a_constant(loss: Loss) -> None:
    student, teacher = pair(loss)
    teacher.requires_grad_()
    torch.autograd.backward(value(loss, student.requires_grad_(), teacher))
    assert teacher.grad is None and student.grad is not None


@every_loss
def test_randomness_is_the_generators_alone(loss: Loss) -> None:
    student, teacher = pair(loss)
    before = torch.get_rng_state()
    first, same, other = (value(loss, student, teacher, seed).item() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == same
    assert (first != other) == loss.random


@every_loss
def test_gradient_by_finite_differences(loss: Loss) -> None:
    student, teacher = pair(loss, images=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: value(loss, s, teacher), student.requires_grad_(), eps=1e-6, atol=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast_compute_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    student, teacher = (x.to(dtype) for x in pair(loss))
    expected = value(loss, student.float(), teacher.float())
    with torch.autocast("cpu", torch.bfloat16):
        computed = value(loss, student, teacher)
    assert computed.dtype == torch.float32
    assert computed.item() == pytest.approx(expected.item(), rel=1e-5)


@every_loss
def test_not_a_number_is_passed_on(loss: Loss) -> None:
    student, teacher = pair(loss)
    student.view(-1)[7] = math.nan
    assert value(loss, student, teacher).isnan()


@every_loss
def test_maps_of_another_size_are_resized(loss: Loss) -> None:
    if loss.sees == "logits":
        return
    student, _ = pair(loss)
    teacher = torch.randn(5, 4, 6, 2, generator=torch.Generator().manual_seed(4))
    assert value(loss, student, teacher).isfinite()
    if loss.sees == "features":
        assert value(loss, student.flatten(1), teacher.flatten(1)).item() == value(loss, student, teacher).item()
