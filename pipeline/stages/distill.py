"""Train the quantised student to be its float teacher, from images alone."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from pipeline.artifacts import TrainedStudent, load_tensors, save_tensors
from pipeline.distillation.training.task import Task
from pipeline.distillation.training.trainer import Trainer

# Seconds between two checkpoints on disk; what is trained does not depend on it, as a resumed run is the same run.
_CHECKPOINT_SECONDS = 20.0
_MOST_BACKOFFS = 3

Step = Callable[[int, int, Mapping[str, float]], None]


def distil(task: Task, *, checkpoint: Path, step: Step, say: Callable[[str], None]) -> TrainedStudent:
    """Distil the teacher into the calibrated student; the last step's weights if they are better, or the calibrated.

    Better is a distillation loss on held-out unlabelled images that is lower beyond chance, image by image: no label is
    read there. A run whose loss diverges starts again at a lower learning rate, at
    most three times, and says so. `checkpoint` is written every few seconds and when interrupted; a run that finds it
    goes on from there and ends with the same weights.
    """
    trainer = Trainer(task)
    with _matmul_precision(task.fast and task.device.type == "cuda"):
        trainer.measure_start()
        if checkpoint.exists():
            trainer.restore(*load_tensors(checkpoint))
        elif task.schedule.steps:
            trainer.teach_branches()
            trainer.first_steps = tuple(trainer.try_first_step())
            for line in trainer.first_steps:
                say(line)
        if task.schedule.steps:
            _train(trainer, checkpoint, step, say)
        return trainer.finish()


def _train(trainer: Trainer, checkpoint: Path, step: Step, say: Callable[[str], None]) -> None:
    while not trainer.diverged:
        reason = _attempt(trainer, checkpoint, step)
        if reason is None:
            return
        if trainer.backoffs == _MOST_BACKOFFS:
            trainer.diverged = True
            say(f"{reason}; given up after {trainer.backoffs} lower learning rates: the calibrated network goes on")
            return
        trainer.back_off()
        say(f"{reason}; starting again at learning rate {trainer.rates.weights:.3g}")


def _attempt(trainer: Trainer, checkpoint: Path, step: Step) -> str | None:
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


@contextlib.contextmanager
def _matmul_precision(tf32: bool) -> Iterator[None]:
    """TF32 for convolutions inside the block: 11 bits hold the student's integers exactly, sums are float32."""
    if not tf32:
        yield
        return
    with torch.backends.cudnn.flags(allow_tf32=True):
        yield
