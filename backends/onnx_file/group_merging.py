"""Grouped convolutions of few channels a group, written with several groups in one and zeros between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def groups_in_one(groups: int, inputs: int, outputs: int, most: int) -> int:
    """How many groups to write as one: as many as keep it within `most` input and output channels.

    `inputs` and `outputs` of one group. 1 for a depthwise convolution of one output a channel, which has kernels of
    its own, and wherever no divisor of the number of groups fits.
    """
    if groups == 1 or inputs == outputs == 1:
        return 1
    return max(count for count in range(1, groups + 1) if groups % count == 0 and _fits(count, inputs, outputs, most))


def _fits(count: int, inputs: int, outputs: int, most: int) -> bool:
    return count == 1 or count * max(inputs, outputs) <= most


def merged_weight(weight: NDArray[Any], groups: int, count: int) -> NDArray[Any]:
    """A weight [O, I / groups, kh, kw] with every `count` groups in one: [O, count * I / groups, kh, kw].

    Each output reads the channels of its own group; the weights of its neighbours' are zero, so sums do not change.
    """
    outputs, inputs = weight.shape[:2]
    merged = np.zeros((outputs, count * inputs, *weight.shape[2:]), weight.dtype)
    for output in range(outputs):
        start = output // (outputs // groups) % count * inputs
        merged[output, start : start + inputs] = weight[output]
    return merged
