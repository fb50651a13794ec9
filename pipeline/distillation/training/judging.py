"""How a student is judged by the images that were held out: by what its teachers say of them, without labels."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from calibration.simulation.prepared import PreparedNetwork
from pipeline.artifacts import Lesson, Network
from pipeline.config.distillation import DistillationConfig
from pipeline.distillation.losses.of_outputs import mean_outputs
from pipeline.distillation.objective import loss_per_image, uninformed_loss
from pipeline.distillation.taps import Tapped, tap_prepared
from pipeline.distillation.training.lesson_images import LessonImages
from pipeline.distillation.training.plateau import seen_early
from pipeline.distillation.training.teachers import Teachers
from pipeline.distillation.training.verdict import HeldOut, agreement_per_image


@final
class Judge:
    """Judges quantised forms of one float student by a lesson, all by the same images."""

    def __init__(
        self, student: Network, lesson: Lesson, settings: DistillationConfig, teachers: Teachers, images: LessonImages
    ) -> None:
        self._student, self._settings, self._teachers, self._images = student, settings, teachers, images
        self._outputs, self._preprocessing = lesson.teacher.outputs, lesson.teacher.preprocessing
        self._shown = list[tuple[Tensor, list[Tensor]]]()

    def targets(self, images: Tensor) -> list[Tensor]:
        """What a student is to say of images, which may have their mirror images behind them."""
        outputs = [list(teacher.outputs) for teacher in self._teachers.seen(images)]
        return mean_outputs(outputs, self._outputs, temperature=self._settings.softening)

    @torch.no_grad()
    def of_held_out(self, network: PreparedNetwork) -> HeldOut:
        """A student's losses of the held-out images, how far it decides as asked, and what one that sees none loses."""
        losses, agreement, ignorant = list[Tensor](), list[Tensor](), 0.0
        outputs, config = self._outputs, self._settings
        student = self._tapped(network.eval())
        for images in self._images.held_out():
            targets = self._asked_of(images)
            answers = student(images)[0]
            losses.append(loss_per_image(answers, targets, outputs, config=config))
            agreement.append(agreement_per_image(answers, targets, outputs))
            ignorant += float(uninformed_loss(targets, outputs, config=config)) * len(images)
        joined, alike = torch.cat(losses), torch.cat(agreement)
        decides = not bool(alike.isnan().any())
        return HeldOut(losses=joined, agreement=alike if decides else None, ignorant=max(0.0, ignorant / len(joined)))

    @torch.no_grad()
    def on_the_way(self, network: PreparedNetwork) -> Tensor:
        """The losses of a student that goes on learning, on some of the held-out images, float64 [N]."""
        if not self._shown:
            self._shown = seen_early(self._images, self._preprocessing, self._asked_of)
        training = network.training
        student = self._tapped(network.eval())
        losses = [
            loss_per_image(student(images)[0], asked, self._outputs, config=self._settings)
            for images, asked in self._shown
        ]
        network.train(training)
        return torch.cat(losses).cpu()

    def _asked_of(self, images: Tensor) -> list[Tensor]:
        """What a student is to say of images alone, whose mirror images may count as well."""
        return [target[: len(images)] for target in self.targets(self._images.with_mirrors(images)[0])]

    def _tapped(self, network: PreparedNetwork) -> Tapped:
        return tap_prepared(network, [], folded=self._student.folded, outputs=self._student.outputs)
