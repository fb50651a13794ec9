"""The loss of every output: logit losses where classes are chosen, the relative squared error of plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.distillation.losses.logits import mean_logits
from pipeline.networks.outputs.meaning import Output

LogitLoss = Callable[[Tensor, Tensor], Tensor]

# It only keeps 0 / 0 apart: a teacher that says nothing but 0 teaches nothing else.
_LEAST_SQUARE = 1e-12


def output_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], outputs: Sequence[Output], logit_loss: LogitLoss
) -> Tensor:
    """The sum over all outputs of the student's loss against the teacher's, a constant; a scalar.

    Both give logits, or values (see `pipeline.distillation.logit_reading`). `logit_loss` compares logits [B, K, ...]
    with softmax over axis 1; labels come as two classes each. Values have no distribution: see `value_loss`.
    """
    losses = []
    for mine, theirs, output in zip(student, teacher, outputs, strict=True):
        if output.holds == "values":
            losses.append(value_loss(mine, theirs))
        else:
            losses.append(logit_loss(output.as_two_sided(mine), output.as_two_sided(theirs)))
    return torch.stack(losses).sum()


def image_losses(
    student: Sequence[Tensor], teacher: Sequence[Tensor], outputs: Sequence[Output], logit_loss: LogitLoss
) -> Tensor:
    """`output_loss` of each image on its own, float64 [B]; their mean is the batch's."""
    total = torch.zeros(len(teacher[0]), dtype=torch.float64)
    for mine, theirs, output in zip(student, teacher, outputs, strict=True):
        if output.holds == "values":
            # Over the batch's mean square, not each image's own: one that says all but nothing weighs no more.
            squares = (mine.float() - theirs.float()).square().reshape(len(theirs), -1).mean(1)
            total += (squares / theirs.float().square().mean().clamp_min(_LEAST_SQUARE)).double().cpu()
        else:
            each = [
                output_loss([mine[index : index + 1]], [theirs[index : index + 1]], [output], logit_loss)
                for index in range(len(theirs))
            ]
            total += torch.stack(each).double().cpu()
    return total


def mean_outputs(
    teachers: Sequence[Sequence[Tensor]], outputs: Sequence[Output], *, temperature: float | None
) -> list[Tensor]:
    """The outputs that stand for several teachers, [B, ...] each: those of the only one, else their mean.

    Of classes the softened probabilities are averaged at `temperature` (None: the logits), of all else the values.
    """
    means = []
    for output, *of_teachers in zip(outputs, *teachers, strict=True):
        softening = temperature if output.holds == "classes" else None
        means.append(mean_logits(of_teachers, temperature=softening, axis=output.axis))
    return means


def value_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error over the mean square of the teacher's values: 0 when equal, 1 for a student that says 0.

    Both [B, ...] of any floating type. Whatever the unit of the values, the loss has none [ours].
    """
    with torch.autocast(student.device.type, enabled=False):
        target = teacher.detach().float()
        return (student.float() - target).square().mean() / target.square().mean().clamp_min(_LEAST_SQUARE)


def uninformed(teacher: Sequence[Tensor], outputs: Sequence[Output]) -> list[Tensor]:
    """The outputs of a student that says the same of every image and position: the teacher's mean, [B, ...] each.

    Classes have a mean each, labels and values one in all.
    """
    means = []
    for values, output in zip(teacher, outputs, strict=True):
        kept = output.axis % values.ndim if output.holds == "classes" else None
        others = [dimension for dimension in range(values.ndim) if dimension != kept]
        means.append(values.float().mean(others, keepdim=True).expand(values.shape))
    return means
