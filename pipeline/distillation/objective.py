"""What a student is trained on: a weighted sum of terms, without labels unless they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from calibration.errors import UserError
from pipeline.distillation.losses.affinity import AFFINITY_ORDERS, AffinityOrder
from pipeline.distillation.losses.affinity_points import (
    AFFINITY_WEIGHTS,
    FA_CHOICES,
    AffinityChoice,
    Point,
    grid_point,
)
from pipeline.distillation.losses.cost import AffinityForm, choose_form
from pipeline.distillation.losses.names import LogitLossName
from pipeline.distillation.losses.of_outputs import LogitLoss as LogitMetric
from pipeline.distillation.losses.of_outputs import image_losses, output_loss, uninformed
from pipeline.distillation.losses.table import LOGIT_LOSSES
from pipeline.distillation.schedules import Ramp, constant, read_ramp
from pipeline.distillation.terms import (
    BranchTerm,
    Signals,
    Term,
)
from pipeline.networks.outputs.meaning import Output

Adapters = Literal["identity", "trained"]
Weight = float | str | Ramp


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The terms of the training loss and their weights; a weight or temperature may change over the run.

    Args:
        logit_loss: "kl" or "mse".
        temperature: T of all softened outputs, > 0.
        logit_weight: weight of the logit loss: nothing else without labels trains the layers behind the last tap.
        label_weight: weight of the cross entropy with labels, None: labels are not looked at.
        class_weight: weight of the cross entropy with the class of the teachers' mean, None: left out.
        affinity: form of the affinity loss, a named point of the grid or an affinity of it; "auto" chooses FAQD's
            cheapest per tap, "none" leaves it out.
        affinity_order: "1", "2" or "squared", of FAQD's forms; "auto" and "gram" know "squared" alone.
        affinity_weight: weight of the affinity losses' sum over the taps; None: `AFFINITY_WEIGHTS`. FAQD's released
            0.1 multiplies a sum over a batch of 100: for our average that is 10 for order "1" and 1 for order "2".
        projections: k of FFA, >= 1.
        normalise, distance, over: the other axes of the grid, for an affinity without a name.
        adapters: "trained": the student's map passes a 1x1 convolution and ReLU per tap, dropped after training.
        feed_weight: weight of FEED's loss to every teacher's last map, None: left out.
        branch_weight: weight of the loss between SAKD's branches, None: left out.
        ensemble_weight: weight of SPEQ's loss to the student's second pass, None: left out.
        ensemble_bits: activations' bits there by chance, 2 to 8; None: the grid's own below 8, else 4.
        ensemble_probability: of those bits, per layer and step, above 0 and at most 1.

    Raises:
        UserError: a value or a combination that is not allowed.

    Source: arXiv 2302.10899; its released defaults are mse and order "1", ours kl and the cheapest form of
    "squared". The other terms: see their files.
    """

    logit_loss: LogitLossName = "kl"
    temperature: Weight = 4.0
    logit_weight: Weight = 1.0
    label_weight: Weight | None = None
    class_weight: Weight | None = None
    affinity: AffinityChoice = "auto"
    affinity_order: AffinityOrder = "squared"
    affinity_weight: Weight | None = None
    projections: int = 15
    normalise: str | None = None
    distance: str | None = None
    over: str | None = None
    adapters: Adapters = "identity"
    feed_weight: Weight | None = None
    branch_weight: Weight | None = None
    ensemble_weight: Weight | None = None
    ensemble_bits: int | None = None
    ensemble_probability: float = 0.5

    def __post_init__(self) -> None:
        _check_known("logit-loss", self.logit_loss, get_args(LogitLossName))
        _check_known("affinity", self.affinity, get_args(AffinityChoice))
        _check_known("affinity-order", self.affinity_order, AFFINITY_ORDERS)
        _check_known("adapters", self.adapters, get_args(Adapters))
        for name, flag in WEIGHT_FLAGS.items():
            given = getattr(self, name)
            if given is None or isinstance(given, Ramp) or (name == "affinity_weight" and self.affinity == "none"):
                continue
            instead = "--affinity none trains on the logits alone" if name == "affinity_weight" else ""
            ramp = read_ramp(flag, given, positive=name == "temperature", instead=instead)
            object.__setattr__(self, name, ramp)
        if self.ensemble_bits is not None and not 2 <= self.ensemble_bits <= 8:
            raise UserError(f"--speq-bits {self.ensemble_bits}: must be 2 to 8")
        if not 0 < self.ensemble_probability <= 1:
            raise UserError(f"--speq-probability {self.ensemble_probability:g}: must be above 0 and at most 1")
        point = self.point
        if self.affinity == "none":
            if self.adapters == "trained":
                raise UserError("--adapters trained needs an affinity loss: give --affinity something else than none")
            return
        if self.projections < 1:
            raise UserError(f"--projections {self.projections}: must be at least 1")
        if self.affinity in ("auto", "gram") and self.affinity_order != "squared":
            raise UserError(
                f"--affinity-order {self.affinity_order} has no {self.affinity} form: "
                "add --affinity fa or ffa, or use --affinity-order squared"
            )
        if point is not None and self.affinity_order != "squared":
            raise UserError(f"--affinity-order {self.affinity_order} belongs to fa and ffa: --affinity {self.affinity}")
        if point is not None and point.over == "samples" and self.adapters == "trained":
            raise UserError(f"--adapters trained belongs to losses over pixels: --affinity {self.affinity} is not one")

    @property
    def point(self) -> Point | None:
        """The point of the affinity grid; None for FAQD's forms or no affinity."""
        return grid_point(self.affinity, self.normalise, self.distance, self.over)

    @property
    def softening(self) -> float | None:
        """Temperature at the first step by which several teachers' outputs are averaged; None: as logits."""
        return self.ramp("temperature").start if self.logit_loss == "kl" else None

    def ramp(self, name: str) -> Ramp:
        """A weight or the temperature over the run; a term that is left out has none."""
        value = getattr(self, name)
        if value is None and name == "affinity_weight":
            value = constant(AFFINITY_WEIGHTS.get(self.affinity, 1.0))
        assert isinstance(value, Ramp)
        return value


#: Field of a weight -> its flag.
WEIGHT_FLAGS = {
    "temperature": "temperature",
    "logit_weight": "logit-weight",
    "label_weight": "label-weight",
    "class_weight": "class-weight",
    "affinity_weight": "affinity-weight",
    "feed_weight": "feed-weight",
    "branch_weight": "sakd-weight",
    "ensemble_weight": "speq-weight",
}


class Objective(nn.Module):
    """The terms with what they train beside the student, and the taps that they look at.

    `taps`: per teacher, the student's taps with the teacher's that they are compared with. `reals`: whether a term
    minds the scale of features, which the student's integers do not have.
    """

    def __init__(
        self, config: ObjectiveConfig, terms: Mapping[str, Term], taps: Sequence[Mapping[str, str]], *, reals: bool
    ) -> None:
        super().__init__()
        self.config, self.taps, self.reals = config, tuple(dict(pairs) for pairs in taps), reals
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
            found = term(signals)
            part = torch.stack(list(found.values())).sum()
            parts[name] = part.detach()
            parts |= {f"{name}/{tap}": loss.detach() for tap, loss in found.items() if tap}
            summands.append(weight * part)
        return torch.stack(summands).sum(), parts


def outputs_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], outputs: Sequence[Output], *, config: ObjectiveConfig
) -> Tensor:
    """Unweighted loss of all outputs together at the first step's temperature, a scalar; see `output_loss`."""
    return output_loss(student, teacher, outputs, _first_logit_loss(config))


def loss_per_image(
    student: Sequence[Tensor], teacher: Sequence[Tensor], outputs: Sequence[Output], *, config: ObjectiveConfig
) -> Tensor:
    """The same of each image, float64 [B]; see `image_losses`."""
    return image_losses(student, teacher, outputs, _first_logit_loss(config))


def _first_logit_loss(config: ObjectiveConfig) -> LogitMetric:
    metric, temperature = LOGIT_LOSSES[config.logit_loss], config.ramp("temperature").start
    return lambda mine, theirs: metric(mine, theirs, temperature)


def uninformed_loss(teacher: Sequence[Tensor], outputs: Sequence[Output], *, config: ObjectiveConfig) -> Tensor:
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
    tap: str, student_shape: torch.Size, teacher_shape: torch.Size, *, config: ObjectiveConfig
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


def _check_known(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"--{flag} {value}: must be one of {', '.join(allowed)}")
