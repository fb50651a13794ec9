"""One training run in motion: the student, what it is compared with, where it stands, and how it ends."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from calibration.simulation.clipping import ClippedScales
from calibration.simulation.closed_forms import ClosedForms
from calibration.simulation.normalised_training import Normalisation
from calibration.simulation.prepared import PreparedNetwork
from pipeline.artifacts import TrainedStudent
from pipeline.distillation.build import build_objective
from pipeline.distillation.losses.of_outputs import mean_outputs
from pipeline.distillation.objective import loss_per_image, outputs_loss, uninformed_loss
from pipeline.distillation.taps import Tapped, tap_prepared
from pipeline.distillation.terms import Seen, Signals
from pipeline.distillation.training.divergence import DivergenceWatch
from pipeline.distillation.training.first_step import FirstStep, try_first_step
from pipeline.distillation.training.mirror import with_mirror_images
from pipeline.distillation.training.optimiser import TRANSFORM_RATE, Rates, ScheduledOptimiser
from pipeline.distillation.training.speq import stochastic_precision
from pipeline.distillation.training.task import Task, channels_last, graphs_of
from pipeline.distillation.training.task_images import TaskImages
from pipeline.distillation.training.teachers import Teachers
from pipeline.distillation.training.verdict import Verdict, remarks_on, verdict_on
from pipeline.report.schema import Distillation
from pipeline.tools.randomness import generator_for

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
        self.rates = Rates(weights=task.schedule.learning_rate, scales=task.schedule.scale_learning_rate)
        self.first_steps: tuple[str, ...] = ()
        self.losses_calibrated = torch.zeros(0, dtype=torch.float64)
        self.reference = self.ignorant = 0.0
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
        self.tapped = self._tapped(self.network, self.objective.student_taps)
        self.optimiser = ScheduledOptimiser(
            self.network,
            self.objective.parameters(),
            self.task.schedule,
            rates=self.rates,
            device=self.task.device,
        )
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self._watch()

    def _watch(self) -> None:
        self.watch = DivergenceWatch(reference=self.reference, floor=_HARMLESS_SHARE * self.ignorant)

    def _tapped(self, network: PreparedNetwork, taps: Sequence[str] = ()) -> Tapped:
        """A student that gives the logits of its outputs, and its features."""
        task = self.task
        return tap_prepared(
            network, taps, reals=self.fresh.reals, folded=task.student.folded, outputs=task.outputs_of_student
        )

    def _calibrated(self, *, trainable: bool, corrected: bool = True) -> PreparedNetwork:
        # Normalisations put means and spreads right themselves, and their layers learn at the float weights' size.
        return channels_last(self.task.student.network(trainable=trainable, corrected=corrected), self.task.device)

    # Losses.

    def _ensemble(self, images: Tensor) -> tuple[Tensor, ...]:
        """The student's second pass, each activation at fewer bits or at 8 by chance."""
        config, generator = self.task.objective, generator_for(self.task.seed, "precision", self.step)
        precision = stochastic_precision(self.network, config.ensemble_bits, config.ensemble_probability, generator)
        with torch.no_grad(), precision:
            outputs, _ = self.tapped(images)
        return outputs  # type: ignore[no-any-return]  # a module's

    def _with_mirror_images(self, images: Tensor) -> Tensor:
        return with_mirror_images(images) if self.task.mirror else images

    def _targets(self, images: Tensor) -> list[Tensor]:
        """What a student is to say of images, which may have their mirror images behind them."""
        outputs = [list(teacher.outputs) for teacher in self.teachers.seen(images)]
        return mean_outputs(outputs, self.task.outputs, temperature=self.task.objective.softening)

    @torch.no_grad()
    def held_out_losses(self, network: PreparedNetwork) -> tuple[Tensor, float]:
        """The loss of a student's outputs for each held-out image, float64 [N], and the mean of one that sees none."""
        losses, ignorant = list[Tensor](), 0.0
        outputs, config = self.task.outputs, self.task.objective
        network.eval()
        student = self._tapped(network)
        for images in self.images.held_out():
            targets = [target[: len(images)] for target in self._targets(self._with_mirror_images(images))]
            losses.append(loss_per_image(student(images)[0], targets, outputs, config=config))
            ignorant += float(uninformed_loss(targets, outputs, config=config)) * len(images)
        found = torch.cat(losses)
        return found, max(0.0, ignorant / len(found))

    def measure_start(self) -> None:
        """Judge the calibrated student: what training must improve, and what divergence is measured by."""
        self.losses_calibrated, self.ignorant = self.held_out_losses(self._calibrated(trainable=False))
        start = self.losses_calibrated
        if self.normalisation is not None:
            start, _ = self.held_out_losses(self._calibrated(trainable=False, corrected=False))
        # KL of two all but equal distributions may come out a rounding error below zero.
        self.reference = max(0.0, float(start.mean()))
        self._watch()

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

    def try_first_step(self) -> Iterator[str]:
        """Lower the rates of weights and scales, each for itself, where Adam's first step would do harm; what is said.

        Layers that are normalised in training do not mind the size of a step, and SGD's is no such step.
        """
        schedule = self.task.schedule
        if not schedule.tries_first_step or schedule.optimiser != "adam" or self.normalisation is not None:
            return
        (images, labels), (others, _) = self.images.training(0, 2)
        self.optimiser.find_gradients(self._loss(*self._with_mirrors(images, labels))[0])
        others = self._with_mirror_images(others)
        targets = self._targets(others)

        @torch.no_grad()
        def loss() -> float:
            return float(outputs_loss(self.tapped(others)[0], targets, self.task.outputs, config=self.task.objective))

        scales = self.network.scale_parameters(activations=True, weights=True)
        learned = [parameter for parameter in scales if parameter.requires_grad]
        weights = try_first_step(self.network.weight_parameters(), self.rates.weights, loss)
        scale = try_first_step(learned, self.rates.scales, loss) if learned else None
        yield from _lowered("the weights", self.rates.weights, weights)
        if scale is not None:
            yield from _lowered("the scales", self.rates.scales, scale)
        self.rates = Rates(
            weights=self.rates.weights * weights.share,
            scales=self.rates.scales * (1.0 if scale is None else scale.share),
        )
        self._begin()

    def _with_mirrors(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not self.task.mirror:
            return images, labels
        return with_mirror_images(images), None if labels is None else labels.repeat(2)

    def _loss(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective at the present step, and its parts."""
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
        return loss, parts

    def update(self, images: Tensor, labels: Tensor | None = None) -> float:
        """One step of the optimiser; the loss before it."""
        loss, parts = self._loss(*self._with_mirrors(images, labels))
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
        """Start again from the calibrated student with lower learning rates."""
        self.backoffs += 1
        self.rates = self.rates.times(_BACKOFF)
        self._begin()

    # Keeping and ending.

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resumed run needs, as tensors and a JSON record."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        record = {
            "step": self.step,
            "rates": dataclasses.asdict(self.rates),
            "first_steps": self.first_steps,
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
        self.rates = Rates(**record["rates"])
        self.first_steps = tuple(record["first_steps"])
        self.optimiser.set_peaks(self.rates)
        self.optimiser.restore(tensors)
        self.step = int(record["step"])
        self.backoffs = int(record["backoffs"])
        self.watch.restore(record["watch"])
        self.curve = [(int(step), float(loss)) for step, loss in record["curve"]]

    def finish(self) -> TrainedStudent:
        """The last step's weights where they lowered the held-out loss beyond chance, else the calibrated ones."""
        if self.closed_forms is not None:
            self.closed_forms.settle()
        if self.clipped_scales is not None:
            self.clipped_scales.settle()
        if self.normalisation is not None and not self.diverged:
            statistics = self.images.for_statistics(self.task.schedule.steps)
            self.network = self.normalisation.fold(self._calibrated(trainable=True), statistics)
        verdict: Verdict | None = None
        if self.task.schedule.steps and not self.diverged:
            verdict = verdict_on(self.losses_calibrated, self.held_out_losses(self.network)[0])
        trained = verdict is not None and verdict.improves
        network: PreparedNetwork = self.network if trained else self.task.student.network()
        calibrated = max(0.0, float(self.losses_calibrated.mean()))
        remarks = remarks_on(network, verdict, calibrated=calibrated, ignorant=self.ignorant)
        record = Distillation(
            steps=self.task.schedule.steps,
            learning_rate=self.rates.weights,
            loss_calibrated=calibrated,
            loss_final=None if verdict is None else verdict.final,
            chosen="trained" if trained else "calibrated",
            backoffs=self.backoffs,
            diverged=self.diverged,
            curve=tuple(self.curve),
            gain=None if verdict is None else verdict.gain,
            gain_error=None if verdict is None else verdict.error,
            remarks=(*self.first_steps, *self._given_up(), *remarks),
        )
        for parameter in network.parameters():
            parameter.grad = None  # as large as the network itself
        # Plain memory layout: what is saved and frozen must not depend on the layout that trained fastest.
        plain = network.cpu().to(memory_format=torch.contiguous_format)
        return TrainedStudent(network=plain.eval(), distillation=record)

    def _given_up(self) -> Iterable[str]:
        if self.diverged:
            yield (
                f"WARNING: training diverged, at learning rate {self.rates.weights:.3g} too: the calibrated weights go"
                " on; --learning-rate lowers it further"
            )


def _lowered(what: str, rate: float, tried: FirstStep) -> Iterable[str]:
    """What to say of a rate that is not taken as it is."""
    if tried.share < 1:
        yield (
            f"a first step at learning rate {rate:g} of {what} would raise the loss from {tried.before:.3g} to"
            f" {tried.after:.3g}: {rate * tried.share:.3g} is taken (--learning-rate takes yours as it is)"
        )
