"""Batches of images: a pure function of the seed and the step, with any number of worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.errors import UserError
from pipeline.images.augmentation import choose_augmentation
from pipeline.images.loading import Batch, OrderedLoader, Reader, TrainingLoader, iterate, none_readable
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.sources.image_source import ImageSource
from pipeline.images.split_images import SplitImages
from pipeline.tools.randomness import generator_for

__all__ = ["Batch", "images_at_once", "ordered_batches", "split_held_out", "suggested_workers", "training_batches"]

# The side that most classifiers take: batches are sized for it.
_CUSTOMARY_PIXELS = 224 * 224


def split_held_out(
    count: int, seed: int, *, fraction: float = 0.1, most: int = 512, count_held_out: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose images to keep out of training: return (training indices, held-out indices), each ascending.

    Held out are `count_held_out` images where that is given, else `fraction` (0 to 1) of `count`, at most `most`, at
    least one, drawn by the seed.

    Raises:
        UserError: fewer than two images, or none would be left to train on.
    """
    if count < 2:
        raise UserError(f"{count} image is too few: one to train on and one to hold out are the least")
    if count_held_out is not None and count_held_out >= count:
        raise UserError(
            f"--held-out-images {count_held_out}: of {count} images at most {count - 1} can be held out, or none is"
            " left to train on"
        )
    held_out = count_held_out or min(max(1, min(most, round(count * fraction))), count - 1)
    order = torch.randperm(count, generator=generator_for(seed, "held out")).numpy()
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def images_at_once(preprocessing: Preprocessing, most: int, *, customary: int | None = None) -> int:
    """Return how many images to run through a network at a time: `most` up to 224 px, fewer of larger ones.

    `customary`: how many of 224 px, where that is fewer than the most. The memory of a network's feature maps grows
    with the pixels of its input.
    """
    pixels = preprocessing.height * preprocessing.width
    return max(1, min(most, (customary or most) * _CUSTOMARY_PIXELS // pixels))


def suggested_workers(source: ImageSource, preprocessing: Preprocessing) -> int:
    """Return how many worker processes suit a source on this host, 0 for images stored prepared.

    Otherwise one less than the cores that this process may use, 1 to 8: more than 8 decode faster than the
    common networks train on one GPU.
    """
    if Reader(source, preprocessing).array is not None:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores - 1))


def training_batches(
    images: SplitImages,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    first_step: int,
    steps: int,
    seed: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield `steps` full batches from `first_step` on, shuffled anew each time all that train have been seen.

    Batch number s depends on the seed and s alone: a run resumed at s sees what an unbroken one would have
    seen. An unreadable image is replaced by the next readable one of those that train and recorded in
    `images.source.unreadable`.

    Raises:
        UserError: no image is readable, or a worker process died.
    """
    source = images.source
    chosen = choose_augmentation(images.augmentation, source, preprocessing)
    loader = TrainingLoader(Reader(source, preprocessing), images.training, batch_size, first_step, steps, seed, chosen)
    yield from iterate(loader, source, workers=images.workers, pin_memory=pin_memory)


def ordered_batches(
    source: ImageSource,
    indices: NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield the images of `indices` in that order, prepared as the device does, `batch_size` at a time.

    The last batch may be short, and any that holds unreadable images: those are left out, recorded in
    `source.unreadable`, and `Batch.indices` says which images remain.

    Raises:
        UserError: no image is readable, or a worker process died.
    """
    loader = OrderedLoader(Reader(source, preprocessing), indices, batch_size)
    readable = False
    for batch in iterate(loader, source, workers=workers, pin_memory=pin_memory):
        if len(batch.images):
            readable = True
            yield batch
    if not readable and len(indices):
        raise UserError(none_readable(source.name, len(indices), source.unreadable.first_reason()))
