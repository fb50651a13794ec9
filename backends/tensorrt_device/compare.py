"""Outputs of two executions side by side: agreement, noise, and the few values of a layer that a bundle holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Values per image and layer that a bundle holds: enough for a tenth of a decibel, 4 kB a layer.
MOST_VALUES = 1024
_CLEAN_DB = 120.0
#: Of values' own variance against the noise, decibels: a runtime's float arithmetic moves some integers by one step.
LEAST_DB = 20.0
#: Of an output's answers, those that must be the oracle's: such a step flips a pixel of a map here and there. The same
#: share as faqd's own gate asks for.
LEAST_SAME = 0.99


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


def same_answers(output: NDArray[Any], expected: NDArray[Any], holds: str, axis: int) -> tuple[int, int]:
    """How many answers of an output are the expected ones, and how many there are.

    `holds` says what an output is: "classes" (an answer is the argmax along `axis`), "labels" (the sign of each) or
    "values" (one answer: whether the noise stays below LEAST_DB).
    """
    if holds == "values":
        noise = sqnr_db(expected - expected.mean(dtype=np.float64), output - expected.mean(dtype=np.float64))
        return int(noise is None or noise >= LEAST_DB), 1
    answers = [values.argmax(axis) if holds == "classes" else values > 0 for values in (output, expected)]
    return int((answers[0] == answers[1]).sum()), int(answers[1].size)


def agrees(same: int, answers: int) -> bool:
    """Whether so many of an output's answers are the expected ones that only ties can be behind the others."""
    return same >= LEAST_SAME * answers


def normalised(images: NDArray[Any], mean: list[float], std: list[float]) -> NDArray[np.float32]:
    """uint8 images [B, C, H, W] as a network's input: x / 255, minus the mean, over the deviation, per channel."""
    centre, spread = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
    return np.asarray((images.astype(np.float32) / np.float32(255) - centre) / spread, np.float32)
