"""Factors of resizings as files hold them, in float32, where a product that is not rounded must still give the size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nearest_places(length: int, size: int, step: np.float32) -> NDArray[np.int64]:
    """The place that every one of `size` takes of `length`, int64 [size], `step` apart.

    Source: torch's UpSample.h, nearest_neighbor_compute_source_index, in float32 as there.
    """
    return np.minimum((np.arange(size, dtype=np.float32) * step).astype(np.int64), length - 1)


def written_factor(length: int, size: int, factor: float, *, nearest: bool) -> np.float32 | None:
    """A factor in float32 by which `length` gives `size` also where the product is rounded down, and not to float32.

    ONNX's inference of shapes multiplies so, and refuses what follows where it is one short: the next larger number
    where the nearest is just below. Of the nearest places, which runtimes find by a division, none moves: None where
    no such factor exists. A factor that does not make the size in exact numbers either is kept as it is.
    """
    plain = np.float32(factor)
    larger = np.nextafter(plain, np.float32(np.inf))
    makers = [one for one in (plain, larger) if int(float(one) * length) == size]
    if not makers or not nearest:
        return makers[0] if makers else plain
    expected = nearest_places(length, size, np.float32(length) / np.float32(size)).tolist()
    counted = np.arange(size, dtype=np.float32)
    return next((one for one in makers if np.floor(counted / one).tolist() == expected), None)
