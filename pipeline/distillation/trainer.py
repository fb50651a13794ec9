"""One training run in motion: the student, what it is compared with, where it stands, and how it ends."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from calibration.clipping import ClippedScales
from calibration.closed_forms import ClosedForms
from calibration.prepared import PreparedNetwork
from calibration.renormalise import Normalisation
from pipeline.artifacts import TrainedStudent
from pipeline.distillation.build import build_objective
from pipeline.distillation.divergence import DivergenceWatch
from pipeline.distillation.mirror import with_mirror_images
from pipeline.distillation.objective import outputs_loss, uninformed_loss
from pipeline.distillation.optimiser import TRANSFORM_RATE, ScheduledOptimiser
from pipeline.distillation.outputs import mean_outputs
from pipeline.distillation.speq import stochastic_precision
from pipeline.distillation.taps import tap_prepared
from pipeline.distillation.task import Task, channels_last, graphs_of
from pipeline.distillation.task_images import TaskImages
from pipeline.distillation.teachers import Teachers
from pipeline.distillation.terms import Seen, Signals
from pipeline.randomness import generator_for
from pipeline.report.schema import Distillation

# Below this share of an ignorant student's loss a rise is no divergence (see DivergenceWatch).
_HARMLESS_SHARE = 0.05
_BACKOFF = 0.3
_CURVE_POINTS = 200
# Steps in which SAKD's branches learn their teacher's logits, before the student sees them [ours].
_BRANCH_STEPS = 200


class Trainer:
    """The moving parts of one training run: networks, optimiser, position, history."""

    def __init__(self, task: Task) -> None:
        self.task, self.images = task, TaskImages(task)
        self.fresh = build_objective(
            task.objective, task.student.folded, graphs_of(task), task.outputs, taps=task.taps, seed=task.seed
        )
        self.teachers = Teachers(task, self.fresh)
        self.logit_part = 0.0
        self.backoffs, self.diverged = 0, False
        self.learning_rate = task.schedule.learning_rate
        self.loss_calibrated = self.reference = self.floor = 0.0
        self._begin()

    def _begin(self) -> None:
        """The calibrated student, a fresh optimiser, step 0."""
        normalised = self.task.schedule.normalised and bool(self.task.schedule.steps)
        self.network = self._calibrated(trainable=bool(self.task.schedule.steps), corrected=not normalised).train()
        self.normalisation: Normalisation | None = None
        if normalised:
            self.normalisation = Normalisation(self.network, self.task.student.folded)
            self.normalisation.begin(self.images.for_statistics(0))
        self.closed_forms = ClosedForms(self.network) if self.task.schedule.weight_grids == "faqd" else None
        self.clipped_scales = ClippedScales(self.network) if self.task.schedule.activation_grids == "pact" else None
        self.objective = copy.deepcopy(self.fresh).to(self.task.device)
        self.tapped = tap_prepared(self.network, self.objective.student_taps, reals=self.objective.reals)
        self.optimiser = ScheduledOptimiser(
            self.network,
            self.objective.parameters(),
            self.task.schedule,
            learning_rate=self.learning_rate,
            device=self.task.device,
        )
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self.watch = DivergenceWatch(reference=self.reference, floor=self.floor)

    def _calibrated(self, *, trainable: bool, corrected: bool = True) -> PreparedNetwork:
        # Normalisations put means and spreads right themselves, and their layers learn at the float weights' size.
        return channels_last(self.task.student.network(trainable=trainable, corrected=corrected), self.task.device)

    # Losses.

    def _ensemble(self, images: Tensor) -> tuple[Tensor, ...]:
        """The student's second pass, each activation at fewer bits or at 8 by chance."""
        config, generator = self.task.objective, generator_for(self.task.seed, "precision", self.step)
        precision = stochastic_precision(self.network, config.ensemble_bits, config.ensemble_probability, generator)
        with torch.no_grad(), precision:
            outputs: tuple[Tensor, ...] = self.network(images)
        return outputs

    def _with_mirror_images(self, images: Tensor) -> Tensor:
        return with_mirror_images(images) if self.task.mirror else images

    @torch.no_grad()
    def held_out_loss(self, network: PreparedNetwork) -> tuple[float, float]:
        """Loss of a student's outputs on the held-out images, and that of one that ignores its input."""
        total, ignorant, count = 0.0, 0.0, 0
        outputs, config = self.task.outputs, self.task.objective
        network.eval()
        for images in self.images.held_out():
            shown = self.teachers.seen(self._with_mirror_images(images))
            seen = [[output[: len(images)] for output in teacher.outputs] for teacher in shown]
            targets = mean_outputs(seen, outputs, temperature=config.softening)
            total += float(outputs_loss(network(images), targets, outputs, config=config)) * len(images)
            ignorant += float(uninformed_loss(targets, outputs, config=config)) * len(images)
            count += len(images)
        # KL of two all but equal distributions may come out a rounding error below zero.
        return max(0.0, total / count), max(0.0, ignorant / count)

    def measure_start(self) -> None:
        """Judge the calibrated student: what training must improve, and what divergence is measured by."""
        self.loss_calibrated, ignorant = self.held_out_loss(self._calibrated(trainable=False))
        self.reference, self.floor = self.loss_calibrated, _HARMLESS_SHARE * ignorant
        if self.normalisation is not None:
            self.reference, _ = self.held_out_loss(self._calibrated(trainable=False, corrected=False))
        self.watch = DivergenceWatch(reference=self.reference, floor=self.floor)

    # Steps.

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images of the steps that remain, on the device, with labels where they were asked for."""
        return self.images.training(self.step, self.task.schedule.steps - self.step)

    def teach_branches(self) -> None:
        """Train the branches of SAKD's teacher to give its logits; nothing where the objective has none."""
        term = self.fresh.to(self.task.device).branches
        if term is None:
            return
        optimiser = torch.optim.Adam(
            [parameter.requires_grad_() for parameter in term.teacher.parameters()], lr=TRANSFORM_RATE
        )
        for images, _ in self.images.training(0, _BRANCH_STEPS):
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(term.teach(self.teachers.seen(self._with_mirror_images(images))[0]))
            optimiser.step()
        term.teacher.requires_grad_(False)
        self._begin()

    def update(self, images: Tensor, labels: Tensor | None = None) -> float:
        """One step of the optimiser; the loss before it."""
        if self.task.mirror:
            images, labels = with_mirror_images(images), None if labels is None else labels.repeat(2)
        outputs, features = self.tapped(images)
        signals = Signals(
            student=Seen(outputs=outputs, features=features),
            teachers=self.teachers.seen(images),
            step=self.step,
            steps=self.task.schedule.steps,
            generator=generator_for(self.task.seed, "projections", self.step),
            labels=labels,
            ensemble=self._ensemble(images) if self.objective.wants_ensemble else None,
        )
        loss, parts = self.objective(signals)
        self.optimiser.update(loss, self.step)
        steps = self.task.schedule.steps
        value = float(loss.detach())
        # A schedule may leave the logits out for a while: then nothing new is known of them.
        self.logit_part = float(parts["logits"]) if "logits" in parts else self.logit_part
        if math.isfinite(value) and self.step % max(1, steps // _CURVE_POINTS) == 0:
            self.curve.append((self.step, value))
        self.step += 1
        return value

    def back_off(self) -> None:
        """Start again from the calibrated student with a lower learning rate."""
        self.backoffs += 1
        self.learning_rate *= _BACKOFF
        self._begin()

    # Keeping and ending.

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resumed run needs, as tensors and a JSON record."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        record = {
            "step": self.step,
            "learning_rate": self.learning_rate,
            "backoffs": self.backoffs,
            "watch": self.watch.state(),
            "curve": self.curve,
        }
        return tensors | self.optimiser.tensors(), record

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        for prefix, module in (("network.", self.network), ("objective.", self.objective)):
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            module.load_state_dict(own)
        self.fresh.load_state_dict(self.objective.state_dict())
        self.optimiser.restore(tensors)
        self.step, self.learning_rate = int(record["step"]), float(record["learning_rate"])
        self.optimiser.learning_rate = self.learning_rate
        self.backoffs = int(record["backoffs"])
        self.watch.restore(record["watch"])
        self.curve = [(int(step), float(loss)) for step, loss in record["curve"]]

    def finish(self) -> TrainedStudent:
        """The last step's weights, or the calibrated ones where training did harm to the held-out distillation loss."""
        if self.closed_forms is not None:
            self.closed_forms.settle()
        if self.clipped_scales is not None:
            self.clipped_scales.settle()
        if self.normalisation is not None and not self.diverged:
            statistics = self.images.for_statistics(self.task.schedule.steps)
            self.network = self.normalisation.fold(self._calibrated(trainable=True), statistics)
        ended = bool(self.task.schedule.steps) and not self.diverged
        final = self.held_out_loss(self.network)[0] if ended else self.loss_calibrated
        # Small losses on held-out images rank students that all but equal their teacher no better than chance does.
        worst = max(self.loss_calibrated, self.floor)
        trained = ended and final <= worst
        network: PreparedNetwork = self.network if trained else self.task.student.network()
        record = Distillation(
            steps=self.task.schedule.steps,
            learning_rate=self.learning_rate,
            loss_calibrated=self.loss_calibrated,
            loss_final=final if ended else None,
            chosen="trained" if trained else "calibrated",
            backoffs=self.backoffs,
            diverged=self.diverged,
            curve=tuple(self.curve),
        )
        for parameter in network.parameters():
            parameter.grad = None  # as large as the network itself
        # Plain memory layout: what is saved and frozen must not depend on the layout that trained fastest.
        plain = network.cpu().to(memory_format=torch.contiguous_format)
        return TrainedStudent(network=plain.eval(), distillation=record)
