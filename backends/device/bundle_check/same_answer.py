"""What is the same answer of two executions: one measure and one set of limits for runs, `faqd validate` and devices.

Every bundle carries this file, and its manifest the limits of its run: `least_parity`, and `negligible` of outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .value_tally import Spread, ValueTally, axis_of_kinds

#: Where integers compute all, every decision is the same and every number equal to the bit.
EXACT = 1.0
#: Float operators inside a network may round a last bit otherwise on two runtimes, and a rounding to integers behind
#: them go the other way: ties between classes fall apart, values move by a tenth of their spread at most [ours].
WITH_FLOAT = 0.99
#: A difference that is none where a sigmoid or softmax gives the numbers, whose range is 1: no reader tells 1e-9 from
#: 3e-9, of which R2 would make an error of twice the signal. Runtimes' float32 sigmoids are off by up to 1.7e-7
#: (`calibration.graph.nearness.LEAST_PROBABILITY`), and 8 bits have steps of 4e-3.
NEGLIGIBLE_PROBABILITY = 1e-6


def least_share(*, floats: bool) -> float:
    """The share of answers, 0 to 1, that must be the same; `floats`: some of the arithmetic is that of floats."""
    return WITH_FLOAT if floats else EXACT


def limit_on(least: float, *, same: int, total: int, numbers: float | None) -> float:
    """The share of `total` decisions that must be the same by a limit `least` on shares; `same` of them are.

    So few that one of them is more than the limit leaves cannot show a share: one may differ then, if the numbers that
    decisions were made of are alike by the same limit (`numbers`: their R2, None where that is not known).
    """
    one_of_few = least < EXACT and same == total - 1 and total * (1 - least) < 1
    return same / total if one_of_few and numbers is not None and numbers >= least else least


def answers(values: NDArray[Any], *, holds: str, axis: int, threshold: float) -> NDArray[np.int64]:
    """The decisions of an output [B, ...]: the class along `axis`, or 1 for labels above the threshold and else 0.

    -1 where a number that decides is not one: no answer is the same as none.
    """
    if holds == "classes":
        return np.where(np.isnan(values).any(axis), -1, values.argmax(axis)).astype(np.int64)
    return np.where(np.isnan(values), -1, values > threshold).astype(np.int64)


def value_tally(shape: tuple[int, ...], *, embedding: bool, negligible: float) -> ValueTally:
    """An empty tally of numbers of an output, its shape without the batch, with the spread that they are measured by.

    The numbers of an embedding mean nothing each for itself: they are of one kind.
    """
    return ValueTally(Spread(None if embedding else axis_of_kinds(shape), negligible=negligible))


def equal_share(output: NDArray[Any], expected: NDArray[Any]) -> float:
    """The share of numbers that are equal to the bit, 0 to 1; what is no number equals what is none."""
    return float(((output == expected) | (np.isnan(output) & np.isnan(expected))).mean())


def largest_difference(output: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference of two numbers, of those that are numbers."""
    with np.errstate(invalid="ignore"):  # infinite on both sides
        apart = np.abs(output.astype(np.float64) - expected)
    return float(apart[np.isfinite(apart)].max(initial=0.0))
