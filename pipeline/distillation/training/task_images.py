"""The images of a task as its student sees them: normalised, on the device, in the order of the seed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.distillation.training.task import Task
from pipeline.images.data import ordered_batches, training_batches
from pipeline.images.preprocessing import normalise

# Batches whose statistics stand for all images where a normalisation begins and where it is folded away [ours].
_STATISTICS_BATCHES = 16


class TaskImages:
    """Batches of a task's training images and of those held out."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.labels = None if task.images.labels is None else torch.from_numpy(task.images.labels)

    def training(self, first_step: int, steps: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images of these steps, with labels where they were asked for; half a batch where mirror images join it."""
        task = self.task
        batch_size = (task.schedule.batch_size + 1) // 2 if task.mirror else task.schedule.batch_size
        for batch in training_batches(
            task.images.source,
            task.images.training,
            task.preprocessing,
            batch_size=batch_size,
            first_step=first_step,
            steps=steps,
            seed=task.seed,
            augmentation=task.images.augmentation,
            workers=task.images.workers,
            pin_memory=task.device.type == "cuda",
        ):
            labels = None if self.labels is None else self.labels[batch.indices].to(task.device, non_blocking=True)
            yield self.on_device(batch.images), labels

    def for_statistics(self, first_step: int) -> Iterator[Tensor]:
        """Training images from which statistics of the layers are read, some batches of them."""
        return (images for images, _ in self.training(first_step, _STATISTICS_BATCHES))

    def held_out(self) -> Iterator[Tensor]:
        """The images that do not train, in order."""
        task = self.task
        for batch in ordered_batches(
            task.images.source, task.images.held_out, task.preprocessing, batch_size=task.schedule.batch_size
        ):
            yield self.on_device(batch.images)

    def on_device(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] of values in [0, 1], normalised."""
        moved = images.to(self.task.device, non_blocking=True)
        return normalise(moved, self.task.preprocessing).contiguous(memory_format=torch.channels_last)
