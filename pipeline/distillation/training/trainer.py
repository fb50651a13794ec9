"""The training of a quantised student: from the calibrated network over every attempt to the weights that go on."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from calibration.simulation.clipping import ClippedScales
from calibration.simulation.closed_forms import ClosedForms
from calibration.simulation.normalised_training import Normalisation
from calibration.simulation.prepared import PreparedNetwork
from pipeline.artifacts import Lesson, PreparedStudent, TrainedStudent
from pipeline.config.distillation import DistillationConfig
from pipeline.config.execution import ExecutionConfig
from pipeline.distillation.build import build_objective
from pipeline.distillation.objective import outputs_loss
from pipeline.distillation.taps import Tapped, tap_prepared
from pipeline.distillation.training.budget import LEAST_STEPS, Budget, Deadline
from pipeline.distillation.training.divergence import DivergenceWatch, given_up
from pipeline.distillation.training.first_step import lowered_rates, rounding_of
from pipeline.distillation.training.judging import Judge
from pipeline.distillation.training.layout import channels_last
from pipeline.distillation.training.learner import Attempt, Learner, Place, Pupil, seconds_of_step
from pipeline.distillation.training.lesson_images import LessonImages
from pipeline.distillation.training.optimiser import TRANSFORM_RATE, Rates, optimiser_of_quantised
from pipeline.distillation.training.plateau import LEAST_IMAGES, Plateau, begin_of_looks, is_trifle, without_looks
from pipeline.distillation.training.schedule import Schedule, is_fast, resolve_device, schedule_of
from pipeline.distillation.training.short_trials import trial_steps, try_rates
from pipeline.distillation.training.speq import second_pass
from pipeline.distillation.training.teachers import Teachers
from pipeline.distillation.training.units import learning_units
from pipeline.distillation.training.verdict import HeldOut, Verdict, judged, remarks_on
from pipeline.report.schema import Distillation

# Below this share of an ignorant student's loss a rise is no divergence (see DivergenceWatch).
_HARMLESS_SHARE = 0.05
_BACKOFF, _MOST_BACKOFFS = 0.3, 3
# Steps in which SAKD's branches learn their teacher's logits, before the student sees them [ours].
_BRANCH_STEPS = 200


@final
class Trainer:
    """A quantised student, its `learner` in the present attempt, and what is known of the attempts so far.

    `schedule`: what the settings come to where it is left out. `predecessor`: a trained student of the same graph that
    teaches instead of the first teacher.
    """

    def __init__(
        self,
        student: PreparedStudent,
        lesson: Lesson,
        settings: DistillationConfig,
        execution: ExecutionConfig,
        *,
        schedule: Schedule | None = None,
        predecessor: PreparedNetwork | None = None,
    ) -> None:
        self.student, self.lesson, self.settings = student, lesson, settings
        count = len(lesson.images.training)
        self.device = resolve_device(execution.device)
        self.schedule = schedule or schedule_of(
            settings, student.quantisation, student.folded, self.device, images=count
        )
        self._offered, self._follows = self.schedule.steps, predecessor is not None
        self.fast, self._seed = is_fast(execution, self.device), execution.seed
        graphs = [teacher.folded for teacher in lesson.teachers]
        if predecessor is not None:
            graphs[0] = student.folded
        self._fresh = build_objective(settings, student.folded, graphs, lesson.teacher.outputs, seed=execution.seed)
        self.teachers = Teachers(
            lesson,
            self._fresh,
            device=self.device,
            fast=self.fast,
            predecessor=None if predecessor is None else (student.student, predecessor),
        )
        self.backoffs, self.diverged, self._out_of_time = 0, False, False
        self.rates = Rates(weights=self.schedule.learning_rate, scales=settings.scale_learning_rate)
        self.budget: Budget | None = None
        self.first_steps: tuple[str, ...] = ()
        self._before = HeldOut(losses=torch.zeros(0, dtype=torch.float64), agreement=None, ignorant=0.0)
        self._reference = self._seconds_of_judging = 0.0
        self._undercut = torch.zeros(0)
        self._take_images()
        self.learner = self._begun()

    def _take_images(self) -> None:
        """See the lesson in the batches of the schedule."""
        size = self.schedule.batch_size
        self.images = LessonImages(self.lesson, batch_size=size, device=self.device, seed=self._seed)
        self.judge = Judge(self.student.student, self.lesson, self.settings, self.teachers, self.images)

    def take(self, *, steps: int, batch_size: int) -> None:
        """Learn for this many steps of this many images instead; before anything is measured or learned."""
        if (steps, batch_size) != (self.schedule.steps, self.schedule.batch_size):
            self.schedule = replace(self.schedule, steps=steps, batch_size=batch_size)
            self._take_images()
            self.learner = self._begun()

    def take_length_of(self, place: Place) -> None:
        """Learn as long as the training that a checkpoint is of. Raises ValueError where settings ask otherwise."""
        if (attempt := place.attempt) is None:
            raise ValueError("attempt is missing")
        images = len(self.lesson.images.training)
        for name, kept in (("steps", attempt.steps), ("batch_size", attempt.batch_size)):
            asked = getattr(self.settings, name)
            if asked is not None and kept != (min(asked, images) if name == "batch_size" else asked):
                raise ValueError(f"{name} is {kept}, not {asked}")
        self.take(steps=attempt.steps, batch_size=attempt.batch_size)

    def length(self) -> str:
        """How long the student learns, in words: steps, images of each, and how often each image is seen."""
        return self.schedule.length(len(self.lesson.images.training), mirrored=self.lesson.mirror)

    def _begun(self) -> Learner:
        """A learner at step 0: the calibrated student, a fresh optimiser."""
        steps, asked = self.schedule.steps, self.student.quantisation
        normalised = self.schedule.normalised and bool(steps)
        self.network = self._calibrated(trainable=bool(steps), corrected=not normalised).train()
        self._normalisation: Normalisation | None = None
        if normalised:
            self._normalisation = Normalisation(self.network, self.student.folded)
            self._normalisation.begin(self.images.for_statistics(0))
        self._closed_forms = ClosedForms(self.network) if asked.weight_grids == "faqd" else None
        self._clipped_scales = ClippedScales(self.network) if asked.activation_grids == "pact" else None
        objective = copy.deepcopy(self._fresh).to(self.device)
        tapped = self._tapped(self.network, objective.student_taps)
        second = second_pass(self.network, tapped, self.settings)
        learner = Learner(
            Pupil(network=self.network, tapped=tapped, draws="projections", second_pass=second),
            objective,
            self.teachers,
            self.images,
            optimiser_of_quantised(
                self.network,
                objective.parameters(),
                self.settings,
                asked,
                rates=self.rates,
                steps=steps,
                units=learning_units(self.network, self.student.folded),
            ),
            watch=self._watch(),
            attempt=self._attempt(),
        )
        learner.plateau, learner.deadline = self._plateau(), self._deadline()
        return learner

    def _deadline(self) -> Deadline | None:
        return None if self.budget is None else Deadline(self.budget, steps=self.schedule.steps)

    def _plateau(self) -> Plateau | None:
        """What ends the training early; None where it is not to, or too few held-out images were judged (`_before`)."""
        steps, patience = self.schedule.steps, self.schedule.patience
        if not steps or not patience or len(self._before.losses) < LEAST_IMAGES:
            return None
        if not len(self._undercut):
            self._undercut = self.judge.on_the_way(self._calibrated(trainable=False))
        begins = begin_of_looks(steps, trifle=is_trifle(self._before))
        return Plateau(self._losses, self._undercut, steps=steps, patience=patience, begins=begins)

    def _losses(self) -> Tensor:
        """The losses of the student that learns, on held-out images looked at on the way, float64 [N]."""
        return self.judge.on_the_way(self.network)

    def _watch(self) -> DivergenceWatch:
        floor = max(rounding_of(self._before.ignorant), _HARMLESS_SHARE * self._before.ignorant)
        return DivergenceWatch(reference=self._reference, floor=floor)

    def _attempt(self) -> Attempt:
        """What a checkpoint holds of the attempts so far."""
        return Attempt(
            rates=self.rates,
            first_steps=self.first_steps,
            backoffs=self.backoffs,
            steps=self.schedule.steps,
            batch_size=self.schedule.batch_size,
            budget=self.budget,
        )

    def _tapped(self, network: PreparedNetwork, taps: Iterable[str] = ()) -> Tapped:
        """A student that gives the logits of its outputs, and its features."""
        own = self.student.student
        return tap_prepared(network, list(taps), reals=self._fresh.reals, folded=own.folded, outputs=own.outputs)

    def _calibrated(self, *, trainable: bool, corrected: bool = True) -> PreparedNetwork:
        # Normalisations put means and spreads right themselves, and their layers learn at the float weights' size.
        return channels_last(self.student.network(trainable=trainable, corrected=corrected), self.device)

    def measure_start(self) -> None:
        """Judge the calibrated student: what training must improve, and what divergence is measured by."""
        began = time.monotonic()
        self._before = self.judge.of_held_out(self._calibrated(trainable=False))
        self._seconds_of_judging = time.monotonic() - began
        start = self._before.losses
        if self._normalisation is not None:
            start = self.judge.of_held_out(self._calibrated(trainable=False, corrected=False)).losses
        # KL of two all but equal distributions may come out a rounding error below zero.
        self._reference = max(0.0, float(start.mean()))
        self.learner.watch, self.learner.plateau = self._watch(), self._plateau()
        if self.schedule.steps:
            self.first_steps = tuple(without_looks(self.schedule.patience, images=len(self._before.losses)))

    # Before the first step, and between two attempts.

    def teach_branches(self) -> None:
        """Train the branches of SAKD's teacher to give its logits; nothing where the objective has none."""
        term = self._fresh.to(self.device).branches
        if term is None:
            return
        branches = [parameter.requires_grad_() for parameter in term.teacher.parameters()]
        optimiser = torch.optim.Adam(branches, lr=TRANSFORM_RATE)
        for images, _ in self.images.training(0, _BRANCH_STEPS):
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(term.teach(self.teachers.seen(self.images.with_mirrors(images)[0])[0]))
            optimiser.step()
        term.teacher.requires_grad_(False)
        self.learner = self._begun()

    def keep_to(self, seconds: float) -> None:
        """Take no more steps than fit into the seconds that are left of `--minutes`; those of a first student before.

        Raises UserError where these hold too few: nothing has been learned then.
        """
        budget = self._measured(seconds)
        steps = budget.fitting(most=self.schedule.steps)
        if self._follows:
            steps = self.schedule.steps
        elif steps < min(LEAST_STEPS, self.schedule.steps):
            raise budget.too_small(steps)
        self.budget = replace(budget, planned=steps)
        self.schedule = replace(self.schedule, steps=steps)
        self.learner = self._begun()

    def _measured(self, seconds: float) -> Budget:
        """What the parts of training take here and now, and what of the seconds that leaves."""
        began = time.monotonic()
        self.learner = self._begun()
        beginning = time.monotonic() - began
        step = seconds_of_step(self.learner)
        looks, looks_on_the_way = time.monotonic(), self.learner.plateau is not None or self.schedule.tries_rates
        if looks_on_the_way:
            self._losses()
        return Budget(
            seconds=seconds - (time.monotonic() - began),
            step=step,
            judging=self._seconds_of_judging,
            look=time.monotonic() - looks if looks_on_the_way else 0.0,
            trifle=is_trifle(self._before),
            tries_rates=self.schedule.tries_rates,
            beginning=beginning,
            minutes=self.settings.minutes or 0.0,
            students=self.settings.generations,
        )

    def of_budget(self) -> tuple[str, ...]:
        """What to say of `--minutes` and the steps that it comes to."""
        if self.budget is None or self._out_of_time:
            return ()
        learner, schedule = self.learner, self.schedule
        words = self.budget.words(
            steps=schedule.steps,
            attempts=self.backoffs,
            default=self._offered,
            patience=0 if learner.plateau is None else schedule.patience,
            follows=self._follows,
            late=learner.steps if learner.deadline is not None and learner.deadline.hurries else None,
        )
        return (words,)

    def lower_rates(self) -> tuple[str, ...]:
        """Lower the rates where Adam's first step would do harm, then where short trials end better; what is said.

        Layers that are normalised in training do not mind the size of a step, and SGD's is no such step.
        """
        if not self.schedule.tries_rates or self.settings.optimiser != "adam" or self._normalisation is not None:
            return ()
        (images, labels), (others, _) = self.images.training(0, 2)
        learner, outputs = self.learner, self.lesson.teacher.outputs
        learner.optimiser.find_gradients(learner.loss(images, labels)[0])
        others, _ = self.images.with_mirrors(others)
        targets = self.judge.targets(others)

        @torch.no_grad()
        def loss() -> float:
            return float(outputs_loss(learner.pupil.tapped(others)[0], targets, outputs, config=self.settings))

        noise, units = rounding_of(self._before.ignorant), learner.optimiser.units
        self.rates, harmless = lowered_rates(self.network, self.rates, loss, noise=noise, units=units)
        said = (*harmless, *self._tried_out())
        self.first_steps = (*self.first_steps, *said)
        self.learner = self._begun()
        return said

    def _tried_out(self) -> Iterable[str]:
        """Take the rates at which short trials end best, where there is more than a trifle to learn; what is said."""
        steps, whole = trial_steps(self.schedule.steps), self.schedule
        if not steps or is_trifle(self._before):
            return

        def losses_after(rates: Rates) -> Tensor:
            self.rates, self.schedule = rates, replace(whole, steps=steps, patience=0)
            self.learner = self._begun()
            for images, labels in self.images.training(0, steps):
                self.learner.update(images, labels)
            return self._losses()

        trials = try_rates(self.rates, losses_after)
        self.rates, self.schedule = trials.taken, whole
        yield trials.words(steps=steps)

    def goes_on_after(self, reason: str) -> tuple[bool, str]:
        """Whether a run that is lost for this reason starts again, at lower learning rates, and what to say of it.

        Of a budget it takes what is left: the schedule is that of the steps that still fit.
        """
        if self.backoffs == _MOST_BACKOFFS:
            self.diverged = True
            rates = f"{reason}; given up after {self.backoffs} lower learning rates"
            return False, f"{rates}: the calibrated network goes on"
        planned, left = self.schedule.steps, ""
        if self.budget is not None:
            assert self.learner.deadline is not None
            minutes, self.budget = self.budget.minutes, self.learner.deadline.after(self.learner.step)
            steps = self.budget.fitting(most=planned)
            if steps < min(LEAST_STEPS, planned):
                self.diverged = self._out_of_time = True
                room = f"what is left of --minutes {minutes:g} has room for {steps} more steps"
                return False, f"{reason}; given up, as {room}: the calibrated network goes on"
            self.schedule = replace(self.schedule, steps=steps)
            left = f", with {steps} steps, for which what is left of --minutes {minutes:g} has room"
        self.backoffs += 1
        self.rates = self.rates.times(_BACKOFF)
        self.learner = self._begun()
        return True, f"{reason}; starting again at learning rate {self.rates.weights:.3g}{left}"

    def restore(self, tensors: Mapping[str, Tensor], place: Place) -> None:
        """Go on where the state of the learner was taken; raises as `Learner.restore` does."""
        if (attempt := place.attempt) is None:
            raise ValueError("attempt is missing")
        self.budget = attempt.budget
        self.learner.deadline = self._deadline()
        self.learner.restore(tensors, place)
        self._fresh.load_state_dict(self.learner.objective.state_dict())
        self.rates, self.first_steps, self.backoffs = attempt.rates, attempt.first_steps, attempt.backoffs
        self.learner.optimiser.set_peaks(self.rates)
        self.learner.attempt = attempt

    # The end.

    def finish(self) -> TrainedStudent:
        """The last step's weights where they lowered the held-out loss beyond chance, else the calibrated ones."""
        steps = self.learner.steps
        if self._closed_forms is not None:
            self._closed_forms.settle()
        if self._clipped_scales is not None:
            self._clipped_scales.settle()
        if self._normalisation is not None and not self.diverged:
            statistics = self.images.for_statistics(steps)
            self.network = self._normalisation.fold(self._calibrated(trainable=True), statistics)
        verdict: Verdict | None = None
        if steps and not self.diverged:
            verdict = judged(self._before, self.judge.of_held_out(self.network))
        trained = verdict is not None and verdict.improves
        network: PreparedNetwork = self.network if trained else self.student.network()
        calibrated = max(0.0, float(self._before.losses.mean()))
        remarks = remarks_on(network, verdict, calibrated=calibrated, ignorant=self._before.ignorant)
        record = Distillation(
            steps=steps,
            planned_steps=None if steps == self.schedule.steps else self.schedule.steps,
            learning_rate=self.rates.weights,
            loss_calibrated=calibrated,
            loss_final=None if verdict is None else verdict.final,
            chosen="trained" if trained else "calibrated",
            backoffs=self.backoffs,
            diverged=self.diverged,
            curve=tuple(self.learner.curve),
            gain=None if verdict is None else verdict.gain,
            gain_error=None if verdict is None else verdict.error,
            remarks=(
                *(self._fresh.remarks if steps else ()),
                *self.of_budget(),
                *self.first_steps,
                *(given_up(self.rates.weights, self.backoffs, self._out_of_time) if self.diverged else ()),
                *remarks,
            ),
        )
        for parameter in network.parameters():
            parameter.grad = None  # as large as the network itself
        # Plain memory layout: what is saved and frozen must not depend on the layout that trained fastest.
        plain = network.cpu().to(memory_format=torch.contiguous_format)
        return TrainedStudent(network=plain.eval(), distillation=record)
