"""Logit losses: how far the student's outputs are from the teacher's.

Both are averages over the batch and, for dense outputs [B, K, ...], over the positions, each of which is a
distribution of its own. The teacher is a constant. Float32 or better, also under autocast.
"""

from __future__ import annotations

import math

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
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}; it must be positive and finite")
    student_logits, teacher_logits = _working(student_logits, teacher_logits)
    with torch.autocast(student_logits.device.type, enabled=False):
        student_log = functional.log_softmax(student_logits / temperature, dim=1)
        teacher_log = functional.log_softmax(teacher_logits / temperature, dim=1)
        divergence = functional.kl_div(student_log, teacher_log, reduction="none", log_target=True)
        return divergence.sum(1).mean() * temperature**2


def _working(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    if student_logits.shape != teacher_logits.shape or student_logits.ndim < 2:
        raise ValueError(
            "logits of student and teacher must both be [B, K, ...], "
            f"got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    working_type = torch.promote_types(student_logits.dtype, torch.float32)
    return student_logits.to(working_type), teacher_logits.detach().to(working_type)
