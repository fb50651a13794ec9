"""Every form of the affinity loss against slow numpy versions, hand-worked numbers and its invariants."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.distillation.losses import affinity
from pipeline.distillation.losses.affinity import (
    AFFINITY_ORDERS,
    FEATURE_EPSILON,
    AffinityOrder,
    fa_loss,
    ffa_loss,
    gram_loss,
)
from pipeline.distillation.losses.cost import AffinityForm
from pipeline.distillation.losses.table import AFFINITY_FORMS

Array = NDArray[np.float64]
PROJECTIONS = 4

FORMS_AND_ORDERS: list[tuple[AffinityForm, AffinityOrder]] = [
    (form, order) for form, order in product(AFFINITY_FORMS, AFFINITY_ORDERS) if form != "gram" or order == "squared"
]
every_form = pytest.mark.parametrize(("form", "order"), FORMS_AND_ORDERS)
every_form_per_image = pytest.mark.parametrize(("form", "order"), [pair for pair in FORMS_AND_ORDERS if pair[1] != "2"])


def loss_of(form: AffinityForm, order: AffinityOrder, student: Tensor, teacher: Tensor, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return AFFINITY_FORMS[form](student, teacher, order, PROJECTIONS, generator)


def maps(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, teacher_channels: int | None = None
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=generator, dtype=dtype)
    batch, channels, height, width = shape
    teacher_shape = (batch, teacher_channels or channels, height, width)
    return student, torch.randn(teacher_shape, generator=generator, dtype=dtype)


def gradient_of(loss: Callable[[Tensor], Tensor], student: Tensor) -> Tensor:
    student = student.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student), student)
    return gradient


def slow_affinity(image: Array) -> Array:
    """S [N, N] of one map [C, H, W], entry by entry."""
    pixels = [image[:, row, column] for row in range(image.shape[1]) for column in range(image.shape[2])]
    units = [pixel / (math.sqrt(sum(float(x) ** 2 for x in pixel)) + FEATURE_EPSILON) for pixel in pixels]
    return np.array([[float(np.dot(a, b)) for b in units] for a in units])


def slow_loss(form: AffinityForm, order: AffinityOrder, student: Tensor, teacher: Tensor, seed: int = 5) -> float:
    """The formulas as they are written, with S in full whatever the form."""
    count = student.shape[2] * student.shape[3]
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, PROJECTIONS, generator=generator).double().numpy()
    sums = []
    for student_image, teacher_image in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        difference = slow_affinity(student_image) - slow_affinity(teacher_image)
        columns = count
        if form == "ffa":
            difference, columns = difference @ directions, PROJECTIONS
        per_entry = abs(difference) if order == "1" else difference**2
        # 1 / N^2 for FA and 1 / (N^2 k) for FFA, whose entries are sums over N pixels already.
        sums.append(float(per_entry.sum()) / count / (columns if form != "ffa" else count * columns))
    mean = sum(sums) / len(sums)
    return math.sqrt(mean) if order == "2" else mean


@every_form
@pytest.mark.parametrize("channels", [(5, 5), (3, 7), (7, 3), (1, 2)])
def test_equals_the_slow_version(form: AffinityForm, order: AffinityOrder, channels: tuple[int, int]) -> None:
    student, teacher = maps(3, channels[0], 3, 4, teacher_channels=channels[1])
    expected = slow_loss(form, order, student, teacher)
    assert loss_of(form, order, student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("order", "expected"), [("1", 0.3), ("squared", 0.18), ("2", math.sqrt(0.18))])
def test_hand_worked_exact(order: AffinityOrder, expected: float) -> None:
    # Two pixels. Student: (1, 0) and (0, 1), cosine 0. Teacher: (1, 0) and (3, 4), cosine 0.6.
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    teacher = torch.tensor([[1.0, 3.0], [0.0, 4.0]]).view(1, 2, 1, 2)
    # D = [[0, -0.6], [-0.6, 0]]: sums 1.2 and 0.72 over N^2 = 4.
    assert fa_loss(student, teacher, order=order).item() == pytest.approx(expected, abs=1e-4)
    if order == "squared":
        assert gram_loss(student, teacher).item() == pytest.approx(expected, abs=1e-4)
    # Beside an image that agrees the average is half as large; order 2 is the root of that average.
    pair, teacher_pair = torch.cat([student, teacher]), torch.cat([teacher, teacher])
    halved = expected / (math.sqrt(2) if order == "2" else 2)
    assert fa_loss(pair, teacher_pair, order=order).item() == pytest.approx(halved, abs=1e-4)


def test_hand_worked_epsilon() -> None:
    # One pixel as long as the epsilon becomes half a unit long: S = 1/4. The teacher's stays nearly 1.
    student, teacher = torch.tensor([1e-5]).view(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    assert fa_loss(student, teacher, order="1").item() == pytest.approx(0.75, abs=1e-4)
    assert gram_loss(student, teacher).item() == pytest.approx(0.75**2, abs=1e-4)


def test_hand_worked_fast() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    teacher = torch.tensor([[1.0, 3.0], [0.0, 4.0]]).view(1, 2, 1, 2)
    first, second = torch.randn(2, 1, generator=torch.Generator().manual_seed(9)).flatten().tolist()
    # D = [[0, -0.6], [-0.6, 0]], hence D Z = (-0.6 z_2, -0.6 z_1); N^2 k = 4.
    expected = {"1": 0.15 * (abs(first) + abs(second)), "squared": 0.09 * (first**2 + second**2)}
    expected["2"] = math.sqrt(expected["squared"])
    for order in AFFINITY_ORDERS:
        generator = torch.Generator().manual_seed(9)
        loss = ffa_loss(student, teacher, order=order, projections=1, generator=generator)
        assert loss.item() == pytest.approx(expected[order], abs=1e-4)


@every_form
def test_zero_at_equality(form: AffinityForm, order: AffinityOrder) -> None:
    student, _ = maps(4, 6, 5, 5)
    assert 0 <= loss_of(form, order, student, student.clone()).item() < 1e-6
    # S does not see which channel is which, nor how long the vectors are.
    other = 7 * student.flip(1)
    assert 0 <= loss_of(form, order, student, other).item() < 1e-4
    assert gradient_of(lambda s: loss_of(form, order, s, student), student).isfinite().all()


@every_form
def test_independent_of_the_batch_size_and_order(form: AffinityForm, order: AffinityOrder) -> None:
    student, teacher = maps(5, 4, 3, 3)
    expected = loss_of(form, order, student, teacher).item()
    shuffled = torch.tensor([3, 0, 4, 2, 1])
    for chosen in (shuffled, torch.cat([shuffled, shuffled]), torch.arange(5).repeat(7)):
        assert loss_of(form, order, student[chosen], teacher[chosen]).item() == pytest.approx(expected, rel=1e-5)
    per_image = gradient_of(lambda s: loss_of(form, order, s, teacher), student)
    doubled = gradient_of(
        lambda s: loss_of(form, order, s, torch.cat([teacher, teacher])), torch.cat([student, student])
    )
    torch.testing.assert_close(doubled[:5] + doubled[5:], per_image, rtol=1e-4, atol=1e-7)


@every_form_per_image
def test_each_image_counts_alone(form: AffinityForm, order: AffinityOrder) -> None:
    student, teacher = maps(4, 4, 3, 3)
    alone = [loss_of(form, order, student[i : i + 1], teacher[i : i + 1]).item() for i in range(4)]
    assert loss_of(form, order, student, teacher).item() == pytest.approx(sum(alone) / 4, rel=1e-5)
    changed = student.clone()
    changed[1:] = torch.randn(changed[1:].shape, generator=torch.Generator().manual_seed(3))
    before, after = (gradient_of(lambda s: loss_of(form, order, s, teacher), x) for x in (student, changed))
    torch.testing.assert_close(before[0], after[0], rtol=1e-5, atol=1e-8)


@every_form
@pytest.mark.parametrize("channels", [(3, 3), (2, 4), (4, 2)])
def test_gradient_by_finite_differences(form: AffinityForm, order: AffinityOrder, channels: tuple[int, int]) -> None:
    student, teacher = maps(2, channels[0], 2, 3, dtype=torch.float64, teacher_channels=channels[1])
    assert torch.autograd.gradcheck(
        lambda s: loss_of(form, order, s, teacher), student.requires_grad_(), eps=1e-6, atol=1e-6
    )


def autograd_loss(form: AffinityForm, order: AffinityOrder, student: Tensor, teacher: Tensor) -> Tensor:
    """The formulas in plain torch operations, differentiated by autograd."""

    def affinities(image: Tensor) -> Tensor:
        columns = image.flatten(2)
        units = columns / (torch.linalg.vector_norm(columns, dim=1, keepdim=True) + FEATURE_EPSILON)
        return torch.bmm(units.mT, units)

    difference = affinities(student) - affinities(teacher)
    count = difference.shape[1]
    if form == "ffa":
        directions = torch.randn(count, PROJECTIONS, generator=torch.Generator().manual_seed(5))
        difference = difference @ directions.to(student.dtype) / math.sqrt(PROJECTIONS)
        if order == "1":
            difference = difference / math.sqrt(PROJECTIONS)
    if order == "1":
        return difference.abs().sum((1, 2)).mean() / count**2
    squared = difference.square().sum((1, 2)).mean() / count**2
    return squared.sqrt() if order == "2" else squared


@every_form
def test_zero_features_have_autograds_finite_gradient(form: AffinityForm, order: AffinityOrder) -> None:
    student, teacher = maps(3, 4, 3, 3, dtype=torch.float64)
    student[0, :, 1, 1] = 0
    student[1] = 0
    teacher[0, :, 1, 1] = 0
    teacher[2] = 0
    gradient = gradient_of(lambda s: loss_of(form, order, s, teacher), student)
    assert gradient.isfinite().all()
    expected = gradient_of(lambda s: autograd_loss(form, order, s, teacher), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    nothing = torch.zeros_like(student, dtype=torch.float32)
    assert loss_of(form, order, nothing, nothing).item() == 0
    assert gradient_of(lambda s: loss_of(form, order, s, nothing), nothing).isfinite().all()


@every_form
def test_tiny_and_huge_features_stay_finite(form: AffinityForm, order: AffinityOrder) -> None:
    for scale in (1e-30, 1e-12, 1e12):
        student, teacher = maps(2, 3, 4, 4)
        student = student * scale
        assert loss_of(form, order, student, teacher).isfinite()
        assert gradient_of(lambda s: loss_of(form, order, s, teacher), student).isfinite().all()  # noqa: B023


@every_form
def test_not_a_number_is_passed_on(form: AffinityForm, order: AffinityOrder) -> None:
    student, teacher = maps(2, 3, 4, 4)
    student[1, 2, 3, 3] = math.nan
    assert loss_of(form, order, student, teacher).isnan()


@every_form
def test_randomness_is_the_generators_alone(form: AffinityForm, order: AffinityOrder) -> None:
    student, teacher = maps(2, 3, 4, 4)
    before = torch.get_rng_state()
    first, same, other = (loss_of(form, order, student, teacher, seed=seed).item() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == same
    assert (first != other) == (form == "ffa")
    generator = torch.Generator().manual_seed(1)
    drawn = [AFFINITY_FORMS[form](student, teacher, order, PROJECTIONS, generator).item() for _ in range(2)]
    assert (drawn[0] != drawn[1]) == (form == "ffa"), "projections must be drawn anew at each call"


@every_form
def test_same_value_whatever_the_blocks(
    form: AffinityForm, order: AffinityOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = maps(7, 5, 6, 6)
    expected = loss_of(form, order, student, teacher)
    expected_gradient = gradient_of(lambda s: loss_of(form, order, s, teacher), student)
    # 1: an image and a row of S at a time; 100: a few rows; 2500: blocks of images, the last one short.
    for elements in (1, 100, 2500):
        monkeypatch.setattr(affinity, "_CPU_BLOCK_ELEMENTS", elements)
        torch.testing.assert_close(loss_of(form, order, student, teacher), expected)
        gradient = gradient_of(lambda s: loss_of(form, order, s, teacher), student)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


@every_form
def test_memory_layout_does_not_matter(form: AffinityForm, order: AffinityOrder) -> None:
    student, teacher = maps(3, 4, 5, 6)
    expected = loss_of(form, order, student, teacher)
    expected_gradient = gradient_of(lambda s: loss_of(form, order, s, teacher), student)
    wide = torch.zeros(3, 4, 5, 9)
    wide[..., :6] = student
    for laid_out in (student.contiguous(memory_format=torch.channels_last), wide[..., :6]):
        torch.testing.assert_close(loss_of(form, order, laid_out, teacher), expected)
        laid_out = laid_out.detach().requires_grad_()
        torch.autograd.backward(loss_of(form, order, laid_out, teacher.contiguous(memory_format=torch.channels_last)))
        torch.testing.assert_close(laid_out.grad, expected_gradient, rtol=1e-4, atol=1e-7)


@every_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_types_compute_in_float32(
    form: AffinityForm, order: AffinityOrder, dtype: torch.dtype
) -> None:
    student, teacher = (x.to(dtype) for x in maps(2, 8, 5, 5))
    expected = loss_of(form, order, student.float(), teacher.float())
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(form, order, student.float(), teacher.float()), expected)
        assert torch.equal(loss_of(form, order, student, teacher), expected)
        student.requires_grad_()
        torch.autograd.backward(loss_of(form, order, student, teacher))
    full = gradient_of(lambda s: loss_of(form, order, s, teacher.float()), student.float())
    assert student.grad is not None and student.grad.dtype == dtype
    assert torch.equal(student.grad, full.to(dtype))


@every_form
def test_the_teacher_is_a_constant(form: AffinityForm, order: AffinityOrder) -> None:
    student, teacher = maps(2, 3, 4, 4)
    teacher.requires_grad_()
    torch.autograd.backward(loss_of(form, order, student.requires_grad_(), teacher))
    assert teacher.grad is None
    assert not loss_of(form, order, student.detach(), teacher).requires_grad


def slow_resize(image: Array, height: int, width: int) -> Array:
    """Bilinear with the corners aligned, [C, H, W] to [C, height, width]."""
    resized = np.zeros((image.shape[0], height, width))
    for row, column in product(range(height), range(width)):
        y = row * (image.shape[1] - 1) / max(height - 1, 1)
        x = column * (image.shape[2] - 1) / max(width - 1, 1)
        top, left = min(int(y), image.shape[1] - 2), min(int(x), image.shape[2] - 2)
        down, right = y - top, x - left
        resized[:, row, column] = (
            (1 - down) * ((1 - right) * image[:, top, left] + right * image[:, top, left + 1])
        ) + down * ((1 - right) * image[:, top + 1, left] + right * image[:, top + 1, left + 1])
    return resized


@every_form
@pytest.mark.parametrize("size", [(3, 4), (7, 5)])
def test_a_teacher_map_of_another_size_is_resized(
    form: AffinityForm, order: AffinityOrder, size: tuple[int, int]
) -> None:
    student, _ = maps(2, 3, 5, 4)
    _, teacher = maps(2, 6, *size)
    resized = torch.from_numpy(np.stack([slow_resize(image, 5, 4) for image in teacher.double().numpy()]))
    expected = slow_loss(form, order, student, resized)
    assert loss_of(form, order, student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_squared_ffa_is_unbiased_with_the_stated_deviation() -> None:
    student, teacher = maps(1, 3, 4, 4, dtype=torch.float64)
    difference = slow_affinity(student[0].numpy()) - slow_affinity(teacher[0].numpy())
    exact = fa_loss(student, teacher, order="squared").item()
    effective_rank = np.sum(difference**2) ** 2 / np.sum((difference @ difference.T) ** 2)
    generator = torch.Generator().manual_seed(0)
    draws = np.array(
        [ffa_loss(student, teacher, order="squared", projections=5, generator=generator).item() for _ in range(4000)]
    )
    deviation = math.sqrt(2 / (5 * effective_rank))
    assert abs(draws.mean() / exact - 1) < 4 * deviation / math.sqrt(len(draws))
    assert draws.std() / exact == pytest.approx(deviation, rel=0.08)


@pytest.mark.parametrize("side", [8, 16])
def test_first_order_ffa_is_no_estimate_of_first_order_fa(side: int) -> None:
    student, teacher = maps(4, 12, side, side)
    generator = torch.Generator().manual_seed(0)
    fast = ffa_loss(student, teacher, order="1", projections=64, generator=generator)
    ratio = fast.item() / fa_loss(student, teacher, order="1").item()
    # sqrt(N) apart: one weight cannot serve both.
    assert ratio * side == pytest.approx(1, rel=0.15)


def test_gram_keeps_its_digits_near_convergence() -> None:
    teacher, noise = maps(4, 8, 12, 12)
    student = teacher + 1e-4 * noise
    exact = fa_loss(student.double(), teacher.double(), order="squared").item()
    assert gram_loss(student, teacher).item() == pytest.approx(exact, rel=1e-3)
    gradient = gradient_of(lambda s: gram_loss(s, teacher), student).double()
    expected = gradient_of(lambda s: fa_loss(s, teacher.double(), order="squared"), student.double())
    assert torch.linalg.vector_norm(gradient - expected) < 1e-3 * torch.linalg.vector_norm(expected)

    # The textbook identity in float32 does not: it is off by as much as the loss itself, or nearly.
    units = [
        x.flatten(2) / (torch.linalg.vector_norm(x.flatten(2), dim=1, keepdim=True) + 1e-5) for x in (student, teacher)
    ]
    grams = [(a @ b.mT).square().sum() for a, b in ((units[0],) * 2, (units[1],) * 2, units)]
    textbook = (grams[0] + grams[1] - 2 * grams[2]).item() / 4 / 144**2
    assert abs(textbook - exact) > exact / 2


@pytest.mark.parametrize(
    "shapes",
    [((2, 3, 4), (2, 3, 4)), ((2, 3, 4, 4), (3, 3, 4, 4)), ((2, 3, 4, 4), (2, 3))],
)
def test_maps_that_do_not_belong_together_are_refused(shapes: Any) -> None:
    student, teacher = (torch.zeros(shape) for shape in shapes)
    for form in AFFINITY_FORMS:
        with pytest.raises(ValueError, match="of one batch"):
            loss_of(form, "squared", student, teacher)


def test_unknown_orders_and_no_projections_are_refused() -> None:
    student, teacher = maps(1, 2, 2, 2)
    with pytest.raises(ValueError, match="order is '3'; allowed: 1, 2, squared"):
        fa_loss(student, teacher, order="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="projections is 0"):
        ffa_loss(student, teacher, order="1", projections=0, generator=torch.Generator())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_form
def test_a_gpu_gives_the_same_with_a_generator_on_the_cpu(form: AffinityForm, order: AffinityOrder) -> None:
    student, teacher = maps(5, 6, 7, 7)
    expected = gradient_of(lambda s: loss_of(form, order, s, teacher), student)
    gradient = gradient_of(lambda s: loss_of(form, order, s, teacher.cuda()), student.cuda())
    torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-3, atol=1e-6)
    on_device = torch.Generator("cuda").manual_seed(5)
    assert AFFINITY_FORMS[form](student.cuda(), teacher.cuda(), order, PROJECTIONS, on_device).isfinite()
