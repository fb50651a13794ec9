"""Train the quantised student to be its float teacher, from images alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.artifacts import Lesson, PreparedStudent, TrainedStudent, TrainingFiles
from pipeline.config.distillation import DistillationConfig
from pipeline.config.execution import ExecutionConfig
from pipeline.distillation.training.learner import Place, load_checkpoint, of_this_network, train
from pipeline.distillation.training.trainer import Trainer
from pipeline.tools.kept import Kept
from pipeline.tools.memory import freed_memory_kept
from pipeline.tools.progress import SILENT, Progress


def distil(
    student: PreparedStudent,
    lesson: Lesson,
    settings: DistillationConfig,
    execution: ExecutionConfig,
    *,
    files: TrainingFiles | None = None,
    progress: Progress = SILENT,
) -> TrainedStudent:
    """Distil the teachers into the calibrated student, over as many generations as the settings ask for.

    Each generation begins with the calibrated student and learns from the one before it in place of the first teacher;
    the last is returned. With `files` one that is kept there is not taught again, and a run that was killed goes on
    within one, to the same weights.
    """
    generations = settings.generations
    places = (None,) * generations if files is None or not files.students else files.students
    if len(places) != generations or (files is not None and generations > 1 and None in places):
        raise ValueError(f"{generations} generations cannot go on with {files}: a checkpoint is of one student")
    trained: TrainedStudent | None = None
    for generation, place in enumerate(places):
        if place is not None and place.exists():
            trained = TrainedStudent.load(place, student)
            continue
        if generations > 1:
            progress.say(f"student {generation + 1} of {generations}")
        began = time.monotonic()
        with freed_memory_kept():
            predecessor = None if trained is None else trained.network
            trainer = Trainer(student, lesson, settings, execution, predecessor=predecessor)
            seconds = None
            if settings.minutes is not None:
                seconds = 60 * settings.minutes / generations - (time.monotonic() - began)
                if trained is not None:
                    # As long as the first: one number of steps says how all of a chain have learned.
                    record, size = trained.distillation, trainer.schedule.batch_size
                    trainer.take(steps=record.planned_steps or record.steps, batch_size=size)
            checkpoint = None if files is None else files.checkpoint
            trained = teach(trainer, checkpoint=checkpoint, seconds=seconds, progress=progress)
        if place is not None:
            trained.save(place)
        if files is not None:
            files.checkpoint.remove()
    assert trained is not None
    return trained


def teach(
    trainer: Trainer, *, checkpoint: Kept | None = None, seconds: float | None = None, progress: Progress = SILENT
) -> TrainedStudent:
    """Train one student; the last step's weights if they are better, or the calibrated.

    Better is a distillation loss on held-out unlabelled images that is lower beyond chance, image by image: no label is
    read there. A run whose loss diverges starts again at a lower learning rate, at most three times, and says so.
    `checkpoint` is written every few seconds and when interrupted; a run that finds it goes on from there and ends with
    the same weights. `seconds`: what a student that begins here may take, every beginning of it; one that goes on takes
    the steps that it was begun with.
    """
    began = time.monotonic()
    with _matmul_precision(trainer.fast and trainer.device.type == "cuda"):
        kept = load_checkpoint(checkpoint) if trainer.schedule.steps else None
        if kept is not None:
            with of_this_network(checkpoint):
                trainer.take_length_of(kept[1])
        trainer.measure_start()
        if trainer.schedule.steps:
            left = None if seconds is None else seconds - (time.monotonic() - began)
            _begin(trainer, kept, checkpoint, left, progress)
            while (reason := train(trainer.learner, checkpoint=checkpoint, progress=progress)) is not None:
                goes_on, line = trainer.goes_on_after(reason)
                progress.say(line)
                if not goes_on:
                    break
                if trainer.budget is not None and checkpoint is not None:
                    checkpoint.save(*trainer.learner.state())
        return trainer.finish()


def _begin(
    trainer: Trainer,
    kept: tuple[dict[str, Tensor], Place] | None,
    checkpoint: Kept | None,
    seconds: float | None,
    progress: Progress,
) -> None:
    """Go on where an earlier run was, or do what comes before the first step; `seconds`: that there are for steps."""
    if kept is not None:
        progress.say(trainer.length())
        with of_this_network(checkpoint):
            trainer.restore(*kept)
        return
    began = time.monotonic()
    trainer.teach_branches()
    if seconds is not None:
        trainer.keep_to(seconds - (time.monotonic() - began))
    for line in (*trainer.of_budget(), trainer.length(), *trainer.first_steps, *trainer.lower_rates()):
        progress.say(line)
    if seconds is not None and checkpoint is not None:
        # What a clock has settled is kept at once: measured again it would be another run.
        checkpoint.save(*trainer.learner.state())


@contextlib.contextmanager
def _matmul_precision(tf32: bool) -> Iterator[None]:
    """TF32 for convolutions inside the block: 11 bits hold the student's integers exactly, sums are float32."""
    if not tf32:
        yield
        return
    with torch.backends.cudnn.flags(allow_tf32=True):
        yield
