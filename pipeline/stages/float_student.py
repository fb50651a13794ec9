"""Teach a float student of another architecture before it is quantised: with its BatchNorms, from images alone."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.eager import own_copy
from calibration.errors import UserError
from calibration.graph.training_mode import in_training
from calibration.rewrites.fold import fold
from pipeline.artifacts import Network, load_tensors, save_tensors
from pipeline.distillation.build import build_objective
from pipeline.distillation.objective import ObjectiveConfig
from pipeline.distillation.schedules import learning_rate_factor
from pipeline.distillation.taps import tap_float
from pipeline.distillation.terms import Seen, Signals
from pipeline.distillation.training.mirror import mean_of_mirrored, with_mirror_images
from pipeline.distillation.training.task import channels_last
from pipeline.images.data import ordered_batches, training_batches
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.images.unlabelled import UnlabelledImages
from pipeline.networks.outputs.agreement import OutputTally
from pipeline.networks.outputs.meaning import Output, primary
from pipeline.tools.randomness import generator_for

_CHECKPOINT_SECONDS = 20.0
_WARM_UP_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class FloatTask:
    """Who learns from whom, in float: steps >= 1, images per step, Adam's peak rate.

    `teacher_outputs` are the teacher's own.
    """

    student: Network
    teacher: GraphModule
    teacher_outputs: tuple[Output, ...]
    images: UnlabelledImages
    preprocessing: Preprocessing
    objective: ObjectiveConfig
    taps: tuple[str, ...] | None
    mirror: bool
    steps: int
    batch_size: int
    learning_rate: float
    device: torch.device
    seed: int


def teach_float(
    task: FloatTask, *, checkpoint: Path, step: Callable[[int, int, Mapping[str, float]], None]
) -> tuple[dict[str, Tensor], float]:
    """The student's weights and statistics after distillation, and the share of held-out images it classes as asked.

    The last step's weights; `checkpoint` is written every few seconds and when interrupted, and gone on from.
    Raises UserError when the loss stops being finite.
    """
    learner = _Learner(task)
    if checkpoint.exists():
        learner.restore(*load_tensors(checkpoint))
    kept = time.monotonic()
    try:
        for images in learner.batches():
            loss = learner.update(images)
            if not math.isfinite(loss):
                raise UserError(
                    f"the float student diverged at step {learner.step}: use a lower --float-learning-rate than"
                    f" {task.learning_rate:g}"
                )
            step(learner.step, task.steps, {"loss": loss})
            if time.monotonic() - kept > _CHECKPOINT_SECONDS:
                save_tensors(checkpoint, *learner.state())
                kept = time.monotonic()
    except KeyboardInterrupt:
        save_tensors(checkpoint, *learner.state())
        raise
    weights = {name: tensor.detach().cpu() for name, tensor in learner.network.state_dict().items()}
    return weights, learner.agreement(with_weights(task.student, weights).folded)


def with_weights(student: Network, weights: Mapping[str, Tensor]) -> Network:
    """The student with trained weights and statistics, folded anew, and a copy of its own module that has them too."""
    captured = in_training(student.captured, training=False)
    captured.load_state_dict(weights)
    return replace(student, module=_module_with(student.module, weights), captured=captured, folded=fold(captured))


def _module_with(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module in evaluation mode whose parameters and buffers have the values of these names.

    A graph keeps the module's names; what it has beside them are constants, which do not learn.
    """
    taught = copy.deepcopy(own_copy(module))
    parameters = taught.named_parameters(remove_duplicate=False)
    places = dict[str, Tensor]([*parameters, *taught.named_buffers(remove_duplicate=False)])
    with torch.no_grad():
        for name, values in weights.items():
            if name in places:
                places[name].copy_(values)
    return taught


class _Learner:
    """The moving parts: network, transforms, optimiser, position."""

    def __init__(self, task: FloatTask) -> None:
        self.task, self.step = task, 0
        # The second pass of SPEQ is one at other precisions: a float network has none.
        config = replace(task.objective, ensemble_weight=None)
        student, teachers = in_training(task.student.captured), [task.teacher]
        self.objective = build_objective(
            config, student, teachers, task.student.outputs, taps=task.taps, seed=task.seed
        ).to(task.device)
        (pairs,) = self.objective.taps
        self.network = channels_last(student, task.device)
        self.tapped = tap_float(self.network, self.objective.student_taps, outputs=task.student.outputs)
        self.teacher = tap_float(
            in_training(task.teacher, training=False), list(pairs.values()), list(pairs), outputs=task.teacher_outputs
        )
        self.teacher = channels_last(self.teacher, task.device).eval()
        trained = [*self.network.parameters(), *self.objective.parameters()]
        self.parameters = [parameter for parameter in trained if parameter.requires_grad]
        self.optimiser = torch.optim.Adam(self.parameters, lr=task.learning_rate)
        self.labels = None if task.images.labels is None else torch.from_numpy(task.images.labels)

    def batches(self) -> Any:
        """Images and labels of the steps that remain, on the device."""
        task = self.task
        for batch in training_batches(
            task.images.source,
            task.images.training,
            task.preprocessing,
            batch_size=(task.batch_size + 1) // 2 if task.mirror else task.batch_size,
            first_step=self.step,
            steps=task.steps - self.step,
            seed=task.seed,
            augmentation=task.images.augmentation,
            workers=task.images.workers,
        ):
            images = normalise(batch.images.to(task.device), task.preprocessing)
            labels = None if self.labels is None else self.labels[batch.indices].to(task.device)
            if task.mirror:
                images, labels = with_mirror_images(images), None if labels is None else labels.repeat(2)
            yield images.contiguous(memory_format=torch.channels_last), labels

    def _seen(self, images: Tensor) -> Seen:
        with torch.no_grad():
            outputs, features = self.teacher(images)
        if self.task.mirror:
            outputs = tuple(mean_of_mirrored(output) for output in outputs)
        return Seen(outputs=outputs, features=features)

    def update(self, batch: tuple[Tensor, Tensor | None]) -> float:
        """One step of Adam; the loss before it."""
        images, labels = batch
        outputs, features = self.tapped(images)
        loss, _ = self.objective(
            Signals(
                student=Seen(outputs=outputs, features=features),
                teachers=(self._seen(images),),
                step=self.step,
                steps=self.task.steps,
                generator=generator_for(self.task.seed, "float projections", self.step),
                labels=labels,
            )
        )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        warm_up = int(self.task.steps * _WARM_UP_SHARE)
        factor = learning_rate_factor(self.step, steps=self.task.steps, warmup_steps=warm_up, kind="cosine")
        for group in self.optimiser.param_groups:
            group["lr"] = self.task.learning_rate * factor
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def agreement(self, folded: GraphModule) -> float:
        """Share of held-out images (positions, labels) that a folded student decides as asked; of values, R2."""
        index = primary(self.task.teacher_outputs)
        # Of logits, whose decisions are those of what activations make of them.
        tally = OutputTally(replace(self.task.teacher_outputs[index], activation=None))
        student = tap_float(folded.to(self.task.device), [], outputs=self.task.student.outputs)
        with torch.no_grad():
            for batch in ordered_batches(
                self.task.images.source,
                self.task.images.held_out,
                self.task.preprocessing,
                batch_size=self.task.batch_size,
                workers=self.task.images.workers,
            ):
                images = normalise(batch.images.to(self.task.device), self.task.preprocessing)
                shown = with_mirror_images(images) if self.task.mirror else images
                target = self._seen(shown).outputs[index][: len(images)]
                tally.add({"target": target.cpu(), "simulated": student(images)[0][index].cpu()})
        folded.cpu()
        return tally.fractions()["simulated"]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resumed run needs."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in values.items()}
        return tensors, {"step": self.step}

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        for prefix, module in (("network.", self.network), ("objective.", self.objective)):
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            module.load_state_dict(own)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.step = int(record["step"])
