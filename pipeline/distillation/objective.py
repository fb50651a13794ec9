"""What a student is trained on: a weighted sum of terms, without labels unless they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from calibration.errors import UserError
from pipeline.config.affinity_points import FA_CHOICES
from pipeline.config.distillation import DistillationConfig
from pipeline.distillation.losses.cost import AffinityForm, choose_form
from pipeline.distillation.losses.of_outputs import LogitLoss as LogitMetric
from pipeline.distillation.losses.of_outputs import image_losses, output_loss, uninformed
from pipeline.distillation.losses.table import LOGIT_LOSSES
from pipeline.distillation.terms import BranchTerm, Signals, Term
from pipeline.networks.outputs.meaning import Output


class Objective(nn.Module):
    """The terms with what they train beside the student, and the taps that they look at.

    `taps`: per teacher, the student's taps with the teacher's that they are compared with. `reals`: whether a term
    minds the scale of features, which the student's integers do not have. `remarks`: what a user should know of what
    is compared.
    """

    def __init__(
        self,
        config: DistillationConfig,
        terms: Mapping[str, Term],
        taps: Sequence[Mapping[str, str]],
        *,
        reals: bool,
        remarks: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.config, self.taps, self.reals = config, tuple(dict(pairs) for pairs in taps), reals
        self.remarks = remarks
        self.terms = nn.ModuleDict(terms)

    @property
    def student_taps(self) -> tuple[str, ...]:
        """All taps of the student, each once."""
        return tuple(dict.fromkeys(tap for pairs in self.taps for tap in pairs))

    @property
    def wants_ensemble(self) -> bool:
        """Whether a term looks at the student's second pass."""
        return "ensemble" in self.terms

    @property
    def branches(self) -> BranchTerm | None:
        """The term whose teacher branches must learn first."""
        return next((term for term in self.terms.values() if isinstance(term, BranchTerm)), None)

    def forward(self, signals: Signals) -> tuple[Tensor, dict[str, Tensor]]:
        """The total of one batch, a scalar with a gradient, and the parts before weighting, detached.

        Parts bear the terms' names ("logits", "affinity", ...), and "affinity/TAP" where a term has taps. A term whose
        weight is 0 at this step is not computed. Nothing waits for the device, and a loss that is not finite is
        returned as it is: the training loop judges.
        """
        parts: dict[str, Tensor] = {}
        summands = []
        for name, term in self.terms.items():
            assert isinstance(term, Term)
            weight = term.weight.at(signals.step, steps=signals.steps)
            if weight == 0:
                continue
            losses = term(signals)
            part = torch.stack(list(losses.values())).sum()
            parts[name] = part.detach()
            parts |= {f"{name}/{tap}": loss.detach() for tap, loss in losses.items() if tap}
            summands.append(weight * part)
        return torch.stack(summands).sum(), parts


def outputs_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], outputs: Sequence[Output], *, config: DistillationConfig
) -> Tensor:
    """Unweighted loss of all outputs together at the first step's temperature, a scalar; see `output_loss`."""
    return output_loss(student, teacher, outputs, _first_logit_loss(config))


def loss_per_image(
    student: Sequence[Tensor], teacher: Sequence[Tensor], outputs: Sequence[Output], *, config: DistillationConfig
) -> Tensor:
    """The same of each image, float64 [B]; see `image_losses`."""
    return image_losses(student, teacher, outputs, _first_logit_loss(config))


def _first_logit_loss(config: DistillationConfig) -> LogitMetric:
    metric, temperature = LOGIT_LOSSES[config.logit_loss], config.ramp("temperature").start
    return lambda mine, theirs: metric(mine, theirs, temperature)


def uninformed_loss(teacher: Sequence[Tensor], outputs: Sequence[Output], *, config: DistillationConfig) -> Tensor:
    """Loss of the outputs of a student that gives every image (and position) the teacher's mean outputs.

    The scale on which a loss is large, for `pipeline.distillation.training.divergence`.

    Args:
        teacher: outputs [B, ...] of a few hundred images.
        outputs: what each holds.
        config: its logit loss and its temperature at the start.

    Returns:
        Detached scalar, >= 0.
    """
    teacher = [values.detach().float() for values in teacher]
    return outputs_loss(uninformed(teacher, outputs), teacher, outputs, config=config)


def affinity_form(
    tap: str, student_shape: torch.Size, teacher_shape: torch.Size, *, config: DistillationConfig
) -> AffinityForm:
    """The form of FAQD's affinity that is used at one tap, for the loss itself and for the report.

    Args:
        tap: name, for the error message.
        student_shape: [B, C_student, H, W].
        teacher_shape: [B, C_teacher, H', W'].
        config: its affinity must be one of FAQD's.

    Raises:
        UserError: affinity "ffa" with more projections than the H * W positions of the student's map.
    """
    height, width = student_shape[-2:]
    positions = height * width
    if config.affinity not in FA_CHOICES:
        raise ValueError(f"affinity {config.affinity!r} has no form")
    if config.affinity == "ffa" and config.projections > positions:
        raise UserError(
            f"--projections {config.projections} is more than the {positions} positions ({height}x{width}) "
            f"of tap {tap}: use --projections {positions} or fewer, or --affinity auto"
        )
    if config.affinity == "auto":
        return choose_form(
            positions=positions,
            student_channels=student_shape[1],
            teacher_channels=teacher_shape[1],
            projections=config.projections,
        )
    return config.affinity  # type: ignore[return-value]  # "fa", "ffa" or "gram" is left
