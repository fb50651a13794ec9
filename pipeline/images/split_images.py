"""The images of a run: what trains, what judges, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.images.sources.image_source import ImageSource


@dataclass(frozen=True, kw_only=True)
class SplitImages:
    """The images of a run: most calibrate and train, some are kept out to judge the result by its distillation loss."""

    source: ImageSource
    training: NDArray[np.int64]
    held_out: NDArray[np.int64]
    workers: int = 0
    augmentation: str = "auto"
    calibration: NDArray[np.int64] | None = None
    """Those that ranges are read from, in the order of the source; None: all that train."""
    labels: NDArray[np.int64] | None = None
    """One per image of the source, only where a loss was asked to look at them."""
    label_order: str = ""
    """How the labels' classes were matched with the network's, half a sentence."""
    preview: str | None = None
    """Some of the images as a PNG in base64, where they were generated."""
