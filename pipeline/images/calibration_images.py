"""The images that ranges are read from: drawn by the seed, prepared as on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.images.data import ordered_batches
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.images.unlabelled import UnlabelledImages
from pipeline.tools.randomness import generator_for


def calibration_indices(images: UnlabelledImages, *, count: int, seed: int) -> NDArray[np.int64]:
    """Which `count` of the training images calibrate, in the order of the source; all where there are fewer."""
    order = torch.randperm(len(images.training), generator=generator_for(seed, "calibration")).numpy()
    return np.sort(images.training[order[:count]])


def calibration_batches(
    images: UnlabelledImages,
    indices: NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    step: Callable[[int, int], None],
) -> Iterator[Tensor]:
    """Normalised images float32 [B, C, H, W]; `step(done, total)` hears of the progress."""
    done = 0
    for batch in ordered_batches(images.source, indices, preprocessing, batch_size=batch_size, workers=images.workers):
        done += len(batch.images)
        step(done, len(indices))
        yield normalise(batch.images, preprocessing)
