"""Place quantisers where the backend executes integers, and read their ranges from real images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch.fx import GraphModule

from backends.base import Backend
from backends.placement import Widths, place
from calibration.observe import choose_ranges, observe
from calibration.observers import RangeMethod
from pipeline.artifacts import PreparedStudent, UnlabelledImages
from pipeline.batches import images_at_once
from pipeline.data import ordered_batches
from pipeline.preprocessing import Preprocessing, normalise
from pipeline.randomness import generator_for

_BATCH = 64


def prepare(
    folded: GraphModule,
    backend: Backend,
    images: UnlabelledImages,
    preprocessing: Preprocessing,
    *,
    widths: Widths,
    method: RangeMethod,
    count: int,
    seed: int,
    step: Callable[[int, int], None],
) -> PreparedStudent:
    """Plan for the backend and calibrate on `count` training images drawn by the seed, prepared as on the device.

    `step(done, total)` hears of the progress. Raises UserError when nothing can be quantised.
    """
    import torch

    plan = place(folded, backend.profile, widths)
    order = torch.randperm(len(images.training), generator=generator_for(seed, "calibration")).numpy()
    chosen = np.sort(images.training[order[:count]])

    def batches() -> object:
        done = 0
        most = images_at_once(preprocessing, _BATCH)
        for batch in ordered_batches(images.source, chosen, preprocessing, batch_size=most, workers=images.workers):
            yield normalise(batch.images, preprocessing)
            done += len(batch.images)
            step(done, len(chosen))

    observers = observe(folded, plan, batches())  # type: ignore[arg-type]
    return PreparedStudent(folded=folded, plan=plan, ranges=choose_ranges(observers, plan, method))
