"""Logit losses: how far the student's outputs are from the teacher's.

Both are averages over the batch and, for dense outputs [B, K, ...], over the positions, each of which is a
distribution of its own. The teacher is a constant. Float32 or better, also under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def mse_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared error of the logits: the average over images, classes and positions of (z_student -
    z_teacher)^2.

    Args:
        student_logits: [B, K] or dense [B, K, ...], any floating type.
        teacher_logits: the same shape.

    Returns:
        Scalar, float32 (float64 for float64 logits), >= 0.

    Raises:
        ValueError: shapes that differ or have fewer than two dimensions.

    Source: the logit loss of the released code of FAQD, arXiv 2302.10899.
    """
    student_logits, teacher_logits = _working(student_logits, teacher_logits)
    with torch.autocast(student_logits.device.type, enabled=False):
        return functional.mse_loss(student_logits, teacher_logits)


def kl_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(softmax(z_teacher / T) || softmax(z_student / T)), averaged over the batch and the positions.

    The factor T^2 keeps the gradient's size nearly independent of the temperature.

    Args:
        student_logits: [B, K] or dense [B, K, ...], any floating type; softmax over dimension 1.
        teacher_logits: the same shape.
        temperature: T, > 0 and finite; 3 in the FAQD paper, 5 there when activations are quantised too.

    Returns:
        Scalar in nats, float32 (float64 for float64 logits), >= 0 up to rounding.

    Raises:
        ValueError: shapes that differ or have fewer than two dimensions; a temperature that is not positive
            and finite.

    Source: Hinton, Vinyals and Dean, arXiv 1503.02531; in FAQD, arXiv 2302.10899.
    """
    _check_temperature(temperature)
    student_logits, teacher_logits = _working(student_logits, teacher_logits)
    with torch.autocast(student_logits.device.type, enabled=False):
        student_log = functional.log_softmax(student_logits / temperature, dim=1)
        teacher_log = functional.log_softmax(teacher_logits / temperature, dim=1)
        divergence = functional.kl_div(student_log, teacher_log, reduction="none", log_target=True)
        return divergence.sum(1).mean() * temperature**2


def class_loss(student_logits: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy of the student's probabilities with given classes, averaged over the batch and the positions.

    Args:
        student_logits: [B, K] or dense [B, K, ...], any floating type.
        classes: int64 [B] or [B, ...], 0 to K - 1: labels, or the argmax of a teacher.

    Returns:
        Scalar in nats, float32 (float64 for float64 logits), >= 0.

    Source: the hard loss of Shin, Boo and Sung, arXiv 1909.01688; towards a teacher's argmax it is ours.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        working_type = torch.promote_types(student_logits.dtype, torch.float32)
        return functional.cross_entropy(student_logits.to(working_type), classes)


def cosine_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 (1 - cosine of softmax(z_student / T) and softmax(z_teacher / T)), averaged over the batch and positions.

    Args:
        student_logits: [B, K] or dense [B, K, ...], any floating type; softmax and cosine over dimension 1.
        teacher_logits: the same shape, a constant.
        temperature: T, > 0 and finite.

    Returns:
        Scalar, float32 (float64 for float64 logits), in [0, T^2] up to rounding.

    Raises:
        ValueError: shapes that differ or have fewer than two dimensions; a temperature that is not positive
            and finite.

    Source: SPEQ, Boo, Shin, Choi and Sung, arXiv 2009.14502.
    """
    _check_temperature(temperature)
    student_logits, teacher_logits = _working(student_logits, teacher_logits)
    with torch.autocast(student_logits.device.type, enabled=False):
        student = (student_logits / temperature).softmax(1)
        teacher = (teacher_logits / temperature).softmax(1)
        return (1 - functional.cosine_similarity(student, teacher, dim=1)).mean() * temperature**2


def mean_logits(logits: Sequence[Tensor], *, temperature: float | None, axis: int = 1) -> Tensor:
    """Logits that stand for several teachers: softened by T they are the mean of the teachers' softened outputs.

    Args:
        logits: [B, ...] each, at least one.
        temperature: T of the softening, > 0; None: the plain mean, for what is no distribution.
        axis: of the classes.

    Source: FEED's mean teacher (Park and Kwak, arXiv 1909.10754) without labels: ours.
    """
    if len(logits) == 1:
        return logits[0]
    stacked = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in logits]
    if temperature is None:
        return torch.stack(stacked).mean(0)
    softened = torch.stack([functional.log_softmax(one / temperature, dim=axis) for one in stacked])
    return temperature * (torch.logsumexp(softened, 0) - math.log(len(logits)))


def _check_temperature(temperature: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}; it must be positive and finite")


def _working(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    if student_logits.shape != teacher_logits.shape or student_logits.ndim < 2:
        raise ValueError(
            "logits of student and teacher must both be [B, K, ...], "
            f"got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    working_type = torch.promote_types(student_logits.dtype, torch.float32)
    return student_logits.to(working_type), teacher_logits.detach().to(working_type)
