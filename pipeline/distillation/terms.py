"""A loss is (where to tap) x (transform) x (metric) x (weight over the run): the terms that objectives are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from pipeline.config.ramps import Ramp
from pipeline.distillation.losses.logits import class_loss, cosine_loss, kl_loss, mean_logits
from pipeline.distillation.losses.of_outputs import mean_outputs, output_loss
from pipeline.distillation.losses.table import Metric
from pipeline.networks.outputs.meaning import Output


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one network makes of a batch: outputs [B, K, ...] each, and features [B, C, H, W] or [B, d] by tap."""

    outputs: tuple[Tensor, ...]
    features: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Signals:
    """All that the terms may look at in one step; the teachers' tensors are constants.

    Features of every teacher bear the names of the student's taps. `labels` int64 [B] only where they were asked for;
    `ensemble` the outputs of the student's second pass at random precisions, where a term wants it.
    """

    student: Seen
    teachers: tuple[Seen, ...]
    step: int
    steps: int
    generator: torch.Generator
    labels: Tensor | None = None
    ensemble: tuple[Tensor, ...] | None = None


class Term(nn.Module, ABC):
    """One summand of the loss, before its weight; what it trains beside the student is dropped afterwards."""

    weight: Ramp

    @abstractmethod
    def forward(self, signals: Signals) -> dict[str, Tensor]:
        """Scalars to be summed up, by the tap that they belong to ("" where it has none)."""


@final
class LogitTerm(Term):
    """Outputs x identity x KL or mean squared error, to the mean of the teachers; summed over the outputs."""

    def __init__(
        self,
        weight: Ramp,
        outputs: Sequence[Output],
        metric: Callable[[Tensor, Tensor, float], Tensor],
        temperature: Ramp,
        *,
        soft: bool,
    ) -> None:
        super().__init__()
        self.weight, self.outputs, self.metric = weight, tuple(outputs), metric
        self.temperature, self.soft = temperature, soft

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        """See `Term`."""
        temperature = self.temperature.at(signals.step, steps=signals.steps)
        targets = mean_outputs(
            [seen.outputs for seen in signals.teachers], self.outputs, temperature=temperature if self.soft else None
        )
        loss = output_loss(
            signals.student.outputs, targets, self.outputs, lambda mine, theirs: self.metric(mine, theirs, temperature)
        )
        return {"": loss}


@final
class ClassTerm(Term):
    """First output x identity x cross entropy, with labels or with the class of the teachers' mean."""

    def __init__(self, weight: Ramp, *, labelled: bool) -> None:
        super().__init__()
        self.weight, self.labelled = weight, labelled

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        """See `Term`."""
        if self.labelled:
            assert signals.labels is not None
            classes = signals.labels
        else:
            classes = mean_logits([seen.outputs[0] for seen in signals.teachers], temperature=1.0).argmax(1)
        return {"": class_loss(signals.student.outputs[0], classes)}


@final
class FeatureTerm(Term):
    """Features at taps x a transform of the student's each x a metric; summed over the taps and teachers.

    `transforms`: per teacher and tap, or identity where absent; `metrics` by tap.
    """

    def __init__(
        self, weight: Ramp, metrics: Mapping[str, Metric], transforms: Sequence[Mapping[str, nn.Module]] = ({},)
    ) -> None:
        super().__init__()
        self.weight, self.metrics = weight, dict(metrics)
        self.names = [dict.fromkeys(by_tap) for by_tap in transforms]
        # Names of modules hold no dots: taps are names of graph nodes, which have none.
        self.transforms = nn.ModuleList(nn.ModuleDict(by_tap) for by_tap in transforms)

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        """See `Term`."""
        parts: dict[str, Tensor] = {}
        for by_tap, teacher in zip(self.transforms, signals.teachers, strict=False):
            assert isinstance(by_tap, nn.ModuleDict)
            for tap, metric in self.metrics.items():
                features = signals.student.features[tap]
                if tap in by_tap:
                    features = by_tap[tap](features)
                loss = metric(features, teacher.features[tap], signals.generator)
                parts[tap] = parts[tap] + loss if tap in parts else loss
        return parts


@final
class BranchTerm(Term):
    """Maps at taps x a classifier each x T^2 KL, to the teacher's own classifiers there (SAKD, reconstructed).

    `teach` is what trains the teacher's branches; they are constants for the student.
    """

    def __init__(
        self, weight: Ramp, student: Mapping[str, nn.Module], teacher: Mapping[str, nn.Module], temperature: Ramp
    ) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature
        self.student, self.teacher = nn.ModuleDict(student), nn.ModuleDict(teacher).requires_grad_(False)

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        """See `Term`."""
        temperature = self.temperature.at(signals.step, steps=signals.steps)
        parts = {}
        for tap, branch in self.student.items():
            with torch.no_grad():
                target = self.teacher[tap](signals.teachers[0].features[tap])
            parts[tap] = kl_loss(branch(signals.student.features[tap]), target, temperature=temperature)
        return parts

    def teach(self, seen: Seen) -> Tensor:
        """The loss that trains the teacher's branches to give the teacher's own logits, a scalar."""
        temperature = self.temperature.start
        losses = [
            kl_loss(branch(seen.features[tap]), seen.outputs[0], temperature=temperature)
            for tap, branch in self.teacher.items()
        ]
        return torch.stack(losses).sum()


@final
class EnsembleTerm(Term):
    """First output x identity x 1 - cosine of softened outputs, to the student's own second pass (SPEQ)."""

    def __init__(self, weight: Ramp, temperature: Ramp) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        """See `Term`."""
        assert signals.ensemble is not None
        temperature = self.temperature.at(signals.step, steps=signals.steps)
        return {"": cosine_loss(signals.student.outputs[0], signals.ensemble[0], temperature=temperature)}
