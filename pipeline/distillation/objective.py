"""What a student is trained on: the logit loss plus the weighted affinity losses of all taps, no labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from calibration.errors import UserError
from pipeline.distillation.affinity import AFFINITY_ORDERS, AffinityOrder, fa_loss, ffa_loss, gram_loss
from pipeline.distillation.cost import AffinityForm, choose_form
from pipeline.distillation.logits import kl_loss, mse_loss
from pipeline.distillation.outputs import output_loss, uninformed
from pipeline.outputs import Output

LogitLoss = Literal["kl", "mse"]
AffinityChoice = Literal["auto", "fa", "ffa", "gram", "none"]

_FormFunction = Callable[[Tensor, Tensor, AffinityOrder, int, torch.Generator], Tensor]

# name -> function of (student map, teacher map, order, projections, generator)
AFFINITY_FORMS: dict[AffinityForm, _FormFunction] = {
    "fa": lambda student, teacher, order, _projections, _generator: fa_loss(student, teacher, order=order),
    "ffa": lambda student, teacher, order, projections, generator: ffa_loss(
        student, teacher, order=order, projections=projections, generator=generator
    ),
    "gram": lambda student, teacher, _order, _projections, _generator: gram_loss(student, teacher),
}


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The terms of the training loss and their weights.

    Args:
        logit_loss: "kl" or "mse".
        temperature: T of "kl", > 0.
        logit_weight: weight of the logit loss, > 0: nothing else trains the layers behind the last tap.
        affinity: form of the affinity loss; "auto" chooses by cost per tap, "none" leaves it out.
        affinity_order: "1", "2" or "squared"; "auto" and "gram" know "squared" alone.
        affinity_weight: weight of the affinity losses' sum over the taps, > 0 unless affinity is "none". The
            released 0.1 multiplies a sum over a batch of 100: for our average that is 10 for order "1" and 1
            for order "2", which is the root of a sum.
        projections: k of FFA, >= 1.

    Raises:
        UserError: a value or a combination that is not allowed.

    Source: arXiv 2302.10899; its released defaults are mse and order "1", ours kl and the cheapest form of
    "squared".
    """

    logit_loss: LogitLoss = "kl"
    temperature: float = 4.0
    logit_weight: float = 1.0
    affinity: AffinityChoice = "auto"
    affinity_order: AffinityOrder = "squared"
    affinity_weight: float = 10.0
    projections: int = 15

    def __post_init__(self) -> None:
        _check_known("logit-loss", self.logit_loss, get_args(LogitLoss))
        _check_known("affinity", self.affinity, get_args(AffinityChoice))
        _check_known("affinity-order", self.affinity_order, AFFINITY_ORDERS)
        _check_above_zero("temperature", self.temperature)
        _check_above_zero("logit-weight", self.logit_weight)
        if self.affinity == "none":
            return
        _check_above_zero("affinity-weight", self.affinity_weight, instead="--affinity none trains on the logits alone")
        if self.projections < 1:
            raise UserError(f"--projections {self.projections}: must be at least 1")
        if self.affinity in ("auto", "gram") and self.affinity_order != "squared":
            raise UserError(
                f"--affinity-order {self.affinity_order} has no {self.affinity} form: "
                "add --affinity fa or ffa, or use --affinity-order squared"
            )


def distillation_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_maps: Mapping[str, Tensor],
    teacher_maps: Mapping[str, Tensor],
    *,
    outputs: Sequence[Output],
    config: ObjectiveConfig,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The whole training loss of one batch: the weighted loss of all outputs plus the weighted affinity of all taps.

    total = logit_weight * sum over outputs of their loss + affinity_weight * sum over taps of affinity, each an
    average over the batch. Nothing waits for the device, and a loss that is not finite is returned as it is: the
    training loop judges.

    Args:
        student: outputs [B, ...], such as logits [B, K] or dense [B, K, H, W].
        teacher: outputs of the same shapes, constants.
        student_maps: tap -> [B, C_student, H, W], in the order in which FFA draws its projections.
        teacher_maps: the same taps -> [B, C_teacher, H', W'], constants; resized to the student's size.
        outputs: what each output holds, in their order.
        config: terms and weights.
        generator: source of FFA's projections, on the CPU or on the maps' device; only FFA draws from it.

    Returns:
        The total, a scalar with a gradient, and its parts before weighting, detached scalars on the same
        device: "logits", "affinity" (the sum over the taps), "affinity/TAP" each.

    Raises:
        UserError: no taps although the affinity wants some; FFA with more projections than a map has
            positions; kl of a single class.
        ValueError: taps or shapes of student and teacher that do not belong together.
    """
    parts: dict[str, Tensor] = {}
    logit_part = outputs_loss(student, teacher, outputs, config=config)
    parts["logits"] = logit_part.detach()
    total = config.logit_weight * logit_part
    if config.affinity == "none":
        return total, parts

    if student_maps.keys() != teacher_maps.keys():
        raise ValueError(f"taps of student {sorted(student_maps)} and teacher {sorted(teacher_maps)} differ")
    if not student_maps:
        raise UserError(
            f"--affinity {config.affinity} needs at least one tap: name some with --taps, or --affinity none"
        )
    affinity_parts = []
    for tap, student_map in student_maps.items():
        teacher_map = teacher_maps[tap]
        form = affinity_form(tap, student_map.shape, teacher_map.shape, config=config)
        part = AFFINITY_FORMS[form](student_map, teacher_map, config.affinity_order, config.projections, generator)
        parts[f"affinity/{tap}"] = part.detach()
        affinity_parts.append(part)
    affinity_part = torch.stack(affinity_parts).sum()
    parts["affinity"] = affinity_part.detach()
    return total + config.affinity_weight * affinity_part, parts


def outputs_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], outputs: Sequence[Output], *, config: ObjectiveConfig
) -> Tensor:
    """Unweighted loss of all outputs together, a scalar: what `config` chooses for logits, see `output_loss`."""
    return output_loss(student, teacher, outputs, lambda mine, theirs: logit_loss(mine, theirs, config))


def uninformed_loss(teacher: Sequence[Tensor], outputs: Sequence[Output], *, config: ObjectiveConfig) -> Tensor:
    """Weighted loss of a student that gives every image (and position) the teacher's mean outputs.

    The scale on which a loss is large, for `pipeline.distillation.divergence`; its affinity is left out.

    Args:
        teacher: outputs [B, ...] of a few hundred images.
        outputs: what each holds.
        config: its logit loss, temperature and weight.

    Returns:
        Detached scalar, >= 0.
    """
    teacher = [values.detach().float() for values in teacher]
    return config.logit_weight * outputs_loss(uninformed(teacher, outputs), teacher, outputs, config=config)


def affinity_form(
    tap: str, student_shape: torch.Size, teacher_shape: torch.Size, *, config: ObjectiveConfig
) -> AffinityForm:
    """The form that `distillation_loss` uses at one tap, for the loss itself and for the report.

    Args:
        tap: name, for the error message.
        student_shape: [B, C_student, H, W].
        teacher_shape: [B, C_teacher, H', W'].
        config: its affinity must not be "none".

    Raises:
        UserError: affinity "ffa" with more projections than the H * W positions of the student's map.
    """
    height, width = student_shape[-2:]
    positions = height * width
    if config.affinity == "none":
        raise ValueError("affinity 'none' has no form")
    if config.affinity == "ffa" and config.projections > positions:
        raise UserError(
            f"--projections {config.projections} is more than the {positions} positions ({height}x{width}) "
            f"of tap {tap}: use --projections {positions} or fewer, or --affinity auto"
        )
    if config.affinity != "auto":
        return config.affinity
    return choose_form(
        positions=positions,
        student_channels=student_shape[1],
        teacher_channels=teacher_shape[1],
        projections=config.projections,
    )


def logit_loss(student_logits: Tensor, teacher_logits: Tensor, config: ObjectiveConfig) -> Tensor:
    """Unweighted loss between the logits, [B, K] or dense [B, K, ...]: the chosen one; a scalar.

    Raises:
        UserError: kl of a single class, which is always 0.
    """
    if config.logit_loss == "mse":
        return mse_loss(student_logits, teacher_logits)
    if student_logits.shape[1] == 1:
        raise UserError("--logit-loss kl of a network with 1 output is always 0: use --logit-loss mse")
    return kl_loss(student_logits, teacher_logits, temperature=config.temperature)


def _check_known(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"--{flag} {value}: must be one of {', '.join(allowed)}")


def _check_above_zero(flag: str, value: float, *, instead: str = "") -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"--{flag} {value:g}: must be a finite number above 0" + (f"; {instead}" if instead else ""))
