"""The images that ranges are read from: drawn by the seed, prepared as on the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.images.data import ordered_batches
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.images.split_images import SplitImages
from pipeline.tools.progress import SILENT, Progress
from pipeline.tools.randomness import generator_for


def drawn_to_calibrate(training: NDArray[np.int64], *, count: int, seed: int) -> NDArray[np.int64]:
    """Which `count` of the training images calibrate, in the order of the source; all where there are fewer."""
    order = torch.randperm(len(training), generator=generator_for(seed, "calibration")).numpy()
    return np.sort(training[order[:count]])


def calibration_indices(images: SplitImages) -> NDArray[np.int64]:
    """The images that calibrate: those that were drawn for it, else all that train."""
    return np.sort(images.training) if images.calibration is None else images.calibration


def calibration_batches(
    images: SplitImages,
    indices: NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    progress: Progress = SILENT,
) -> Iterator[Tensor]:
    """Normalised images float32 [B, C, H, W]; `progress` hears of each batch."""
    done = 0
    for batch in ordered_batches(images.source, indices, preprocessing, batch_size=batch_size, workers=images.workers):
        done += len(batch.images)
        progress.step(done, len(indices))
        yield normalise(batch.images, preprocessing)
