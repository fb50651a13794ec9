"""Train the quantised student to be its float teacher, from images alone."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from calibration.prepared import PreparedNetwork
from calibration.renormalise import Normalisation
from pipeline.artifacts import PreparedStudent, TrainedStudent, UnlabelledImages, load_tensors, save_tensors
from pipeline.data import ordered_batches, training_batches
from pipeline.distillation.build import build_objective
from pipeline.distillation.divergence import DivergenceWatch
from pipeline.distillation.mirror import mean_of_mirrored, with_mirror_images
from pipeline.distillation.objective import ObjectiveConfig, outputs_loss, uninformed_loss
from pipeline.distillation.outputs import mean_outputs
from pipeline.distillation.schedules import learning_rate_factor
from pipeline.distillation.speq import stochastic_precision
from pipeline.distillation.taps import Tapped, tap_float, tap_prepared, write_in_place
from pipeline.distillation.terms import Seen, Signals
from pipeline.outputs import Output
from pipeline.preprocessing import Preprocessing, normalise
from pipeline.randomness import generator_for
from pipeline.report.schema import Distillation

# Seconds between two checkpoints on disk; what is trained does not depend on it, as a resumed run is the same run.
_CHECKPOINT_SECONDS = 20.0
# Below this share of an ignorant student's loss a rise is no divergence (see DivergenceWatch).
_HARMLESS_SHARE = 0.05
_BACKOFF, _MOST_BACKOFFS = 0.3, 3
_CURVE_POINTS = 200
_WARM_UP_SHARE, _MOST_WARM_UP = 0.1, 50
# Peak rate of what is trained beside the student and dropped (adapters, transforms, branches): Adam's usual one, as it
# starts from random numbers [ours].
_TRANSFORM_RATE = 1e-3
# Steps in which SAKD's branches learn their teacher's logits, before the student sees them [ours].
_BRANCH_STEPS = 200
# Batches whose statistics stand for all images where a normalisation begins and where it is folded away [ours].
_STATISTICS_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast: steps, images per step, peak rates of Adam for weights and for log-scales.

    `normalised`: convolutions learn with a normalisation over the batch, which is folded away at the end (see
    `calibration.renormalise`).
    """

    steps: int
    batch_size: int
    learning_rate: float
    scale_learning_rate: float
    learned_scales: Literal["all", "weights", "none"]
    normalised: bool = False


@dataclass(frozen=True, kw_only=True)
class Task:
    """Who learns from whom, on what, how and where: all that decides the trained weights.

    `outputs`: what the two networks' outputs hold. `taps` None: found by themselves. `mirror` averages the teacher's
    logits over each image and its mirror image, which is in the same batch (see `pipeline.distillation.mirror`). `fast`
    allows TF32, which is exact on the student's integers, and bfloat16 for the teacher. `seed` >= 0. `co_teachers`
    teach beside the teacher. `predecessor` is a trained student of the same graph that teaches instead of the teacher.
    """

    student: PreparedStudent
    teacher: GraphModule
    images: UnlabelledImages
    preprocessing: Preprocessing
    outputs: tuple[Output, ...]
    objective: ObjectiveConfig
    schedule: Schedule
    taps: tuple[str, ...] | None
    mirror: bool
    device: torch.device
    fast: bool
    seed: int
    co_teachers: tuple[GraphModule, ...] = ()
    predecessor: PreparedNetwork | None = None


Step = Callable[[int, int, Mapping[str, float]], None]


def distil(task: Task, *, checkpoint: Path, step: Step, say: Callable[[str], None]) -> TrainedStudent:
    """Distil the teacher into the calibrated student; the last step's weights, or the calibrated ones after harm.

    Harm is a distillation loss on held-out unlabelled images above both the calibrated student's and 5 % of an
    ignorant one's: no label is read there. A run whose loss diverges starts again at a lower learning rate, at
    most three times, and says so. `checkpoint` is written every few seconds and when interrupted; a run that finds it
    goes on from there and ends with the same weights.
    """
    trainer = _Trainer(task)
    with _matmul_precision(task.fast and task.device.type == "cuda"):
        trainer.measure_start()
        if checkpoint.exists():
            trainer.restore(*load_tensors(checkpoint))
        elif task.schedule.steps:
            trainer.teach_branches()
        if task.schedule.steps:
            _train(trainer, checkpoint, step, say)
        return trainer.finish()


def _train(trainer: _Trainer, checkpoint: Path, step: Step, say: Callable[[str], None]) -> None:
    while not trainer.diverged:
        reason = _attempt(trainer, checkpoint, step)
        if reason is None:
            return
        if trainer.backoffs == _MOST_BACKOFFS:
            trainer.diverged = True
            say(f"{reason}; given up after {trainer.backoffs} lower learning rates: the calibrated network goes on")
            return
        trainer.back_off()
        say(f"{reason}; starting again at learning rate {trainer.learning_rate:.3g}")


def _attempt(trainer: _Trainer, checkpoint: Path, step: Step) -> str | None:
    """Train to the last step, or return why the run has diverged; state is kept on the way and on Ctrl-C."""
    kept = time.monotonic()
    try:
        for images, labels in trainer.batches():
            loss = trainer.update(images, labels)
            # Other terms have scales of their own; one that is not finite is seen in the sum.
            reason = trainer.watch.observe(trainer.logit_part if math.isfinite(loss) else loss)
            if reason is not None:
                return reason
            step(trainer.step, trainer.task.schedule.steps, {"loss": loss})
            if time.monotonic() - kept > _CHECKPOINT_SECONDS:
                save_tensors(checkpoint, *trainer.state())
                kept = time.monotonic()
    except KeyboardInterrupt:
        save_tensors(checkpoint, *trainer.state())
        raise
    return None


class _Trainer:
    """The moving parts of one training run: networks, optimiser, position, history."""

    def __init__(self, task: Task) -> None:
        self.task = task
        teachers = [task.teacher if task.predecessor is None else task.student.folded, *task.co_teachers]
        self.fresh = build_objective(
            task.objective, task.student.folded, teachers, task.outputs, taps=task.taps, seed=task.seed
        )
        # Copies: the student is made from the same graph, and the caller's stays on its device.
        tapped = [
            write_in_place(tap_float(copy.deepcopy(teacher), list(taps.values()), list(taps)))
            for teacher, taps in zip(teachers, self.fresh.taps, strict=True)
        ]
        if task.predecessor is not None:
            tapped[0] = tap_prepared(copy.deepcopy(task.predecessor), list(self.fresh.taps[0]), reals=self.fresh.reals)
        self.teachers: list[Tapped] = [
            teacher.to(task.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            for teacher in tapped
        ]
        self.labels = None if task.images.labels is None else torch.from_numpy(task.images.labels)
        self.logit_part = 0.0
        self.backoffs, self.diverged = 0, False
        self.learning_rate = task.schedule.learning_rate
        self.loss_calibrated = self.floor = 0.0
        self._begin()

    def _begin(self) -> None:
        """The calibrated student, a fresh optimiser, step 0."""
        self.network = self.task.student.network().to(self.task.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.normalisation: Normalisation | None = None
        if self.task.schedule.normalised and self.task.schedule.steps:
            self.normalisation = Normalisation(self.network, self.task.student.folded)
            self.normalisation.begin(self._images(0))
        self.objective = copy.deepcopy(self.fresh).to(self.task.device)
        self.tapped = tap_prepared(self.network, self.objective.student_taps, reals=self.objective.reals)
        scales = self.task.schedule.learned_scales
        learned = self.network.scale_parameters(activations=scales == "all", weights=scales != "none")
        ids = {id(parameter) for parameter in learned}
        for parameter in self.network.scale_parameters(activations=True, weights=True):
            parameter.requires_grad_(id(parameter) in ids)
        groups = [{"params": self.network.weight_parameters(), "share": 1.0}]
        if learned:
            share = self.task.schedule.scale_learning_rate / self.task.schedule.learning_rate
            groups.append({"params": learned, "share": share})
        transforms = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        if transforms:
            groups.append({"params": transforms, "share": _TRANSFORM_RATE / self.task.schedule.learning_rate})
        self.optimiser = torch.optim.Adam(groups, lr=self.learning_rate, fused=self.task.device.type in {"cpu", "cuda"})
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self.watch = DivergenceWatch(reference=self.loss_calibrated, floor=self.floor)

    # Losses.

    def _seen(self, images: Tensor) -> tuple[Seen, ...]:
        """What every teacher makes of the images; of a batch with mirror images, the mean logits of each pair."""
        found = []
        with torch.no_grad(), torch.autocast(self.task.device.type, torch.bfloat16, enabled=self.task.fast):
            for teacher in self.teachers:
                outputs, features = teacher(images)
                outputs = tuple(output.float() for output in outputs)
                if self.task.mirror:
                    outputs = tuple(mean_of_mirrored(output) for output in outputs)
                found.append(Seen(outputs=outputs, features=features))
        return tuple(found)

    def _ensemble(self, images: Tensor) -> tuple[Tensor, ...]:
        """The student's second pass, each activation at fewer bits or at 8 by chance."""
        config, generator = self.task.objective, generator_for(self.task.seed, "precision", self.step)
        precision = stochastic_precision(self.network, config.ensemble_bits, config.ensemble_probability, generator)
        with torch.no_grad(), precision:
            outputs: tuple[Tensor, ...] = self.network(images)
        return outputs

    def _on_device(self, images: Tensor) -> Tensor:
        moved = images.to(self.task.device, non_blocking=True)
        return normalise(moved, self.task.preprocessing).contiguous(memory_format=torch.channels_last)

    def held_out_loss(self) -> tuple[float, float]:
        """Loss of the student's outputs on the held-out images, and that of one that ignores its input."""
        total, ignorant, count = 0.0, 0.0, 0
        self.network.eval()
        with torch.no_grad():
            for batch in ordered_batches(
                self.task.images.source,
                self.task.images.held_out,
                self.task.preprocessing,
                batch_size=self.task.schedule.batch_size,
            ):
                images = self._on_device(batch.images)
                outputs, config = self.task.outputs, self.task.objective
                shown = with_mirror_images(images) if self.task.mirror else images
                seen = [[output[: len(images)] for output in teacher.outputs] for teacher in self._seen(shown)]
                targets = mean_outputs(seen, outputs, temperature=config.softening)
                total += float(outputs_loss(self.network(images), targets, outputs, config=config)) * len(images)
                ignorant += float(uninformed_loss(targets, outputs, config=config)) * len(images)
                count += len(images)
        self.network.train()
        # KL of two all but equal distributions may come out a rounding error below zero.
        return max(0.0, total / count), max(0.0, ignorant / count)

    def measure_start(self) -> None:
        """Judge the calibrated student: what training must improve, and what divergence is measured by."""
        self.loss_calibrated, ignorant = self.held_out_loss()
        self.floor = _HARMLESS_SHARE * ignorant
        self.watch = DivergenceWatch(reference=self.loss_calibrated, floor=self.floor)

    # Steps.

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images of the steps that remain, on the device, with labels where they were asked for."""
        return self._batches(self.step, self.task.schedule.steps - self.step)

    def _batches(self, first_step: int, steps: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        batch_size = self.task.schedule.batch_size
        if self.task.mirror:
            batch_size = (batch_size + 1) // 2  # the other half are their mirror images
        for batch in training_batches(
            self.task.images.source,
            self.task.images.training,
            self.task.preprocessing,
            batch_size=batch_size,
            first_step=first_step,
            steps=steps,
            seed=self.task.seed,
            augmentation=self.task.images.augmentation,
            workers=self.task.images.workers,
            pin_memory=self.task.device.type == "cuda",
        ):
            labels = None if self.labels is None else self.labels[batch.indices].to(self.task.device, non_blocking=True)
            yield self._on_device(batch.images), labels

    def _images(self, first_step: int) -> Iterator[Tensor]:
        """Training images from which statistics of the layers are read, some batches of them."""
        return (images for images, _ in self._batches(first_step, _STATISTICS_BATCHES))

    def teach_branches(self) -> None:
        """Train the branches of SAKD's teacher to give its logits; nothing where the objective has none."""
        term = self.fresh.to(self.task.device).branches
        if term is None:
            return
        optimiser = torch.optim.Adam(
            [parameter.requires_grad_() for parameter in term.teacher.parameters()], lr=_TRANSFORM_RATE
        )
        for images, _ in self._batches(0, _BRANCH_STEPS):
            optimiser.zero_grad(set_to_none=True)
            shown = with_mirror_images(images) if self.task.mirror else images
            torch.autograd.backward(term.teach(self._seen(shown)[0]))
            optimiser.step()
        term.teacher.requires_grad_(False)
        self._begin()

    def update(self, images: Tensor, labels: Tensor | None = None) -> float:
        """One step of Adam; the loss before it."""
        if self.task.mirror:
            images, labels = with_mirror_images(images), None if labels is None else labels.repeat(2)
        outputs, features = self.tapped(images)
        signals = Signals(
            student=Seen(outputs=outputs, features=features),
            teachers=self._seen(images),
            step=self.step,
            steps=self.task.schedule.steps,
            generator=generator_for(self.task.seed, "projections", self.step),
            labels=labels,
            ensemble=self._ensemble(images) if self.objective.wants_ensemble else None,
        )
        loss, parts = self.objective(signals)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        steps = self.task.schedule.steps
        warm_up = min(_MOST_WARM_UP, int(steps * _WARM_UP_SHARE))
        factor = learning_rate_factor(self.step, steps=steps, warmup_steps=warm_up, kind="cosine")
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate * group["share"] * factor
        self.optimiser.step()
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
        for index, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in values.items()}
        record = {
            "step": self.step,
            "learning_rate": self.learning_rate,
            "backoffs": self.backoffs,
            "watch": self.watch.state(),
            "curve": self.curve,
        }
        return tensors, record

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        for prefix, module in (("network.", self.network), ("objective.", self.objective)):
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            module.load_state_dict(own)
        self.fresh.load_state_dict(self.objective.state_dict())
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".", 2)
                like = parameters[int(index)]
                # Fused Adam walks parameter and moments in storage order: they must have one memory layout.
                laid_out = (
                    torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape and key != "step" else tensor
                )
                state.setdefault(int(index), {})[key] = laid_out
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.learning_rate = int(record["step"]), float(record["learning_rate"])
        self.backoffs = int(record["backoffs"])
        self.watch.restore(record["watch"])
        self.curve = [(int(step), float(loss)) for step, loss in record["curve"]]

    def finish(self) -> TrainedStudent:
        """The last step's weights, or the calibrated ones where training did harm to the held-out distillation loss."""
        if self.normalisation is not None and not self.diverged:
            plain = self.task.student.network().to(self.task.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.network = self.normalisation.fold(plain, self._images(self.task.schedule.steps))
        final = self.loss_calibrated if self.diverged or not self.task.schedule.steps else self.held_out_loss()[0]
        # Small losses on held-out images rank students that all but equal their teacher no better than chance does.
        worst = max(self.loss_calibrated, self.floor)
        trained = bool(self.task.schedule.steps) and not self.diverged and final <= worst
        network: PreparedNetwork = self.network if trained else self.task.student.network()
        record = Distillation(
            steps=self.task.schedule.steps,
            learning_rate=self.learning_rate,
            loss_calibrated=self.loss_calibrated,
            loss_final=None if self.diverged or not self.task.schedule.steps else final,
            chosen="trained" if trained else "calibrated",
            backoffs=self.backoffs,
            diverged=self.diverged,
            curve=tuple(self.curve),
        )
        # Plain memory layout: what is saved and frozen must not depend on the layout that trained fastest.
        plain = network.cpu().to(memory_format=torch.contiguous_format)
        return TrainedStudent(network=plain.eval(), distillation=record)


@contextlib.contextmanager
def _matmul_precision(tf32: bool) -> Iterator[None]:
    """TF32 for convolutions inside the block: 11 bits hold the student's integers exactly, sums are float32."""
    if not tf32:
        yield
        return
    with torch.backends.cudnn.flags(allow_tf32=True):
        yield
