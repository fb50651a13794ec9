"""The noise between two executions, and the few values of a layer that a bundle holds to measure it by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Values per image and layer that a bundle holds: enough for a tenth of a decibel, 4 kB a layer.
MOST_VALUES = 1024
_CLEAN_DB = 120.0


def sampled(values: NDArray[Any], most: int = MOST_VALUES) -> NDArray[np.float32]:
    """At most so many values per image of a tensor [B, ...], from the same places every time; float32 [B, K]."""
    flat = values.reshape(len(values), -1)
    places = np.unique(np.linspace(0, flat.shape[1] - 1, min(most, flat.shape[1])).astype(np.int64))
    return np.ascontiguousarray(flat[:, places], np.float32)


def sqnr_db(reference: NDArray[Any], values: NDArray[Any]) -> float | None:
    """Power of the reference over that of the difference, decibels, 120 at most; None where the reference is 0."""
    signal = reference.astype(np.float64)
    power, noise = float(np.mean(signal**2)), float(np.mean((signal - values.astype(np.float64)) ** 2))
    if power == 0:
        return None
    if not np.isfinite(noise):
        return float("-inf")
    return _CLEAN_DB if noise == 0 else min(float(10 * np.log10(power / noise)), _CLEAN_DB)
