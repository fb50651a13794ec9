"""When two computations of a network are the same: up to float32's rounding, however the network amplifies it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Computation = Callable[[Tensor], Sequence[Tensor]]

#: Rounding of a deep network's output, relative to its largest value, stays below this; unless the network multiplies
#: what the last bit of its image does: then below so many times that (measured: up to 1.5 times, 50 layers of random
#: weights).
LARGEST_DIFFERENCE = 1e-4
LARGEST_FACTOR = 8

# Of an image whose outputs are a thousandth of another's, the last three digits are the other's rounding.
_SMALLEST_SHARE = 1e-3
# Outputs that small are zero for every purpose; the number only keeps 0 / 0 apart.
_NOTHING = 1e-12
# Where algebra is the same, float64 agrees to many more digits than float32; nothing that is wrong comes as near.
_LARGEST_IN_DOUBLE = 1e-6


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of an image's values, relative to the largest of that image in `theirs`, over all images.

    Both [B, ...]; infinite where the shapes differ, or where ours are no finite numbers and theirs are. What is not
    finite in `theirs` says nothing.
    """
    if ours.shape != theirs.shape:
        return float("inf")
    if not theirs.numel():
        return 0.0
    first, second = (
        values.detach().double().reshape(len(values) if values.dim() else 1, -1) for values in (ours, theirs)
    )
    finite = second.isfinite()
    known = torch.where(finite, second, 0.0).abs().amax(1)
    size = torch.maximum(known, known.max() * _SMALLEST_SHARE).clamp_min(_NOTHING)
    differences = torch.where(finite, (first - second).abs(), 0.0).nan_to_num(nan=float("inf"))
    return float((differences.amax(1) / size).max())


def sensitivity(network: Computation, images: Tensor) -> list[float]:
    """How far the last bit of its images moves each of a network's outputs, as `apart` says it.

    0 for an output that changes from call to call by itself: chance explains nothing.
    """
    plain, epsilon = network(images), torch.finfo(torch.float32).eps
    moved, again = [0.0] * len(plain), network(images)
    for factor in (1 + epsilon, 1 - epsilon):
        near = network(images * factor)
        moved = [max(most, apart(a, b)) for most, a, b in zip(moved, near, plain, strict=True)]
    steady = [apart(*pair) <= LARGEST_DIFFERENCE for pair in zip(again, plain, strict=True)]
    return [most if holds else 0.0 for most, holds in zip(moved, steady, strict=True)]


def differing(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], moved: Callable[[], list[float]]
) -> list[tuple[int, float]]:
    """The outputs that differ by more than rounding explains, and by how much; `moved` gives the sensitivity of each.

    It is asked only where the difference is beyond that of common networks.
    """
    differences = [apart(a, b) for a, b in zip(ours, theirs, strict=True)]
    suspects = [(index, found) for index, found in enumerate(differences) if not found <= LARGEST_DIFFERENCE]
    if not suspects:
        return []
    limits = moved()
    return [(index, found) for index, found in suspects if not found <= LARGEST_FACTOR * limits[index]]


def equal_in_double(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether two computations in float64 are the same algebra."""
    return all(apart(a, b) <= _LARGEST_IN_DOUBLE for a, b in zip(ours, theirs, strict=True))
