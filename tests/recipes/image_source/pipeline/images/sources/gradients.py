"""`gradients:COUNT`: colour gradients of random directions, the same every time."""

from __future__ import annotations

import numpy as np

from calibration.errors import UserError
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.image_source import EvaluationSet

_SIDE = 32


def open_gradients(rest: str, *, labelled: bool) -> EvaluationSet:
    """So many images of 32x32 pixels without labels; UserError for anything but a number."""
    if not rest.isdecimal() or int(rest) < 1:
        raise UserError(f"gradients:{rest}: must be gradients:COUNT with a whole number of at least 1")
    generator = np.random.default_rng(0)
    slopes = generator.uniform(-1, 1, (int(rest), 3, 2, 1, 1))
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE] / (_SIDE - 1) - 0.5
    pixels = 127.5 + 127.5 * (slopes[:, :, 0] * rows + slopes[:, :, 1] * columns)
    return EvaluationSet(images=ArraySource(f"gradients:{rest}", pixels.astype(np.uint8)), labels=None)
