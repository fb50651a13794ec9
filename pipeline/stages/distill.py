"""Train the quantised student to be its float teacher, from images alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from calibration.simulation.prepared import PreparedNetwork
from pipeline.artifacts import Lesson, PreparedStudent, TrainedStudent
from pipeline.config.distillation import DistillationConfig
from pipeline.config.execution import ExecutionConfig
from pipeline.distillation.training.learner import load_checkpoint, train
from pipeline.distillation.training.schedule import Schedule, is_fast
from pipeline.distillation.training.trainer import Trainer
from pipeline.tools.progress import SILENT, Progress


def distil(
    student: PreparedStudent,
    lesson: Lesson,
    settings: DistillationConfig,
    execution: ExecutionConfig,
    *,
    schedule: Schedule | None = None,
    predecessor: PreparedNetwork | None = None,
    checkpoint: Path | None = None,
    progress: Progress = SILENT,
) -> TrainedStudent:
    """Distil the teachers into the calibrated student; the last step's weights if they are better, or the calibrated.

    Better is a distillation loss on held-out unlabelled images that is lower beyond chance, image by image: no label is
    read there. A run whose loss diverges starts again at a lower learning rate, at most three times, and says so.
    `checkpoint` is written every few seconds and when interrupted; a run that finds it goes on from there and ends with
    the same weights. `schedule` and `predecessor`: see `Trainer`.
    """
    trainer = Trainer(student, lesson, settings, execution, schedule=schedule, predecessor=predecessor)
    with _matmul_precision(is_fast(execution, trainer.device) and trainer.device.type == "cuda"):
        trainer.measure_start()
        if trainer.schedule.steps:
            _begin(trainer, checkpoint, progress)
            while (reason := train(trainer.learner, checkpoint=checkpoint, progress=progress)) is not None:
                goes_on, line = trainer.goes_on_after(reason)
                progress.say(line)
                if not goes_on:
                    break
        return trainer.finish()


def _begin(trainer: Trainer, checkpoint: Path | None, progress: Progress) -> None:
    """Go on where an earlier run was, or do what comes before the first step."""
    if (kept := load_checkpoint(checkpoint)) is not None:
        trainer.restore(*kept)
        return
    trainer.teach_branches()
    for line in trainer.try_first_step():
        progress.say(line)


@contextlib.contextmanager
def _matmul_precision(tf32: bool) -> Iterator[None]:
    """TF32 for convolutions inside the block: 11 bits hold the student's integers exactly, sums are float32."""
    if not tf32:
        yield
        return
    with torch.backends.cudnn.flags(allow_tf32=True):
        yield
