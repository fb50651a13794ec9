"""Feature-affinity losses: do the pixels of one image resemble each other as they do in the teacher?

Source: FAQD, Li, Yang, Yin, Qi and Xin, arXiv 2302.10899: the affinity loss (FA) and its fast random
approximation (FFA). Ours: the average over the batch (the released code sums, so that its weight scales with
the batch size), the exact Gram form, and the gradients written out by hand.

Notation: B images, C channels, N = H * W positions, F [C, N] one map, Fhat its columns divided by (their
length + 1e-5), S = Fhat^T Fhat [N, N] the cosines between the pixels, Z [N, k] standard normal.

Value and gradient are computed together, a block of images at a time: on a CPU a block stays in the cache,
and no more of the [N, N] matrices than one block ever exists. No gradient reaches the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate, pad

AffinityOrder = Literal["1", "2", "squared"]
AFFINITY_ORDERS: tuple[AffinityOrder, ...] = get_args(AffinityOrder)
FEATURE_EPSILON = 1e-5  # added to a pixel's length before dividing by it, as in the released code

# (Fhat of the student, of the teacher [b, C, N], wanted: gradient) -> sum over the block's images of the loss
# per image, and its gradient with respect to the student's Fhat.
_Kernel = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]

# Float32 elements of the largest temporary of one block. CPU: 1 MiB, so that a handful of them fit a core's
# second-level cache (up to 2 times faster than the whole batch at once). Accelerators: 256 MiB, to fill them.
_CPU_BLOCK_ELEMENTS = 2**18
_ACCELERATOR_BLOCK_ELEMENTS = 2**26


def fa_loss(student: Tensor, teacher: Tensor, *, order: AffinityOrder) -> Tensor:
    """Exact feature-affinity loss between two maps, averaged over the batch.

    Per image, with D = S_student - S_teacher: order "1" is sum |D_ij| / N^2 and "squared" is ||D||_F^2 / N^2.
    Order "2" is the root of the batch average of the squared form, so that all three are independent of the
    batch size.

    Args:
        student: map [B, C_student, H, W], of any floating type.
        teacher: map [B, C_teacher, H', W'], a constant; resized bilinearly (align_corners) to H x W.
        order: "1" (the released default), "2" (the released option) or "squared" (the paper's text).

    Returns:
        Scalar, float32 (float64 for float64 maps), >= 0.

    Raises:
        ValueError: maps that are not 4-dimensional or differ in batch size; an unknown order.

    Source: arXiv 2302.10899 and its released code, which sums over the batch where ours averages.
    """
    _check_order(order)
    positions = student.shape[-2] * student.shape[-1]
    limit = _block_elements(student)

    def kernel(student_unit: Tensor, teacher_unit: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
        rows = max(1, limit // (student_unit.shape[0] * positions))
        gradient = torch.empty_like(student_unit) if wants_gradient else None
        value = student_unit.new_zeros(())
        # D is symmetric: the gradient of some rows of pixels needs those rows of D alone.
        for start in range(0, positions, rows):
            chosen = slice(start, start + rows)
            difference = torch.bmm(student_unit[:, :, chosen].mT, student_unit)
            difference.baddbmm_(teacher_unit[:, :, chosen].mT, teacher_unit, alpha=-1)
            value += _magnitude(difference, order)
            if gradient is not None:
                slope = _slope_(difference, order, scale=2 / positions**2)
                gradient[:, :, chosen] = torch.bmm(student_unit, slope.mT)
        return value / positions**2, gradient

    return _finish(_apply(kernel, student, teacher, elements_per_image=positions**2), order)


def ffa_loss(
    student: Tensor, teacher: Tensor, *, order: AffinityOrder, projections: int, generator: torch.Generator
) -> Tensor:
    """Fast feature-affinity loss: random projections of the affinity matrix, averaged over the batch.

    Z [N, k] ~ N(0, 1) is drawn once per call and shared by the teacher, the student and all images;
    Y = Fhat^T (Fhat Z) is [N, k], so that S is never built. Per image, with E = Y_student - Y_teacher:
    order "1" is sum |E_ij| / (N^2 k) and "squared" is ||E||_F^2 / (N^2 k). Order "2" is the root of the batch
    average of the squared form.

    The squared form is an unbiased estimate of the squared `fa_loss`, per image of relative standard
    deviation sqrt(2 / (k r)), r = ||D||_F^4 / ||D D^T||_F^2 in [1, N]. Order "1" is NOT an estimate of the
    first-order `fa_loss`: for a spread-out D it is about 1 / sqrt(N) of it: one weight cannot serve both.

    Args:
        student: map [B, C_student, H, W], of any floating type.
        teacher: map [B, C_teacher, H', W'], a constant; resized bilinearly (align_corners) to H x W.
        order: "1" (the released default), "2" (the released option) or "squared" (the paper's text).
        projections: k, >= 1 (15 in the released code).
        generator: source of Z, on the CPU or on the maps' device.

    Returns:
        Scalar, float32 (float64 for float64 maps), >= 0.

    Raises:
        ValueError: maps that are not 4-dimensional or differ in batch size; an unknown order; no projections.

    Source: arXiv 2302.10899 and its released code, except that ours averages over the batch, keeps the
    epsilon in the fast form and leaves the global generator alone.
    """
    _check_order(order)
    if projections < 1:
        raise ValueError(f"projections is {projections}; at least 1 is needed")
    positions = student.shape[-2] * student.shape[-1]
    # Always float32, so that a seed means the same Z for every type of map.
    drawn = torch.randn(positions, projections, generator=generator, device=generator.device, dtype=torch.float32)
    # non_blocking: a copy from the CPU must not make every step wait for the accelerator.
    directions = drawn.to(device=student.device, dtype=_working_type(student), non_blocking=True)
    scale = 1 / (positions**2 * projections)

    def kernel(student_unit: Tensor, teacher_unit: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
        projected = student_unit @ directions
        difference = torch.bmm(student_unit.mT, projected)
        difference.baddbmm_(teacher_unit.mT, teacher_unit @ directions, alpha=-1)
        value = _magnitude(difference, order) * scale
        if not wants_gradient:
            return value, None
        slope = _slope_(difference, order, scale=scale)
        gradient = torch.bmm(student_unit, slope) @ directions.T
        return value, gradient.baddbmm_(projected, slope.mT)

    return _finish(_apply(kernel, student, teacher, elements_per_image=positions * projections), order)


def gram_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Exact squared feature-affinity loss from three C x C Gram matrices, averaged over the batch.

    Equal to `fa_loss` of order "squared", in O(N C^2) and without randomness or an N x N matrix. With
    M = Fhat_student - Fhat_teacher, P = their sum: S_student - S_teacher = (M^T P + P^T M) / 2, hence
    ||S_student - S_teacher||_F^2 = (<M M^T, P P^T> + <M P^T, P M^T>) / 2.
    The textbook identity ||Gss||^2 + ||Gtt||^2 - 2 ||Gst||^2 subtracts numbers of size N^2 and loses every
    digit when the student has nearly converged; this one does not, at the same price.

    Args:
        student: map [B, C_student, H, W], of any floating type.
        teacher: map [B, C_teacher, H', W'], a constant; resized bilinearly (align_corners) to H x W.
            The map with fewer channels is filled up with zero channels, which change no S.

    Returns:
        Scalar, float32 (float64 for float64 maps), >= 0.

    Raises:
        ValueError: maps that are not 4-dimensional or differ in batch size.

    Source: the squared loss of arXiv 2302.10899; this form of it is ours.
    """
    positions = student.shape[-2] * student.shape[-1]

    def kernel(student_unit: Tensor, teacher_unit: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
        channels = max(student_unit.shape[1], teacher_unit.shape[1])
        wide_student = _with_channels(student_unit, channels)
        wide_teacher = _with_channels(teacher_unit, channels)
        minus, plus = wide_student - wide_teacher, wide_student + wide_teacher
        minus_minus = torch.bmm(minus, minus.mT)
        plus_plus = torch.bmm(plus, plus.mT)
        minus_plus = torch.bmm(minus, plus.mT)
        scale = 1 / positions**2
        per_image = (minus_minus * plus_plus + minus_plus * minus_plus.mT).sum((1, 2)) * (scale / 2)
        # Rounding may leave a tiny negative number where D is 0 although M is not; the gradient stays exact.
        value = per_image.clamp(min=0).sum()
        if not wants_gradient:
            return value, None
        gradient = torch.bmm((plus_plus + minus_plus).mul_(scale), minus)
        gradient.baddbmm_(minus_minus + minus_plus.mT, plus, alpha=scale)
        return value, gradient[:, : student_unit.shape[1]]

    widest = max(student.shape[1], teacher.shape[1])
    return _apply(kernel, student, teacher, elements_per_image=widest**2)


class _BatchMean(torch.autograd.Function):
    """Batch average of a kernel's loss, its gradient computed beside it while the parts are in the cache."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, kernel: _Kernel, elements_per_image: int) -> Tensor:
        wants_gradient: bool = ctx.needs_input_grad[0]
        student_columns, teacher_columns = student.flatten(2), teacher.flatten(2)
        images, _, positions = student_columns.shape
        working_type = _working_type(student)
        widest = max(elements_per_image, student.shape[1] * positions, teacher.shape[1] * positions)
        block = max(1, _block_elements(student) // widest)
        gradient = torch.empty_like(student_columns, dtype=working_type) if wants_gradient else None
        values = []
        for start in range(0, images, block):
            chosen = slice(start, start + block)
            student_unit, length = _unit_columns(student_columns[chosen].to(working_type))
            teacher_unit, _ = _unit_columns(teacher_columns[chosen].to(working_type))
            value, unit_gradient = kernel(student_unit, teacher_unit, wants_gradient)
            values.append(value)
            if gradient is not None and unit_gradient is not None:
                _through_unit_columns(unit_gradient, student_unit, length, out=gradient[chosen])
        if gradient is not None:
            ctx.save_for_backward(gradient.view(student.shape))
        ctx.student_type, ctx.images = student.dtype, images
        return torch.stack(values).sum() / images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * (upstream / ctx.images)).to(ctx.student_type), None, None, None


def _apply(kernel: _Kernel, student: Tensor, teacher: Tensor, *, elements_per_image: int) -> Tensor:
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"affinity needs two maps [B, C, H, W] of one batch, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    with torch.autocast(student.device.type, enabled=False):
        teacher = teacher.detach()
        if teacher.shape[2:] != student.shape[2:]:
            teacher = teacher.to(_working_type(teacher))
            teacher = interpolate(teacher, size=student.shape[2:], mode="bilinear", align_corners=True)
        loss: Tensor = _BatchMean.apply(student, teacher, kernel, elements_per_image)
    return loss


def _unit_columns(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Fhat [b, C, N] and the lengths [b, 1, N] of the columns of F [b, C, N]."""
    # torch.linalg.vector_norm over a strided dimension was 60 times slower than this on a CPU (torch 2.15).
    length = (columns * columns).sum(1, keepdim=True).sqrt_()
    return columns * (length + FEATURE_EPSILON).reciprocal_(), length


def _through_unit_columns(unit_gradient: Tensor, unit: Tensor, length: Tensor, *, out: Tensor) -> None:
    """Write the gradient with respect to F into `out`, given the one with respect to Fhat."""
    # Fhat = F / (n + eps): dF = dFhat / (n + eps) - Fhat <dFhat, Fhat> / n. The length's own slope at a zero
    # column is taken as 0, so that everything stays finite there.
    radial = (unit_gradient * unit).sum(1, keepdim=True)
    radial = torch.where(length > 0, radial / length, 0)
    torch.addcmul(unit_gradient / (length + FEATURE_EPSILON), unit, radial, value=-1, out=out)


def _with_channels(columns: Tensor, channels: int) -> Tensor:
    missing = channels - columns.shape[1]
    return pad(columns, (0, 0, 0, missing)) if missing else columns  # pad copies even when nothing is missing


def _magnitude(difference: Tensor, order: AffinityOrder) -> Tensor:
    if order == "1":
        return difference.abs().sum()
    flat = difference.flatten()
    return torch.dot(flat, flat)


def _slope_(difference: Tensor, order: AffinityOrder, *, scale: float) -> Tensor:
    """Turn the difference, in place, into scale times the derivative of its magnitude."""
    return difference.sign_().mul_(scale) if order == "1" else difference.mul_(2 * scale)


def _finish(mean: Tensor, order: AffinityOrder) -> Tensor:
    if order != "2":
        return mean
    # The root has an infinite slope at 0; there 0 is taken, the slope of the norm's flat side.
    zero = mean == 0
    return torch.where(zero, 0, torch.where(zero, 1, mean).sqrt())


def _check_order(order: str) -> None:
    if order not in AFFINITY_ORDERS:
        raise ValueError(f"order is {order!r}; allowed: {', '.join(AFFINITY_ORDERS)}")


def _working_type(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _block_elements(tensor: Tensor) -> int:
    return _CPU_BLOCK_ELEMENTS if tensor.device.type == "cpu" else _ACCELERATOR_BLOCK_ELEMENTS
