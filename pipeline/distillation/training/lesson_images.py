"""The images of a lesson as a student sees them: normalised, on the device, in the order of the seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import Lesson
from pipeline.distillation.training.mirror import with_mirror_images
from pipeline.images.data import ordered_batches, training_batches
from pipeline.images.preprocessing import normalise

# Batches whose statistics stand for all images where a normalisation begins and where it is folded away [ours].
_STATISTICS_BATCHES = 16

#: Images, and the labels of each where they were asked for.
Batch = tuple[Tensor, Tensor | None]


@final
class LessonImages:
    """Batches of a lesson's training images and of those held out."""

    def __init__(self, lesson: Lesson, *, batch_size: int, device: torch.device, seed: int) -> None:
        self._images, self._preprocessing, self._mirror = lesson.images, lesson.teacher.preprocessing, lesson.mirror
        self._batch_size, self._device, self.seed = batch_size, device, seed
        self._labels = None if lesson.images.labels is None else torch.from_numpy(lesson.images.labels)

    def training(self, first_step: int, steps: int) -> Iterator[Batch]:
        """Images of these steps, with labels where they were asked for; half a batch where mirror images join it."""
        for batch in training_batches(
            self._images,
            self._preprocessing,
            batch_size=(self._batch_size + 1) // 2 if self._mirror else self._batch_size,
            first_step=first_step,
            steps=steps,
            seed=self.seed,
            pin_memory=self._device.type == "cuda",
        ):
            labels = None if self._labels is None else self._labels[batch.indices].to(self._device, non_blocking=True)
            yield self.on_device(batch.images), labels

    def for_statistics(self, first_step: int) -> Iterator[Tensor]:
        """Training images from which statistics of the layers are read, some batches of them."""
        return (images for images, _ in self.training(first_step, _STATISTICS_BATCHES))

    def held_out(self, *, most: int | None = None) -> Iterator[Tensor]:
        """The images that do not train, in order; `most` of them, from all over their source."""
        indices = self._images.held_out
        if most is not None and most < len(indices):
            indices = indices[np.arange(most) * len(indices) // most]
        for batch in ordered_batches(
            self._images.source,
            indices,
            self._preprocessing,
            batch_size=self._batch_size,
            workers=self._images.workers,
        ):
            yield self.on_device(batch.images)

    def on_device(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] of values in [0, 1], normalised."""
        moved = images.to(self._device, non_blocking=True)
        return normalise(moved, self._preprocessing).contiguous(memory_format=torch.channels_last)

    def with_mirrors(self, images: Tensor, labels: Tensor | None = None) -> Batch:
        """A batch with the mirror images behind it where targets are averaged over both, else the batch."""
        if not self._mirror:
            return images, labels
        return with_mirror_images(images), None if labels is None else labels.repeat(2)
