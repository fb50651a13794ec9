"""Huber's loss between logits: squared where they are near, so that single far ones do not decide."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def huber_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean Huber loss with delta 1; logits [B, K, ...] of any floating type to a scalar >= 0, float32 or wider.

    Source: P. J. Huber, Robust Estimation of a Location Parameter, 1964.
    """
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    with torch.autocast(student_logits.device.type, enabled=False):
        return functional.huber_loss(student_logits.to(wide), teacher_logits.detach().to(wide))
